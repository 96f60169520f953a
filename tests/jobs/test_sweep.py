"""The main job on the bundled digits, whose normalisation overflows in fp16, and on small models."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from models import DIGITS, Array, proto, read_table

import precisionlab
from precisionlab.errors import DataError, ModelError, OptionError, PlanError
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.report.columns import LAYERS, PARETO, SAMPLES, VARIANTS
from precisionlab.search.carriers import carriers_of

MODEL = DIGITS / "digits.onnx"
NORM = ["/norm/square", "/norm/variance", "/norm/add_eps", "/norm/std"]


class Heard:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []

    def stage(self, title: str, total: int, unit: str = "sample") -> None:
        self.stages.append(title)

    def advance(self, done: int) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(name="digits")
def _digits(swept_digits: SweepResult) -> SweepResult:
    return swept_digits


def folder(result: SweepResult) -> Path:
    assert result.folder is not None
    return result.folder


def copied(result: SweepResult, path: Path) -> Path:
    """Its folder once more, to be changed."""
    return Path(shutil.copytree(folder(result), path))


def row(result: SweepResult, variant: str) -> Mapping[str, Any]:
    (found,) = result.variants[result.variants["variant"] == variant].to_dict("records")
    return {str(key): value for key, value in found.items() if not pd.isna(value)}


def pinned(result: SweepResult, precision: str) -> list[str]:
    return [pin.layer for pin in result.plans[precision].pins]


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save_model(model, path)
    return path


def samples(path: Path, *inputs: Array) -> Path:
    path.mkdir()
    for index, array in enumerate(inputs):
        np.save(path / f"{index}.npy", array)
    return path


# What it finds


def test_fp16_collapses_and_is_right_with_exactly_the_normalisation_pinned(digits: SweepResult) -> None:
    assert row(digits, "fp32")["metric"] == pytest.approx(47 / 48)  # of the samples that chose
    assert row(digits, "fp16")["metric"] < 0.2
    assert not row(digits, "fp16")["met"]
    assert pinned(digits, "fp16") == NORM
    mixed = row(digits, "fp16 mixed")
    assert mixed["met"]
    assert mixed["metric"] == mixed["reference_metric"] == row(digits, "fp32")["metric"]
    assert mixed["sqnr_db"] > 50
    assert mixed["nonfinite_tensors"] == 0


def test_the_reasons_say_overflow_and_where_it_begins(digits: SweepResult) -> None:
    first, *others = (pin.reason for pin in digits.plans["fp16"].pins)
    assert first.startswith("the first Inf appears here: overflow: values up to 9.68e+06, fp16 ends at 65504")
    assert all("overflow" in reason for reason in others)
    assert digits.run["precisions"]["fp16"]["first_nonfinite_layer"] == "/norm/square"


def test_int8_holds_its_own_tolerance_without_pins(digits: SweepResult) -> None:
    assert pinned(digits, "int8") == []
    assert list(digits.variants["variant"]) == ["fp32", "fp16", "fp16 mixed", "int8"]
    assert row(digits, "int8")["met"]
    assert row(digits, "int8")["tolerance"] == "sqnr>=20"
    assert row(digits, "int8")["layers"] == 8
    assert digits.met


@pytest.mark.slow
def test_int8_pins_until_a_stricter_tolerance_holds_and_no_more(tmp_path: Path) -> None:
    """Minimal, measured: releasing any one pin breaks it."""
    run = {"tolerance": "sqnr>=33", "samples": 8, "out": tmp_path / "run"}
    result = sweep(MODEL, DIGITS, precisions="int8", repair=False, **run)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert result.met
    assert 1 <= len(plan["pins"]) <= 4
    assert plan["with_pins"]["sqnr"] >= 33 > plan["without_pins"]["sqnr"]
    assert all("alone it leaves the output at" in pin["reason"] for pin in plan["pins"])
    for released in plan["pins"]:
        rest = {**plan, "pins": [pin for pin in plan["pins"] if pin is not released]}
        (tmp_path / "less.json").write_text(json.dumps(rest))
        less = sweep(MODEL, DIGITS, plan=tmp_path / "less.json", **run)
        assert not less.met


@pytest.mark.slow
def test_every_accepted_plan_was_evaluated_and_measured_again(tmp_path: Path) -> None:
    heard = Heard()
    result = sweep(MODEL, DIGITS, precisions="fp16", samples=8, repair=False, out=tmp_path / "run", observer=heard)
    plans = [title for title in heard.stages if re.fullmatch(r"fp16, plan \d+: \d+ pins?", title)]
    assert len(plans) == result.precisions[0].evaluations - 1  # the first is the variant without pins
    assert "fp16, plan 1: 4 pins" in plans
    assert "fp16 mixed, in full" in heard.stages  # a plan is accepted by a whole comparison alone
    noted = [re.sub(r"sqnr 6\d\.\d+", "sqnr 61.72", note) for note in heard.notes]
    assert "  4 pins: sqnr 61.72: holds; best so far 4 pins" in noted
    announced = next(note for note in heard.notes if "searching 17 layers" in note)
    assert "sqnr>=30 does not hold" in announced


@pytest.mark.slow
def test_a_sum_that_loses_next_to_nothing_is_pinned_for_what_the_logarithm_behind_it_makes_of_that(
    tmp_path: Path,
) -> None:
    """log(x + 1e-10): only at the output is it seen what the 6e-8 that 1e-10 is clamped to does."""
    noise = " ".join(f'["noise{i}"] n{i + 1} = Mul(n{i}, third)' for i in range(8))
    body = f'(float[1,4] x) => (float[1,4] n8) {{ ["eps"] a = Add(x, tiny) ["log"] n0 = Log(a) {noise} }}'
    weights = {"tiny": np.float32([1e-10]), "third": np.float32([1 / 3])}
    model = saved(proto(body, weights), tmp_path / "model.onnx")
    data = samples(tmp_path / "data", np.float32([[0, 1, 2, 3]]))
    result = sweep(model, data, precisions="fp16", out=tmp_path / "run")
    assert set(result.precisions[0].ranked[:2]) == {"eps", "log"}
    reasons = {pin.layer: pin.reason for pin in result.plans["fp16"].pins}
    assert sorted(reasons) == ["eps", "log"]
    assert re.fullmatch(
        r"rank \d of 10: alone it leaves the output at 1\d\.\d dB; "
        r"its constant 1e-10 is clamped to 5\.9605e-08, the nearest that fp16 has",
        reasons["eps"],
    )
    assert result.precisions[0].certificate is not None
    assert result.precisions[0].certificate.proven


def test_bf16_holds_where_fp16_overflows(tmp_path: Path) -> None:
    result = sweep(MODEL, DIGITS, precisions=["bf16"], samples=8, tolerance=["sqnr>=25"], out=tmp_path / "run")
    assert row(result, "bf16")["met"]
    assert row(result, "bf16")["nonfinite_tensors"] == 0
    assert row(result, "bf16")["metric"] == row(result, "fp32")["metric"]


@pytest.mark.slow
def test_int8_with_fp16_around_breaks_as_fp16_does_and_is_fixed_alike(tmp_path: Path) -> None:
    result = sweep(MODEL, DIGITS, precisions="int8", around="fp16", samples=8, repair=False, out=tmp_path / "run")
    assert row(result, "int8")["metric"] < 0.2
    assert pinned(result, "int8") == NORM
    assert all("overflow" in pin.reason for pin in result.plans["int8"].pins)
    assert row(result, "int8 mixed")["met"]
    runs_in = dict(zip(result.layers["layer"], result.layers["runs_in"], strict=True))
    assert runs_in["/norm/square"] == "fp16"
    assert runs_in["/stem/conv"] == "int8"
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["around"] == "fp16"


@pytest.mark.slow
def test_all_bounds_of_a_tolerance_must_hold(tmp_path: Path) -> None:
    run = {"precisions": "int8", "samples": 4}
    both = ["top1>=0.5,metric_drop<=0.01", "cosine>=0.9"]
    held = sweep(MODEL, DIGITS, tolerance=both, out=tmp_path / "run", **run)
    assert held.met
    assert held.run["tolerance"] == {"int8": "top1>=0.5, metric_drop<=0.01, cosine>=0.9"}
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert list(plan["with_pins"]) == ["top1", "metric_drop", "cosine"]
    strict = sweep(MODEL, DIGITS, tolerance=[*both, "sqnr>=90"], max_pins=0, out=tmp_path / "run", **run)
    assert not strict.met


@pytest.mark.slow
def test_a_tolerance_that_cannot_be_met_gives_the_nearest_plan_and_says_so(tmp_path: Path) -> None:
    tight = {"tolerance": "sqnr>=100", "max_pins": 4, "repair": False}
    result = sweep(MODEL, DIGITS, precisions="fp16", samples=4, out=tmp_path / "run", **tight)
    assert not result.met
    assert pinned(result, "fp16") == NORM, "the nearest plan has no NaN or Inf"
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["met"] is False
    assert 60 < plan["with_pins"]["sqnr"] < 100
    assert (
        "could not be met" in (tmp_path / "run" / "report.html").read_text().lower()
        or "not met" in (tmp_path / "run" / "report.html").read_text().lower()
    )


@pytest.mark.slow
def test_no_pin_allowed_leaves_the_bare_variant(tmp_path: Path) -> None:
    result = sweep(MODEL, DIGITS, precisions="fp16", max_pins=0, samples=8, repair=False, out=tmp_path / "run")
    assert not result.met
    assert list(result.variants["variant"]) == ["fp32", "fp16"]
    assert result.precisions[0].evaluations == 1
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["pins"] == []


def test_a_layer_whose_range_is_not_finite_is_pinned_from_the_start_with_its_reason(tmp_path: Path) -> None:
    """int8 has no scale for Inf: there is no such variant without the pin."""
    body = '(float[1,2] x) => (float[1,2] y) { ["over"] a = Div(x, zero) ["mm"] b = MatMul(a, w) y = Clip(b, lo, hi) }'
    weights = {
        "zero": np.zeros(1, np.float32),
        "w": np.float32([[1, 0.5], [0.5, 1]]),
        "lo": np.float32(-1),
        "hi": np.float32(1),
    }
    model = saved(proto(body, weights), tmp_path / "model.onnx")
    data = samples(tmp_path / "data", np.float32([[1, 2]]))
    result = sweep(model, data, precisions="int8", out=tmp_path / "run")
    assert result.precisions[0].verdict.sentence == "met only as float32: no layer is left in int8"
    (pin,) = result.plans["int8"].pins
    assert pin.layer == "mm"
    assert "a is not finite in the reference" in pin.reason


# What it writes


def test_the_columns_are_those_of_the_schema(digits: SweepResult) -> None:
    for schema, table in ((VARIANTS, digits.variants), (LAYERS, digits.layers)):
        assert list(table) == list(pd.read_csv(folder(digits) / schema.file)) == schema.names
    for schema in (SAMPLES, PARETO):
        assert list(pd.read_csv(folder(digits) / schema.file)) == schema.names


def test_every_layer_stands_once_for_each_precision_in_its_order(digits: SweepResult) -> None:
    assert len(digits.layers) == 2 * len(digits.model.layers)
    for precision, found in digits.layers.groupby("precision", sort=False):
        assert list(found["layer"]) == [layer.name for layer in digits.model.layers]
        assert list(found["index"]) == list(range(len(found)))
        ranks = found["rank"].dropna()
        assert sorted(ranks) == list(range(1, len(ranks) + 1)), precision
        assert list(found[found["pinned"]]["layer"]) == (NORM if precision == "fp16" else [])
        assert (found["rank"].isna() == (found["runs_in"] == "fp32")).all()
    broken = digits.layers[digits.layers["cause"] != ""]
    assert list(broken["layer"]) == NORM
    assert list(broken["rank"]) == [1, 2, 3, 4]


def test_counts_in_the_tables_are_whole_numbers(digits: SweepResult) -> None:
    text = (folder(digits) / "layers.csv").read_text().splitlines()
    columns = text[0].split(",")
    at = [columns.index(name) for name in ("rank", "multiply_adds", "weight_bytes", "overflow")]
    for line in text[1:]:
        cells = re.sub(r'"[^"]*"', "", line).split(",")
        assert all(re.fullmatch(r"\d*", cells[i]) for i in at), line


def test_the_tables_read_back_are_the_tables(digits: SweepResult) -> None:
    for name, table in (("variants", digits.variants), ("layers", digits.layers)):
        read = read_table(folder(digits) / f"{name}.csv")
        figures = table.select_dtypes("float64").columns
        pd.testing.assert_frame_equal(read[figures].astype("float64"), table[figures], check_exact=True)


def test_one_precision_gives_plan_json_and_several_one_each(digits: SweepResult, tmp_path: Path) -> None:
    assert plans_in(folder(digits)) == ["plan.fp16.json", "plan.int8.json"]
    mine = copied(digits, tmp_path / "run") / "plan.mine.json"
    mine.write_text("the user's own")
    sweep(MODEL, DIGITS, precisions="int8", samples=2, out=tmp_path / "run")
    assert plans_in(tmp_path / "run") == ["plan.json", "plan.mine.json"], "plans of another sweep would contradict it"
    assert mine.read_text() == "the user's own"


def plans_in(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob("plan*"))


def test_run_json_holds_what_a_reader_needs_to_trust_and_repeat_it(digits: SweepResult) -> None:
    run = json.loads((folder(digits) / "run.json").read_text(encoding="utf-8"))
    assert set(run.pop("written")) == {"files", "sha256"}
    assert run == json.loads(json.dumps(digits.run))
    assert run["model"] == {"path": str(MODEL), "sha256": digits.model.sha256, "layers": 17, "tensorrt": []}
    assert run["data"]["samples"] == 64
    assert run["data"]["random"] is False
    assert run["data"]["name"] == "digits"
    assert run["backend"] == "onnxruntime"
    assert run["figures"] == "emulated"
    assert run["tolerance"] == {"fp16": "sqnr>=30", "int8": "sqnr>=20"}
    assert {"onnx", "onnxruntime", "numpy", "precisionlab", "python"} <= run["versions"].keys()
    assert run["precisions"]["fp16"]["pins"] == 4
    assert run["precisions"]["fp16"]["touched"] == 17
    assert run["data"]["choosing"], run["data"]["held_out"] == (48, 16)
    assert run["precisions"]["int8"]["table"] == "entropy over 48 samples"
    for found in digits.precisions:
        carriers = carriers_of(found.output_shares.values())
        assert run["precisions"][found.precision.value]["carriers"] == (carriers and carriers.to_dict())
    assert run["command"]


def test_the_report_needs_nothing_from_outside(digits: SweepResult) -> None:
    html = (folder(digits) / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//""", html)
    assert not re.findall(r"@import|url\(\s*['\"]?(?:https?:)?//", html)
    for name in NORM:
        assert name in html
    assert len(html) < 1_000_000


