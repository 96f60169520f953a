"""What stands beside the report, and the report drawn again: CSV, Markdown, the annotated model, `report`, `--open`."""

from __future__ import annotations

import csv
import json
import re
import shutil
import webbrowser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from models import DIGITS, proto
from test_report import HOSTILE, report

from precisionlab.cli import cli
from precisionlab.errors import OptionError
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.model import load_model
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.report import annotate
from precisionlab.report.cells import records_of
from precisionlab.report.columns import SCHEMAS
from precisionlab.report.csvfile import from_csv, guarded, to_csv, unguarded
from precisionlab.report.histograms import histograms_text, read_histograms
from precisionlab.report.html import render
from precisionlab.report.markdown import code, render_markdown, text
from precisionlab.report.network import network_of
from precisionlab.report.pareto import pareto_table
from precisionlab.report.redraw import page_of, read_run, redraw, summary_of
from precisionlab.report.schema import Column, Kind, Schema
from precisionlab.report.section import Tables
from precisionlab.report.tables import samples_table

NAMES = [
    *HOSTILE,
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-3.5",
    "@x",
    "\t=1",
    "\r=1",
    "a\rb",
    "a\r\nb",
    "'",
    "''=",
    "NA",
    "3",
    'é,;"',
]


@pytest.fixture(name="digits")
def _digits(swept_digits: SweepResult) -> SweepResult:
    return swept_digits


@pytest.fixture
def folder(digits: SweepResult, tmp_path: Path) -> Path:
    """A copy of the run, to be spoilt."""
    assert digits.folder is not None
    return Path(shutil.copytree(digits.folder, tmp_path / "run"))


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)


# CSV


def column(name: str, kind: Kind) -> Column:
    return Column(name, kind, name, "A column.")


@pytest.mark.parametrize("name", NAMES)
def test_no_cell_of_text_is_a_formula_and_it_is_read_back_as_it_was(name: str) -> None:
    table = pd.DataFrame({"layer": [name, "plain"], "sqnr": [-3.5, -np.inf], "count": pd.array([1, None], "Int64")})
    file = to_csv(table)
    cell = list(csv.reader(file.splitlines(keepends=True)))[1][0] if "\r" not in name else guarded(name)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    pd.testing.assert_frame_equal(
        from_csv(file, [column("layer", Kind.TEXT), column("count", Kind.COUNT)]), table, check_dtype=False
    )


def test_numbers_stay_numbers() -> None:
    file = to_csv(pd.DataFrame({"a": [-1.5, -np.inf, np.nan], "b": ["-1.5", "=", ""]}))
    assert file.splitlines()[1:] == ["-1.5,'-1.5", "-inf,'=", ","]


@given(st.text())
def test_an_apostrophe_is_taken_away_exactly_where_one_was_put(name: str) -> None:
    assert unguarded(guarded(name)) == name


def test_cells_of_older_files_stay_as_they_are() -> None:
    assert unguarded("'tis") == "'tis"
    assert unguarded("=1") == "=1"


@given(st.lists(st.floats(), min_size=1))
def test_floats_are_read_back_to_the_bit(values: list[float]) -> None:
    read = from_csv(to_csv(pd.DataFrame({"a": values, "b": 0.5})))["a"].to_numpy(np.float64)
    np.testing.assert_array_equal(read, np.array(values))


def test_the_tables_of_a_run_are_read_back_with_their_types(digits: SweepResult) -> None:
    assert digits.folder is not None
    files = read_run(digits.folder)
    live = (digits.variants, digits.layers, pareto_table(digits), samples_table(digits))
    for read, table in zip((files.variants, files.layers, files.pareto, files.samples), live, strict=True):
        assert read is not None
        for name in table:
            if pd.api.types.is_numeric_dtype(table[name]):
                pd.testing.assert_series_equal(read[name], table[name])
            else:
                assert [v or None for v in read[name]] == [v or None for v in table[name].astype(object)], name


