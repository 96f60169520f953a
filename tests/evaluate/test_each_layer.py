"""Each layer by itself: the outputs and the task metric with it alone in the low precision, and it alone in float32."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from models import DIGITS, Array, plan_for

from precisionlab.backends import onnxruntime
from precisionlab.backends.base import Detail, Evaluation, SensitivityRequest
from precisionlab.backends.memory import Share
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.cli.summary import print_summary
from precisionlab.cli.worst_layers import by_itself_lines
from precisionlab.compare.judging import judging_of
from precisionlab.compare.task import Accuracy, Outputs, TaskMetric
from precisionlab.data import Dataset
from precisionlab.errors import OptionError
from precisionlab.evaluate import each_layer as measuring
from precisionlab.evaluate.each_layer import EachLayer, each_layer
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.run_folder import RunFolder
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.model import Model
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.system.deadline import Deadline, Watched
from precisionlab.system.observer import Silent

SOME = ("/norm/square", "/norm/variance")

# What backends give


def values_of(backend: OnnxRuntimeBackend, dataset: Dataset, restored: bool) -> dict[tuple[str, str], Array]:
    """Layer and sample → the final output with that layer toggled."""
    model = backend.model
    plans = plan_for(model, Precision.FP32), plan_for(model, Precision.FP16)
    request = SensitivityRequest(*(plans[::-1] if restored else plans), SOME, None, judging_of(model), values=True)
    name = model.outputs[0].name
    return {
        (layer, toggled.sample): told.values[name]
        for toggled in backend.toggled(request, dataset)
        for layer, told in toggled.layers.items()
        if told.values is not None
    }


def expected_of(
    backend: OnnxRuntimeBackend, dataset: Dataset, restored: bool
) -> Iterator[tuple[tuple[str, str], Array]]:
    """The same by plans with that one pin."""
    model = backend.model
    for name in SOME:
        to = Precision.FP32 if restored else Precision.FP16
        plan = plan_for(model, Precision.FP16 if restored else Precision.FP32)
        plan = replace(plan, pins=(Pin(name, model.layer[name].nodes, to, "test"),))
        results = backend.results(Evaluation(plan, None, Detail.NONFINITE, True, judging_of(model)), dataset)
        for sample, result in zip(dataset.names, results, strict=True):
            assert result.values is not None
            yield (name, sample), result.values[1][model.outputs[0].name]


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("way", ["shared sessions", "stages", "few nodes at a time"])
def test_outputs_with_a_layer_toggled_are_those_of_the_plan_with_that_pin(
    bundled: tuple[Model, Dataset], monkeypatch: pytest.MonkeyPatch, way: str, restored: bool
) -> None:
    model, dataset = bundled[0], bundled[1].only(bundled[1].names[:2])
    backend = OnnxRuntimeBackend(model, next(iter(dataset)), 2)
    if way == "stages":
        monkeypatch.setattr(onnxruntime, "pays", lambda *_: False)
        monkeypatch.setattr(OnnxRuntimeBackend, "can_toggle", lambda *_: False)
    if way == "few nodes at a time":
        backend.share = Share(1 << 30, backend.budget, None, 1 << 30, 16)
    found = values_of(backend, dataset, restored)
    for key, value in expected_of(backend, dataset, restored):
        np.testing.assert_allclose(found.pop(key), value, rtol=2e-3, atol=2e-3, err_msg=str(key))
    assert not found


def test_outputs_are_not_kept_where_nobody_asks_for_them(bundled: tuple[Model, Dataset]) -> None:
    model, dataset = bundled[0], bundled[1].only(bundled[1].names[:1])
    plans = plan_for(model, Precision.FP32), plan_for(model, Precision.FP16)
    request = SensitivityRequest(*plans, SOME, None, judging_of(model))
    backend = OnnxRuntimeBackend(model, next(iter(dataset)), 1)
    told = [told for toggled in backend.toggled(request, dataset) for told in toggled.layers.values()]
    assert len(told) == len(SOME)
    assert all(one.values is None for one in told)


# What is made of it


class Counting(Silent):
    """Knows the stages, and ends the work where it is told to."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, title: str, total: int, unit: str = "sample") -> None:
        self.stages.append(title)


