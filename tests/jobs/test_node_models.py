"""ONNX's own models for its operators: each is swept to right figures, or refused in one clear sentence.

All two thousand: `python -m benchmarks.node_models`.
"""

from __future__ import annotations

import importlib
import multiprocessing
import random
from collections import defaultdict
from pathlib import Path

import pytest

from benchmarks.node_models import Case, cases, judged, outcomes

REFUSED = {
    "node/test_add_int16": "only layer cannot be given a precision (1 × no float output",
    "node/test_attention_4d_softcap_neginf_mask": "values that are NaN or Inf",
    "node/test_batchnorm_example_training_mode": "(BatchNormalization) is in training mode",
    "node/test_bernoulli": "(Bernoulli) draws random numbers",
    "node/test_castlike_DOUBLE_to_FLOAT": "CastLike converts between types",
    "node/test_constant": "a constant, which is not computed",
    "node/test_flexattention": "(ai.onnx.preview::FlexAttention) is no operator that ONNX Runtime knows",
    "node/test_identity_opt": "is an optional, and samples hold tensors only",
    "node/test_identity_sequence": "is a sequence, and samples hold tensors only",
    "node/test_clip_default_int8_max_expanded": "layers can be given a precision",
    "node/test_split_to_sequence_1": "no tensor output",
    "node/test_training_dropout": "(Dropout) drops values at random",
    "pytorch-operator/test_operator_addmm": "it has no kernel for node",
}


@pytest.fixture(scope="module")
def every() -> dict[str, Case]:
    """ONNX's models by name."""
    return {case.name: case for case in cases(("node", "simple", "pytorch-operator"))}


def one_for_each_operator(every: dict[str, Case]) -> list[Case]:
    """A model for each operator, chosen by a seed."""
    found: dict[str, list[Case]] = defaultdict(list)
    for case in every.values():
        if case.kind == "node" and not case.name.endswith("_expanded"):
            node = case.model.graph.node[0]
            found[f"{node.domain}:{node.op_type}"].append(case)
    chance = random.Random(0)
    return [chance.choice(found[operator]) for operator in sorted(found)]


@pytest.fixture
def _unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps that write no report: it is tested elsewhere, and would be four fifths of the time."""
    module = importlib.import_module("precisionlab.jobs.sweep")  # by its name alone it is the function
    monkeypatch.setattr(module, "write_results", lambda *args, **more: None)


@pytest.mark.usefixtures("_unwritten")
def test_a_model_of_every_operator_is_swept_right_or_refused(every: dict[str, Case], tmp_path: Path) -> None:
    found = [judged(case, tmp_path / str(i)) for i, case in enumerate(one_for_each_operator(every))]
    assert [(outcome.case, outcome.text) for outcome in found if outcome.what == "bug"] == []
    assert sum(outcome.what == "met" for outcome in found) > len(found) / 2


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_is_wrong(name: str, every: dict[str, Case], tmp_path: Path) -> None:
    if name not in every:
        pytest.skip("this version of ONNX has no such model")
    outcome = judged(every[name], tmp_path / "model")
    assert outcome.what == "refused"
    assert REFUSED[name] in outcome.text


def test_most_refusals_are_there_to_be_read(every: dict[str, Case]) -> None:
    assert len(REFUSED.keys() & every.keys()) > len(REFUSED) / 2


def test_a_process_that_dies_costs_the_one_model_that_it_was_at(every: dict[str, Case], tmp_path: Path) -> None:
    names = [name for name in every if name.startswith("simple/test_expand")]
    found = []
    for outcome in outcomes(names, ("simple",), 1, tmp_path):
        found.append(outcome)
        if len(found) == 1:
            (process,) = multiprocessing.active_children()
            process.kill()
    assert [outcome.case for outcome in found] == names
    assert [outcome.what for outcome in found] == ["met", "bug", "met", "met"]
    assert "died (exit code -9)" in found[1].text
