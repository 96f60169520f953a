"""The command line: what it prints and where, its exit codes, and one sentence for whatever cannot be used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from models import DIGITS, Array, proto

from precisionlab.cli import cli

MODEL = str(DIGITS / "digits.onnx")
DATA = ["--data", str(DIGITS)]
ANSI = re.compile(r"\x1b")


def run(*args: str | Path) -> Result:
    """The command in this process; an exception of any kind but an exit is a failure."""
    return CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)


def command(*args: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "precisionlab", *map(str, args)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go to reports/ below where the user stands."""
    monkeypatch.chdir(tmp_path)


def saved(model: onnx.ModelProto, name: str = "model.onnx") -> Path:
    onnx.save_model(model, name)
    return Path(name)


def good_model() -> Path:
    return saved(proto("(float[1,4] x) => (float[1,4] y) { y = Relu(x) }"))


def folder(**arrays: Array) -> Path:
    """One sample with these arrays."""
    Path("data").mkdir()
    np.savez("data/sample.npz", **arrays)
    return Path("data")


# Exit codes, and what is printed


def test_met_is_0_and_says_what_was_pinned_why_and_where_to_look() -> None:
    result = run("sweep", MODEL, *DATA, "--precisions", "fp16", "--samples", "8", "--no-repair")
    assert result.exit_code == 0
    text = result.stdout
    words = " ".join(text.split())
    assert "digits.onnx: 17 layers that can be given a precision; 8 samples chose, none was held out" in words
    assert "errors emulated by onnxruntime, cost estimated for NVIDIA A100" in words
    assert "4 of 17 layers pinned to fp32 make it right" in words
    assert "proven: with any one of the pins released, sqnr>=30 does not hold" in words
    for name in ("/norm/square", "/norm/variance", "/norm/add_eps", "/norm/std"):
        assert f"fp32 {name}" in text
    assert "overflow" in text
    assert "Report: reports/digits/report.html" in text
    assert "Plan:   reports/digits/plan.json" in text
    assert Path("reports/digits/report.html").is_file()
    assert "fp16, plan 1: 4 pins (8 samples)" in result.stderr


def test_a_repair_makes_it_right_without_a_pin_and_the_terminal_says_which() -> None:
    result = run("sweep", MODEL, *DATA, "--precisions", "fp16", "--samples", "8")
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    assert "fp16: right with 1 repair: no layer needs a pin" in words
    assert "proven: with any one repair left out, sqnr>=30 does not hold (certificate" in words
    assert "repair /norm/square the first Inf appears here" in words
    assert "squares scaled before they are summed up" in words
    plan = json.loads(Path("reports/digits/plan.json").read_text())
    assert plan["pins"] == []
    assert [repair["kind"] for repair in plan["repairs"]] == ["scale_sum_of_squares"]


def test_not_met_is_1_and_says_how_near_it_came() -> None:
    result = run("sweep", MODEL, *DATA, "--precisions", "fp16", "--samples", "8", "--max-pins", "0", "--no-repair")
    assert result.exit_code == 1
    words = " ".join(result.stdout.split())
    assert "fp16: the tolerance could NOT be met with at most 0 pins, and more were not allowed" in words
    assert "NOT met" in result.stdout


@pytest.mark.slow
def test_one_precision_that_fails_makes_the_run_fail() -> None:
    options = ("--samples", "4", "--tolerance", "cosine>=0.99", "--max-pins", "1", "--no-repair")
    result = run("sweep", MODEL, *DATA, *options)
    assert "int8: right as it is" in result.stdout
    assert "fp16: the tolerance could NOT be met" in result.stdout
    assert result.exit_code == 1


