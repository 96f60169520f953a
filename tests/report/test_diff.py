"""`precisionlab diff`: what became better and worse between two runs."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from models import proto
from test_report import HOSTILE, INF, NAN, Page, Report, errors, report, said, variant

from precisionlab.cli import cli
from precisionlab.errors import OptionError
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.plan.plan import Pin
from precisionlab.precision import Precision
from precisionlab.report.diff import Change, Condition, RunDiff, check_comparable, diff_runs, diff_to_dict, render_diff
from precisionlab.report.redraw import RunFiles, read_run


def files(found: Report | None = None, name: str = "a") -> RunFiles:
    run, variants, layers, plans = found or report()
    if "latency_ms" not in variants:
        variants = variants.assign(latency_ms=NAN)  # emulated: no engine was timed
    return RunFiles(Path(name), run, variants, layers, pd.DataFrame(), plans, None, None)


def changed(fail_if: tuple[str, ...] = (), **changes: Any) -> RunDiff:
    """A run against one whose plan found has these columns."""
    run, variants, layers, plans = report()
    for column, value in changes.items():
        variants.loc[variants.variant == "fp16 mixed", column] = value
    return diff_runs(files(), files((run, variants, layers, plans), "b"), fail_if)


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)


# What changed


def test_a_run_is_not_worse_than_itself() -> None:
    diff = diff_runs(files(), files(name="b"), ("sqnr drop>0", "cost rise>0%", "pins rise>0"))
    assert (diff.failures, diff.settings, diff.layers, diff.only) == ((), (), (), ())
    assert diff.precisions[0].trend == "same"
    assert diff.precisions[0].pins == ()


@pytest.mark.parametrize(
    ("kind", "before", "after", "trend"),
    [
        ("sqnr", 30.0, 29.0, "worse"),
        ("sqnr", 30.0, 30.02, "same"),
        ("sqnr", 30.0, 31.0, "better"),
        ("sqnr", INF, INF, "same"),
        ("sqnr", INF, 90.0, "worse"),
        ("sqnr", -INF, 3.0, "better"),
        ("sqnr", 30.0, NAN, "worse"),
        ("sqnr", NAN, 30.0, "better"),
        ("sqnr", NAN, NAN, "same"),
        ("sqnr", None, 30.0, "same"),
        ("cost", 0.5, 0.6, "worse"),
        ("pins", 3.0, 2.0, "better"),
        ("max_error", 1.0, 1.001, "same"),
        ("max_error", 0.0, 1e-9, "worse"),
        ("latency", 1.0, 1.02, "same"),
        ("latency", 1.0, 1.1, "worse"),
    ],
)
def test_trend(kind: str, before: float | None, after: float | None, trend: str) -> None:
    assert Change(kind, before, after).trend == trend


def test_pins_added_removed_and_changed_are_told_apart() -> None:
    found = report()
    one, two = (Pin(name, (name,), Precision.FP32, "why") for name in ("Conv_0", "Tanh_2"))
    found[3]["fp16"] = found[3]["fp16"].with_pins([one, two])
    (precision,) = diff_runs(files(), files(found)).precisions
    assert [pin.layer for pin in precision.added] == ["Conv_0", "Tanh_2"]
    assert [pin.layer for pin in precision.removed] == ["LayerNorm_1/Sum_1"]
    bf16 = report()
    bf16[3]["fp16"] = bf16[3]["fp16"].with_pins([Pin("LayerNorm_1/Sum_1", ("n",), Precision.BF16, "")])
    (pin,) = diff_runs(files(), files(bf16)).precisions[0].pins
    assert (pin.before, pin.after) == ("fp32", "bf16")


def test_layers_that_changed_most_come_first_and_infinities_do_not_outweigh() -> None:
    run_, variants, layers, plans = report()
    layers.loc[0, list(errors("introduced", 60.0))] = list(errors("introduced", 60.0).values())
    layers.loc[1, list(errors("introduced", 70.0))] = list(errors("introduced", 70.0).values())  # it was NaN
    diff = diff_runs(files(), files((run_, variants, layers, plans)))
    assert [layer.layer for layer in diff.layers] == ["LayerNorm_1/Sum_1", "Conv_0"]
    assert [layer.introduced.trend for layer in diff.layers] == ["better", "worse"]
    assert all(math.isfinite(weight) for layer in diff.layers for weight in layer.weight)


def test_what_one_run_has_alone_is_named() -> None:
    found = report(["Conv_0", "LayerNorm_1/Sum_1", "Tanh_2", "New_3"])
    assert diff_runs(files(), files(found)).only == (("layer", ("Shape_3",), ("New_3",)),)


def test_settings_and_versions_that_differ_are_named() -> None:
    found = report(versions={"onnx": "9"}, tolerance={"fp16": "sqnr>=20"})
    found[0]["data"]["choosing"] = 7
    settings = {s.name: (s.before, s.after) for s in diff_runs(files(), files(found)).settings}
    assert settings["onnx"] == ("1.17.0", "9")
    assert settings["numpy"] == ("2.0.0", "–")
    assert settings["tolerance of fp16"] == ("sqnr>=30", "sqnr>=20")
    assert settings["samples that chose"] == ("48", "7")


def test_the_plan_found_is_compared_whether_it_has_pins_or_not() -> None:
    run_, variants, layers, plans = report()
    without = variants[variants.variant != "fp16 mixed"].copy()
    without.loc[without.variant == "fp16", "sqnr_db"] = 60.0
    diff = diff_runs(files(), files((run_, without, layers, plans)))
    sqnr = next(change for change in diff.precisions[0].found if change.name == "sqnr")
    assert (sqnr.before, sqnr.after) == (57.0, 60.0)


# Whether it fails


@pytest.mark.parametrize(
    ("condition", "changes", "fails"),
    [
        ("sqnr drop>1", {"sqnr_db": 56.5}, False),
        ("sqnr drop>1", {"sqnr_db": 55.5}, True),
        ("sqnr drop>1", {"sqnr_db": NAN}, True),
        ("SQNR  drop > 1", {"held_out_sqnr_db": 50.0}, True),
        ("sqnr drop>10%", {"sqnr_db": 52.0}, False),
        ("sqnr drop>10%", {"sqnr_db": 51.0}, True),
        ("cost rise>5%", {"cost_of_fp32": 0.53}, False),
        ("cost rise>5%", {"cost_of_fp32": 0.54}, True),
        ("pins rise>0", {"pins": 2}, True),
        ("top1 drop>0.01", {"top1": 0.98}, True),
        ("metric drop>0.01", {"metric": 0.995}, False),
        ("nonfinite rise>0", {"nonfinite_tensors": 1}, True),
        ("top1 drop>0.01", {"top1": NAN}, True),
    ],
)
def test_conditions(condition: str, changes: dict[str, Any], fails: bool) -> None:
    diff = changed((condition,), **changes)
    assert bool(diff.failures) == fails
    assert changed(**changes).failures == ()  # and no verdict fell


def test_the_worse_of_several_outputs_can_be_asked_for_by_name() -> None:
    found = []
    for sqnr in (57.0, 40.0):
        run_, _, layers, plans = report()
        rows = [variant(name, "fp16", o) for name in ("fp16", "fp16 mixed") for o in ("good", "a[b]")]
        rows[-1]["sqnr_db"] = sqnr
        found.append(files((run_, pd.DataFrame(rows), layers, plans)))
    assert diff_runs(*found, ("sqnr[a[b]] drop>1",)).failures
    assert not diff_runs(*found, ("sqnr[good] drop>1",)).failures


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sqnr", "write FIGURE drop>NUMBER"),
        ("sqnr drop>x", "write FIGURE drop>NUMBER"),
        ("speed rise>1", "FIGURE one of sqnr"),
        ("sqnr rise>1", "sqnr is worse when it drops"),
        ("cost drop>1", "cost is worse when it rises"),
        ("pins[a] rise>1", "of the whole network"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(text: str, words: str) -> None:
    with pytest.raises(OptionError, match=re.escape(words)):
        Condition.parse(text)


def test_a_condition_that_guards_nothing_is_refused() -> None:
    with pytest.raises(OptionError, match="a has no such figure"):
        changed(("sqnr[nothing] drop>1",))


def test_a_verdict_that_falls_fails_without_being_asked() -> None:
    found = report()
    found[0]["precisions"]["fp16"] |= {"met": False, "verdict": said("not met", "the nearest plan has 1 pin")}
    assert diff_runs(files(), files(found)).failures == ("fp16: the tolerance was met, and is not met any more",)
    assert diff_runs(files(found), files()).failures == ()
    found[0]["precisions"]["fp16"]["verdict"] = said("not known", "the inputs were random", on_random=True)
    assert diff_runs(files(), files(found)).failures == ("fp16: the tolerance was met, and is now not known",)


def test_a_precision_that_was_met_and_is_not_swept_any_more_fails() -> None:
    found = report()
    found[0]["precisions"] = {}
    found[3].clear()
    assert diff_runs(files(), files(found)).failures == ("fp16: the tolerance was met, and B did not sweep it",)


# The command and the page


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model whose square overflows with its pins, and with none allowed."""
    folder = tmp_path_factory.mktemp("runs")
    body = '["/norm/square"] a = Mul(x, x) ["/norm/root"] b = Sqrt(a) '
    body += '["/scale"] c = Mul(b, third) ["/shift"] y = Add(c, third)'
    model = proto(f"(float[1,4] x) => (float[1,4] y) {{ {body} }}", {"third": np.float32([1 / 3])})
    onnx.save_model(model, folder / "model.onnx")
    data = folder / "data"
    data.mkdir()
    np.savez(data / "sample.npz", x=np.float32([[300, 500, 700, 900]]))
    for name, pins in (("a", None), ("b", 0)):
        sweep(folder / "model.onnx", data, precisions="fp16", max_pins=pins, repair=False, out=folder / name)
    return folder / "a", folder / "b"