def test_a_row_of_other_columns_than_the_schema_has_is_an_error() -> None:
    schema = Schema("x.csv", "a thing", lambda: (column("name", Kind.TEXT), column("count", Kind.COUNT)))
    assert list(schema.frame([{"name": "a", "count": None}])) == ["name", "count"]
    assert list(schema.frame([])) == ["name", "count"]
    for row in ({"name": "a"}, {"name": "a", "count": 1, "more": 2}):
        with pytest.raises(ValueError, match=r"x\.csv: a row lacks, or has beside the others, \['(count|more)'\]"):
            schema.frame([row])


@pytest.mark.parametrize(
    ("kind", "cell", "value"),
    [
        (Kind.TEXT, "3", "3"),
        (Kind.NUMBER, "3", 3.0),
        (Kind.WHOLE, "3", 3),
        (Kind.COUNT, "3", 3),
        (Kind.FLAG, "True", True),
        (Kind.FLAG, "yes", "'yes' is neither True nor False"),
        (Kind.FLAG, "", "'' is neither True nor False"),
        (Kind.WHOLE, "3.5", "column a: invalid literal"),
        (Kind.NUMBER, "x", "column a: could not convert"),
    ],
)
def test_a_cell_is_read_as_its_column_says(kind: Kind, cell: str, value: object) -> None:
    file = f"a,b\n{cell},1\n"
    if kind is not Kind.TEXT and isinstance(value, str):
        with pytest.raises(ValueError, match=re.escape(value)):
            from_csv(file, [column("a", kind)])
    else:
        found = from_csv(file, [column("a", kind)])["a"].tolist()
        assert found == [value]
        assert type(found[0]) is type(value)


def test_every_column_says_what_it_is_in_a_sentence() -> None:
    for schema in SCHEMAS.values():
        assert len(set(schema.names)) == len(schema.columns)
        for found in schema.columns:
            assert found.title, found.name
            assert found.what[0].isupper(), found.name
            assert found.what.endswith("."), found.name


# The report again


def moved(page: bytes, digits: SweepResult, folder: Path) -> bytes:
    """The page as it is drawn for a copy of the run: its commands name the files there."""
    return page.replace(str(digits.folder).encode(), str(folder).encode())


def test_the_report_is_drawn_again_to_the_same_bytes(digits: SweepResult, folder: Path) -> None:
    page = folder / "report.html"
    before = page.read_bytes()
    page.unlink()
    result = run("report", folder)
    assert (result.exit_code, result.stdout.strip()) == (0, f"Report: {page}")
    assert page.read_bytes() == moved(before, digits, folder) != before
    histograms = read_histograms(histograms_text(digits))
    tables = (digits.variants, digits.layers, digits.plans, pareto_table(digits), samples_table(digits))
    live = render(digits.run, *tables, histograms, network_of(digits.model))
    assert live.encode() == before


def test_a_run_of_the_first_schema_is_read_under_todays_names(folder: Path) -> None:
    """Such runs say `vanished`, and have no `schema`."""
    text = (folder / "layers.csv").read_text(encoding="utf-8")
    text = text.replace("first_nonfinite overflow", "first_nonfinite constant_underflows")
    (folder / "layers.csv").write_text(text, encoding="utf-8")
    now = read_run(folder)
    older = re.sub(r"(input|constant)_underflows", r"\1_vanishes", text.replace("_underflow,", "_vanished,"))
    assert ("introduced_vanished" in older, "first_nonfinite constant_vanishes" in older) == (True, True)
    (folder / "layers.csv").write_text(older, encoding="utf-8")
    _run_json(lambda r: (r.pop("schema"), r.pop("written")))(folder)
    old = read_run(folder)
    pd.testing.assert_frame_equal(old.layers, now.layers, check_dtype=False)
    same = replace(old, run=now.run)
    assert (page_of(same), summary_of(same)) == (page_of(now), summary_of(now))


def test_a_run_of_the_second_schema_is_read_under_todays_names(folder: Path) -> None:
    """Such runs call `hangs` what is inconclusive."""
    doubts = [{"bound": "sqnr>=30", "low": 28.04, "high": "inf"}]
    _run_json(lambda r: (r.pop("written"), r["precisions"]["fp16"].update(inconclusive=doubts)))(folder)
    now = read_run(folder)
    assert now.run["precisions"]["fp16"]["inconclusive"] == doubts

    def older(run: dict[str, Any]) -> None:
        run["schema"] = 2
        for facts in run["precisions"].values():
            facts["hangs"] = facts.pop("inconclusive")

    _run_json(older)(folder)
    old = read_run(folder)
    assert old.run["precisions"] == now.run["precisions"]
    assert page_of(old) == page_of(now)


