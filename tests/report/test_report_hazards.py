"""Hazards, commands, details and the spread over samples: what the page says beside the tables."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_report import HOSTILE, INF, NAN, NOT_MET, Page, report, variant

from precisionlab.calibration.channels import ChannelSpread
from precisionlab.calibration.coarse import CoarseHistogram
from precisionlab.calibration.histogram import histogram_of
from precisionlab.calibration.table import Range
from precisionlab.jobs.result import SweepResult
from precisionlab.precision import Precision
from precisionlab.report.cells import records_of
from precisionlab.report.commands import commands_of, repair_command_line, run_commands
from precisionlab.report.details import details_json
from precisionlab.report.hazard import DANGER, NOTE, WARNING, Hazard
from precisionlab.report.hazards import hazards
from precisionlab.report.histograms import LayerTensors, RunHistograms, TensorValues
from precisionlab.report.html import render
from precisionlab.report.section import Tables, section_of
from precisionlab.report.spread import spreads_of
from precisionlab.report.tables import samples_table


def found(run: dict[str, Any], variants: pd.DataFrame, layers: pd.DataFrame, plans: Any) -> dict[str, Hazard]:
    """The hazards, by their titles."""
    tables = Tables(records_of(variants), records_of(layers), [])
    return {
        h.title: h for h in hazards(run, [section_of(name, run, tables, plans, False) for name in run["precisions"]])
    }


def one(wanted: str, every: dict[str, Hazard]) -> Hazard:
    (hazard,) = [hazard for title, hazard in every.items() if wanted in title]
    return hazard


def test_overflow_that_the_plan_deals_with_is_a_note() -> None:
    hazard = one("Overflow", found(*report()))
    assert (hazard.severity, hazard.where) == (NOTE, "FP16")
    assert hazard.title == "Overflow: 1 layer reaches values beyond 65504, up to 3.49e+05"
    assert hazard.why.startswith("FP16 ends there")
    assert [(link.layer, link.row) for link in hazard.layers] == [("LayerNorm_1/Sum_1", "row-1-1")]
    assert "1 layer kept in FP32" in hazard.action


def test_overflow_is_that_of_the_format_of_the_layer() -> None:
    """3.5e5 overflows what fp16 around int8 holds, and neither bfloat16 nor float32."""
    for held_in, overflows in (("fp16", True), ("bf16", False), ("fp32", False)):
        run, variants, layers, plans = report()
        layers["runs_in"], layers["format"] = "int8", held_in
        assert any("Overflow" in title for title in found(run, variants, layers, plans)) == overflows
    layers.loc[1, ["ref_max", "format", "runs_in"]] = [3.402e38, "bf16", "bf16"]
    hazard = one("Overflow", found(run, variants, layers, plans))
    assert hazard.title == "Overflow: 1 layer reaches values beyond 3.3895e+38, up to 3.4e+38"
    assert (hazard.why.split(";")[0], hazard.action[:27]) == ("BF16 ends there", "Keep these layers in FP32, ")
    facts = json.loads(str(details_json(records_of(layers))))
    assert facts["1"]["h"] == "BF16"
    assert facts["formats"]["BF16"] == [Precision.BF16.number_format.largest, 2.0**-126, 2.0**-133]
    assert ["Reference’s values beyond 3.3895e+38, where BF16 ends", "7"] in facts["1"]["f"]


def test_overflow_that_no_plan_fixes_is_a_danger_and_stands_first() -> None:
    run, *rest = report()
    run["precisions"]["fp16"] |= NOT_MET
    every = found(run, *rest)
    assert one("Overflow", every).severity == DANGER
    assert one("No plan meets", every).severity == DANGER
    severities = [hazard.severity for hazard in every.values()]
    assert severities == sorted(severities, key=[DANGER, WARNING, NOTE].index)


def test_constants_that_underflow_are_found_by_their_cause() -> None:
    run, variants, layers, plans = report()
    layers["cause_kinds"] = ["", "first_nonfinite overflow", "constant_underflows input_underflows", ""]
    assert [link.layer for link in one("constant", found(run, variants, layers, plans)).layers] == ["Tanh_2"]


def test_clamped_constants_are_told_with_what_the_figures_rest_on() -> None:
    run, variants, layers, plans = report()
    layers["cause_kinds"] = ["", "overflow constant_overflows", "constant_clamped", ""]
    every = found(run, variants, layers, plans)
    clamped = one("Clamped constants in 1 layer", every)
    assert [link.layer for link in clamped.layers] == ["Tanh_2"]
    assert "logs of 8.x say so; in 10.x it is likely" in clamped.why
    assert clamped.severity == NOTE
    assert "A constant of 1 layer does not fit FP16" in every


def test_values_that_a_clamped_constant_keeps_finite_are_no_overflow() -> None:
    """A mask of −3.4e38 that is clamped: the reference goes far beyond half, the variant nowhere."""
    run, variants, layers, plans = report()
    assert any("Overflow" in title for title in found(run, variants, layers, plans))
    layers[["inherited_nan", "inherited_inf"]] = 0
    every = found(run, variants, layers, plans)
    assert not any("Overflow" in title or "NaN or Inf in" in title for title in every)


def test_what_breaks_is_told_by_its_kind_and_not_by_its_words() -> None:
    """A layer may be called anything; a run of an older version has words alone, and is drawn without such hazards."""
    run, variants, layers, plans = report()
    layers.loc[2, "cause"] = "Inf inside loop: overflow becomes 0 in fp16"
    layers.loc[2, ["introduced_inf"]] = 1
    assert [link.layer for link in one("without an overflow", found(run, variants, layers, plans)).layers] == ["Tanh_2"]
    layers["cause_kinds"] = ["", "overflow", "input_overflows", ""]
    assert not any("without an overflow" in title for title in found(run, variants, layers, plans))


def test_what_the_look_at_the_data_found_is_told() -> None:
    run, *rest = report()
    run["data"] |= {"look": {"findings": [{"severity": "warning", "input": "image", "text": "all the same"}]}}
    assert found(run, *rest)["Input image: all the same"].severity == WARNING
    run["data"] |= {"random": True, "held_out": 0}
    every = found(run, *rest)
    assert one("random numbers", every).severity == DANGER
    assert not any("held out" in title for title in every)


def test_few_samples_that_calibrate_are_told_though_there_were_enough() -> None:
    run, variants, layers, plans = report()
    run["precisions"] = {"int8": run["precisions"]["fp16"]}
    run["tolerance"] = {"int8": "sqnr>=20"}
    run["data"] |= {"samples": 20, "choosing": 15, "held_out": 5}
    assert one("Only 15 samples", found(run, variants, layers, plans)).severity == WARNING


@pytest.mark.parametrize(
    ("verdict", "severity"), [("honoured", None), ("overridden", DANGER), ("unknown", WARNING), ("not found", WARNING)]
)
def test_pins_that_did_not_take(verdict: str, severity: str | None) -> None:
    run, *rest = report()
    pin = {"layer": "LayerNorm_1/Sum_1", "asked": "fp32", "got": ["fp16"], "verdict": verdict, "advice": "pin more"}
    run["precisions"]["fp16"]["engine"] = {"met": True, "builds": 2, "notes": [], "warnings": [], "pins": [pin]}
    every = [hazard for title, hazard in found(run, *rest).items() if "pins" in title]
    assert [hazard.severity for hazard in every] == ([] if severity is None else [severity])
    assert all(hazard.action == "Pin more" and hazard.layers[0].row == "row-1-1" for hazard in every)


def test_engines_that_looking_changed_and_compilers_that_refuse() -> None:
    run, *rest = report()
    run["precisions"]["fp16"]["engine"] = {
        "met": True, "builds": 2, "notes": ["looking at its layers changed the engine"], "warnings": ["odd"], "pins": []
    }  # fmt: skip
    run["precisions"]["fp16"]["compiled"] = [{"variant": "fp16", "target": "SM89", "refused": "no kernel"}]
    every = found(run, *rest)
    assert one("Looking at its layers", every).severity == WARNING
    assert one("compiler refused", every).why == "no kernel"


def test_int8_that_is_no_cheaper_than_fp16() -> None:
    run, variants, layers, plans = report()
    run["precisions"]["int8"] = {**run["precisions"]["fp16"], "pins": 0}
    run["tolerance"]["int8"] = "sqnr>=20"
    dear, cheap = (pd.DataFrame([variant("int8", "int8", cost_of_fp32=cost)]) for cost in (0.6, 0.4))
    title = "INT8 is no cheaper than FP16: 60.0 % against 51.2 % of FP32, estimated"
    assert found(run, pd.concat([variants, dear]), layers, plans)[title].severity == WARNING
    assert not any("cheaper" in title for title in found(run, pd.concat([variants, cheap]), layers, plans))


# Commands


@pytest.mark.parametrize("folder", ["runs/a b", "-odd", "it's; rm -rf $HOME", "two\nlines"])
def test_commands_name_files_so_that_a_shell_takes_them(folder: str) -> None:
    run, variants, layers, plans = report()
    run["folder"] = run["data"]["folder"] = folder
    section = section_of("fp16", run, Tables(records_of(variants), records_of(layers), []), plans, False)
    made = commands_of(run, section)
    path = f"./{folder}" if folder.startswith("-") else folder
    words = [shlex.split(command.text) for command in (*made.build, *made.check, *run_commands(run)[1:])]
    assert words[0] == [
        "precisionlab", "export", f"{path}/plan.json", "--format", "trtexec", "--out", f"{path}/plan.trtexec.sh"
    ]  # fmt: skip
    assert all(line[0] == "precisionlab" and any(word.startswith(path) for word in line) for line in words)


def test_exports_that_the_page_names_do_exist() -> None:
    from precisionlab.cli.export import FORMATS

    run, variants, layers, plans = report()
    section = section_of("fp16", run, Tables(records_of(variants), records_of(layers), []), plans, False)
    formats = [shlex.split(c.text)[4] for c in commands_of(run, section).build]
    assert formats == ["trtexec", "typed-onnx", "polygraphy", "modelopt"]
    assert set(formats) < set(FORMATS)


def test_what_polygraphy_imports_has_the_name_of_a_module() -> None:
    from precisionlab.export.polygraphy import check_file

    run, variants, layers, plans = report()
    section = section_of("fp16", run, Tables(records_of(variants), records_of(layers), []), plans, False)
    for file in ("plan.json", "plan.fp16.json"):
        build = commands_of(run, replace(section, plan_file=file)).build
        (script,) = (words[-1] for c in build if (words := shlex.split(c.text))[4] == "polygraphy")
        assert check_file(Path(script)) == Path(script).name


def test_a_repaired_model_is_offered_to_any_tool_where_there_is_one() -> None:
    run, variants, layers, plans = report()
    section = section_of("fp16", run, Tables(records_of(variants), records_of(layers), []), plans, False)
    both = replace(section, repaired=1)
    made = [commands_of(run, one) for one in (section, both, replace(both, pins=()))]
    assert [any("repaired-onnx" in c.text for c in one.build) for one in made] == [False, True, True]
    asked = [one.check[0].words.partition("that each ")[2] for one in made]
    assert asked == ["pin is needed", "repair and pin is needed", "repair is needed"]


@pytest.mark.parametrize("given", [{"folder": "python-object:loader"}, {"metric": "python-object:right"}])
def test_what_only_a_python_session_has_makes_no_commands(given: dict[str, str]) -> None:
    run, *rest = report()
    run["data"] |= given
    text = Page(render(run, *rest)).text
    assert "Not for the command line: samples or metric were objects of a Python session" in text
    assert "precisionlab export" not in text
    assert "precisionlab verify" not in text
    assert repair_command_line(run, rest[-1]["fp16"]) == ""


def test_a_hook_stands_in_every_command_that_needs_its_samples() -> None:
    run, variants, layers, plans = report()
    run["data"]["folder"] = "package.loader:samples"
    section = section_of("fp16", run, Tables(records_of(variants), records_of(layers), []), plans, False)
    made = commands_of(run, section)
    assert all("--data package.loader:samples" in command.text for command in (*made.build, *made.check))


def test_a_plan_that_is_not_right_is_not_offered_for_building() -> None:
    run, variants, layers, plans = report()
    run["precisions"]["fp16"] |= NOT_MET
    section = section_of("fp16", run, Tables(records_of(variants), records_of(layers), []), plans, False)
    assert commands_of(run, section).build == ()


# Details


@pytest.mark.parametrize("name", HOSTILE)
def test_details_end_no_script(name: str) -> None:
    run, variants, layers, plans = report()
    layers["nodes"] = name
    text = str(details_json(records_of(layers)))
    assert not set("<>&\u2028\u2029") & set(text)
    assert ["ONNX nodes", name.replace("\n", "␊").replace("\t", "␉")] in json.loads(text)["0"]["f"]
    assert sum(tag == "script" for tag, _ in Page(render(run, variants, layers, plans)).tags) == 2


def test_details_tell_what_was_measured_from_what_was_not() -> None:
    facts = json.loads(str(details_json(records_of(report()[2]))))
    assert facts["0"]["e"][0][:1] == ["70.2"]
    assert facts["1"]["e"][0][0] == "NaN"
    assert facts["1"]["m"] == 349100
    assert "e" not in facts["3"]
    assert "m" not in facts["3"]


# Samples


def test_samples_add_up_to_the_runs(swept_digits: SweepResult) -> None:
    table = samples_table(swept_digits)
    assert list(table.groupby(["variant", "held_out"]).size()) == [48, 16] * 3
    assert swept_digits.folder is not None
    assert (swept_digits.folder / "samples.csv").exists()
    spreads = spreads_of(records_of(table))
    assert spreads is not None
    assert [(row.variant, row.output, row.samples) for row in spreads.rows] == [
        ("fp16", "logits", 64),
        ("fp16 mixed", "logits", 64),
        ("int8", "logits", 64),
    ]


def samples(*values: float) -> list[dict[str, Any]]:
    return [
        {"variant": "fp16", "output": "out", "held_out": n == 0, "sample": n, "sqnr_db": value}
        for n, value in enumerate(values)
    ]


def test_the_worst_sample_is_named_and_what_is_no_number_counted() -> None:
    spreads = spreads_of(samples(31.0, 44.5, INF, NAN, -INF))
    assert spreads is not None
    (row,) = spreads.rows
    assert (spreads.low, spreads.high) == (30, 50)
    assert (row.worst, row.best, row.broken, row.exact) == ("NaN", "∞", 2, 1)
    assert spreads_of(samples(31.0, 44.5)).rows[0].worst_sample == "0, held out"  # type: ignore[union-attr]
    assert spreads_of(samples(INF, NAN)) is None


@pytest.mark.parametrize(("met", "severity"), [(True, NOTE), (False, WARNING)])
def test_outlier_channels_are_told_with_what_they_leave_the_others(met: bool, severity: str) -> None:
    run, variants, layers, plans = report()
    run["precisions"] = {"int8": {**run["precisions"]["fp16"], **({} if met else NOT_MET)}}
    run["tolerance"] = {"int8": "sqnr>=20"}
    layers["precision"] = layers["runs_in"] = "int8"
    layers["pinned"] = False
    counted = CoarseHistogram.of(histogram_of(np.array([40.0, 1.0], np.float32)))
    uneven = TensorValues(counted, {Precision.INT8: Range(40.0)}, ChannelSpread(1, 8, 1.0, 40.0, 3))
    even = TensorValues(counted, {Precision.INT8: Range(40.0)}, ChannelSpread(1, 8, 30.0, 40.0, 3))
    names = [LayerTensors((), ("even",)), *[LayerTensors((), ("x", "even"))] * 2]
    known = RunHistograms(4, tuple(names), {"x": uneven, "even": even})
    tables = Tables(records_of(variants), records_of(layers), [])
    sections = [section_of("int8", run, tables, plans, False)]
    hazard = one("Outlier channels", {h.title: h for h in hazards(run, sections, known)})
    assert (hazard.severity, hazard.title) == (severity, "Outlier channels at the input of 2 layers")
    assert "In x channel 3 of 8 reaches 40, the median one 1: that one is left 3.2 of 127 levels." in hazard.why
    assert {link.row for link in hazard.layers} == {"row-1-1", "row-1-2"}
    quiet = RunHistograms(4, tuple(names), {"x": even, "even": even})
    assert not any("Outlier" in h.title for h in hazards(run, sections, quiet))
