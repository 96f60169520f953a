"""A sweep on engines: the emulation ranks, engines are built, measured and verified.

No GPU is here. In the place of TensorRT's process stands one that runs the same job through the emulation, so that all
decisions are the real ones: which engines are asked for, how many, what is made of their figures, and of refusals.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from models import DIGITS, ROUNDED

from precisionlab.backends import registry
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.options import EngineOptions
from precisionlab.backends.session import Session
from precisionlab.backends.tensorrt import opening
from precisionlab.backends.tensorrt.api import Features
from precisionlab.backends.tensorrt.backend import EngineSettings, TensorRTBackend
from precisionlab.backends.tensorrt.jobs import (
    NOTHING,
    Arrays,
    BuildJob,
    Built,
    EngineLayer,
    EngineTensor,
    Latency,
    Watch,
)
from precisionlab.backends.tensorrt.network import NetworkLayer, NetworkTensor
from precisionlab.calibration.cache import read_cache
from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.cli import cli
from precisionlab.data import Dataset
from precisionlab.errors import BuildError
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.selftest import selftest
from precisionlab.jobs.sweep import sweep
from precisionlab.jobs.verify import verify
from precisionlab.model import Model
from precisionlab.plan.arithmetic import TENSORRT
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.copiers import copier_of
from precisionlab.rewrite.observe import Flow, Segment, segments
from precisionlab.system.observer import Observer

MODEL = DIGITS / "digits.onnx"


class Emulated:
    """Runs build jobs through the emulation. `rough` layers are worse on this GPU: in bf16 unless held in fp32."""

    features = Features(
        "10.3.0", pins=True, calibrators=True, precisions=frozenset(Precision), debug_tensors=True, implicit_batch=True
    )
    device = "Stand-in GPU 8.9"

    marking_changes = False
    """Whether an engine with marked outputs gives others than one without: its fusions are others."""

    arithmetic = TENSORRT

    wide = False
    """Whether all runs in float32, whatever is asked for."""

    def __init__(self, model: Model, rough: Collection[str] = (), refuses: Collection[str] = ()) -> None:
        self.model = model
        self.jobs: list[BuildJob] = []
        self._rough = rough
        self._refuses = refuses
        self._ready: dict[Path, tuple[Session, Segment, tuple[str, ...]]] = {}

    def describe(self, model: Path) -> tuple[NetworkLayer, ...]:
        layers = []
        for index, node in enumerate(self.model.onnx.graph):
            inputs = tuple(NetworkTensor(str(v.name), "fp32") for v in node.inputs if v is not None)
            outputs = tuple(NetworkTensor(str(v.name), "fp32") for v in node.outputs)
            layers.append(NetworkLayer(index, str(node.name), "ELEMENTWISE", (str(node.name),), inputs, outputs))
        return tuple(layers)

    def build(self, job: BuildJob) -> Built:
        self.jobs.append(job)
        pinned = {pin.layer: pin.precision for pin in job.pins}
        if refused := self._refuses & pinned.keys():
            raise BuildError(f"no implementation of {sorted(refused)[0]} obeys the requested constraints")
        engine = Path(f"engine{len(self.jobs)}")
        plan = self._plan(job, pinned)
        flows = (Flow.REFERENCE, Flow.VARIANT)
        parts, copier = [list(self.model.layers)], copier_of(self.arithmetic)
        (segment,) = segments(self.model, plan, self._table(job), parts, flows, flows, copier)
        finals = [info.name for info in self.model.outputs]
        self._ready[engine] = (Session(segment.graph, 1), segment, (*finals, *job.marked, *job.debug))
        layers = tuple(
            EngineLayer(
                layer.name, "Emulated", layer.nodes, (),
                tuple(EngineTensor(o, precision_of(layer, plan).value, None) for o in layer.outputs),
            )
            for layer in self.model.layers
        )  # fmt: skip
        return Built(engine, 0.1, 1000, (), layers, ())

    def _plan(self, job: BuildJob, pinned: Mapping[str, Precision]) -> PrecisionPlan:
        if self.wide:
            return PrecisionPlan(self.model.sha256, Precision.FP32)
        low = next((p for p in (Precision.INT8, Precision.FP16, Precision.BF16) if p in job.enabled), Precision.FP32)
        rough = {name: Precision.BF16 for name in self._rough if low is not Precision.FP32}
        pins = [Pin(name, self.model.layer[name].nodes, p, "") for name, p in {**rough, **pinned}.items()]
        return PrecisionPlan(self.model.sha256, low, tuple(pins))

    def _table(self, job: BuildJob) -> CalibrationTable | None:
        if job.cache is None:
            return None
        scales = read_cache(job.cache, "cache").scales
        return CalibrationTable({name: Range(scale * 127) for name, scale in scales.items()}, 1)

    def run(self, engine: Path, inputs: Arrays, watch: Watch = NOTHING) -> Arrays:
        session, segment, names = self._ready[engine]
        values = session.run({feed: inputs[key[1]] for feed, key in segment.feeds.items()})
        state = {segment.fetches[shown]: value for shown, value in values.items()}
        # What no layer before it changes stands under the reference alone.
        found = {n: state.get((Flow.VARIANT, n), state.get((Flow.REFERENCE, n))) for n in names}
        job = self.jobs[int(engine.name.removeprefix("engine")) - 1]
        if self.marking_changes and job.marked:
            found.update((info.name, found[info.name] * np.float32(1.01)) for info in self.model.outputs)
        assert watch.marked or not job.debug
        return found

    def latency(self, engine: Path, inputs: Arrays) -> tuple[Latency, Mapping[str, float]]:
        number = int(engine.name.removeprefix("engine"))
        return Latency(1.0 / number, 0.9 / number, 1.1 / number, 100), {layer.name: 0.01 for layer in self.model.layers}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Opens the stand-in in TensorRT's place. The dictionary says how it behaves, and has it in the end."""
    settings: dict[str, Any] = {"rough": (), "refuses": frozenset()}

    @contextmanager
    def open_emulated(
        backend: str,
        reference: OnnxRuntimeBackend,
        every: Dataset,
        chosen: Dataset,
        options: EngineOptions,
        folder: Path,
        observer: Observer,
    ) -> Iterator[TensorRTBackend]:
        if options.typed:
            yield reference  # type: ignore[misc]  # types stand in the model: the emulation answers by itself
            return
        settings["engines"] = Emulated(reference.model, settings["rough"], settings["refuses"])
        settings["engines"].features = replace(Emulated.features, strongly_typed="typed on" in settings)
        settings["engines"].device = settings.get("typed on", Emulated.device)
        settings["engines"].marking_changes = settings.get("marking_changes", False)
        settings["engines"].arithmetic = settings.get("arithmetic", TENSORRT)
        settings["engines"].wide = settings.get("wide", False)
        yield TensorRTBackend(
            reference, settings["engines"], EngineSettings(folder / "engines", observe=settings.get("observe", 0))
        )

    monkeypatch.setattr(opening, "open_engines", open_emulated)
    monkeypatch.setattr(registry, "_check_tensorrt", lambda package: None)  # nothing of it is needed here
    return settings