# The same again


@pytest.mark.slow
def test_a_plan_read_back_measures_the_same_figures(digits: SweepResult, tmp_path: Path) -> None:
    again = sweep(MODEL, DIGITS, plan=folder(digits) / "plan.fp16.json", out=tmp_path / "run")
    assert list(again.variants["variant"]) == ["fp32", "fp16", "fp16 mixed"]
    for name in ("fp32", "fp16", "fp16 mixed"):
        assert row(again, name) == row(digits, name)
    searched = digits.layers[digits.layers["precision"] == "fp16"].reset_index(drop=True)
    measured = [
        name for name in again.layers if not name.startswith(("rank", "alone", "output_share", "gain", "released"))
    ]
    pd.testing.assert_frame_equal(again.layers[measured], searched[measured], check_exact=True)
    assert again.plans["fp16"].pins == digits.plans["fp16"].pins


@pytest.mark.slow
def test_measuring_a_plan_in_its_own_folder_leaves_the_plans_that_are_there(
    digits: SweepResult, tmp_path: Path
) -> None:
    copied(digits, tmp_path / "run")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in plans_in(tmp_path / "run")}
    result = sweep(MODEL, DIGITS, plan=tmp_path / "run" / "plan.fp16.json", out=tmp_path / "run")
    assert result.met
    assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before