def test_exit_codes_and_what_is_printed(runs: tuple[Path, Path]) -> None:
    a, b = runs
    worse, better, same = run("diff", a, b), run("diff", b, a), run("diff", a, a, "--fail-if", "sqnr drop>0.1")
    assert (worse.exit_code, better.exit_code, same.exit_code) == (1, 0, 0)
    assert "fp16: worse; tolerance met → NOT met" in worse.stdout
    assert "fp32 → no pin: /norm/square" in worse.stdout
    assert "WORSE: fp16: the tolerance was met, and is not met any more" in " ".join(worse.stdout.split())
    assert "no pin → fp32: /norm/square" in better.stdout
    assert "B is not worse than A allows" in same.stdout
    assert max(len(line.rstrip()) for line in worse.stdout.splitlines() if not line.startswith("A: /")) <= 80


def test_what_cannot_be_compared_is_2(runs: tuple[Path, Path], tmp_path: Path) -> None:
    assert run("diff", runs[0], tmp_path).exit_code == 2
    assert run("diff", *runs, "--fail-if", "what").exit_code == 2
    assert run("diff", *runs, "--open").exit_code == 2


def test_json_is_strict(runs: tuple[Path, Path]) -> None:
    found = json.loads(run("diff", *runs, "--json").stdout, parse_constant=lambda name: pytest.fail(name))
    assert found["worse"] is True
    (precision,) = found["precisions"]
    assert precision["met"] == {"a": True, "b": False}
    assert {"layer": "/norm/square", "a": "fp32", "b": None}.items() <= precision["pins"][0].items()
    reference = next(v for v in found["variants"] if v["variant"] == "fp32")
    assert reference["figures"][0] == {"figure": "sqnr", "held_out": False, "a": "inf", "b": "inf", "trend": "same"}


