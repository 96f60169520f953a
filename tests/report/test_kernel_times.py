"""Where the time of a measured engine goes: told by kind, type and kernel, of what its profiler and inspector say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from precisionlab.backends.tensorrt.jobs import Built, EngineLayer, EngineTensor
from precisionlab.report.kernel_times import UNTOLD, kernel_times, times_view
from precisionlab.search.outcome import EngineVariant


def tensor(dtype: str | None) -> EngineTensor:
    return EngineTensor("t", dtype, None)


LAYERS = (
    EngineLayer("conv", "CaskConvolution", ("conv",), (tensor("fp16"),), (tensor("fp16"),), "sm80_xmma_f16"),
    EngineLayer("fc", "CaskGemm", ("fc",), (tensor("fp16"),), (tensor("fp32"),), "sm80_xmma_f16"),
    EngineLayer("copy", "Reformat", (), (tensor("fp32"),), (tensor("fp16"),)),
    EngineLayer("<b>&", "CaskGemm", (), (tensor(None),), (tensor(None),), "k" * 500),
)


def engine_of(kernels: dict[str, float]) -> EngineVariant:
    inside = SimpleNamespace(built=Built(Path("e"), 0.1, 10, (), LAYERS, ()))
    return cast(EngineVariant, SimpleNamespace(kernels=kernels, inside=inside))


def facts_of(kernels: dict[str, float]) -> dict[str, Any]:
    facts = kernel_times(engine_of(kernels))
    assert facts is not None
    return facts


KERNELS = {"conv": 1.0, "fc": 2.0, "copy": 0.5, "<b>&": 0.25, "unknown": 0.25}


def named(groups: list[dict[str, Any]]) -> dict[str, tuple[int, float]]:
    return {one["name"]: (one["kernels"], one["milliseconds"]) for one in groups}


def test_time_is_told_by_kind_by_type_and_by_tactic_and_adds_up() -> None:
    facts = facts_of(KERNELS)
    assert (facts["kernels"], facts["milliseconds"]) == (5, 4.0)
    kinds = {"CaskGemm": (2, 2.25), "CaskConvolution": (1, 1.0), "Reformat": (1, 0.5), UNTOLD: (1, 0.25)}
    assert named(facts["kinds"]) == kinds
    assert named(facts["types"]) == {"fp32": (1, 2.0), "fp16": (2, 1.5), UNTOLD: (2, 0.5)}
    assert named(facts["tactics"])["sm80_xmma_f16"] == (2, 3.0)
    assert [one["name"] for one in facts["slowest"]][:2] == ["fc", "conv"]
    for part in ("kinds", "types"):
        assert sum(one["milliseconds"] for one in facts[part]) == facts["milliseconds"]


def test_what_tensorrt_does_not_tell_is_not_guessed() -> None:
    (slowest,) = facts_of({"unknown": 1.0})["slowest"]
    assert {slowest[key] for key in ("kind", "takes", "gives", "tactic")} == {UNTOLD}


@pytest.mark.parametrize("engine", [None, engine_of({})])
def test_an_engine_that_told_no_times_has_none(engine: EngineVariant | None) -> None:
    assert kernel_times(engine) is None
    assert times_view(None, None) is None
    assert times_view(facts_of(KERNELS), None) is not None


def test_a_long_name_is_cut_and_float32_stands_beside_where_it_was_timed() -> None:
    view = times_view(facts_of(KERNELS), facts_of({"conv": 4.0}))
    assert view is not None
    assert view.beside
    beside = {share.name: share.beside for share in view.kinds}
    assert (beside["CaskConvolution"], beside["CaskGemm"]) == ("4", "–")
    assert max(len(share.name) for share in view.tactics) <= 160
    assert [share.share for share in view.kinds][:2] == ["56.2", "25.0"]
    assert view.slowest[0].types == "fp16 → fp32"
