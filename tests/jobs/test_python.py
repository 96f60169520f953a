"""What users of Python and notebooks type: names at the top, objects in the place of files, results in a line."""

from __future__ import annotations

import inspect
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import DIGITS, Array, proto

import precisionlab
from precisionlab.errors import DataError, ModelError, OptionError, PlanError
from precisionlab.jobs.result import SweepResult
from precisionlab.system import notebook
from precisionlab.system.notebook import NotebookObserver, in_notebook, observer_of
from precisionlab.system.observer import Silent

MODEL = DIGITS / "digits.onnx"
BODY = "(float[N,4] x) => (float[N,4] y) { a = MatMul(x, w) y = Relu(a) }"


def small() -> onnx.ModelProto:
    return proto(BODY, {"w": np.eye(4, dtype=np.float32)})


ROWS = [np.full((1, 4), number, np.float32) for number in range(1, 5)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def swept(model: Any, data: Any, **options: Any) -> SweepResult:
    return precisionlab.sweep(model, data, precisions="fp16", threads=1, **options)


# Names


def test_every_public_name_is_there_and_jobs_are_called_though_rooms_of_the_package_have_their_names() -> None:
    assert set(precisionlab.__all__) <= set(dir(precisionlab))
    assert "__version__" in dir(precisionlab)
    import precisionlab.export.trtexec as room

    assert isinstance(room, types.ModuleType)
    for name in precisionlab.__all__:
        assert callable(getattr(precisionlab, name))
    parameters = list(inspect.signature(precisionlab.compare).parameters)
    assert parameters[:3] == ["model", "other", "data"]
    assert list(inspect.signature(precisionlab.export).parameters)[:2] == ["plan", "target"]
    with pytest.raises(AttributeError, match="nosuch"):
        precisionlab.nosuch  # noqa: B018


@pytest.mark.slow
def test_report_export_and_diff_take_a_result_or_its_folder(swept_digits: SweepResult, tmp_path: Path) -> None:
    for run in (swept_digits, swept_digits.folder, str(swept_digits.folder)):
        page = precisionlab.report(run, tmp_path / "page.html")
        assert page.read_text().startswith("<!doctype html>") or "<html" in page.read_text()
    found = precisionlab.export(swept_digits, "json", precision="fp16")
    assert json.loads(str(found.text))
    with pytest.raises(OptionError, match="say which with precision"):
        precisionlab.export(swept_digits, "json")
    with pytest.raises(OptionError, match="no plan for 'bf16'"):
        precisionlab.export(swept_digits, "json", precision="bf16")
    same = precisionlab.diff(swept_digits, swept_digits.folder, fail_if=["sqnr drop>0"])
    assert not same.worse
    assert same.save(tmp_path / "diff.html").exists()
    assert same.to_dict()["worse"] is False


# Results


@pytest.mark.thorough
def test_results_are_a_line_each(swept_digits: SweepResult, tmp_path: Path) -> None:
    assert swept_digits.folder is not None
    results = [
        swept_digits,
        swept_digits.model,
        precisionlab.diff(swept_digits, swept_digits),
        precisionlab.calibrate(MODEL, DIGITS, samples=4, tensorrt="8.6.1", threads=1, out=tmp_path / "cal"),
        precisionlab.compare(MODEL, MODEL, DIGITS, samples=2, threads=1, out=tmp_path / "cmp"),
        precisionlab.extract(MODEL, DIGITS, samples=2, threads=1, out=tmp_path / "ex"),
    ]
    for result in results:
        assert len(repr(result)) < 300
        assert "\n" not in repr(result)
    assert "fp16 met" in repr(swept_digits)
    for result in results[2:]:
        page = result._repr_html_()  # type: ignore[attr-defined]
        assert page.count("<script") == 0
        assert ".pl.pl.pl" in page
        assert not re.search(r"\sid=", page)


def test_few_columns_come_first_and_the_rest_is_there(swept_digits: SweepResult) -> None:
    worst = swept_digits.worst(3, "fp16")
    assert list(worst["layer"]) == list(
        swept_digits.layers.query("precision == 'fp16' and rank <= 3").sort_values("rank")["layer"]
    )
    assert {"layer", "kind", "introduced_sqnr_db", "cause"} <= set(worst)
    assert len(worst.columns) < 9 < len(swept_digits.layers.columns)
    assert len(swept_digits.worst(2)) == 4
    assert "fp16 mixed" in swept_digits.summary.index
    with pytest.raises(OptionError, match="bf16"):
        swept_digits.worst(3, "bf16")


def test_a_plot_is_a_drawing_that_a_notebook_shows_and_a_file_keeps(swept_digits: SweepResult, tmp_path: Path) -> None:
    figure = swept_digits.plot("fp16")
    text = figure.save(tmp_path / "a.svg").read_text()
    assert text == figure._repr_svg_()
    assert text.startswith("<svg")
    assert 'xmlns="http://www.w3.org/2000/svg"' in text
    assert text.count("xmlns=") == 1
    assert "<script" not in text
    assert len(repr(figure)) < 200


def test_open_opens_the_page_or_says_where_it_lies(
    swept_digits: SweepResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    swept_digits.open()
    assert opened[0].endswith("report.html")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    swept_digits.open()
    assert "open this yourself" in capsys.readouterr().err


# Objects


class Tensor:
    """What a tensor of torch looks like from outside."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return self

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return self._array


class MapStyle:
    """A data set with a length and without an end, as torch has them."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> Any:
        return {"x": ROWS[index % len(ROWS)]}, index


def generator() -> Iterator[Any]:
    yield from ({"x": row} for row in ROWS)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param([{"x": row} for row in ROWS], id="a list of dicts"),
        pytest.param([({"x": row}, 1) for row in ROWS], id="with labels"),
        pytest.param([[Tensor(row), Tensor(np.array([1]))] for row in ROWS], id="a DataLoader's batches"),
        pytest.param(ROWS, id="arrays"),
        pytest.param(np.concatenate(ROWS), id="an array of samples"),
        pytest.param(generator, id="a function"),
        pytest.param(generator(), id="a generator"),
        pytest.param(MapStyle(), id="a map-style data set"),
    ],
)
def test_samples_in_memory_are_taken_and_give_the_same_figures(data: Any, here: Path) -> None:
    found = swept(small(), data)
    assert found.run["data"]["samples"] == 4
    assert found.run["data"]["folder"].startswith("python-object:")
    assert float(found.variants["sqnr_db"].iloc[-1]) == np.inf