def test_the_page_goes_where_it_is_wanted(digits: SweepResult, folder: Path, tmp_path: Path) -> None:
    page = moved((folder / "report.html").read_bytes(), digits, folder)
    assert run("report", folder, "--out", tmp_path / "page.html").exit_code == 0
    assert (tmp_path / "page.html").read_bytes() == page
    assert "cannot be written" in run("report", folder, "--out", tmp_path / "none" / "page.html").stderr


def _without(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def _filled(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def _shortened(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-40])


def _without_column(name: str, column: str) -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        table = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
        table.drop(columns=column).to_csv(folder / name, index=False)

    return spoil


def _with_lines(name: str, change: Callable[[list[str]], list[str]]) -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        (folder / name).write_text("\n".join(change(lines)) + "\n", encoding="utf-8")

    return spoil


def _run_json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        change(content)
        (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without("run.json"), "no run.json here; give the folder of a sweep"),
        (_without("layers.csv"), "layers.csv: missing"),
        (_without("pareto.csv"), "pareto.csv: missing"),
        (_without("plan.fp16.json"), "plan.fp16.json: missing"),
        (_filled("run.json", b"{"), "run.json: broken: not JSON"),
        (_filled("run.json", b"[]"), "run.json: broken: it must be a JSON object"),
        (_filled("layers.csv", b""), "layers.csv: broken"),
        (_filled("layers.csv", b"\xff\xfe"), "layers.csv: broken: not UTF-8"),
        (_filled("layers.csv", b"a,b\n1,2\n1,2,3\n"), "layers.csv: broken"),
        (_shortened("layers.csv"), "layers.csv: broken: the last row is cut short"),
        (_filled("layers.csv", b"rank\nfirst\n"), "layers.csv: broken: column rank"),
        (_filled("plan.int8.json", b"{}"), "plan.int8.json: schema is None"),
        (
            _with_lines("samples.csv", lambda lines: [*lines, '"fp16"']),
            "samples.csv: broken: a row has fewer cells",
        ),
        (_with_lines("layers.csv", lambda lines: [lines[0], '"conv"']), "layers.csv: broken: a row has fewer cells"),
        (_with_lines("variants.csv", lambda lines: lines[:1]), "variants.csv: broken: holds no variant"),
        (_without_column("layers.csv", "alone_sqnr_db"), "another version of precisionlab: it lacks alone_sqnr_db"),
        (_without_column("variants.csv", "cost_of_fp32"), "it lacks cost_of_fp32"),
        (_run_json(lambda r: r.update(schema=4)), "run.json: schema is 4, this version reads 1 to 3; read it with"),
        (_run_json(lambda r: r.update(schema=True)), "run.json: schema is True, this version reads 1 to 3"),
        (_run_json(lambda r: r.pop("target")), "run.json: made by another version of precisionlab: it lacks target"),
        (_run_json(lambda r: r["data"].pop("held_out")), "it lacks data.held_out"),
        (_run_json(lambda r: r["precisions"]["fp16"].pop("inconclusive")), "it lacks precisions.fp16.inconclusive"),
        (_run_json(lambda r: r.update(model=3)), "model must be a JSON object"),
        (_run_json(lambda r: r.update(seconds="?")), "is not what a sweep writes"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_sentence(folder: Path, spoil: Callable[[Path], Any], words: str) -> None:
    spoil(folder)
    result = run("report", folder)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_no_folder_is_said(tmp_path: Path) -> None:
    assert "no such folder" in run("report", tmp_path / "none").stderr
    (tmp_path / "file").touch()
    assert f"a file; give the folder, {tmp_path}" in run("report", tmp_path / "file").stderr
    with pytest.raises(OptionError, match=r"no run\.json here"):
        redraw(read_run(tmp_path))


# --open


def test_the_page_is_opened_where_there_is_a_display(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    result = run("report", folder, "--open")
    assert opened == [(folder / "report.html").as_uri()]
    assert result.stderr == ""


@pytest.mark.parametrize("displays", [[], ["DISPLAY"]])
def test_where_no_browser_opens_the_address_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, displays: list[str]
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    for name in displays:
        monkeypatch.setenv(name, ":0")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(webbrowser, "open", lambda address: False if displays else pytest.fail("it was opened"))
    result = run("report", folder, "--open")
    assert result.exit_code == 0
    assert (folder / "report.html").as_uri() in result.stderr


@pytest.mark.slow
def test_sweep_and_calibrate_open_their_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    model, data = str(DIGITS / "digits.onnx"), ["--data", str(DIGITS), "--samples", "2", "--open"]
    swept = run("sweep", model, *data, "--precisions", "int8", "--json", "--out", tmp_path / "a")
    assert json.loads(swept.stdout)["met"] is True
    assert run("calibrate", model, *data, "--out", tmp_path / "b").exit_code == 0
    assert opened == [(tmp_path / "a" / "report.html").as_uri(), (tmp_path / "b" / "calibration.html").as_uri()]


# Markdown

GFM = MarkdownIt("commonmark").enable("table")


def summary(name: str) -> str:
    """A summary with this name everywhere that a model's or its data's author can put one."""
    facts, variants, layers, plans = report(["a", name, "b", "c"])
    facts["model"]["path"] = facts["data"]["name"] = name
    facts["tolerance"]["fp16"] = facts["precisions"]["fp16"]["remark"] = facts["target"]["title"] = name
    facts["command"] = ["precisionlab", name]
    variants["metric_name"] = variants["output"] = name
    plans["fp16"] = PrecisionPlan("ab" * 32, Precision.FP16, (Pin(name, (name,), Precision.FP32, name),))
    return render_markdown(facts, Tables(records_of(variants), records_of(layers), []), plans)


@pytest.mark.parametrize(
    "name", [*NAMES, "a|b", "a\\|b", "`a` ``b", "` x", "@all #1 https://x.y www.x.y :bug:", "[a](b)"]
)
def test_names_in_markdown_are_text(name: str) -> None:
    tokens, plain = GFM.parse(summary(name)), GFM.parse(summary("plain"))
    assert [token.type for token in tokens] == [token.type for token in plain]  # no row, block or list more or less
    inner = [child.type for token in tokens for child in token.children or []]
    assert not {"html_inline", "link_open", "image"} & set(inner)


@pytest.mark.parametrize("name", ["a|b", "`a` ``b", "` x", "*a*_b_", "<b>&amp;", "\\", "[x](y)"])
def test_a_name_is_shown_exactly(name: str) -> None:
    (paragraph,) = (token for token in GFM.parse(f"x {code(name)} {text(name)}") if token.type == "inline")
    found = paragraph.children or []
    assert next(child.content for child in found if child.type == "code_inline") == name
    assert "".join(child.content for child in found if child.type in ("text", "text_special")).endswith(name)


def test_text_mentions_nobody_and_links_nowhere() -> None:
    assert text("@all #1 https://x www.x a@b") == (
        "\\@&#8203;all \\#&#8203;1 https:&#8203;//x www&#8203;.x a\\@&#8203;b"
    )
    assert len(code("x" * 10_000)) < 200


def test_the_summary_says_verdict_variants_pins_and_how_to_reproduce(digits: SweepResult) -> None:
    assert digits.folder is not None
    words = (digits.folder / "summary.md").read_text(encoding="utf-8")
    assert "✅ **FP16: met.** 4 of 17 layers pinned to fp32 make it right" in words
    assert "| fp16 | emulated | 0 |" in words
    assert "❌ **NOT met**" in words
    assert "| `/norm/square` | FP32 |" in words
    assert "```sh\n" in words
    assert digits.model.sha256 in words


def test_random_data_is_said_in_the_summary() -> None:
    facts, variants, layers, plans = report()
    facts["data"]["random"] = True
    assert "Random data." in render_markdown(facts, Tables(records_of(variants), records_of(layers), []), plans)


# The annotated model


def facts_of(node: onnx.NodeProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in node.metadata_props}


def test_the_annotated_model_says_what_was_found_and_gives_the_same(digits: SweepResult) -> None:
    assert digits.folder is not None
    path = digits.folder / "annotated.onnx"
    copy, original = onnx.load(path), onnx.load(digits.model.path)
    onnx.checker.check_model(copy, full_check=True)
    facts = {node.name: facts_of(node) for node in copy.graph.node}
    pin = facts["/norm/square"]
    assert (pin["precisionlab.fp16.pinned"], pin["precisionlab.fp16.precision"]) == ("True", "fp32")
    assert pin["precisionlab.fp16.introduced_sqnr_db"] == "-inf"
    assert "overflow" in pin["precisionlab.fp16.cause"]
    assert "precisionlab.fp16.pinned" not in facts["/norm/mean"]
    assert facts["/norm/mean"]["precisionlab.int8.precision"] == "fp32"
    for node in copy.graph.node:
        del node.metadata_props[:]
    assert copy == original
    feed = _feed(original)
    outputs = [onnxruntime.InferenceSession(str(p)).run(None, feed) for p in (path, digits.model.path)]
    np.testing.assert_array_equal(outputs[0][0], outputs[1][0])


def _feed(model: onnx.ModelProto) -> dict[str, Any]:
    value = model.graph.input[0]
    shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
    return {value.name: np.random.default_rng(0).random(shape, dtype=np.float32)}


def unnamed(folder: Path) -> Path:
    """Unnamed nodes, a constant among them, facts of others, and weights in a file beside the model."""
    model = proto(
        "(float[1,4] x) => (float[1,4] y) { h = MatMul(x, w)  c = Constant<value = float {2.0}>()  y = Mul(h, c) }",
        {"w": np.arange(16, dtype=np.float32).reshape(4, 4)},
    )
    model.graph.node[0].metadata_props.add(key="mine", value="kept")
    model.graph.node[0].metadata_props.add(key="precisionlab.fp16.pinned", value="of an earlier run")
    path = folder / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
    return path


def test_unnamed_nodes_keep_their_names_and_outer_weights_come_along(tmp_path: Path) -> None:
    path = unnamed(tmp_path)
    result = sweep(path, precisions="fp16", samples=1, out=tmp_path / "run")
    copy = onnx.load(tmp_path / "run" / "annotated.onnx")
    assert [node.name for node in copy.graph.node] == ["", "", ""]
    product, constant, _ = map(facts_of, copy.graph.node)
    assert product["mine"] == "kept"
    assert product.get("precisionlab.fp16.pinned") != "of an earlier run"
    assert product["precisionlab.layer"] == result.model.layers[0].name
    assert constant == {}
    feed = {"x": np.ones((1, 4), np.float32)}
    outputs = [
        onnxruntime.InferenceSession(str(p)).run(None, feed) for p in (tmp_path / "run" / "annotated.onnx", path)
    ]
    np.testing.assert_array_equal(outputs[0][0], outputs[1][0])


@pytest.mark.slow
def test_a_large_model_is_not_copied_and_an_older_copy_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = unnamed(tmp_path)
    sweep(path, precisions="fp16", samples=1, out=tmp_path / "run")
    size = path.stat().st_size + (tmp_path / "w.data").stat().st_size
    model = load_model(path)
    monkeypatch.setattr(annotate, "MOST_BYTES", size)
    assert annotate.why_not_annotated(model) == ""
    monkeypatch.setattr(annotate, "MOST_BYTES", path.stat().st_size)  # what lies beside it counts too
    result = sweep(path, precisions="fp16", samples=1, out=tmp_path / "run")
    assert result.run["annotated"]["file"] is None
    assert "no annotated.onnx: the model has" in result.run["annotated"]["note"]
    assert not (tmp_path / "run" / "annotated.onnx").exists()


@pytest.mark.slow
def test_a_model_that_is_itself_the_copy_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "annotated.onnx"
    shutil.copy(DIGITS / "digits.onnx", path)
    before = path.read_bytes()
    sweep(path, DIGITS, precisions="int8", samples=1, out=tmp_path)
    assert path.read_bytes() == before