def test_a_plan_by_hand_with_the_name_of_any_node_pins_its_layer(digits: SweepResult, tmp_path: Path) -> None:
    fused = next(layer for layer in digits.model.layers if len(layer.nodes) > 1)
    plan = {**digits.plans["int8"].to_dict(), "pins": [{"nodes": [fused.nodes[-1]]}]}
    (tmp_path / "mine.json").write_text(json.dumps(plan))
    mine = sweep(MODEL, DIGITS, samples=4, plan=tmp_path / "mine.json", out=tmp_path / "mine")
    assert pinned(mine, "int8") == [fused.name]
    assert row(mine, "int8 mixed")["sqnr_db"] > row(mine, "int8")["sqnr_db"]


@pytest.mark.slow
def test_any_precision_can_be_pinned_and_any_be_the_default(tmp_path: Path) -> None:
    base = sweep(MODEL, DIGITS, precisions="fp16", samples=4, repair=False, out=tmp_path / "base")
    pins = [{"nodes": [name], "precision": "fp16"} for name in NORM]
    plan = {**base.plans["fp16"].to_dict(), "default": "fp32", "pins": pins}
    (tmp_path / "mine.json").write_text(json.dumps(plan))
    mine = sweep(MODEL, DIGITS, samples=4, plan=tmp_path / "mine.json", out=tmp_path / "mine")
    assert not mine.met, "the four layers alone break it"
    assert row(mine, "fp32 mixed")["nonfinite_tensors"] > 0