def evaluator_of(bundled: tuple[Model, Dataset], folder: Path, observer: Counting) -> Evaluator:
    model, dataset = bundled[0], bundled[1].only(bundled[1].names[:3])
    backend = OnnxRuntimeBackend(model, next(iter(dataset)), 2)

    def metric() -> TaskMetric:
        return Accuracy(model.outputs[0].name)

    run = RunFolder(folder, {"a": "run"}, lambda text: None)
    return Evaluator(backend, dataset, None, metric, run, observer, judging_of(model))


def measured(evaluator: Evaluator) -> EachLayer:
    low = plan_for(evaluator.model, Precision.FP16)
    whole = evaluator.compare("fp16", low, None, introduced=True)
    return each_layer(evaluator, low, None, SOME, evaluator.chosen, whole)


def test_figures_and_metric_are_those_of_the_plan_with_that_pin(bundled: tuple[Model, Dataset], tmp_path: Path) -> None:
    evaluator = evaluator_of(bundled, tmp_path, Counting())
    found = measured(evaluator)
    assert found.samples == 3
    assert found.reference_metric == evaluator.compare("fp32", plan_for(evaluator.model, Precision.FP32), None).metric
    known = evaluator.compare("fp16", plan_for(evaluator.model, Precision.FP16), None, introduced=True)
    assert (found.low.sqnr, found.low.metric) == (known.worst("sqnr"), known.metric)
    for figures, default, to in (
        (found.one_on, Precision.FP32, Precision.FP16),
        (found.one_off, Precision.FP16, Precision.FP32),
    ):
        assert figures.keys() == set(SOME)
        for name, one in figures.items():
            pin = Pin(name, evaluator.model.layer[name].nodes, to, "test")
            plan: PrecisionPlan = replace(plan_for(evaluator.model, default), pins=(pin,))
            expected = evaluator.judge(name, plan, None, known)
            assert one.metric == expected.metric, name
            sqnr = expected.worst("sqnr")
            assert one.sqnr == pytest.approx(sqnr, abs=0.05) or (one.sqnr > 90 and sqnr > 90), name