def swept(out: Path, **options: Any) -> SweepResult:
    chosen = {"precisions": "fp16", "samples": 8, "threads": 2, "repair": False, **options}
    return sweep(MODEL, DIGITS, backend="tensorrt", out=out, **chosen)


def test_engines_are_measured_beside_the_emulation_and_each_figure_says_which_it_is(
    gpu: dict[str, Any], tmp_path: Path
) -> None:
    result = swept(tmp_path)
    assert result.met
    kinds = dict(zip(result.variants["variant"], result.variants["figures"], strict=True))
    assert kinds == {
        "fp32": "emulated",
        "fp32 engine": "measured",
        "fp16": "emulated",
        "fp16 mixed": "emulated",
        "fp16 engine": "measured",
        "fp16 mixed engine": "measured",
    }
    measured = result.variants.set_index("variant")
    assert measured.loc["fp16 mixed engine", "met"]
    assert not measured.loc["fp16 engine", "met"]
    assert measured["latency_ms"].notna().tolist() == [k == "measured" for k in measured["figures"]]
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["engines"]["device"] == "Stand-in GPU 8.9"
    assert run["engines"]["tensorrt"] == "10.3.0"
    times = run["precisions"]["fp16"]["engine"]["times"]
    assert [(kind["name"], kind["kernels"]) for kind in times["kinds"]] == [("Emulated", len(result.model.layers))]
    assert {kind["name"] for kind in times["types"]} == {"fp16", "fp32"}
    page = (tmp_path / "report.html").read_text()
    assert '<h2 id="time">' in page
    assert "In FP32, ms" in page


