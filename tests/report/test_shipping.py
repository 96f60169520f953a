"""The sentence on top of report, summary and terminal: the same everywhere, from what a run's folder holds."""

from __future__ import annotations

import html
import io
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_report import NOT_MET, Report, facts, report, variant

from precisionlab.cli.summary import print_summary
from precisionlab.jobs.result import SweepResult
from precisionlab.report.cells import records_of
from precisionlab.report.html import render, render_fragment
from precisionlab.report.machine import to_json
from precisionlab.report.markdown import render_markdown
from precisionlab.report.section import Tables, section_of
from precisionlab.report.shipping import next_commands, recommendation, recommendation_of
from precisionlab.search.recommendation import Recommendation

TAKEN = "Take FP16: right with 1 pin (emulated; accuracy 1.000, FP32's 1.000), 51 % of FP32's cost (estimated)."


def advice(made: Report) -> Recommendation:
    run, variants, _, plans = made
    rows = records_of(variants)
    return recommendation(run, rows, [section_of(name, run, Tables(rows, [], []), plans, False) for name in plans])


def precision(made: Report, **changes: Any) -> Report:
    """The report with other facts of FP16."""
    run, *rest = made
    return {**run, "precisions": {"fp16": run["precisions"]["fp16"] | changes}}, *rest


def test_page_summary_and_notebook_begin_with_what_to_ship() -> None:
    run, variants, layers, plans = report()
    summary = render_markdown(run, Tables(records_of(variants), [], []), plans)
    assert summary.splitlines()[2] == f"**{TAKEN}**"
    for page in (render(run, variants, layers, plans), render_fragment(run, variants, layers, plans)):
        shown = html.unescape(page)
        assert shown.index(TAKEN) < shown.index("EMULATED figures.")


def test_the_page_shows_the_export_of_what_it_takes_and_none_where_it_takes_nothing() -> None:
    made = report()
    head = render(*made).partition("<nav")[0]
    assert "precisionlab export plan.json --format trtexec" in head
    assert "Stay in FP32" in render(*precision(made, **NOT_MET)).partition("<nav")[0]
    assert "precisionlab export" not in render(*precision(made, **NOT_MET)).partition("<nav")[0]


def test_the_summary_ends_with_the_export_of_what_it_takes() -> None:
    run, variants, _, plans = report()
    made = Tables(records_of(variants), [], [])
    assert "precisionlab export plan.json --format trtexec" in render_markdown(run, made, plans)
    not_met = run | {"precisions": {"fp16": run["precisions"]["fp16"] | NOT_MET}}
    assert "precisionlab export" not in render_markdown(not_met, made, plans)


def test_the_export_is_typed_where_the_runs_engines_are() -> None:
    engines = {"backend": "tensorrt-rtx", "network": "strongly typed", "device": "L4", "measured": False}
    assert "--format typed-onnx" in render(*report(engines=engines)).partition("<nav")[0]


def test_a_bound_that_other_samples_might_turn_takes_nothing() -> None:
    doubt = {"bound": "sqnr>=30", "low": 28.0, "high": 33.0}
    found = advice(precision(report(), inconclusive=[doubt]))
    assert found.taken is None
    assert "inconclusive: with other samples SQNR in dB would lie between 28.0 and 33.0" in found.sentence


def test_files_that_somebody_changed_recommend_nothing() -> None:
    assert advice(report()).taken == "fp16"
    assert advice(report(altered=["variants.csv"])).taken is None


def test_measured_times_stand_in_the_place_of_estimates() -> None:
    run, variants, layers, plans = precision(
        report(engines={"backend": "tensorrt", "device": "NVIDIA L4", "measured": True}),
        engine={"met": True, "builds": 2, "notes": [], "warnings": [], "pins": []},
    )
    timed = [
        variant("fp32 engine", "fp32", figures="measured", latency_ms=2.0),
        variant("fp16 engine", "fp16", figures="measured", latency_ms=0.5),
        variant("fp16 mixed engine", "fp16", figures="measured", latency_ms=0.8),
    ]
    found = advice((run, pd.concat([variants, pd.DataFrame(timed)], ignore_index=True), layers, plans))
    assert "measured on NVIDIA L4" in found.sentence
    assert "0.8 ms a sample, 40 % of FP32's time (measured)." in found.sentence


