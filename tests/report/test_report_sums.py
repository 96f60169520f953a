"""What page and summary say of sums that kernels keep in half."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest
from test_diff import files
from test_report import INF, NAN, Page, Report, report
from test_report_hazards import found, one

from precisionlab.plan.arithmetic import TENSORRT, Arithmetic, Sums
from precisionlab.report.cells import records_of
from precisionlab.report.details import details_json
from precisionlab.report.diff import diff_runs
from precisionlab.report.hazard import DANGER, NOTE, WARNING
from precisionlab.report.html import render
from precisionlab.report.markdown import render_markdown
from precisionlab.report.section import Tables, section_of
from precisionlab.search.verdict import State, Tone, Verdict

NEEDS_FLOAT32 = Verdict(
    State.MET,
    "1 of 4 layers pinned to fp32 make it right; but NOT with sums in half (29.1 dB)",
    needs_float32_sums=True,
).to_dict()


def with_half_sums(sqnr: float, verdict: str, *, needs_float32_sums: bool = False) -> Report:
    """A report whose plan was measured with sums in half too."""
    run, variants, layers, plans = report()
    variants["half_sums_verdict"] = ["", "NOT met", verdict]
    variants["half_sums_sqnr_db"] = [NAN, -0.5, sqnr]
    if needs_float32_sums:
        run["precisions"]["fp16"]["verdict"] = NEEDS_FLOAT32
        variants["verdict"] = ["met", "NOT met", "met with sums in float32"]
    return run, variants, layers, plans


def passing(layers: pd.DataFrame, at: int) -> pd.DataFrame:
    """The layers, of which one's sum goes beyond half on the way."""
    layers["cause_kinds"] = ["sum_overflows" if index == at else "" for index in range(4)]
    layers["largest_running_sum"] = [74693.0 if index == at else NAN for index in range(4)]
    layers["format"] = "fp16"
    return layers


def facts(layers: pd.DataFrame) -> dict[str, str]:
    """What the details of the first layer say, by their names."""
    return dict(json.loads(str(details_json(records_of(layers))))["0"]["f"])


def test_the_figure_with_sums_in_half_stands_below_the_headline() -> None:
    run, variants, layers, plans = with_half_sums(54.3, "met")
    section = section_of("fp16", run, Tables(records_of(variants), records_of(layers), []), plans, False)
    rows = {row.label: row for row in section.rows}
    assert rows["with sums in half"].cells == ("–", "−0.5", "54.3")
    assert rows["with sums in half"].below
    assert "with constants not clamped" not in rows
    assert "SQNR: −0.3 → 57.0, 54.3 with sums in half." in render_markdown(
        run, Tables(records_of(variants), records_of(layers), []), plans
    )


@pytest.mark.parametrize(("sqnr", "shown"), [(INF, "∞"), (NAN, "NaN")])
def test_a_figure_that_is_no_number_with_sums_in_half_is_shown_as_what_it_is(sqnr: float, shown: str) -> None:
    run, variants, layers, plans = with_half_sums(sqnr, "NOT met")
    section = section_of("fp16", run, Tables(records_of(variants), records_of(layers), []), plans, False)
    assert next(row.cells for row in section.rows if row.label == "with sums in half")[2] == shown


def test_a_run_of_before_there_were_sums_in_half_is_drawn_without_them() -> None:
    run, variants, layers, plans = report()
    assert "sums in half" not in render(run, variants, layers, plans)
    assert "Sums in half" not in facts(layers)


def test_a_verdict_that_needs_sums_in_float32_is_a_warning_and_not_green() -> None:
    run, variants, layers, plans = with_half_sums(29.1, "NOT met", needs_float32_sums=True)
    hazard = one("only where kernels add up in float32", found(run, variants, layers, plans))
    assert hazard.severity == WARNING
    assert "57.0 dB, and 29.1 dB then" in hazard.why
    assert "--sums half" in hazard.action
    assert "BF16" in hazard.action
    assert Verdict.from_dict(NEEDS_FLOAT32).mark.tone is Tone.OPEN
    page = render(run, variants, layers, plans)
    assert "met with sums in float32" in Page(page).text
    assert "⚪ **FP16: met with sums in float32.**" in render_markdown(
        run, Tables(records_of(variants), records_of(layers), []), plans
    )


