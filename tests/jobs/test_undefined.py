"""A reference that is NaN or Inf itself: said of which samples, from where on, and never green without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from models import Array, proto

from precisionlab.cli import cli
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.search.verdict import State, Tone

ATTENTION = (
    '{ ["where"] t = Where(keep, s, hidden) ["sm"] p = Softmax <axis: int = -1> (t) ["pv"] y = MatMul(p, v) %s }'
)
TAKES = "(float[1,4,4] s, bool[1,4,4] keep, float[1,4,8] v)"
HIDDEN = {"hidden": np.float32(-np.inf)}


def attention(bad: set[int], rows: int = 1, count: int = 12) -> list[dict[str, Array]]:
    """Samples of an attention; in those of these numbers the last rows are masked throughout: NaN in float32."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        keep = np.ones((1, 4, 4), bool)
        if number in bad:
            keep[:, 4 - rows :] = False
        found.append(
            {
                "s": rng.standard_normal((1, 4, 4), np.float32),
                "keep": keep,
                "v": rng.standard_normal((1, 4, 8), np.float32),
            }
        )
    return found


def swept(
    folder: Path, body: str, weights: dict[str, Any], samples: list[dict[str, Array]], **options: Any
) -> SweepResult:
    """The sweep of a model over these samples, all of which choose."""
    data = folder / "data"
    data.mkdir()
    onnx.save_model(proto(body, weights), folder / "m.onnx")
    for number, inputs in enumerate(samples):
        np.savez(data / f"s{number:02d}.npz", **inputs)
    return sweep(folder / "m.onnx", data, out=folder / "out", threads=1, holdout=0, **options)


def undefined(result: SweepResult) -> list[dict[str, Any]]:
    assert result.folder is not None
    found: list[dict[str, Any]] = json.loads((result.folder / "run.json").read_text())["reference"]["undefined"]
    return found


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_masked_rows_are_told_of_with_their_samples_and_the_first_layer(tmp_path: Path, precision: str) -> None:
    """Two masked rows of eight values in each of three samples are 48 NaN of 384 values."""
    result = swept(
        tmp_path,
        f"{TAKES} => (float[1,4,8] y) {ATTENTION % ''}",
        HIDDEN,
        attention({1, 4, 6}, rows=2),
        precisions=precision,
        tolerance="sqnr>=20",
    )
    (facts,) = undefined(result)
    assert facts["samples"] == ["s01.npz", "s04.npz", "s06.npz"]
    assert (facts["of"], facts["nan"], facts["inf"], facts["finite"]) == (12, 48, 0, 384 - 48)
    # −Inf stands in t already, by the mask; NaN begins behind it.
    assert (facts["tensor"], facts["layer"], facts["kind"]) == ("p", "sm", "Softmax")
    verdict = result.precisions[0].verdict
    assert (verdict.state, verdict.in_part, verdict.mark.tone) == (State.MET, True, Tone.OPEN)
    assert "48 of 384 values of output y, in 3 of 12 samples, are NaN in the float32 reference" in verdict.sentence
    assert str(verdict.mark) == "met in part"
    assert result.met
    folder = tmp_path / "out"
    for name in ("report.html", "summary.md"):
        text = (folder / name).read_text().replace("\\", "")
        assert "s01.npz, s04.npz, s06.npz" in text
        assert "from layer sm (Softmax) on" in text
    assert "✅" not in (folder / "summary.md").read_text()


@pytest.mark.slow
def test_a_finite_reference_needs_no_word(tmp_path: Path) -> None:
    result = swept(
        tmp_path, f"{TAKES} => (float[1,4,8] y) {ATTENTION % ''}", HIDDEN, attention(set()), precisions="fp16"
    )
    assert undefined(result) == []
    verdict = result.precisions[0].verdict
    assert (str(verdict.mark), verdict.mark.tone) == ("met", Tone.GOOD)


@pytest.mark.slow
def test_where_no_number_is_left_nothing_is_known(tmp_path: Path) -> None:
    samples = attention(set(range(12)), rows=4)
    body = f"{TAKES} => (float[1,4,8] y) {ATTENTION % ''}"
    result = swept(tmp_path, body, HIDDEN, samples, precisions="fp16")
    (found,) = result.precisions
    assert (found.verdict.state, result.met, found.evaluations) == (State.NOT_KNOWN, False, 1)
    assert "no number is left to compare" in found.verdict.sentence
    run = CliRunner().invoke(
        cli,
        [
            "sweep",
            str(tmp_path / "m.onnx"),
            f"--data={tmp_path / 'data'}",
            "--precisions=fp16",
            f"--out={tmp_path / 'out'}",
        ],
    )
    assert run.exit_code == 1
    assert "fp16: not known: the float32 reference itself has NaN in output y" in " ".join(run.stdout.split())