def test_a_cost_that_nobody_knows_is_not_made_up() -> None:
    run, variants, layers, plans = report()
    assert advice((run, variants.assign(cost_of_fp32=None), layers, plans)).sentence.endswith(
        "at a cost that is not known."
    )


def test_without_samples_held_out_that_is_said() -> None:
    data = facts()["data"] | {"held_out": 0}
    assert advice(report(data=data)).sentence == f"{TAKEN} No sample was held out to confirm it."


def test_what_hangs_on_clamped_constants_says_so() -> None:
    run, variants, layers, plans = report()
    held = variants.assign(rounded_constants_verdict="met", rounded_constants_sqnr_db=57.0)
    hung = variants.assign(rounded_constants_verdict="NOT met", rounded_constants_sqnr_db=None)
    assert "clamping" not in advice((run, held, layers, plans)).sentence
    found = advice((run, hung, layers, plans)).sentence
    assert "That hangs on TensorRT clamping constants that FP16 cannot hold" in found


def test_a_search_that_was_cut_short_is_gone_on_with(swept_digits: SweepResult) -> None:
    cut = [replace(one, stopped="cut short", mixed=replace(one.mixed, met=False)) for one in swept_digits.precisions]
    verdicts = {one.precision.value: {"verdict": one.verdict.to_dict()} for one in cut}
    facts = {name: swept_digits.run["precisions"][name] | verdicts[name] for name in verdicts}
    command = ["precisionlab", "sweep", "model.onnx", "--max-evaluations", "4"]
    result = replace(
        swept_digits, precisions=tuple(cut), run={**swept_digits.run, "precisions": facts, "command": command}
    )
    found = recommendation_of(result)
    assert found.taken is None
    assert next_commands(result, found)[0] == "precisionlab sweep model.onnx --max-evaluations 8"
    assert len(next_commands(result, found)) == 2


def test_what_to_type_next_is_short_where_the_run_lies_below_the_folder_that_one_is_in(
    swept_digits: SweepResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    below = {**swept_digits.run, "started_in": str(tmp_path), "folder": "reports/my run"}
    result, advice = replace(swept_digits, run=below), recommendation_of(swept_digits)
    monkeypatch.chdir(tmp_path)
    export, opens = next_commands(result, advice)
    plan = "'reports/my run/plan.fp16"
    assert export == f"precisionlab export {plan}.json' --format trtexec --out {plan}.trtexec.sh'"
    assert opens == "precisionlab report 'reports/my run' --open"
    absolute = replace(result, run={**below, "folder": str(tmp_path / "out")})
    assert next_commands(absolute, advice)[-1] == "precisionlab report out --open"
    elsewhere = replace(result, run={**below, "folder": "/elsewhere"})
    assert next_commands(elsewhere, advice)[-1] == "precisionlab report /elsewhere --open"
    monkeypatch.chdir(tmp_path.parent)
    whole = shlex.quote(f"{tmp_path}/reports/my run")
    assert next_commands(result, advice)[-1] == f"precisionlab report {whole} --open"


@pytest.mark.slow
def test_terminal_json_and_files_say_the_same(swept_digits: SweepResult) -> None:
    sentence, stream = recommendation_of(swept_digits).sentence, io.StringIO()
    print_summary(swept_digits, stream)
    terminal = stream.getvalue()
    assert " ".join(terminal.partition("\n\n")[0].split()) == sentence
    assert re.search(r"next:\n  precisionlab export \S+ --format trtexec --out \S+\n  precisionlab report", terminal)
    assert json.loads(to_json(swept_digits))["recommendation"]["sentence"] == sentence
    assert swept_digits.folder is not None
    assert sentence.split(" (")[0] in (swept_digits.folder / "summary.md").read_text(encoding="utf-8")
    assert sentence.split(". ")[0] in html.unescape((swept_digits.folder / "report.html").read_text(encoding="utf-8"))
