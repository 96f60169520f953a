"""The reference's outputs that are kept from plan to plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from precisionlab.backends.kept import KeptOutputs
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.data import Dataset, Sample
from precisionlab.model import Model
from precisionlab.precision import Precision
from precisionlab.rewrite.plans import plan_for


def sample(name: str, value: float) -> Sample:
    return Sample(name, {"x": np.full((2, 3), value, np.float32)})


class Computing:
    """Doubles, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, one: Sample) -> Mapping[str, Any]:
        self.count += 1
        return {"y": one.inputs["x"] * 2, "other": one.inputs["x"]}


@pytest.mark.parametrize("memory", [None, 0])
def test_a_sample_is_computed_once_in_memory_or_in_a_file(memory: int | None) -> None:
    kept, computing = KeptOutputs(memory), Computing()
    for _ in range(3):
        for number in range(4):
            one = sample(f"s{number}", number)
            assert np.array_equal(kept.of(one, ["y"], computing)["y"], one.inputs["x"] * 2)
    assert computing.count == 4


def test_a_sample_of_the_same_name_and_other_content_is_another_one() -> None:
    kept, computing = KeptOutputs(), Computing()
    assert kept.of(sample("a", 1), ["y"], computing)["y"][0, 0] == 2
    assert kept.of(sample("a", 3), ["y"], computing)["y"][0, 0] == 6
    assert computing.count == 2


def test_what_is_kept_does_not_change_with_the_array_that_it_came_in() -> None:
    kept, array = KeptOutputs(), np.ones(3, np.float32)
    kept.keep(sample("a", 1), {"y": array})
    array[:] = 7
    assert np.array_equal(kept.of(sample("a", 1), ["y"], Computing())["y"], np.ones(3))


def test_a_tensor_that_was_not_kept_is_computed() -> None:
    kept, computing = KeptOutputs(), Computing()
    kept.keep(sample("a", 1), {"y": np.ones(3, np.float32)})
    assert set(kept.of(sample("a", 1), ["y", "other"], computing)) == {"y", "other"}
    assert computing.count == 1


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_judged_alone_or_behind_a_comparison_the_figures_are_the_same_to_the_bit(
    bundled: tuple[Model, Dataset], precision: Precision
) -> None:
    model, dataset = bundled
    samples = list(dataset)
    plan = plan_for(model, precision)

    def judged(compare_first: bool) -> dict[str, Any]:
        backend = OnnxRuntimeBackend(model, samples[0], 2)
        known = backend.compare(plan, None, samples, lambda done: None, metric=None, introduced=False)
        if not compare_first:
            backend = OnnxRuntimeBackend(model, samples[0], 1)
        found = backend.judge(plan, None, samples, lambda done: None, metric=None, known=known)
        assert {name: errors.errors for name, errors in found.outputs.items()} == {
            name: errors.errors for name, errors in known.outputs.items()
        }
        return {**found.to_dict(), "seconds": 0}

    assert judged(compare_first=True) == judged(compare_first=False)
