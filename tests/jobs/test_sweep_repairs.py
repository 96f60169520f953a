"""Sweeps that repair before they pin: what they find, what stands in the plan, and who reads it again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from models import DIGITS, Array, proto
from repairing import NORM, breaking, samples_in, weights

from precisionlab.errors import PlanError
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.jobs.verify import verify
from precisionlab.model import Model

MODEL = DIGITS / "digits.onnx"


@pytest.fixture
def repaired(repaired_digits: SweepResult) -> SweepResult:
    """The README's first command."""
    return repaired_digits


def plan_of(result: SweepResult) -> Path:
    assert result.folder is not None
    return result.folder / "plan.json"


def changed(result: SweepResult, folder: Path, **values: object) -> Path:
    content = {**json.loads(plan_of(result).read_text()), **values}
    path = folder / "plan.json"
    path.write_text(json.dumps(content))
    return path


def test_a_repair_takes_the_place_of_the_pins_and_loses_nothing_on_samples_that_chose_nothing(
    repaired: SweepResult, swept_digits: SweepResult
) -> None:
    (found,), pinned = repaired.precisions, swept_digits.precisions[0]
    assert found.verdict.sentence == "right with 1 repair: no layer needs a pin"
    assert found.plan.pins == ()
    assert len(pinned.plan.pins) == 4
    assert found.mixed.held_out is not None
    assert pinned.mixed.held_out is not None
    own_rounding = 0.5  # dB: of the layers that the pins had in float32
    assert found.mixed.held_out.worst("sqnr") >= pinned.mixed.held_out.worst("sqnr") - own_rounding
    assert found.mixed.cost is not None
    assert pinned.mixed.cost is not None
    assert found.mixed.cost.seconds <= pinned.mixed.cost.seconds
    assert found.repaired is not None
    assert found.repaired.same.is_bitwise
    assert found.repaired.same.samples == 64


def test_the_model_as_it_is_stands_beside_the_repaired_one_in_every_table(
    repaired: SweepResult, swept_digits: SweepResult
) -> None:
    assert list(dict.fromkeys(repaired.variants["variant"])) == ["fp32", "fp16", "fp16 repaired"]
    mine = repaired.layers.set_index("layer")
    theirs = swept_digits.layers[swept_digits.layers["precision"] == "fp16"].set_index("layer")
    for column in ("introduced_sqnr_db", "inherited_sqnr_db", "cause"):
        assert mine[column].equals(theirs[column]), column


def test_verify_makes_the_repairs_anew_and_finds_each_of_them_needed(repaired: SweepResult) -> None:
    again = verify(plan_of(repaired), threads=2)
    assert again.holds
    assert again.same is not None
    assert again.same.is_bitwise
    written = json.loads(plan_of(repaired).read_text())["certificate"]
    assert again.certificate.to_dict() == written
    (release,) = written["repairs"]
    assert release["kind"] == "scale_sum_of_squares"
    assert not release["met"]


def test_a_plan_read_back_measures_what_the_sweep_found(repaired: SweepResult, tmp_path: Path) -> None:
    again = sweep(MODEL, DIGITS, plan=plan_of(repaired), out=tmp_path / "run", threads=2)
    (found,), (first,) = again.precisions, repaired.precisions
    assert found.low.comparison.worst("sqnr") == first.low.comparison.worst("sqnr")
    assert found.mixed.comparison.worst("sqnr") == first.mixed.comparison.worst("sqnr")
    assert found.plan.repairs == first.plan.repairs


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"repairs": [{"kind": "magic"}]}, r"repairs\[0\]"),
        ({"repairs": {}}, "`repairs` must be a list"),
        ({"repaired": {"sha256": "0" * 64}}, "give another model"),
    ],
)
def test_repairs_of_a_stranger_are_refused_in_a_sentence(
    repaired: SweepResult, tmp_path: Path, wrong: dict[str, object], words: str
) -> None:
    path = changed(repaired, tmp_path, **wrong)
    with pytest.raises(PlanError, match=words):
        verify(path, model=MODEL, data=DIGITS)


