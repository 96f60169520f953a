"""A verdict's sentence, its mark in tables, and what both say of arithmetic that the figures hang on."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from precisionlab.search.verdict import Condition, Evidence, Mark, State, Terms, Tone, Verdict, verdict_of

RIGHT = Evidence(
    precision="fp16", met=True, pins=0, touched=9, left=9, rungs="fp32", figure="61.0 dB", cost=0.5, bare_cost=0.5,
    terms=Terms(),
)  # fmt: skip
SUMS, CONSTANTS = Condition(is_half_sums=True, figure="12.0 dB"), Condition(is_half_sums=False, figure="NaN")


@pytest.mark.parametrize("state", State)
def test_a_mark_is_read_back_from_its_text_with_the_same_text_and_tone(state: State) -> None:
    for flags in itertools.product([False, True], repeat=4):
        mark = Mark(state, *flags)
        again = Mark.parse(str(mark))
        assert str(again) == str(mark)
        assert again.state is state
        assert again.tone is mark.tone
        assert again.sign == mark.sign
        if state is State.MET:
            assert again == mark


@pytest.mark.parametrize("text", ["", "met on float32", "met with sums in half", "with sums in float32"])
def test_text_that_is_no_mark_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a valid State"):
        Mark.parse(text)


def test_only_what_is_met_hangs_on_float32_sums() -> None:
    assert Mark(State.MET, needs_float32_sums=True).tone is Tone.OPEN
    assert Mark(State.MET).tone is Tone.GOOD
    assert Mark(State.NOT_MET, needs_float32_sums=True).tone is Tone.BAD
    assert str(Mark(State.NOT_MET, needs_float32_sums=True)) == "NOT met"


def test_conditions_are_said_behind_what_is_right_and_sums_alone_take_its_green() -> None:
    sums, constants, both = (
        verdict_of(replace(RIGHT, conditions=conditions)) for conditions in ((SUMS,), (CONSTANTS,), (SUMS, CONSTANTS))
    )
    plain = verdict_of(RIGHT)
    assert sums.sentence == f"{plain.sentence}; {SUMS}"
    assert constants.sentence == f"{plain.sentence}; {CONSTANTS}"
    assert both.sentence == f"{plain.sentence}; {SUMS}; {CONSTANTS}"
    assert [v.met for v in (plain, sums, constants, both)] == [True] * 4
    assert [v.needs_float32_sums for v in (plain, sums, constants, both)] == [False, True, False, True]
    assert [v.mark.tone for v in (plain, sums, constants, both)] == [Tone.GOOD, Tone.OPEN, Tone.GOOD, Tone.OPEN]


def test_what_tensorrt_reads_otherwise_is_said_behind_what_is_right_and_takes_its_green() -> None:
    otherwise = verdict_of(replace(RIGHT, terms=Terms(otherwise="it takes uint8 for int8")))
    assert otherwise.sentence == (
        f"{verdict_of(RIGHT).sentence}; but this is not judged as TensorRT reads the model: it takes uint8 for int8"
    )
    assert (str(otherwise.mark), otherwise.mark.tone, otherwise.met) == ("met as ONNX reads it", Tone.OPEN, True)
    assert Verdict.from_dict(otherwise.to_dict()) == otherwise
    wrong = verdict_of(replace(RIGHT, met=False, terms=Terms(otherwise="it takes uint8 for int8")))
    assert (str(wrong.mark), wrong.as_onnx) == ("NOT met", False)


def test_what_is_not_right_at_all_hangs_on_nothing() -> None:
    for evidence in (
        replace(RIGHT, met=False, conditions=(SUMS, CONSTANTS)),
        replace(RIGHT, pins=9, left=0, conditions=(SUMS, CONSTANTS)),
        replace(RIGHT, unknown="the reference has NaN", conditions=(SUMS, CONSTANTS)),
    ):
        found = verdict_of(evidence)
        assert not found.met
        assert not found.needs_float32_sums
        assert "sums in half" not in found.sentence
        assert "clamping" not in found.sentence


def test_a_verdict_is_read_back_from_json_and_from_that_of_earlier_versions() -> None:
    for conditions in ((), (SUMS,)):
        verdict = verdict_of(replace(RIGHT, conditions=conditions))
        plain = json.loads(json.dumps(verdict.to_dict()))
        assert Verdict.from_dict(plain) == verdict
        del plain["needs_float32_sums"]
        assert Verdict.from_dict(plain) == replace(verdict, needs_float32_sums=False)


def test_an_engine_that_overrides_pins_is_not_met_and_names_a_few() -> None:
    pins = tuple(f"layer{i} runs in fp16, not fp32" for i in range(5))
    found = verdict_of(replace(RIGHT, pins=7, overridden=pins, conditions=(SUMS,)))
    assert found.sentence == f"NOT as planned: the engine overrides 5 of 7 pins: {', '.join(pins[:3])}, …"
    assert (found.state, found.overridden, found.met, found.mark.tone) == (State.NOT_MET, True, False, Tone.BAD)
    assert Verdict.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    wrong = verdict_of(replace(RIGHT, met=False, pins=7, overridden=pins))
    assert (wrong.state, wrong.overridden) == (State.NOT_MET, False), "wrong figures speak first"


def test_what_no_engine_can_be_built_of_is_not_right_whatever_the_emulation_says() -> None:
    refused = "NOT compiled for SM75: no float32 products"
    bare, pinned, untouched = (
        verdict_of(replace(RIGHT, refused=refused, **changes))  # type: ignore[arg-type]
        for changes in ({}, {"pins": 2}, {"touched": 0, "left": 0})
    )
    assert bare.sentence == f"{refused}; right as it is in the emulation alone"
    assert pinned.sentence == f"{refused}; right with 2 of 9 layers pinned to fp32 in the emulation alone"
    for found in (bare, pinned, untouched):
        assert (found.state, found.met, str(found.mark)) == (State.NOT_COMPILED, False, "NOT compiled")
        assert (found.mark.tone, found.mark.sign) == (Tone.BAD, "✗")
        assert Mark.parse(str(found.mark)) == found.mark
        assert Verdict.from_dict(found.to_dict()) == found
