"""What is added in one file is known everywhere: a metric of outputs, a calibration method."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from models import DIGITS

from precisionlab.calibration.methods import METHODS, Method
from precisionlab.cli import cli
from precisionlab.compare.metrics import METRICS, ErrorMetric, RunMetric, Scope
from precisionlab.compare.tolerance import Bound, parse_tolerance
from precisionlab.errors import OptionError
from precisionlab.jobs.calibrate import calibrate
from precisionlab.jobs.sweep import sweep
from precisionlab.report.diff import Condition, diff_runs
from precisionlab.report.redraw import read_run, redraw

SQUARED = ErrorMetric(
    name="mean_error",
    title="mean squared error",
    unit="dB",
    form=".2f",
    higher_is_better=False,
    of=lambda e: 10 * math.log10(e.err2 / e.elements) if e.err2 and e.elements else -math.inf,
    least_change=0.5,
)


def told(*command: str) -> str:
    """What the command line prints, in one line."""
    return " ".join(CliRunner().invoke(cli, command).output.split())


@pytest.fixture
def squared(monkeypatch: pytest.MonkeyPatch) -> ErrorMetric:
    monkeypatch.setitem(METRICS, SQUARED.name, SQUARED)
    return SQUARED


@pytest.mark.usefixtures("squared")
def test_a_metric_that_is_added_is_parsed_and_told_of() -> None:
    assert parse_tolerance(["mean_error[logits]<=-30"]) == (Bound("mean_error", False, -30.0, "logits"),)
    with pytest.raises(OptionError, match="mean_error is better when lower; turn the sign"):
        parse_tolerance(["mean_error>=-30"])
    with pytest.raises(OptionError, match=r"METRIC one of sqnr, .*, nonfinite, mean_error, or METRIC"):
        parse_tolerance(["nothing>=3"])
    assert "nonfinite, mean_error" in told("sweep", "--help")
    assert Condition.parse("mean_error rise>3").kind == "mean_error"
    with pytest.raises(OptionError, match=r"FIGURE one of .*, mean_error, pins"):
        Condition.parse("nothing rise>3")


def test_a_metric_that_is_not_there_is_known_nowhere() -> None:
    with pytest.raises(OptionError, match="nonfinite, or METRIC"):
        parse_tolerance(["mean_error<=-30"])
    assert "mean_error" not in told("sweep", "--help")


def swept(folder: Path, *tolerance: str) -> Path:
    sweep(DIGITS / "digits.onnx", DIGITS, precisions="fp16", tolerance=tolerance, samples=4, threads=1, out=folder)
    return folder


def test_a_metric_that_is_added_stands_in_tables_pages_and_diff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = swept(tmp_path / "before", "sqnr>=10")
    monkeypatch.setitem(METRICS, SQUARED.name, SQUARED)
    after = swept(tmp_path / "after", "mean_error<=30")
    variants, layers = (pd.read_csv(after / f"{name}.csv") for name in ("variants", "layers"))
    errors = variants.set_index("variant")["mean_error_db"]
    assert errors["fp32"] == -math.inf
    assert math.isfinite(errors["fp16"])
    assert layers["introduced_mean_error_db"].notna().any()
    page = redraw(read_run(after))
    assert '<th scope="col">Mean squared error, dB</th>' in page
    assert "Mean squared error, dB" in (after / "report.html").read_text(encoding="utf-8")
    assert f"<td>{errors['fp16']:.2f}</td>".replace("-", "−") in page
    assert '"Largest error", "Mean squared error, dB", "NaN"' in page
    assert "<td>–</td>" in redraw(read_run(before)), "a run from before the metric is drawn without it"
    same = {
        change.name: change
        for change in diff_runs(read_run(after), read_run(after)).variants[-1].changes
        if not change.held_out
    }
    assert same["mean_error"].label == "mean squared error, dB"
    assert same["mean_error"].before == pytest.approx(errors["fp16"])
    old = {
        change.name: change
        for change in diff_runs(read_run(before), read_run(after)).variants[-1].changes
        if not change.held_out
    }
    assert (old["mean_error"].before, old["mean_error"].trend) == (None, "same")


BROKEN = RunMetric(
    name="broken",
    title="tensors that overflow",
    scope=Scope.NETWORK,
    form=".0f",
    higher_is_better=False,
    of=lambda comparison: float(sum(errors.overflow > 0 for errors in comparison.inherited.values())),
    least_change=0.0,
)


def test_a_metric_of_the_network_that_is_added_stands_there_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = swept(tmp_path / "before", "sqnr>=10")
    monkeypatch.setitem(METRICS, BROKEN.name, BROKEN)
    with pytest.raises(OptionError, match="or METRIC"):
        parse_tolerance(["broken[logits]<=3"])
    after = swept(tmp_path / "after", "broken<=200")
    variants = pd.read_csv(after / "variants.csv").set_index("variant")
    assert variants["broken"]["fp32"] == 0
    assert variants["broken"]["fp16"] > 0
    assert variants["held_out_broken"].isna().all()
    page = redraw(read_run(after))
    assert '<th scope="col">Tensors that overflow</th>' in page, "in the table of variants"
    assert page.count("Tensors that overflow") == 2, "in the verdict too"
    assert "Tensors that overflow" in redraw(read_run(before))
    (found,) = (
        c
        for c in diff_runs(read_run(after), read_run(after)).variants[1].changes
        if c.name == "broken" and not c.held_out
    )
    assert found.before == found.after == variants["broken"]["fp16"]


HALVED = Method("halved", lambda histogram, _, __: histogram.amax / 2, "half the whole range, for no good reason")


def test_a_calibration_method_that_is_added_is_told_of_run_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "halved" not in told("calibrate", "--help")
    with pytest.raises(OptionError, match="unknown calibration method 'halved'"):
        calibrate(DIGITS / "digits.onnx", DIGITS, method="halved", samples=2, threads=1, out=tmp_path)
    monkeypatch.setitem(METHODS, HALVED.name, HALVED)
    assert "mse, max, halved, or auto" in told("calibrate", "--help")
    assert "mse, max, halved, output, auto" in told("sweep", "--help")
    result = calibrate(DIGITS / "digits.onnx", DIGITS, method="halved", samples=2, threads=1, out=tmp_path)
    assert all(found.amax == found.largest / 2 for found in result.table.ranges.values())
    ranges = pd.read_csv(tmp_path / "ranges.csv")
    assert ranges["halved"].to_list() == pytest.approx((ranges["max"] / 2).to_list())
    assert HALVED.words in (tmp_path / "calibration.html").read_text(encoding="utf-8")


def test_a_parameter_is_that_of_the_method_that_takes_it(tmp_path: Path) -> None:
    found = {
        share: calibrate(
            DIGITS / "digits.onnx", DIGITS, method="percentile", percentile=share, samples=2, threads=1, out=tmp_path
        ).facts["method"]
        for share in (99.9, 99.0)
    }
    assert found == {99.9: "percentile 99.9", 99.0: "percentile 99"}
    with pytest.raises(OptionError, match="percentile is 101; it must lie above 0 and be at most 100"):
        calibrate(DIGITS / "digits.onnx", DIGITS, percentile=101, samples=2, threads=1, out=tmp_path)