def test_the_page_says_the_same(runs: tuple[Path, Path], tmp_path: Path) -> None:
    assert run("diff", *runs, "--html", tmp_path / "diff.html").exit_code == 1
    page = Page((tmp_path / "diff.html").read_text(encoding="utf-8"))
    assert "B is worse than A" in page.text
    assert page.row("/norm/square")[1:3] == ["FP32", "–"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not any("src" in attributes for _, attributes in page.tags)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_strangers_are_text(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    from precisionlab.cli.diff import print_diff

    def named(name: str, sqnr: float) -> RunFiles:
        run_, variants, layers, plans = report(["a", name, "b", "c"])
        layers[["kind", "reason"]] = variants["output"] = name
        layers.loc[layers["layer"] == name, list(errors("introduced", sqnr))] = list(
            errors("introduced", sqnr).values()
        )
        run_["data"]["name"] = f"{name}{sqnr}"
        pins = [Pin(name, (name,), Precision.FP32 if sqnr > 1 else Precision.BF16, name)]
        plans["fp16"] = plans["fp16"].with_pins(pins)
        return files((run_, variants, layers, plans), name)

    diffs = [diff_runs(named(n, 2.0), named(n, 1.0)) for n in (name, "plain")]
    page, plain = (Page(render_diff(diff)) for diff in diffs)
    assert name.replace("\n", "␊").replace("\t", "␉") in "".join(page.texts)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    print_diff(diffs[0], sys.stdout)
    assert "\t" not in capsys.readouterr().out


# What ships, what compares, and what is the same


def with_interval(sqnr: float, low: float, high: float) -> Any:
    run, variants, layers, plans = report()
    variants = variants.copy()
    own = (variants["variant"] == "fp16 mixed") & variants["sqnr_db"].notna()
    variants.loc[own, ["sqnr_db", "sqnr_low_db", "sqnr_high_db"]] = [sqnr, low, high]
    return run, variants, layers, plans


def plan_sqnr(before: Any, after: Any) -> Any:
    (precision,) = diff_runs(files(before), files(after, "b")).precisions
    return next(c for c in precision.found if c.name == "sqnr" and not c.held_out)


def test_figures_within_each_others_interval_are_the_same_and_the_difference_is_shown() -> None:
    change = plan_sqnr(with_interval(40, 37, 43), with_interval(38, 36, 41))
    assert change.is_within
    assert change.trend == "same"
    assert change.texts == ("40.0", "38.0", "−2.0")


def test_held_out_figures_are_the_same_within_their_own_interval() -> None:
    def held_out(sqnr: float, *ends: float) -> Any:
        run, variants, layers, plans = report()
        variants = variants.copy()
        own = (variants["variant"] == "fp16 mixed") & variants["sqnr_db"].notna()
        variants.loc[own, "held_out_sqnr_db"] = sqnr
        for name, end in zip(("held_out_sqnr_low_db", "held_out_sqnr_high_db"), ends, strict=False):
            variants.loc[own, name] = end
        return run, variants, layers, plans

    def change(before: Any, after: Any) -> Any:
        (precision,) = diff_runs(files(before), files(after, "b")).precisions
        return next(c for c in precision.found if c.name == "sqnr" and c.held_out)

    near = change(held_out(40, 37, 43), held_out(38, 36, 41))
    assert (near.trend, near.texts) == ("same", ("40.0", "38.0", "−2.0"))
    assert change(held_out(40, 37, 43), held_out(36, 35, 41)).trend == "worse"
    assert change(held_out(40), held_out(38)).trend == "worse"  # of older versions, which say nothing of it


def test_what_is_made_of_the_same_sums_is_the_same_too() -> None:
    before, after = with_interval(40, 37, 43), with_interval(38, 36, 41)
    for content, value in ((before, 0.01), (after, 0.0126)):
        content[1].loc[content[1]["variant"] == "fp16 mixed", "rel_l2"] = value
    (precision,) = diff_runs(files(before), files(after, "b")).precisions
    found = {c.name: c for c in precision.found if not c.held_out and c.output is None}
    assert found["rel_l2"].trend == "same"
    assert found["rel_l2"].texts[2]
    (other,) = diff_runs(files(before), files(with_interval(20, 19, 21), "b")).precisions
    assert next(c for c in other.found if c.name == "sqnr").trend == "worse"


@pytest.mark.parametrize(
    ("after", "trend"), [((36, 35, 41), "worse"), ((38, 37, 39), "worse"), ((44, 39, 47), "better")]
)
def test_figures_beyond_either_interval_are_not(after: tuple[float, float, float], trend: str) -> None:
    change = plan_sqnr(with_interval(40, 37, 43), with_interval(*after))
    assert not change.is_within
    assert change.trend == trend


def test_a_condition_of_the_user_counts_within_the_interval_too() -> None:
    runs = files(with_interval(40, 37, 43)), files(with_interval(38, 36, 41), "b")
    assert diff_runs(*runs, ("sqnr drop>1",)).failures
    assert not diff_runs(*runs, ("sqnr drop>3",)).failures


@pytest.mark.parametrize(("key", "what"), [("model", "models"), ("data", "data")])
def test_runs_of_different_models_or_data_are_refused(key: str, what: str) -> None:
    run, variants, layers, plans = report()
    other = {**run, key: {**run[key], "sha256": "f" * 64}}
    with pytest.raises(OptionError, match=f"are of different {what}: .*--other-model"):
        check_comparable(files(), files((other, variants, layers, plans), "b"))
    check_comparable(files(), files(name="b"))


def test_what_ships_stands_first(swept_digits: SweepResult) -> None:
    assert swept_digits.folder is not None
    run = read_run(swept_digits.folder)
    diff = diff_runs(run, run)
    taken = diff.advice[1].taken
    assert diff.precisions[0].name == taken
    said = diff_to_dict(diff)
    assert said["ships"]["b"] == {"precision": taken, "sentence": diff.advice[1].sentence}
    out = CliRunner().invoke(cli, ["diff", str(run.folder), str(run.folder)])
    assert out.exit_code == 0
    assert " ".join(out.stdout.split()).count(diff.advice[0].sentence) == 2
    assert out.stdout.index(diff.advice[0].sentence.split()[0]) < out.stdout.index("the plan found")