def test_one_dict_is_one_sample_and_what_is_none_is_told(here: Path) -> None:
    assert swept(small(), {"x": ROWS[0]}).run["data"]["samples"] == 1
    for data, said in (
        ([3], "is a int"),
        (3, "is no function"),
        ([{"z": ROWS[0]}], "lacks x"),
        ([], "gives no sample"),
    ):
        with pytest.raises(DataError, match=said):
            swept(small(), data)


def test_two_inputs_are_taken_in_order(here: Path) -> None:
    model = proto("(float[N,4] x, float[N,4] z) => (float[N,4] y) { y = Sub(x, z) }")
    found = swept(model, [(row, row * 2, 1) for row in ROWS])
    assert found.run["data"]["samples"] == 4
    assert found.met


@pytest.mark.parametrize("made", [lambda model: model, ir.from_proto], ids=["onnx", "onnx_ir"])
def test_a_model_in_memory_is_written_where_its_run_can_find_it(made: Any, here: Path) -> None:
    found = swept(made(small()), ROWS)
    path = Path(found.run["model"]["path"])
    assert path.parent == Path("reports/models")
    assert path.name.startswith("g-")
    assert found.folder == Path("reports") / path.stem
    assert [node.op_type for node in onnx.load(path).graph.node] == ["MatMul", "Relu"]
    assert precisionlab.compare(small(), small(), ROWS, threads=1).met