def test_of_one_precision_three_engines_are_built_where_the_emulation_was_right(
    gpu: dict[str, Any], tmp_path: Path
) -> None:
    """One in fp32, one without pins, one with those that the emulation found."""
    result = swept(tmp_path)
    jobs = gpu["engines"].jobs
    assert [(sorted(map(str, job.enabled)), len(job.pins)) for job in jobs] == [([], 0), (["fp16"], 0), (["fp16"], 4)]
    assert result.precisions[0].engine is not None
    assert result.precisions[0].engine.builds == 2


def test_a_gpu_that_is_worse_than_the_emulation_gets_more_pins_until_it_is_right(
    gpu: dict[str, Any], tmp_path: Path
) -> None:
    found = swept(tmp_path / "first").precisions[0]
    others = [name for name in found.ranked if name not in found.mixed.plan.pinned()]
    gpu["rough"] = others[:2]
    result = swept(tmp_path / "second", tolerance="sqnr>=60")
    (again,) = result.precisions
    assert again.engine is not None
    assert again.engine.mixed is not None
    assert again.mixed.met, "the emulation knows nothing of it"
    taken = again.engine.mixed.variant
    assert taken.met == result.met
    assert taken.met
    assert set(gpu["rough"]) <= taken.plan.pinned().keys()
    assert result.plans["fp16"] == taken.plan
    written = json.loads((tmp_path / "second" / "plan.json").read_text())
    assert {pin["layer"] for pin in written["pins"]} == set(taken.plan.pinned())


def test_an_engine_that_is_right_without_pins_takes_none(gpu: dict[str, Any], tmp_path: Path) -> None:
    result = swept(tmp_path, precisions="bf16", tolerance="sqnr>=5")
    assert result.met
    assert result.plans["bf16"].pins == ()
    (found,) = result.precisions
    assert found.engine is not None
    assert found.engine.mixed is found.engine.low
    assert found.engine.builds == 1


def test_a_refused_build_is_no_bad_result_and_the_sweep_goes_on(gpu: dict[str, Any], tmp_path: Path) -> None:
    found = swept(tmp_path / "first").precisions[0]
    gpu["refuses"] = frozenset({found.mixed.plan.pins[0].layer})
    result = swept(tmp_path / "second", engine=EngineOptions(builds=3))
    (again,) = result.precisions
    assert again.engine is not None
    assert again.engine.mixed is again.engine.low
    assert not result.met
    assert any("obeys the requested constraints" in note for note in again.engine.notes)
    assert again.engine.builds == 3


def layer_jobs(gpu: dict[str, Any]) -> list[str]:
    return ["marked" if job.marked else "debug" for job in gpu["engines"].jobs if job.marked or job.debug]