@pytest.mark.slow
def test_a_sample_without_a_number_judges_nothing(tmp_path: Path) -> None:
    """It is nobody's worst sample, and has no row of its own."""
    result = swept(
        tmp_path,
        f"{TAKES} => (float[1,4,8] y) {ATTENTION % ''}",
        HIDDEN,
        attention({5}, rows=4),
        precisions="fp16",
    )
    (facts,) = undefined(result)
    assert facts["empty"] == ["s05.npz"]
    assert result.precisions[0].verdict.state is State.MET
    rows = (tmp_path / "out" / "samples.csv").read_text()
    assert "s05.npz" not in rows
    assert "s04.npz" in rows
    assert "s05.npz" not in set(result.layers["inherited_worst"])


def test_a_second_output_alone_is_named_and_another_bound_does_not_mind(tmp_path: Path) -> None:
    """The logarithm of negative numbers is NaN in any precision; the other output is right."""
    body = '(float[1,8] x) => (float[1,8] y, float[1,8] z) { ["copy"] y = Mul(x, half) ["log"] z = Log(x) }'
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal((1, 8)).astype(np.float32) + np.float32(1.5)} for _ in range(12)]
    lost = sum(int((s["x"] < 0).sum()) for s in samples)
    assert 0 < lost < 96
    result = swept(tmp_path, body, {"half": np.float32(0.7)}, samples, precisions="fp16", tolerance="sqnr[y]>=30")
    (facts,) = undefined(result)
    assert (facts["output"], facts["nan"], facts["kind"]) == ("z", lost, "Log")
    verdict = result.precisions[0].verdict
    assert (verdict.state, verdict.in_part) == (State.MET, False)


@pytest.mark.slow
def test_infinite_logits_are_told_of_as_inf(tmp_path: Path) -> None:
    body = (
        '(float[1,8] x, bool[1,8] keep) => (float[1,8] y) { ["m"] h = Mul(x, w) ["mask"] y = Where(keep, h, hidden) }'
    )
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal((1, 8), np.float32), "keep": rng.random((1, 8)) > 0.25} for _ in range(12)]
    result = swept(tmp_path, body, {**HIDDEN, "w": np.float32(0.3)}, samples, precisions="fp16")
    (facts,) = undefined(result)
    assert (facts["nan"], facts["inf"], facts["layer"]) == (0, sum(int((~s["keep"]).sum()) for s in samples), "mask")
    assert "are Inf in the float32 reference itself" in result.precisions[0].verdict.sentence


@pytest.mark.slow
def test_nan_that_is_masked_away_leaves_the_verdict_whole(tmp_path: Path) -> None:
    """Nobody reads the rows of padding: behind the Where that drops them all is finite."""
    ending = (
        '["f"] kf = Cast <to: int = 1> (keep) ["any"] ka = ReduceMax <axes: ints = [2]> (kf) '
        '["b"] kb = Cast <to: int = 9> (ka) ["drop"] z = Where(kb, y, zero)'
    )
    body = f"{TAKES} => (float[1,4,8] z) {ATTENTION % ending}"
    samples = attention({1, 2})
    result = swept(tmp_path, body, {**HIDDEN, "zero": np.float32(0)}, samples, precisions=["fp16", "int8"])
    assert undefined(result) == []
    fp16, int8 = result.precisions
    assert (fp16.verdict.state, fp16.verdict.in_part) == (State.MET, False)
    # int8 cannot hold an operand with NaN: its only layer is kept back, and that is no int8 any more.
    assert [pin.layer for pin in int8.plan.pins] == ["pv"]
    assert int8.verdict.state is State.ONLY_FP32
    assert "no layer needs a pin" not in int8.verdict.sentence


@pytest.mark.slow
def test_nan_in_the_reference_that_int8_makes_a_number_breaks_nothing(tmp_path: Path) -> None:
    """Only a held-out sample has NaN there, so that ranges are finite and the layer is int8: NaN becomes a number."""
    samples = attention({3}, rows=1, count=40)
    data = tmp_path / "data"
    data.mkdir()
    onnx.save_model(proto(f"{TAKES} => (float[1,4,8] y) {ATTENTION % ''}", HIDDEN), tmp_path / "m.onnx")
    for number, inputs in enumerate(samples):
        np.savez(data / f"s{number:02d}.npz", **inputs)
    result = sweep(tmp_path / "m.onnx", data, out=tmp_path / "out", threads=1, precisions="int8")
    assert "s03.npz" in result.samples.held_out
    (int8,) = result.precisions
    assert int8.plan.pins == ()
    assert (int8.verdict.state, int8.verdict.in_part) == (State.MET, True)