@pytest.mark.slow
def test_the_plan_of_a_sweep_is_measured_with_the_same_exit_code() -> None:
    first = run("sweep", MODEL, *DATA, "--precisions", "fp16", "--samples", "4")
    again = run("sweep", MODEL, *DATA, "--samples", "4", "--plan", "reports/digits/plan.json", "--out", "again")
    assert (first.exit_code, again.exit_code) == (0, 0)
    row = next(line for line in first.stdout.splitlines() if line.startswith("fp16 repaired"))
    assert row in again.stdout.splitlines()
    plan = json.loads(Path("reports/digits/plan.json").read_text())
    bare = {key: plan[key] for key in ("schema", "model", "default")} | {"pins": []}
    Path("bare.json").write_text(json.dumps(bare))
    assert run("sweep", MODEL, *DATA, "--samples", "4", "--plan", "bare.json").exit_code == 1


@pytest.mark.slow
def test_only_this_runs_plans_are_named() -> None:
    run("sweep", MODEL, *DATA, "--samples", "2", "--precisions", "int8")
    Path("reports/digits/plan.mine.json").write_text("{}")
    assert "mine" not in run("sweep", MODEL, *DATA, "--samples", "2", "--precisions", "int8").stdout


def test_random_inputs_are_warned_of_loudly() -> None:
    result = run("sweep", good_model())
    assert result.exit_code == 1
    assert "WARNING: the inputs are random noise, which finds the wrong layers" in result.stdout
    assert "fp16: not known: the inputs were random; give real samples with --data" in " ".join(result.stdout.split())
    page = Path("reports/model/report.html").read_text(encoding="utf-8")
    assert "random" in page.lower()
    assert '<article class="card open">' in page
    assert 'class="card met"' not in page
    assert 'class="mark met"' not in page
    summary = Path("reports/model/summary.md").read_text(encoding="utf-8")
    assert "⚪ **FP16: not known.**" in summary
    assert "✅" not in summary
    assert "❌" not in summary
    found = json.loads(Path("reports/model/run.json").read_text(encoding="utf-8"))["precisions"]["fp16"]
    assert not found["met"]
    assert found["verdict"]["state"] == "not known"
    assert "WARNING" not in run("sweep", MODEL, *DATA, "--samples", "2", "--precisions", "int8").stdout


@pytest.mark.slow
def test_random_inputs_that_were_asked_for_are_judged_and_never_green() -> None:
    result = run("sweep", good_model(), "--random")
    assert result.exit_code == 0
    assert "fp16: right as it is: no layer needs a pin on random inputs" in " ".join(result.stdout.split())
    assert "WARNING: the inputs are random noise" in result.stdout
    page = Path("reports/model/report.html").read_text(encoding="utf-8")
    assert 'class="card met"' not in page
    assert "met on random inputs" in page
    assert "⚪ **FP16: met on random inputs.**" in Path("reports/model/summary.md").read_text(encoding="utf-8")
    overflows = saved(proto("(float[1,4] x) => (float[1,4] y) { y = Mul(x, big) }", {"big": np.float32([1e6])}))
    assert run("sweep", overflows, "--random", "--precisions", "fp16", "--max-pins", "0").exit_code == 1
    refused = run("sweep", MODEL, *DATA, "--random")
    assert refused.exit_code == 2
    assert "random asks for random inputs; leave it, or the data" in refused.stderr