def test_layers_are_looked_at_as_marked_outputs(gpu: dict[str, Any], tmp_path: Path) -> None:
    gpu["observe"] = 1 << 20
    result = swept(tmp_path)
    assert set(layer_jobs(gpu)) == {"marked"}
    layers = result.layers
    same = layers["engine_sqnr_db"].round(3) == layers["mixed_sqnr_db"].round(3)
    assert (same | layers["engine_sqnr_db"].isna()).all(), "the stand-in is the emulation"
    assert layers["engine_sqnr_db"].notna().sum() > 10
    assert result.precisions[0].engine is not None
    assert result.precisions[0].engine.notes == ()


def test_where_marking_changes_the_engine_debug_tensors_are_tried_and_it_is_said(
    gpu: dict[str, Any], tmp_path: Path
) -> None:
    gpu["observe"] = 1 << 20
    gpu["marking_changes"] = True
    result = swept(tmp_path)
    assert {"marked", "debug"} == set(layer_jobs(gpu))
    assert result.precisions[0].engine is not None
    assert all("as debug tensors" in note for note in result.precisions[0].engine.notes)
    assert result.layers["engine_sqnr_db"].notna().sum() > 10


def test_without_debug_tensors_it_is_said_that_looking_changed_the_engine(
    gpu: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu["observe"] = 1 << 20
    gpu["marking_changes"] = True
    monkeypatch.setattr(Emulated, "features", replace(Emulated.features, debug_tensors=False))
    result = swept(tmp_path)
    assert set(layer_jobs(gpu)) == {"marked"}
    assert result.precisions[0].engine is not None
    assert any("looking at its layers changed the engine" in note for note in result.precisions[0].engine.notes)


def test_int8_engines_are_given_ranges_for_what_int8_layers_take_and_give_and_no_other(
    gpu: dict[str, Any], tmp_path: Path
) -> None:
    swept(tmp_path, precisions="int8")
    job = next(job for job in gpu["engines"].jobs if Precision.INT8 in job.enabled)
    assert job.cache is not None
    cache = read_cache(job.cache, "cache")
    assert cache.version == "100300"
    model = gpu["engines"].model
    quantised = [layer for layer in model.layers if layer.quantizable]
    wanted = {str(v.name) for la in quantised for n in la.nodes for v in model.node[n].outputs}
    wanted |= {str(model.node[layer.nodes[0]].inputs[0].name) for layer in quantised}
    assert set(cache.scales) == wanted


def test_a_plan_of_the_users_is_measured_on_the_gpu_too(gpu: dict[str, Any], tmp_path: Path) -> None:
    first = swept(tmp_path / "first")
    again = swept(tmp_path / "second", plan=tmp_path / "first" / "plan.json")
    assert again.met
    assert again.plans["fp16"].pinned() == first.plans["fp16"].pinned()
    assert "fp16 mixed engine" in set(again.variants["variant"])


def test_verify_measures_the_certificate_on_engines_where_it_is_told_to(gpu: dict[str, Any], tmp_path: Path) -> None:
    swept(tmp_path)
    found = verify(tmp_path / "plan.json", backend="tensorrt", threads=2)
    assert found.figures == "measured"
    assert found.holds
    assert len(gpu["engines"].jobs) == 1 + len(found.certificate.releases)


def test_a_killed_sweep_builds_no_engine_twice_for_figures_that_it_has(gpu: dict[str, Any], tmp_path: Path) -> None:
    first = swept(tmp_path)
    again = swept(tmp_path)
    assert again.variants["sqnr_db"].tolist() == pytest.approx(first.variants["sqnr_db"].tolist(), nan_ok=True)
    # Only what the inspector and the clock tell is asked anew; with TensorRT these come from the store.
    assert len(gpu["engines"].jobs) == 3


def test_the_report_and_the_terminal_tell_of_the_engines(gpu: dict[str, Any], tmp_path: Path) -> None:
    import io

    from precisionlab.cli.summary import print_summary

    result = swept(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "Stand-in GPU 8.9" in html
    assert "MEASURED" in html
    stream = io.StringIO()
    print_summary(result, stream)
    assert "fp16 mixed engine" in stream.getvalue()
    assert "Stand-in GPU 8.9" in stream.getvalue()


def test_the_self_test_passes_on_a_gpu_that_does_as_the_emulation_does(gpu: dict[str, Any], tmp_path: Path) -> None:
    gpu["observe"] = 1 << 20
    steps = list(selftest(tmp_path))
    assert [step.name for step in steps if not step.passed] == []
    written = json.loads((tmp_path / "selftest.json").read_text())
    assert [x["name"] for x in (*written["steps"], *written["assumptions"])] == [step.name for step in steps]
    assert all(layer["emulated_sqnr_db"] == layer["measured_sqnr_db"] for layer in written["layers"])
    assert len(written["layers"]) >= 3
    assert {
        "FP32, TF32 off",
        "pins fix it",
        "the emulation is true",
        "INT8, our calibration cache",
        "dynamic shapes",
    } <= {s.name for s in steps}


def test_the_self_tests_values_break_in_fp16_and_where_they_do_not_that_is_told_and_no_fault(
    gpu: dict[str, Any], tmp_path: Path
) -> None:
    told = {step.name: step for step in selftest(tmp_path / "healthy")}
    assert "values of 10⁶ do not fit" in told["FP16 held to"].seen
    gpu["wide"] = True
    told = {step.name: step for step in selftest(tmp_path / "wide")}
    assert (told["FP16 held to"].passed, told["FP16 held to"].seen[:10]) == (True, "not broken")
    assert told["pins fix it"].passed
    assert {step.seen for step in told.values() if step.name.startswith("constants")} == {
        "1e6 is kept: the layer was not computed in FP16"
    }


def assumptions(folder: Path) -> dict[str, dict[str, Any]]:
    """What `selftest.json` has of the emulation's assumptions, by name."""
    return {x["name"]: x for x in json.loads((folder / "selftest.json").read_text())["assumptions"]}


def test_the_self_test_tells_of_each_assumption_that_it_holds(gpu: dict[str, Any], tmp_path: Path) -> None:
    gpu["typed on"] = "NVIDIA L4, compute capability 8.9, driver for CUDA 12.8"
    list(selftest(tmp_path))
    found = assumptions(tmp_path)
    assert all(one["as_assumed"] for one in found.values())
    assert {name: one["measured"] for name, one in found.items()} == {
        "constants beyond half": "1e6 is clamped to 65504",
        "a mask of -3.4e38": "-3.4e38 times 1 gives -65504, and times 0 -0",
        "a constant below half": "1e-12 is clamped to 6e-08",
        "sums of a MatMul": "sums are kept in float32",
        "sums of a convolution": "sums are kept in float32",
        "a BatchNormalization behind a Conv": "nothing is rounded between: 128, as it has to be",
        "a bias behind a MatMul": "nothing is rounded between: 60000, as it has to be",
        "a mean": "nothing is rounded between: 2048, as it has to be",
        "a LayerNormalization": "nothing is rounded between: 1, as it has to be",
        "0·x": "NaN is kept: 0·x of inf, -inf, nan and 1 gives nan, nan, nan, 0",
        "x - x": "NaN is kept: x - x of inf, -inf, nan and 1 gives nan, nan, nan, 0",
        "x / x": "NaN is kept: x / x of inf, -inf, nan and 1 gives nan, nan, nan, 1",
        "BF16: operands of a MatMul": "activations and weights are rounded",
        "BF16: operands of a convolution": "activations and weights are rounded",
        "BF16: sums of a MatMul": "sums are kept in float32",
        "BF16: sums of a convolution": "sums are kept in float32",
        "BF16: what a layer gives": "what a layer gives is rounded before the next takes it",
        "INT8: the scale of a weight": "each channel of a weight has a scale of its own",
        "INT8: rounding of weights": "weights between two steps go to the even",
        "INT8: rounding of activations": "activations between two steps go to the even",
        "INT8: beyond the range": "beyond a range of 127 steps 1000 gives 127, and -1000 -128",
        "INT8: sums of a convolution": "sums are exact, and leave the layer as floats: 1040384",
        "INT8: sums of a MatMul": "sums are exact, and leave the layer as floats: 1040384",
        "Q/DQ: in front of a Conv": "activations between two steps go to the even",
        "Q/DQ: beyond the range": "beyond a range of 127 steps 1000 gives 127, and -1000 -128",
        "Q/DQ: in front of a layer in float": "the pair rounds: values between two steps go to the even",
        "Q/DQ: a mean of what it gives": "a mean of steps is no step: 0, 0, 0 and 1 give 0.25",
        "FP8: the scale of a weight": "each channel of a convolution's weight has a scale of its own",
        "FP8: rounding of weights": "weights between two values go to the even",
        "FP8: rounding of activations": "activations between two values go to the even",
        "FP8: beyond the range": "beyond 448 steps 1000 gives 448, and -1000 -448",
        "FP8: subnormal values": "subnormal values are kept, down to 2⁻⁹ steps",
        "FP8: sums of a MatMul": "sums are exact: 201727",
        "INT4: the levels of a weight": "every level from -7 to 7 comes back as so many steps",
        "INT4: the scale of a block": "each block has a scale of its own",
        "INT4: activations": "what the weight is multiplied with is not quantised",
        "INT4: sums of a MatMul": "sums are kept in float32",
    }


def test_the_self_test_tells_of_an_engine_that_rounds_constants_and_does_not_fail_by_that(
    gpu: dict[str, Any], tmp_path: Path
) -> None:
    gpu |= {"arithmetic": ROUNDED, "observe": 1 << 20, "typed on": "NVIDIA A10, compute capability 8.6, driver"}
    steps = list(selftest(tmp_path))
    assert {step.name.split(":")[0] for step in steps if ":" in step.name} == {"BF16", "INT8", "Q/DQ", "INT4"}
    assert all(step.passed for step in steps if not step.is_assumption)
    found = {name: one["measured"] for name, one in assumptions(tmp_path).items() if not one["as_assumed"]}
    assert found == {
        "constants beyond half": "1e6 becomes Inf",
        "a mask of -3.4e38": "-3.4e38 times 1 gives -inf, and times 0 nan",
        "a constant below half": "1e-12 becomes 0: its logarithm is -Inf",
    }


def test_an_assumption_that_does_not_hold_is_printed_and_the_command_succeeds(
    gpu: dict[str, Any], tmp_path: Path
) -> None:
    gpu |= {"arithmetic": ROUNDED, "observe": 1 << 20}
    result = CliRunner().invoke(cli, ["selftest", "--out", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0, result.stdout
    assert "not as assumed: constants beyond half: 1e6 becomes Inf" in result.stdout
    assert "as assumed: sums of a MatMul: sums are kept in float32" in result.stdout.splitlines()


def test_the_self_test_says_where_its_assumptions_cannot_be_tried(gpu: dict[str, Any], tmp_path: Path) -> None:
    gpu["refuses"] = frozenset({"mask"})
    failed = {step.name: step.seen for step in selftest(tmp_path) if not step.passed}
    assert "obeys the requested constraints" in failed["what the emulation assumes of FP16"]
    assert {name.partition(":")[0] for name in assumptions(tmp_path)} == {"BF16", "INT8", "Q/DQ"}


def test_the_self_test_says_what_fails(gpu: dict[str, Any], tmp_path: Path) -> None:
    gpu["refuses"] = frozenset({"up"})
    failed = {step.name: step.seen for step in selftest(tmp_path) if not step.passed}
    assert "obeys the requested constraints" in failed["pins fix it"]
    assert "FP32, TF32 off" not in failed