def test_what_is_no_model_is_told_and_a_name_leads_nowhere_else(here: Path) -> None:
    with pytest.raises(ModelError, match="a int is no model"):
        swept(3, ROWS)
    bad = small()
    bad.graph.name = "../../evil /\x00name"
    path = Path(swept(bad, ROWS).run["model"]["path"])
    assert path.parent == Path("reports/models")


class Mean:
    """A metric of the user's own."""

    higher_is_better = True

    def __init__(self, scale: float = 1.0) -> None:
        self._scale, self._values = scale, list[float]()

    def update(self, outputs: Any, label: str) -> None:
        self._values.append(float(outputs["y"].mean()) * self._scale + 0 * float(label))

    def compute(self) -> float:
        return float(np.mean(self._values))


def average(outputs: Any, label: str) -> float:
    return float(outputs["y"].mean())


@pytest.mark.parametrize(("metric", "wanted"), [(Mean, 2.5), (Mean(2.0), 5.0), (average, 2.5)])
def test_a_metric_may_be_a_class_an_object_or_a_function(metric: Any, wanted: float, here: Path) -> None:
    found = swept(small(), [({"x": row}, 1) for row in ROWS], metric=metric, tolerance="metric_drop<=0.01")
    assert found.reference.comparison.metric == pytest.approx(wanted)
    assert found.met


def test_a_run_of_objects_wants_them_again_and_takes_them(here: Path) -> None:
    found = swept(small(), ROWS)
    assert found.folder is not None
    with pytest.raises(PlanError, match=r"came from an object of a Python session, .*; give it again"):
        precisionlab.verify(found.folder / "plan.json", threads=1)
    assert precisionlab.verify(found.folder / "plan.json", data=ROWS, threads=1).holds


@pytest.mark.parametrize("option", [{"processes": 2}, {"dask": "tcp://127.0.0.1:1"}])
def test_objects_stay_in_this_process(option: dict[str, Any], here: Path) -> None:
    with pytest.raises(OptionError, match="data is an object of this process"):
        swept(small(), ROWS, **option)


def test_an_object_cannot_be_found_once_the_call_has_ended(here: Path) -> None:
    swept(small(), ROWS)
    with pytest.raises(DataError, match="was an object of a Python session"):
        swept(small(), "python-object:list")


# Notebooks


class ZMQInteractiveShell:
    """The class of a kernel's shell, by name."""


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """IPython as a kernel has it; what is displayed."""
    found: list[str] = []

    class Handle:
        def update(self, html: str) -> None:
            found.append(html)

    def display(html: str, display_id: bool) -> Handle:
        found.append(html)
        return Handle()

    ipython = types.ModuleType("IPython")
    ipython.get_ipython = ZMQInteractiveShell  # type: ignore[attr-defined]
    inner = types.ModuleType("IPython.display")
    inner.HTML, inner.display = str, display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", inner)
    return found


def test_a_notebook_shows_progress_by_default_in_one_output(shown: list[str], here: Path) -> None:
    assert in_notebook()
    swept(small(), ROWS)
    assert "reading the samples" in shown[0]
    assert any("<progress" in page for page in shown)
    assert len(shown) < 200


def test_elsewhere_nobody_is_told_unless_asked() -> None:
    assert isinstance(observer_of(None), Silent)
    given = NotebookObserver()
    assert observer_of(given) is given


def test_what_a_notebook_shows_is_escaped_and_not_shown_too_often(
    shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(notebook.time, "monotonic", lambda: now[0])
    observer = NotebookObserver()
    observer.stage("<b>stage</b>", 1000)
    observer.note("<script>")
    before = len(shown)
    for done in range(1000):
        observer.advance(done)
    assert len(shown) == before
    observer.advance(1000)
    assert len(shown) == before + 1
    assert "<b>" not in shown[-1] + "".join(shown)
    assert "<script>" not in "".join(shown)
    assert repr(observer) == "<b>stage</b> (1000 of 1000)"