def test_a_run_that_was_killed_measures_no_layer_twice(
    bundled: tuple[Model, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_AT_ONCE", 1)
    first = Counting()
    found = measured(evaluator_of(bundled, tmp_path, first))
    assert sum("part 2 of 2" in title for title in first.stages) == 2
    again = Counting()
    assert measured(evaluator_of(bundled, tmp_path, again)) == found
    assert not again.stages


def test_where_time_is_spent_the_layers_measured_by_then_stay(
    bundled: tuple[Model, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_AT_ONCE", 1)
    evaluator = evaluator_of(bundled, tmp_path, Counting())
    whole = measured(evaluator)
    low = plan_for(evaluator.model, Precision.FP16)
    comparison = evaluator.compare("fp16", low, None, introduced=True)
    clock = iter([0.0, 0.0, *[5.0] * 100])
    spent = replace(evaluator, observer=Watched(Silent(), Deadline(1.0, clock=lambda: next(clock))))
    # What the journal knows costs no time; all else is beyond it.
    layers = (*SOME, *[x.name for x in evaluator.model.layers if x.fixed is None][-2:])
    found = each_layer(spent, low, None, tuple(dict.fromkeys(layers)), evaluator.chosen, comparison)
    assert found.one_on == whole.one_on
    assert found.one_off == whole.one_off


# What a sweep makes of it


def confidence(outputs: Outputs, label: str) -> float:
    """A metric that hardly two layers agree in."""
    scores = next(iter(outputs.values())).astype(np.float64).reshape(-1)
    shares = np.exp(scores - scores.max())
    return float(np.nan_to_num(shares[int(label)] / shares.sum()))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    return sweep(
        *(DIGITS / "digits.onnx", DIGITS),
        **{"precisions": "bf16", "tolerance": "sqnr>=-100", "samples": 6, "each_layer": 4},
        metric=f"{Path(__file__)}:confidence",
        threads=2,
        out=tmp_path_factory.mktemp("each") / "digits",
    )


def test_a_sweep_tells_of_every_layer_by_itself(swept: SweepResult) -> None:
    ranked = swept.layers[swept.layers["rank"].notna()]
    assert set(ranked["each_samples"]) == {4}
    assert ranked[["one_on_metric", "one_off_metric", "one_on_nonfinite"]].notna().all(axis=None)
    assert swept.layers[swept.layers["rank"].isna()][["one_on_sqnr_db", "each_samples"]].isna().all(axis=None)
    facts = swept.run["precisions"]["bf16"]["each_layer"]
    assert (facts["samples"], facts["metric"]) == (4, "confidence")
    worst = ranked.sort_values("rank").iloc[0]
    assert worst["one_on_sqnr_db"] == ranked["one_on_sqnr_db"].min()
    assert worst["one_on_sqnr_db"] > facts["low"]["sqnr"]  # all together do more harm
    assert abs(worst["one_on_metric"] - facts["reference"]["metric"]) > 1e-6
    few = swept.by_itself()
    assert list(few) == ["layer", "kind", "one_on_sqnr_db", "one_on_metric", "one_off_sqnr_db", "one_off_metric"]
    assert list(few["layer"]) == list(ranked.sort_values("rank")["layer"])
    drawn = ElementTree.fromstring(swept.plot_by_itself().svg)  # ours
    curves = {str(group.get("class")) for group in drawn.iter("{http://www.w3.org/2000/svg}g")}
    assert {"curve one-on", "curve one-off", "curve whole"} <= curves


def test_the_terminal_names_the_worst_and_what_buys_most(swept: SweepResult) -> None:
    stream = io.StringIO()
    print_summary(swept, stream)
    told = " ".join(stream.getvalue().split())
    worst = swept.layers.sort_values("one_on_sqnr_db").iloc[0]
    assert "each layer by itself, on 4 samples; bf16 throughout: " in told
    assert f"only one in bf16: worst {worst['layer']}, {worst['one_on_sqnr_db']:.1f} dB, confidence" in told
    assert "all but one in it: no single layer gains a tenth of a decibel" in told
    (found,) = swept.precisions
    assert found.each_layer is not None
    better = replace(found.each_layer.low, sqnr=60.0, metric=0.5)
    each = replace(found.each_layer, one_off={**found.each_layer.one_off, "/stem/conv": better})
    assert list(by_itself_lines(found, each))[2] == (
        "  all but one in it: best without /stem/conv, 60.0 dB, confidence 0.500"
    )
    lost = replace(found.each_layer.low, sqnr=math.nan)
    none = replace(each, one_off={"/stem/conv": lost}, low=lost)
    assert "no single layer gains" in list(by_itself_lines(found, none))[2]


def test_the_summary_names_them_too_and_says_nothing_where_they_were_not_asked_for(
    swept: SweepResult, swept_digits: SweepResult
) -> None:
    assert swept.folder is not None
    worst = swept.layers.sort_values("one_on_sqnr_db").iloc[0]
    told = (swept.folder / "summary.md").read_text().replace("\\", "")
    low = swept.run["precisions"]["bf16"]["each_layer"]["low"]["sqnr"]
    assert f"**Each layer by itself:** on 4 samples, BF16 throughout {low:.1f} dB; only one layer in BF16" in told
    assert f"worst {worst['layer']}, {worst['one_on_sqnr_db']:.1f} dB; all but one: no single layer gains a ten" in told
    assert swept_digits.folder is not None
    assert "by itself" not in (swept_digits.folder / "summary.md").read_text()


def test_the_page_shows_them_the_worst_first_and_the_tables_are_read_again(swept: SweepResult) -> None:
    assert swept.folder is not None
    page = (swept.folder / "report.html").read_text()
    section = page[page.index('<h2 id="each">') :]
    section = section[: section.index("</section>")]
    worst = swept.layers.sort_values("rank").iloc[0]
    first = section[section.index("<tbody>") :]
    assert f"{worst['one_on_metric']:.3f}" in first[: first.index("</tr>")]
    table = pd.read_csv(swept.folder / "layers.csv")
    assert table["one_on_sqnr_db"].notna().sum() == swept.layers["one_on_sqnr_db"].notna().sum()
    json.loads((swept.folder / "run.json").read_text())


def test_without_it_nothing_is_shown_or_guessed(swept_digits: SweepResult) -> None:
    assert swept_digits.folder is not None
    assert 'id="each"' not in (swept_digits.folder / "report.html").read_text()
    assert swept_digits.layers[["one_on_sqnr_db", "one_off_metric", "each_samples"]].isna().all(axis=None)
    for asked in (swept_digits.by_itself, swept_digits.plot_by_itself):
        with pytest.raises(OptionError, match="each_layer"):
            asked("fp16")


def test_so_many_layers_by_themselves_must_be_a_number_of_samples(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="each_layer"):
        sweep(DIGITS / "digits.onnx", DIGITS, each_layer=0, out=tmp_path / "run")