@pytest.mark.slow
@pytest.mark.thorough
def test_the_number_of_threads_changes_no_bit(tmp_path: Path) -> None:
    for threads in (1, 2):
        sweep(MODEL, DIGITS, samples=9, threads=threads, out=tmp_path / str(threads))
    for name in ("layers.csv", "variants.csv", "plan.fp16.json", "plan.int8.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


@pytest.mark.slow
def test_samples_and_seed_choose_and_nothing_else_does(tmp_path: Path) -> None:
    def chosen(seed: int) -> tuple[str, float]:
        result = sweep(MODEL, DIGITS, precisions="int8", samples=2, seed=seed, out=tmp_path / str(seed))
        assert result.run["data"]["samples"] == 2
        assert result.run["data"]["seed"] == seed
        assert set(result.variants["samples"]) == {2}
        return result.run["data"]["sha256"], float(row(result, "int8")["sqnr_db"])

    assert chosen(1) == chosen(1)
    assert chosen(1)[0] != chosen(2)[0]


@pytest.mark.slow
def test_a_finished_run_is_taken_from_its_journal(tmp_path: Path) -> None:
    first = sweep(MODEL, DIGITS, samples=3, out=tmp_path / "run")
    heard = Heard()
    again = sweep(MODEL, DIGITS, samples=3, out=tmp_path / "run", observer=heard)
    assert heard.stages == ["reading the samples"], "nothing was run again"
    pd.testing.assert_frame_equal(first.layers, again.layers, check_exact=True)
    pd.testing.assert_frame_equal(first.variants, again.variants, check_exact=True)
    assert first.plans == again.plans
    # Another tolerance is judged on the same evaluations; other samples are another run.
    heard = Heard()
    sweep(MODEL, DIGITS, samples=3, tolerance="top1>=0.1", precisions="int8", out=tmp_path / "run", observer=heard)
    assert heard.stages == ["reading the samples"]
    heard = Heard()
    sweep(MODEL, DIGITS, samples=4, precisions="int8", out=tmp_path / "run", observer=heard)
    moved = "float32 with its last bits moved"
    assert heard.stages == ["reading the samples", "fp32", moved, "int8 ranges and histograms", "int8"]


# Without data, and from Python


@pytest.mark.slow
def test_random_inputs_are_warned_of_in_the_report_and_marked_in_the_run(tmp_path: Path) -> None:
    result = sweep(MODEL, precisions="int8", shapes={"image": (1, 1, 8, 8)}, seed=3, out=tmp_path / "run")
    assert result.run["data"]["random"] is True
    assert result.run["data"]["samples"] == 8
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "random" in html.lower()
    assert "random" in result._repr_html_().lower()


def test_the_python_api_is_the_packages_own(digits: SweepResult) -> None:
    assert precisionlab.sweep is sweep
    assert {"calibrate", "sweep", "verify", "SweepResult"} <= set(dir(precisionlab))
    assert isinstance(digits, precisionlab.SweepResult)
    assert isinstance(digits.variants, pd.DataFrame)
    assert isinstance(digits.layers, pd.DataFrame)
    html = digits._repr_html_()
    assert "/norm/square" in html
    assert "<script" not in html
    assert all(callable(getattr(precisionlab, name)) for name in precisionlab.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = precisionlab.nonsense


@pytest.mark.slow
def test_paths_may_be_text_and_the_default_folder_is_named_after_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        result = precisionlab.sweep(str(MODEL), str(DIGITS), precisions=("int8",), samples=2)
    assert result.folder == Path("reports/digits")
    assert (tmp_path / "reports" / "digits" / "report.html").is_file()


# Input that cannot be used leaves nothing behind


OWN = """
def missing(outputs, label):
    return outputs["none"]

class Nameless:
    def update(self, outputs, label): ...
    def compute(self): return 0.5

class Bad:
    def __init__(self): raise RuntimeError("two\\nlines")
    def update(self, outputs, label): ...
    def compute(self): ...

class Wordy(Nameless):
    def compute(self): return "much"
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", ["KeyError: 'none'", "line 3)"]),
        ("Bad", ["RuntimeError: two lines", "line 10)"]),
        ("Wordy", ["ValueError", "'much'"]),
        ("none", ["cannot be loaded"]),
        ("OWN", ["must be a class with update() and compute(), or a function"]),
    ],
)
def test_a_metric_of_the_users_own_that_fails_is_one_sentence(tmp_path: Path, name: str, words: list[str]) -> None:
    (tmp_path / "own.py").write_text(OWN + "\nOWN = 3\n")
    with pytest.raises(OptionError) as caught:
        sweep(MODEL, DIGITS, samples=2, metric=f"{tmp_path / 'own.py'}:{name}", out=tmp_path / "run")
    text = str(caught.value)
    assert text.startswith("metric ")
    assert "\n" not in text
    for word in words:
        assert word in text
    assert not (tmp_path / "run").exists()


def test_a_metric_file_that_fails_to_load_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("value = undefined\n")
    with pytest.raises(OptionError, match=r"NameError: name 'undefined' is not defined \(.*own.py, line 1\)"):
        sweep(MODEL, DIGITS, samples=2, metric=f"{tmp_path / 'own.py'}:value", out=tmp_path / "run")


@pytest.mark.slow
def test_a_metric_may_be_a_bare_class(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    result = sweep(
        MODEL, DIGITS, precisions="int8", samples=2, metric=f"{tmp_path / 'own.py'}:Nameless", out=tmp_path / "run"
    )
    assert row(result, "int8")["metric_name"] == "Nameless"
    assert row(result, "int8")["metric"] == 0.5


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"seed": -1}, OptionError, "seed is -1; it must be at least 0"),
        ({"samples": 0}, OptionError, "samples is 0; it must be at least 1"),
        ({"threads": 0}, OptionError, "threads is 0; it must be at least 1"),
        ({"max_pins": -1}, OptionError, "max_pins is -1; it must be at least 0"),
        ({"precisions": []}, OptionError, "precisions are the low ones"),
        ({"precisions": "fp32"}, OptionError, "fp32 is always measured"),
        ({"around": "int8"}, OptionError, "fp32, fp16 or bf16"),
        ({"backend": "cuda"}, OptionError, "unknown backend 'cuda'; use one of auto, tensorrt"),
        ({"shapes": {"image": (1, 1, 8, 8)}}, OptionError, "shapes are for random inputs"),
        ({"plan": "none.json"}, PlanError, "none.json: cannot be read"),
        ({"tolerance": "metric>=0.5", "data": None}, OptionError, "the data has no labels with a metric"),
        ({"metric": "os:getcwd", "data": None}, DataError, "random inputs have no labels"),
        ({"data": "nowhere"}, DataError, "nowhere: no such folder"),
    ],
)
def test_options_that_cannot_be_used_are_told_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    given = {"data": DIGITS, "samples": 2, **options}
    if given["data"] is None:
        given["shapes"] = {"image": (1, 1, 8, 8)}
    with pytest.raises(error, match=re.escape(words)):
        sweep(MODEL, out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_top1_without_classes_is_told_and_nothing_left(tmp_path: Path) -> None:
    model = saved(proto("(float[4] x) => (float[4] y) { y = Relu(x) }"), tmp_path / "flat.onnx")
    with pytest.raises(OptionError, match=r"tolerance top1>=0\.9 cannot be judged: no output .* class axis"):
        sweep(model, tolerance="top1>=0.9", out=tmp_path / "runs" / "flat")
    assert not (tmp_path / "runs").exists()


def test_a_label_that_is_no_class_is_told_and_what_was_there_stays(tmp_path: Path) -> None:
    data = samples(tmp_path / "data", np.zeros((1, 1, 8, 8), np.float32))
    (data / "dataset.toml").write_text('[labels]\nfile = "l.csv"\nmetric = "accuracy"\n')
    (data / "l.csv").write_text("sample,label\n0.npy,seven\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "note.txt").write_text("mine")
    with pytest.raises(DataError, match="'seven' is not a class index"):
        sweep(MODEL, data, out=tmp_path / "run")
    assert (tmp_path / "run" / "note.txt").read_text() == "mine"


def test_bf16_on_an_old_opset_is_told_before_the_work(tmp_path: Path) -> None:
    model = saved(
        proto("(float[1,4] x) => (float[1,4] y) { y = Relu(x) }", opset=11, ir_version=6), tmp_path / "m.onnx"
    )
    with pytest.raises(ModelError, match="bf16 needs opset 13"):
        sweep(model, precisions="fp16,bf16", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_with_an_integer_output_beside_is_judged_by_the_float_one(tmp_path: Path) -> None:
    body = "(float[1,4] x) => (float[1,4] y, int64[1] k) { y = Softmax(x) k = ArgMax <axis = 1, keepdims = 0> (y) }"
    result = sweep(saved(proto(body), tmp_path / "m.onnx"), precisions="fp16", random=True, out=tmp_path / "run")
    table = result.variants.set_index(["variant", "output"])
    assert table.loc[("fp16", "y"), "sqnr_db"] > 50
    assert np.isnan(table.loc[("fp16", "k"), "sqnr_db"])
    assert table.loc[("fp16", "k"), "top1"] == 1
    assert pd.isna(table.loc[("fp16", "k"), "nan"])
    assert result.met


def test_a_plan_with_ranges_by_an_unknown_method_is_refused_in_a_sentence(digits: SweepResult, tmp_path: Path) -> None:
    plan = json.loads((folder(digits) / "plan.int8.json").read_text())
    (tmp_path / "odd.json").write_text(json.dumps({**plan, "calibration": "guess"}))
    with pytest.raises(OptionError, match="unknown calibration method 'guess'"):
        sweep(MODEL, DIGITS, plan=tmp_path / "odd.json", samples=4, out=tmp_path / "other")