def test_a_tolerance_that_only_float32_meets_is_not_met() -> None:
    """Of one layer, which overflows, none is left; and the dearest plan that holds costs what float32 does."""
    model = saved(proto("(float[1,4] x) => (float[1,4] y) { y = Mul(x, big) }", {"big": np.float32([1e6])}))
    data = folder(x=np.float32([[1, 2, 3, 4]]))
    result = run("sweep", model, "--data", str(data), "--precisions", "fp16", "--ladder", "fp32")
    words = " ".join(result.stdout.split())
    assert "fp16: met only as float32: no layer is left in fp16" in words
    assert result.exit_code == 1
    assert "❌ **FP16: met only as float32.**" in Path("reports/model/summary.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_share_of_more_than_all_needs_its_percent_sign() -> None:
    for option in ("--spend", "--max-cost", "--holdout"):
        result = run("sweep", MODEL, *DATA, option, "5")
        assert result.exit_code == 2
        assert "that may mean 5 % or 500 %; write it with a percent sign, such as 5%" in result.stderr
    assert "may mean 1 % or 100 %" in run("sweep", MODEL, *DATA, "--spend", "1").stderr
    options = ("--samples", "2", "--precisions", "int8")
    assert run("sweep", MODEL, *DATA, *options, "--spend", "500%").exit_code == 0
    assert run("sweep", MODEL, *DATA, *options, "--spend", "0.99").exit_code == 0


@pytest.mark.slow
def test_a_plan_that_costs_more_than_allowed_is_not_met() -> None:
    options = ("--samples", "4", "--precisions", "int8", "--tolerance", "sqnr>=5")
    assert run("sweep", MODEL, *DATA, *options, "--max-cost", "100%").exit_code == 0
    result = run("sweep", MODEL, *DATA, *options, "--max-cost", "1%")
    assert result.exit_code == 1
    assert "of FP32's cost, where 1% is the most" in " ".join(result.stdout.split())


def test_dynamic_inputs_take_their_shape_from_the_command_line() -> None:
    model = saved(proto("(float[N,c,4] x) => (float[N,c,4] y) { y = Relu(x) }"))
    assert "--shape x:1x128x4" in run("sweep", model).stderr
    assert run("sweep", model, "--shape", "x:2x3x4", "--random").exit_code == 0
    assert run("sweep", model, "--shape", "x:2x3x5").exit_code == 2


def long_names() -> Path:
    """A chain of layers with names and a task metric that are far too long for a line."""
    name = "/encoder/layer.0/attention/" + "very_long_module_name/" * 8
    body = (
        f'(float[1,4] x) => (float[1,4] y) {{ ["{name}Mul"] a = Mul(x, big) ["{name}Root"] b = Sqrt(a) '
        f'["{name}Norm"] y = LayerNormalization(b, ones) }}'
    )
    weights = {"big": np.float32([1e5]), "ones": np.ones(4, np.float32)}
    Path("own.py").write_text("def a_figure_with_a_rather_long_name(outputs, label):\n    return 0.5\n")
    data = folder(x=np.float32([[1, 2, 3, 4]]))
    (data / "dataset.toml").write_text('[labels]\nfile = "labels.csv"\n')
    (data / "labels.csv").write_text("sample,label\nsample.npz,1\n")
    return saved(proto(body, weights), "a_model_with_" + "a_rather_long_name_" * 3 + ".onnx")


@pytest.mark.slow
def test_nothing_is_wider_than_80_columns_and_nothing_coloured_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ("--metric", "own.py:a_figure_with_a_rather_long_name", "--tolerance", "sqnr>=30,cosine>=0.99,top1>=0.99")
    monkeypatch.setenv("TERM", "xterm-256color")
    result = run("sweep", long_names(), "--data", "data", *options, "--no-repair")
    assert result.exit_code == 1, result.stderr  # with two of three layers pinned nothing is gained
    assert "met only as float32" in result.stdout
    lines = [line for line in result.stdout.splitlines() if not line.startswith("  precisionlab ")]  # to be copied
    assert [line for line in lines if len(line) > 80] == []
    assert not ANSI.search(result.stdout + result.stderr)
    table = result.stdout[result.stdout.index("worst layers in fp16") :].splitlines()
    assert table[1].startswith("#  layer")
    assert table[2].startswith("1  …")


@pytest.mark.slow
def test_json_is_strict_and_alone_on_standard_output() -> None:
    """Also with Inf and NaN among the figures, and with layers that a precision does not touch."""
    args = ["sweep", MODEL, *DATA, "--samples", "2", "--json"]
    result = CliRunner(charset="ascii").invoke(cli, args, catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads(result.stdout, parse_constant=lambda token: pytest.fail(f"{token} is not JSON"))
    assert found["met"] is True
    assert found["folder"] == "reports/digits"
    written = json.loads(Path("reports/digits/run.json").read_text(encoding="utf-8"))
    assert found["run"] == {name: value for name, value in written.items() if name != "written"}
    plan = json.loads(Path("reports/digits/plan.fp16.json").read_text(encoding="utf-8"))
    assert found["plans"]["fp16"] == {key: plan[key] for key in found["plans"]["fp16"]}
    assert [v["variant"] for v in found["variants"]] == ["fp32", "fp16", "fp16 repaired", "int8"]
    layers = {(row["precision"], row["layer"]): row for row in found["layers"]}
    square = layers["fp16", "/norm/square"]
    assert square["introduced_sqnr_db"] == "-inf"
    assert square["introduced_cosine"] == "nan", "a NaN that was measured"
    assert square["rank"] == 1
    assert (square["pinned"], square["repair"]) == (False, "scale_sum_of_squares")
    untouched = layers["int8", "/norm/square"]
    assert untouched["rank"] is None, "there is no such figure"
    assert untouched["introduced_sqnr_db"] is None
    assert untouched["introduced_nan"] is None
    assert untouched["inherited_sqnr_db"] == "inf"


@pytest.mark.slow
def test_json_keeps_the_exit_code_and_errors_stay_off_standard_output() -> None:
    result = run(
        "sweep", MODEL, *DATA, "--precisions", "fp16", "--samples", "4", "--max-pins", "0", "--no-repair", "--json"
    )
    assert result.exit_code == 1
    assert json.loads(result.stdout)["met"] is False
    result = run("sweep", "none.onnx", "--json")
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.slow
@pytest.mark.thorough
def test_a_terminal_without_the_signs_does_not_end_the_run() -> None:
    result = command(
        "sweep", MODEL, *DATA, "--samples", "2", "--precisions", "int8", PYTHONIOENCODING="ascii", PYTHONUTF8="0"
    )
    assert result.returncode == 0
    assert "Traceback" not in result.stderr
    assert "?" in result.stdout  # in place of the signs that ASCII lacks


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX alone")
@pytest.mark.thorough
def test_a_folder_whose_name_is_not_utf8_is_no_obstacle() -> None:
    data, out = os.fsdecode(b"data \xff"), os.fsdecode(b"run \xff")
    folder(x=np.ones((1, 4), np.float32)).rename(data)
    result = command("sweep", good_model(), "--data", data, "--out", out)
    assert result.returncode == 0, result.stderr
    assert json.loads((Path(out) / "run.json").read_text(encoding="utf-8"))["data"]["folder"] == data


@pytest.mark.slow
def test_in_a_terminal_a_bar_shows_the_work_and_notes_stay_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as rich takes it: a terminal
    result = run("sweep", MODEL, *DATA, "--samples", "4", "--precisions", "fp16", "--no-repair")
    assert result.exit_code == 0
    assert ANSI.search(result.stderr)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.stderr)
    assert re.search(r"\n +\d+ +4 +sqnr [0-9.]+ +holds +[0-9.]+ s", shown)
    assert "best so far 4 pins" in shown
    assert "/4" in shown


# Quick to start

LIBRARIES = {"onnx", "onnx_ir", "onnxruntime", "pandas", "numba", "numpy", "jinja2", "pygal", "PIL"}


@pytest.mark.parametrize(
    "statement", ["import precisionlab", "precisionlab --help", "precisionlab sweep --help", "precisionlab --version"]
)
def test_no_library_that_is_slow_to_import_is_imported_before_it_is_needed(statement: str) -> None:
    call = statement
    if statement.startswith("precisionlab"):
        call = f"import sys; sys.argv = {statement.split()}\nfrom precisionlab.cli import main\n"
        call += "try: main()\nexcept SystemExit: pass"
    code = f"{call}\nimport sys; print('imported', *sorted(sys.modules), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stderr.splitlines()[-1].split())
    assert "precisionlab" in loaded
    assert not loaded & LIBRARIES
    if "--help" in statement:
        assert "Usage: precisionlab" in result.stdout
        assert "sweep" in result.stdout


def test_help_fits_the_terminal_and_names_every_option() -> None:
    text = run("sweep", "--help").stdout
    assert all(len(line) <= 100 for line in text.splitlines())
    for option in (
        "--data", "--precisions", "--tolerance", "--metric", "--plan", "--max-pins", "--around", "--backend", "--out",
        "--samples", "--seed", "--shape", "--threads", "--json",
    ):  # fmt: skip
        assert option in text


def test_a_command_line_that_is_not_understood_is_2() -> None:
    assert run("sweep").exit_code == 2
    assert run("sweep", MODEL, "--samples", "many").exit_code == 2
    assert run("sweep", MODEL, "--nonsense").exit_code == 2
    assert run("sweeep").exit_code == 2


# Input that cannot be used


def text_file() -> list[str | Path]:
    Path("model.onnx").write_text("This is not a model.\n" * 20)
    return ["model.onnx"]


def empty_file() -> list[str | Path]:
    Path("model.onnx").touch()
    return ["model.onnx"]


def truncated_file() -> list[str | Path]:
    Path("model.onnx").write_bytes(Path(MODEL).read_bytes()[:-1000])
    return ["model.onnx"]


def custom_op() -> list[str | Path]:
    return [saved(proto("(float[1,4] x) => (float[1,4] y) { y = my.own.Thing(x) }", domains=', "my.own" : 1'))]


def with_data(**arrays: Array) -> Callable[[], list[str | Path]]:
    return lambda: [good_model(), "--data", folder(**arrays)]


def empty_folder() -> list[str | Path]:
    Path("data").mkdir()
    return [good_model(), "--data", "data"]


def damaged_sample() -> list[str | Path]:
    data = folder(x=np.zeros((1, 4), np.float32))
    (data / "sample.npz").write_bytes((data / "sample.npz").read_bytes()[:50])
    return [good_model(), "--data", data]


def bad_second_sample() -> list[str | Path]:
    data = folder(x=np.zeros((1, 4), np.float32))
    np.save(data / "z.npy", np.float32([[1, 2, np.nan, 4]]))
    return [good_model(), "--data", data]


def flat_output() -> list[str | Path]:
    return [saved(proto("(float[4] x) => (float[4] y) { y = Relu(x) }")), "--tolerance", "top1>=0.9"]


def no_float_output() -> list[str | Path]:
    return [saved(proto("(int64[4] x) => (int64[4] y) { y = Neg(x) }"))]


def unlabelled() -> list[str | Path]:
    return [good_model(), "--data", folder(x=np.ones((1, 4), np.float32)), "--tolerance", "metric>=0.9"]


def metric_without_labels() -> list[str | Path]:
    return [good_model(), "--data", folder(x=np.ones((1, 4), np.float32)), "--metric", "math:hypot"]


def plan_of_another_model() -> list[str | Path]:
    plan = {"schema": 1, "model": {"sha256": "00"}, "default": "fp16", "pins": []}
    Path("plan.json").write_text(json.dumps(plan))
    return [good_model(), "--plan", "plan.json"]


def out_is_a_file() -> list[str | Path]:
    Path("taken").write_text("in the way")
    return [good_model(), "--out", "taken"]


def options(*values: str) -> Callable[[], list[str | Path]]:
    return lambda: [good_model(), *values]


BAD: dict[str, tuple[Callable[[], list[str | Path]], str]] = {
    "no model": (lambda: ["none.onnx"], "none.onnx: no such file"),
    "a folder as model": (lambda: ["."], "a folder, not an ONNX file"),
    "an empty file": (empty_file, "model.onnx: the file is empty"),
    "a text file": (text_file, "not an ONNX model"),
    "a truncated file": (truncated_file, "not an ONNX model, or cut short"),
    "a custom operator": (custom_op, "my.own::Thing) is no operator that ONNX Runtime knows"),
    "a wrong shape": (with_data(x=np.zeros((1, 5), np.float32)), "has shape 1×5, the model wants 1×4"),
    "a wrong dtype": (with_data(x=np.full((1, 4), 1e39)), "float64, the model wants float32, and value 1e+39"),
    "a wrong name": (
        with_data(image=np.zeros((1, 4), np.float32)),
        "lacks x and has image, which the model does",
    ),
    "one name too many": (with_data(x=np.zeros((1, 4), np.float32), q=np.zeros(1)), "has q, which"),
    "a NaN": (with_data(x=np.float32([[0, 1, np.nan, 3]])), "NaN or Inf; fix or remove the sample"),
    "a NaN in a later sample": (bad_second_sample, "z.npy: input 'x' holds 1 value"),
    "a damaged sample": (damaged_sample, "not a readable .npz file"),
    "an empty folder": (empty_folder, "no sample in it"),
    "no such folder": (options("--data", "nowhere"), "nowhere: no such folder"),
    "an unknown precision": (options("--precisions", "fp16,int5"), "unknown precision 'int5'"),
    "no precision": (options("--precisions", ""), "unknown precision"),
    "fp32 as precision": (options("--precisions", "fp32"), "fp32 is always measured"),
    "an unknown backend": (options("--backend", "cuda"), "unknown backend 'cuda'"),
    "a senseless bound": (options("--tolerance", "sqnr<=30"), "sqnr is better when higher; turn the sign"),
    "an unknown figure": (options("--tolerance", "foo>=1"), "METRIC one of sqnr, cosine"),
    "half a bound": (options("--tolerance", "sqnr>="), "write METRIC>=NUMBER"),
    "top-1 without classes": (flat_output, "tolerance top1>=0.9 cannot be judged: no output of the model has a class"),
    "no output to judge": (no_float_output, "no float output (integer, boolean or shape flow))"),
    "a metric bound without labels": (unlabelled, "the data has no labels with a metric"),
    "a metric without labels": (metric_without_labels, "sample.npz has no label, which the metric needs"),
    "no such metric": (options("--metric", "none.py:figure"), "none.py: no such Python file"),
    "a metric of random inputs": (options("--metric", "math:sqrt"), "random inputs have no labels"),
    "no such output": (options("--tolerance", "sqnr[nowhere]>=30"), "its outputs are "),
    "no such plan": (options("--plan", "none.json"), "none.json: cannot be read"),
    "a plan of another model": (plan_of_another_model, "made for another model"),
    "a file as run folder": (out_is_a_file, "taken: cannot be written"),
    "a run folder nowhere": (options("--out", "/proc/none/run"), "/proc/none/run: cannot be written"),
    "no shape": (options("--shape", "1x4"), "--shape '1x4': write the input's name, a colon"),
    "no number in a shape": (options("--shape", "x:1xfour"), "and its sizes with x between them"),
    "a shape of nothing": (options("--shape", "x:0x4"), "does not fit: the model wants 1×4"),
    "a shape below nothing": (options("--shape", "x:1x-4"), "and its sizes with x between them"),
    "a shape given twice": (options("--shape", "x:1x4", "--shape", "x:1x5"), "'x:1x5': the shape of x is given twice"),
    "another input's shape": (options("--shape", "z:1x4"), "the model has no such input; it has x"),
    "another shape": (options("--shape", "x:1x5"), "does not fit: the model wants 1×4, such as --shape x:1x4"),
    "no samples": (options("--samples", "0"), "samples is 0; it must be at least 1"),
    "fewer than no samples": (options("--samples", "-3"), "samples is -3; it must be at least 1"),
    "fewer than no pins": (options("--max-pins", "-1"), "max_pins is -1"),
    "no threads": (options("--threads", "0"), "threads is 0"),
    "a seed below zero": (options("--seed", "-1"), "seed is -1; it must be at least 0"),
    "int8 around int8": (options("--around", "int8"), "fp32, fp16 or bf16"),
}


@pytest.mark.parametrize("case", BAD)
def test_input_that_cannot_be_used_ends_in_one_sentence_and_leaves_nothing_behind(case: str) -> None:
    make, words = BAD[case]
    args = make()
    before = sorted(Path().rglob("*"))
    result = run("sweep", *args)
    assert result.exit_code == 2
    assert result.stdout == ""
    *progress, last = result.stderr.splitlines()
    assert last.startswith("precisionlab: ")
    assert words in last
    assert not any(line.startswith(("precisionlab:", "Traceback")) for line in progress)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.slow
def test_the_sentence_is_the_same_in_a_process_of_its_own() -> None:
    result = command("sweep", *text_file())
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"precisionlab: model\.onnx: not an ONNX model.*\n", result.stderr)
