"""Which precision a run says to ship: never one whose own verdict is not green."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from precisionlab.search.recommendation import Candidate, how_right, recommend
from precisionlab.search.verdict import State, Tone, Verdict

MET = Verdict(State.MET, "right as it is: no layer needs a pin", "61.0 dB")


def candidate(name: str = "fp16", verdict: Verdict = MET, pins: int = 0, **changes: Any) -> Candidate:
    """One that may be taken, at 39 % of float32's cost."""
    known: dict[str, Any] = {
        "changes": pins, "touched": 9, "is_quantized": name == "int8", "figures": "emulated", "share": 0.39,
        "cost_figures": "estimated",
    }  # fmt: skip
    return Candidate(name, name.upper(), verdict, how_right(pins, 0), **known | changes)


def said(*candidates: Candidate, held_out: int = 16) -> str:
    return recommend(candidates, held_out).sentence


def test_the_cheapest_that_is_right_is_taken_and_what_is_dearer_is_told() -> None:
    assert said(candidate(), candidate("int8", pins=2, share=0.79)) == (
        "Take FP16: right as it is (emulated), 39 % of FP32's cost (estimated). "
        "INT8 is right with 2 pins but no cheaper (79 %)."
    )
    assert recommend([candidate(), candidate("int8", share=0.2)], 16).taken == "int8"


def test_of_plans_that_cost_about_the_same_the_one_without_ranges_is_taken() -> None:
    assert said(candidate(share=0.51, pins=1), candidate("int8", share=0.49)) == (
        "Take FP16: right with 1 pin (emulated), 51 % of FP32's cost (estimated). "
        "INT8 is right as it is and hardly cheaper (49 %)."
    )


def test_of_formats_that_cost_the_same_the_one_that_changes_least_is_taken() -> None:
    assert recommend([candidate(pins=3), candidate("bf16")], 16).taken == "bf16"


def test_what_was_measured_is_told_in_milliseconds() -> None:
    engine = {"figures": "measured on NVIDIA L4"}
    fast, slow = (
        candidate(milliseconds=0.42, share=0.39, **engine),
        candidate("int8", milliseconds=0.9, share=0.8, **engine),
    )
    assert said(fast, slow) == (
        "Take FP16: right as it is (measured on NVIDIA L4), 0.42 ms a sample, 39 % of FP32's time (measured). "
        "INT8 is right as it is but no faster (0.9 ms)."
    )


def test_the_tasks_figure_is_told_where_there_is_one() -> None:
    assert "(emulated; accuracy 0.979, FP32's 0.981)" in said(candidate(metric="accuracy 0.979, FP32's 0.981"))


def test_a_cost_that_is_not_known_is_said_to_be_so() -> None:
    unknown = {"share": None, "cost_figures": ""}
    assert said(candidate(**unknown)) == "Take FP16: right as it is (emulated), at a cost that is not known."
    assert said(candidate(**unknown), candidate("int8")).startswith("Take INT8: ")
    assert said(candidate(**unknown), candidate("int8")).endswith(
        "FP16 is right as it is too, at a cost that is not known."
    )


def test_that_no_sample_was_held_out_is_said() -> None:
    assert said(candidate(), held_out=0).endswith(" No sample was held out to confirm it.")
    assert "held out" not in said(candidate(), held_out=1)


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (Verdict(State.NOT_MET, "the tolerance could NOT be met"), "Stay in FP32: FP16 does NOT meet what was asked."),
        (Verdict(State.ONLY_FP32, "met only as float32"), "Stay in FP32: FP16 is right only as float32."),
        (Verdict(State.NOT_COMPILED, "NOT built: no"), "Stay in FP32: FP16 has no engine."),
        (Verdict(State.NOT_FINISHED, "not finished"), "Take none yet: FP16 is not searched to the end."),
        (Verdict(State.NOT_KNOWN, "not known: random inputs"), "Take none yet: random inputs."),
    ],
)
def test_what_is_not_right_is_not_taken(verdict: Verdict, words: str) -> None:
    found = recommend([candidate(verdict=verdict)], 16)
    assert found.taken is None
    assert found.sentence == words
    assert found.tone is not Tone.GOOD


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("on_random", "right as it is on random inputs"),
        ("in_part", "as far as it could be judged"),
        ("needs_float32_sums", "only where kernels keep their sums in float32"),
        ("as_onnx", "only as ONNX reads the model"),
    ],
)
def test_what_is_right_under_a_condition_is_not_taken(flag: str, words: str) -> None:
    found = recommend([candidate(verdict=replace(MET, **{flag: True}))], 16)
    assert found.taken is None
    assert words in found.sentence


def test_what_other_samples_might_turn_is_not_taken() -> None:
    doubtful = candidate(doubt="with other samples SQNR in dB would lie between 28 and 33")
    assert recommend([doubtful], 16).taken is None
    assert said(doubtful, candidate("int8", share=0.5)) == (
        "Take INT8: right as it is (emulated), 50 % of FP32's cost (estimated). FP16 is right as it is, but that is "
        "inconclusive: with other samples SQNR in dB would lie between 28 and 33."
    )


def test_what_gains_nothing_is_not_taken() -> None:
    assert said(candidate(share=1.04)) == "Stay in FP32: FP16 is right as it is, but no cheaper than FP32 (104 %)."
    assert said(candidate(touched=0, share=None)) == "Stay in FP32: FP16 touches no layer."


def test_only_a_green_verdict_is_ever_taken() -> None:
    """All states and flags, alone and beside one that is right."""
    for state, *flags in itertools.product(State, *([[False, True]] * 5)):
        verdict = Verdict(state, "a sentence", "", *flags)
        alone = recommend([candidate(verdict=verdict)], 16)
        assert (alone.taken is not None) == (verdict.mark.tone is Tone.GOOD)
        assert recommend([candidate(verdict=verdict, share=0.1), candidate("int8")], 16).taken is not None