def test_a_verdict_that_holds_with_sums_in_half_is_no_hazard() -> None:
    assert not any("float32" in title for title in found(*with_half_sums(54.3, "met")))


def test_a_sum_that_passes_the_end_on_the_way_is_a_hazard_that_names_it() -> None:
    run, variants, layers, plans = with_half_sums(54.3, "met")
    hazard = one("on the way", found(run, variants, passing(layers, 2), plans))
    assert hazard.title == "The sum of 1 layer passes 65504 on the way, up to 7.47e+04, although results fit"
    assert (hazard.severity, [link.layer for link in hazard.layers]) == (WARNING, ["Tanh_2"])
    assert hazard.action.startswith("Pin to BF16 or FP32")


def test_such_a_sum_is_a_note_where_the_plan_pins_it_and_a_danger_where_the_verdict_hangs_on_it() -> None:
    run, variants, layers, plans = with_half_sums(54.3, "met")
    hazard = one("on the way", found(run, variants, passing(layers, 1), plans))
    assert hazard.severity == NOTE
    assert "The plan found keeps it out of it." in hazard.action
    run, variants, layers, plans = with_half_sums(29.1, "NOT met", needs_float32_sums=True)
    assert one("on the way", found(run, variants, passing(layers, 2), plans)).severity == DANGER


def test_an_infinity_of_such_a_sum_is_not_told_as_one_without_a_reason() -> None:
    run, variants, layers, plans = with_half_sums(54.3, "met")
    broken: dict[str, Any] = {"introduced_inf": 3, "inherited_inf": 3}
    layers.loc[2, list(broken)] = list(broken.values())
    assert any("without an overflow" in title for title in found(run, variants, layers, plans))
    assert not any("without an overflow" in title for title in found(run, variants, passing(layers, 2), plans))


def test_details_tell_products_blocks_and_that_the_figure_is_an_estimate() -> None:
    _, _, layers, _ = report()
    layers["products"], layers["blocks"], layers["half_sums_sqnr_db"] = 1152, 72, 58.08
    layers["sum_bound"], layers["largest_running_sum"], layers["format"] = 1234.5, NAN, "fp16"
    told = facts(layers)
    assert told["Sums in half"] == "1,152 products, in 72 blocks, each rounded on tensor cores"
    assert told["SQNR of such sums, estimated"] == "58.1 dB, by the number of blocks"
    assert told["Largest sum on the way"] == "at most 1.23e+03 by a bound; FP16 ends at 65504"


def test_details_tell_the_largest_sum_on_the_way_where_it_was_looked_at() -> None:
    _, _, layers, _ = report()
    layers["products"], layers["blocks"], layers["half_sums_sqnr_db"], layers["format"] = 64, 4, 69.7, "fp16"
    layers["sum_bound"], layers["largest_running_sum"] = 1e5, 60000.0
    assert facts(layers)["Largest sum on the way"] == "60000 on these samples"
    layers["largest_running_sum"] = 74693.0
    told = facts(layers)
    assert told["Largest sum on the way"] == "74693 on these samples, beyond 65504: infinite there"
    assert "SQNR of such sums, estimated" not in told  # the estimate is of rounding alone
    layers["sum_bound"], layers["largest_running_sum"] = 1e38, NAN
    told = facts(layers)
    assert told["Largest sum on the way"] == "at most 1e+38 by a bound; its operands themselves go beyond 65504"


def test_runs_under_unlike_sums_are_told_apart() -> None:
    before, after, older = (report() for _ in range(3))
    before[0]["arithmetic"], after[0]["arithmetic"] = TENSORRT.to_plain(), Arithmetic(sums=Sums.HALF).to_plain()
    assert settings(before, after) == {"emulated sums": ("float32", "half")}
    assert settings(before, before) == {}
    assert settings(older, before)["emulated constants"] == ("–", "clamped")


def settings(before: Report, after: Report) -> dict[str, tuple[str, str]]:
    """What two runs were not given alike."""
    return {s.name: (s.before, s.after) for s in diff_runs(files(before), files(after, "b")).settings}