def test_the_same_plan_as_it_was_written_is_taken(repaired: SweepResult, tmp_path: Path) -> None:
    assert verify(changed(repaired, tmp_path), model=MODEL, data=DIGITS, threads=2).holds


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("kind", "magic", "of no kind"),
        ("nodes", ["nowhere"], "no node 'nowhere'"),
        ("nodes", [], "needs `nodes`"),
        ("exactness", "nearly", "bitwise or rounding"),
        ("parameters", {"x": 1.5}, "whole numbers"),
        ("parameters", {"x": 999}, "power of two"),
        ("parameters", {}, "needs `x`"),
        ("for", 3, "needs `kind` and `for`"),
    ],
)
def test_a_repair_that_cannot_be_made_is_refused_and_named(
    repaired: SweepResult, tmp_path: Path, key: str, value: object, words: str
) -> None:
    (repair,) = json.loads(plan_of(repaired).read_text())["repairs"]
    path = changed(repaired, tmp_path, repairs=[{**repair, key: value}])
    with pytest.raises(PlanError, match=words):
        verify(path, model=MODEL, data=DIGITS)


def test_without_repairs_the_same_sweep_pins(swept_digits: SweepResult) -> None:
    (fp16, _) = swept_digits.precisions
    assert fp16.plan.repairs == ()
    assert len(fp16.plan.pins) == 4
    assert [repair.kind for repair in fp16.repairs] == ["scale_sum_of_squares"]


@pytest.mark.slow
@pytest.mark.thorough
def test_two_processes_give_the_same_bits(repaired: SweepResult, tmp_path: Path) -> None:
    again = sweep(MODEL, DIGITS, processes=2, precisions="fp16", samples=64, out=tmp_path / "run")
    (found,), (first,) = again.precisions, repaired.precisions
    assert found.plan == first.plan
    assert np.array_equal(
        again.layers["introduced_sqnr_db"].to_numpy(float),
        repaired.layers["introduced_sqnr_db"].to_numpy(float),
        equal_nan=True,
    )


def behind_a_norm(folder: Path, body: str, **constants: Array) -> Model:
    """A model that breaks in its norm, and perhaps behind it."""
    text = f"(float[4, 32] x) => (float[4, 8] y) {{ {NORM} {body} }}"
    return breaking(folder, proto(text, {**weights(), **constants}))


def cancelling(folder: Path) -> Model:
    """One with a product whose sum passes 65504 half-way, and comes back."""
    halves = weights()["w2"] + np.repeat(np.float32([4500, -4500]), 16)[:, None]
    body = "p = Abs(hn) q = Mul(p, c) r = Add(q, one) y = MatMul(r, w2)"
    return behind_a_norm(folder, body, c=np.float32(0.3), one=np.float32(1), w2=halves)


@pytest.mark.parametrize(("sums", "pinned"), [("float32", ["node_of_e", "node_of_l"]), ("half", ["node_of_y"])])
def test_pins_do_the_rest_where_a_zero_hides_behind_the_repair_what_breaks_too(
    tmp_path: Path, sums: str, pinned: list[str]
) -> None:
    exponential = "k = Mul(hn, c) e = Exp(k) l = Log(e) y = MatMul(l, w2)"
    model = behind_a_norm(tmp_path, exponential, c=np.float32(12)) if sums == "float32" else cancelling(tmp_path)
    options = {"precisions": "fp16", "sums": sums, "backend": "onnxruntime", "threads": 1, "out": tmp_path / "run"}
    (found,) = sweep(model.path, samples_in(tmp_path), **options).precisions  # type: ignore[arg-type]
    assert [repair.kind for repair in found.plan.repairs] == ["scale_sum_of_squares"]
    assert sorted(found.plan.pinned()) == pinned
    assert found.certificate is not None
    assert found.certificate.proven


def test_what_is_right_only_with_sums_in_float32_says_so_with_repairs_too(tmp_path: Path) -> None:
    model = cancelling(tmp_path)
    (found,) = sweep(
        model.path, samples_in(tmp_path), precisions="fp16", backend="onnxruntime", threads=1, out=tmp_path / "run"
    ).precisions
    assert found.plan.repairs
    assert found.plan.pins == ()
    assert found.verdict.needs_float32_sums
    assert "right with 1 repair: no layer needs a pin; but NOT with sums in half" in found.verdict.sentence
