"""Whole sweeps with TensorRT, on the double in `double/tensorrt`: all of ours is real, its process and the pipe too.

What the double does is what is known of TensorRT 10.x; where it had to be made up, its docstrings say so. So these show
that the parts fit together, and what becomes of each fault; not what a real TensorRT answers.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from bindings.cudapython import cuda_python
from bindings.cudapython import unsupported as no_cuda_python
from bindings.index import Binding
from bindings.setup import bindings, unsupported
from click.testing import CliRunner
from doubled import DOUBLE, TESTS, arrange
from models import DIGITS, load, proto
from rtx import drive, needs_rtx

from precisionlab.backends.options import EngineOptions
from precisionlab.backends.tensorrt.child import ChildEngines
from precisionlab.backends.tensorrt.store import EngineStore
from precisionlab.backends.tensorrt.tactics import LayerSum
from precisionlab.cli import cli
from precisionlab.cli.summary import print_summary
from precisionlab.data import open_dataset
from precisionlab.errors import BuildError, DataError
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.jobs.verify import verify
from precisionlab.model import load_model
from precisionlab.plan.arithmetic import TENSORRT, Arithmetic, Sums
from precisionlab.search.alternatives import engine_arithmetic
from precisionlab.search.outcome import EngineResult
from precisionlab.system.observer import Silent

MODEL = DIGITS / "digits.onnx"
SAMPLES = 8

needs_bindings = pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """The double is in TensorRT's place; call it with settings to change its manners."""
    arrange(monkeypatch, tmp_path)
    yield lambda **settings: arrange(monkeypatch, tmp_path, **settings)
    assert "tensorrt" not in sys.modules, "TensorRT stays in its own process"


def swept(out: Path, precisions: str, model: Path = MODEL, **options: Any) -> SweepResult:
    given = {"observe": 0, **options.pop("engine", {})}
    options = {"repair": False, **options}  # it is pins that these look at
    return sweep(
        model, DIGITS, precisions=precisions, backend="tensorrt", out=out, samples=SAMPLES, threads=2,
        engine=EngineOptions(**given), **options,
    )  # fmt: skip


def engine_of(result: SweepResult) -> EngineResult:
    (found,) = result.precisions
    assert found.engine is not None
    return found.engine


def sqnr(result: SweepResult) -> dict[str, float]:
    return dict(zip(result.variants["variant"], result.variants["sqnr_db"], strict=True))


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model for one image at a time."""
    model = onnx.load_model(MODEL)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    path = tmp_path_factory.mktemp("fixed") / "digits.onnx"
    onnx.save_model(model, path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep from the command line: its folder, and what it printed."""
    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        arrange(patch, out)
        command = ["sweep", str(MODEL), "--data", str(DIGITS), "--backend", "tensorrt", "--out", str(out)]
        printed = CliRunner().invoke(cli, [*command, "--samples", str(SAMPLES), "--threads", "2", "--no-repair"])
    assert printed.exit_code == 0, printed.output
    return out, printed.output


@dataclass(frozen=True)
class Plain:
    """A sweep in one precision, with nothing in its way: its folder, which holds its engines too, and its result."""

    out: Path
    result: SweepResult


def plain(precision: str, folders: pytest.TempPathFactory) -> Plain:
    out = folders.mktemp(precision)
    with pytest.MonkeyPatch.context() as patch:
        arrange(patch, out)
        return Plain(out, swept(out, precision))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    return plain("fp16", tmp_path_factory)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    return plain("int8", tmp_path_factory)


# The double itself


@needs_bindings
def test_the_double_has_no_name_that_the_real_bindings_lack() -> None:
    script = TESTS / "bindings" / "surface.py"
    path = os.pathsep.join([str(DOUBLE), str(TESTS), str(TESTS.parent)])
    found = {}
    for name, folders in (
        ("tensorrt", path),
        ("tensorrt_bindings", str(bindings(Binding("tensorrt-cu12-bindings", "10.14.1.48.post1")))),
    ):
        done = subprocess.run(
            [sys.executable, str(script), name], env={**os.environ, "PYTHONPATH": folders},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)
    real = found["tensorrt_bindings"]
    lacking = [f"{owner}.{name}" for owner, names in found["tensorrt"].items() for name in names
               if name not in real.get(owner, {})]  # fmt: skip
    assert len(found["tensorrt"]) > 30
    assert lacking == []


@pytest.mark.skipif(no_cuda_python() is not None, reason=str(no_cuda_python()))
def test_its_cuda_has_no_name_that_the_real_one_lacks() -> None:
    names = {}
    for where in (str(cuda_python("12.9.7")), f"{DOUBLE}{os.pathsep}{TESTS}"):
        done = subprocess.run(
            [sys.executable, "-c", "from cuda.bindings import runtime; print(*dir(runtime))"],
            env={**os.environ, "PYTHONPATH": where}, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        names[where] = {name for name in done.stdout.split() if not name.startswith("_")}
    real, doubled = names.values()
    assert len(doubled) > 15
    assert doubled - real - {"annotations"} == set()


@needs_rtx
def test_it_parses_models_into_the_networks_that_the_real_parser_makes(
    double: Callable[..., None], tmp_path: Path, fixed: Path
) -> None:
    """Of the bundled model with dynamic and with fixed shapes."""
    models = (MODEL, fixed)
    model = load_model(MODEL)
    with ChildEngines(
        "tensorrt", model, open_dataset(DIGITS, model, 1, seed=0), EngineStore(tmp_path), tmp_path / "l", Silent()
    ) as e:
        ours = [[asdict(layer) for layer in e.describe(path)] for path in models]
    assert json.loads(json.dumps(ours)) == [real["layers"] for real in drive("parse_models", *models)]
    assert ours[0] != ours[1]


def test_it_stores_what_a_pinned_layer_gives_in_half_where_only_its_precision_is_pinned() -> None:
    """A real TensorRT may do so; the double always does, so that no sweep passes without output types."""
    script = f"""
import tensorrt as trt
from tensorrt._choice import choose
class Logger(trt.ILogger):
    def log(self, severity, msg): pass
for both in (True, False):
    network = trt.Builder(Logger()).create_network()
    assert trt.OnnxParser(network, Logger()).parse_from_file({str(MODEL)!r})
    layer = next(found for n in range(network.num_layers) if (found := network.get_layer(n)).name == "/norm/square")
    layer.precision = trt.DataType.FLOAT
    if both:
        layer.set_output_type(0, trt.DataType.FLOAT)
    kernels = choose(network, [trt.BuilderFlag.FP16, trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS], {{}}, None)
    print({{kernel.name: kernel.precision.value for kernel in kernels}}["/norm/square"])
"""
    path = os.pathsep.join([str(DOUBLE), str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["fp32", "fp16"], done.stderr


def test_an_operator_that_it_does_not_know_is_told_by_node(double: Callable[..., None], tmp_path: Path) -> None:
    model = load(proto("(float[1,4,4] x) => (float[1] y) {y = Det(x)}"), tmp_path)
    samples = open_dataset(DIGITS, load_model(MODEL), 1, seed=0)
    with (
        ChildEngines("tensorrt", model, samples, EngineStore(tmp_path), tmp_path / "log", Silent()) as engines,
        pytest.raises(BuildError, match=r"node 'node_of_y' \(Det\) is no operator that this TensorRT knows"),
    ):
        engines.describe(model.path)


# Sweeps


def test_a_sweep_from_the_command_line_builds_measures_and_verifies(run: tuple[Path, str]) -> None:
    out, printed = run
    variants = (
        {row["variant"]: row for row in json.loads((out / "run.json").read_text())["variants"]} if False else None
    )
    assert variants is None
    assert "fp16 mixed engine" in printed
    assert "Test GPU, compute capability 8.9" in printed
    html = (out / "report.html").read_text()
    assert "MEASURED" in html
    facts = json.loads((out / "run.json").read_text())["engines"]
    assert (facts["tensorrt"], facts["int8_ranges"]) == ("10.14.1.48.post1", "calibration cache")
    log = (out / "tensorrt.log").read_text()
    assert "timing cache" in log


@pytest.mark.thorough
def test_verify_measures_the_certificate_on_engines(run: tuple[Path, str], double: Callable[..., None]) -> None:
    out, _ = run
    printed = CliRunner().invoke(
        cli, ["verify", str(out / "plan.fp16.json"), "--backend", "tensorrt", "--threads", "2"]
    )
    assert printed.exit_code == 0, printed.output
    assert "measured" in printed.output
    found = verify(out / "plan.fp16.json", backend="tensorrt", threads=2)
    assert found.figures == "measured"
    assert found.holds


# INT8 ranges


def test_int8_engines_run_by_our_ranges_and_tensorrt_asks_for_no_sample(int8: Plain) -> None:
    figures = sqnr(int8.result)
    assert figures["int8 engine"] == figures["int8"]
    assert "Missing scale" not in (int8.out / "tensorrt.log").read_text()


@pytest.mark.thorough
def test_where_tensorrt_calibrates_it_is_fed_each_chosen_sample_through_gpu_memory(
    double: Callable[..., None], tmp_path: Path
) -> None:
    """The double takes each tensor's largest value, so it has to come to what our `max` does on the same samples.

    How the real entropy calibration finds a range, the double does not know.
    """
    ours = swept(tmp_path / "ours", "int8", calibration="max", holdout="0.5")
    theirs = swept(tmp_path / "theirs", "int8", calibration="mse", holdout="0.5", engine={"calibrate": True})
    # To the last bits of a float32 scale.
    assert sqnr(theirs)["int8 engine"] == pytest.approx(sqnr(ours)["int8 engine"], abs=1e-3)
    assert abs(sqnr(theirs)["int8 engine"] - sqnr(theirs)["int8"]) > 0.1, "not by our ranges"
    facts = json.loads((tmp_path / "theirs" / "run.json").read_text())["engines"]
    assert facts["int8_ranges"] == "TensorRT's own calibration"


@pytest.mark.thorough
def test_a_cache_that_tensorrt_takes_for_another_versions_is_told_and_the_sweep_goes_on(
    double: Callable[..., None], tmp_path: Path
) -> None:
    double(header="TRT-8601-EntropyCalibration2")
    result = swept(tmp_path, "fp16,int8")
    fp16, int8 = result.precisions
    assert fp16.engine is not None
    assert fp16.engine.mixed is not None
    assert fp16.engine.mixed.variant.met
    assert int8.engine is not None
    assert int8.engine.low is None
    (note,) = {note.split(": ", 2)[2] for note in int8.engine.notes}
    assert "does not take the calibration cache" in note
    assert "'TRT-101401-EntropyCalibration2'" in note


def test_samples_of_another_shape_than_calibration_takes_are_told_before_tensorrt_sees_them(
    double: Callable[..., None], tmp_path: Path
) -> None:
    """The profile's OPT is of two images, the samples have one: a real TensorRT would read past their end."""
    engine = {"calibrate": True, "shapes": ("image:1x1x8x8,2x1x8x8,4x1x8x8",)}
    with pytest.raises(DataError, match="TensorRT calibrates at 2x1x8x8"):
        swept(tmp_path, "int8", engine=engine)


# Pins


@pytest.mark.thorough
def test_pins_are_found_where_shapes_are_dynamic_too(half: Plain) -> None:
    """With dynamic shapes 10.x tells "N/A due to dynamic shapes", unless the inspector has a context with them."""
    mixed = engine_of(half.result).mixed
    assert mixed is not None
    assert {pin.verdict for pin in mixed.inside.pins} == {"honoured"}


def test_a_pin_that_a_fusion_swallows_is_reported_and_more_pins_are_tried(
    double: Callable[..., None], tmp_path: Path, fixed: Path
) -> None:
    double(swallow=["/norm/variance"])
    result = swept(tmp_path, "fp16", fixed, engine={"builds": 3})
    found = engine_of(result)
    assert not result.met, "with that layer in half precision nothing is right"
    assert found.builds == 3
    assert found.mixed is not None
    verdicts = {pin.layer: pin.verdict for pin in found.mixed.inside.pins}
    assert verdicts.pop("/norm/variance") == "overridden"
    assert set(verdicts.values()) == {"honoured"}


def test_a_refused_pin_names_the_layer_and_is_no_bad_result(double: Callable[..., None], tmp_path: Path) -> None:
    double(refuse=["/norm/variance"])
    found = engine_of(swept(tmp_path, "fp16", engine={"builds": 3}))
    assert found.low is not None
    assert found.mixed is found.low
    assert any("layer '/norm/variance' (pinned as '/norm/variance') has no kernel" in note for note in found.notes)


@pytest.mark.thorough
def test_what_obey_refuses_prefer_builds_with_a_warning(double: Callable[..., None], tmp_path: Path) -> None:
    double(refuse=["/norm/variance"])
    found = engine_of(swept(tmp_path, "fp16", engine={"builds": 2, "prefer": True}))
    assert found.mixed is not None
    assert any("/norm/variance obeys" in warning for warning in found.mixed.inside.built.warnings)
    assert not found.mixed.variant.met


# Looking at layers


@pytest.mark.thorough
def test_layers_are_looked_at_and_an_engine_that_this_does_not_change_is_not_noted(
    double: Callable[..., None], tmp_path: Path
) -> None:
    found = engine_of(swept(tmp_path, "fp16", engine={"observe": 1 << 20}))
    assert found.low is not None
    assert found.mixed is not None
    emulated, measured = found.low.variant.comparison.inherited, found.mixed.variant.comparison.inherited
    assert len(emulated) > 10
    assert measured["/norm/variance_out"].sqnr > emulated["/norm/variance_out"].sqnr
    assert found.notes == ()


@pytest.mark.thorough
def test_looking_at_a_half_layer_does_not_widen_it_and_its_rounding_is_seen(
    double: Callable[..., None], tmp_path: Path
) -> None:
    """A real TensorRT may write float32 where a marked tensor was left so; with this setting the double does."""
    double(widens=True)
    found = engine_of(swept(tmp_path, "fp16", engine={"observe": 1 << 20}))
    assert found.low is not None
    assert found.notes == ()
    inherited = found.low.variant.comparison.inherited
    assert len(inherited) > 10
    assert {name for name, errors in inherited.items() if errors.err2 == 0} == set()


@pytest.mark.thorough
def test_looking_that_changes_the_final_outputs_is_noted(double: Callable[..., None], tmp_path: Path) -> None:
    double(marking_changes=["/stem/conv"])
    found = engine_of(swept(tmp_path, "fp16", engine={"observe": 1 << 20}))
    changed, seen = found.notes
    assert changed.startswith("fp16, 16 tensors from /norm/mean_out on: looked at as debug tensors"), changed
    assert seen == "fp16, 16 tensors seen (16 as debug tensors)"
    assert found.mixed is not None
    assert found.mixed.variant.met, "the figures are those of the engine as it will be used"


# What is inside


@pytest.mark.thorough
def test_the_emulation_beside_an_engine_keeps_sums_in_half_in_exactly_the_layers_whose_kernels_do(
    double: Callable[..., None], tmp_path: Path, fixed: Path
) -> None:
    in_float32 = "trt_turing_cutlass_image_network_first_layer_hmma_fprop_f16f16f32_nhwc_nhwc_k64r7s7c4_stride2x2"
    double(tactics={"/stem/conv": in_float32, "/head/gemm": "__myl_Fc_0x1"})
    result = swept(tmp_path, "fp16", fixed)
    engine = result.precisions[0].engine
    assert engine is not None
    assert engine.low is not None
    (own,) = engine.low.variant.alternatives
    in_half = result.layers.set_index("layer")["engine_sum"] == "half"
    assert own.arithmetic.layers is not None
    assert dict(own.arithmetic.layers) == dict.fromkeys(in_half.index[in_half], Sums.HALF)
    row = result.variants[result.variants["variant"] == "fp16 engine"].iloc[0]
    assert row["figures"] == "measured"
    assert row["engine_sums_sqnr_db"] == pytest.approx(own.comparison.worst("sqnr"))
    assert "emulated with the sums of the engine's own kernels" in result.precisions[0].verdict.figure


def test_what_a_transform_adds_up_in_half_is_not_emulated() -> None:
    def told(order: str) -> Arithmetic | None:
        return engine_arithmetic(TENSORRT, {"a": LayerSum(9, ("half",), (order,), ("kernel",))})  # type: ignore[arg-type]

    assert told("winograd") is None
    assert told("single products") == replace(TENSORRT, layers=(("a", Sums.HALF_SINGLE),))
    assert told("depthwise") == told("tensor cores") == replace(TENSORRT, layers=(("a", Sums.HALF),))
    assert engine_arithmetic(TENSORRT, {"a": LayerSum(9, ("float32",), ("tensor cores",), ("kernel",))}) is None


def test_every_pin_is_found_in_the_engine_and_it_is_told_in_which_type_each_layer_adds_up(
    double: Callable[..., None], tmp_path: Path, fixed: Path
) -> None:
    single = "trt_turing_cutlass_image_network_first_layer_hmma_fprop_f16f16f32_nhwc_nhwc_k64r7s7c4_stride2x2"
    double(tactics={"/stem/conv": single, "/head/gemm": "__myl_Fc_0x1"})
    result = swept(tmp_path, "fp16", fixed)
    mixed = engine_of(result).mixed
    assert mixed is not None
    assert mixed.variant.met
    assert {pin.layer for pin in mixed.inside.pins} == set(mixed.variant.plan.pinned())
    assert [pin.verdict for pin in mixed.inside.pins] == ["honoured"] * len(mixed.inside.pins)
    assert any(pin.reformats for pin in mixed.inside.pins)
    layers = result.layers.set_index("layer")
    summing = layers[layers["products"].notna()]
    assert summing.loc["/stem/conv", ["engine_sum", "engine_tactic", "products"]].tolist() == ["float32", single, 9]
    assert summing.loc["/head/gemm", "engine_sum"] == ""
    others = summing.drop(["/stem/conv", "/head/gemm"])
    assert set(others["engine_sum"]) == {"half"}
    assert set(others["engine_order"]) == {"tensor cores"}
    assert set(layers[layers["products"].isna()]["engine_sum"]) == {""}
    count = len(others)
    said = f"of {count + 2} layers that sum products {count} add up in half, 1 adds up in float32, 1 does not say"
    stream = io.StringIO()
    print_summary(result, stream)
    pages = [(tmp_path / file).read_text() for file in ("report.html", "summary.md")]
    for text in [stream.getvalue(), *pages]:
        assert said in " ".join(text.split())
    facts = json.loads((tmp_path / "run.json").read_text())["precisions"]["fp16"]["engine"]
    assert facts["sums"] == {"half": count, "float32": 1, "int32": 0, "not known": 1}
    assert "Adds up there" in pages[0]
    assert "in half, " in pages[0]


@pytest.mark.thorough
def test_layers_that_run_in_int8_against_the_plan_are_told_and_held_where_that_is_asked(
    double: Callable[..., None], tmp_path: Path, fixed: Path
) -> None:
    """TensorRT's own calibration gives every tensor a scale; our cache has those of INT8 layers' tensors alone."""
    double(spreads=True)
    spread = swept(tmp_path / "free", "int8", fixed, engine={"calibrate": True})
    mixed = engine_of(spread).mixed
    assert mixed is not None
    strays = mixed.inside.strays
    assert "/head/pool" in strays
    types = spread.layers.set_index("layer")["engine_types"]
    assert {types[name] for name in strays} == {"int8"}
    stream = io.StringIO()
    print_summary(spread, stream)
    pages = [(tmp_path / "free" / file).read_text() for file in ("report.html", "summary.md")]
    for text in [stream.getvalue(), *pages]:
        assert f"{len(strays)} layers that the plan has in float ran in INT8" in " ".join(text.split())
    held = swept(tmp_path / "held", "int8", fixed, engine={"calibrate": True, "hold_float": True})
    mixed = engine_of(held).mixed
    assert mixed is not None
    assert mixed.inside.strays == ()
    assert mixed.inside.held
    assert {pin.layer for pin in mixed.inside.pins} == set(mixed.variant.plan.pinned()), "what is only held is no pin"
    facts = json.loads((tmp_path / "held" / "run.json").read_text())
    assert facts["engines"]["float_layers"] == "held beside int8"
    assert facts["precisions"]["int8"]["engine"]["strays"] == {"layers": [], "held": True}


def test_an_engine_that_keeps_to_the_plan_tells_of_no_int8_beside_it(int8: Plain) -> None:
    mixed = engine_of(int8.result).mixed
    assert mixed is not None
    assert mixed.inside.strays == ()
    assert "ran in INT8" not in (int8.out / "report.html").read_text()


def test_engines_keep_every_nan_and_the_report_says_so(run: tuple[Path, str]) -> None:
    out, printed = run
    assert json.loads((out / "run.json").read_text())["engines"]["nans"] == "kept"
    for text in (printed, (out / "report.html").read_text(), (out / "summary.md").read_text().replace("\\_", "_")):
        assert "Engines keep every NaN (STRICT_NANS)" in " ".join(text.split())


# Faults


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("crash", "words"),
    [
        (
            {"at": "build", "signal": "SIGSEGV"},
            "building digits (fp16): TensorRT's process crashed with a segmentation",
        ),
        ({"at": "run", "signal": "SIGKILL"}, "TensorRT's process was killed by SIGKILL (out of memory?)"),
    ],
)
def test_a_process_that_dies_costs_its_engines_and_the_sweep_goes_on(
    double: Callable[..., None], tmp_path: Path, crash: dict[str, str], words: str
) -> None:
    double(crash={**crash, "flags": ["FP16"]})
    result = swept(tmp_path, "fp16,int8", engine={"builds": 2})
    fp16, int8 = result.precisions
    assert fp16.mixed.met, "the emulation's plan is there"
    assert fp16.engine is not None
    assert fp16.engine.mixed is None
    assert any(words in note for note in fp16.engine.notes), fp16.engine.notes
    assert int8.engine is not None
    assert int8.engine.mixed is not None
    assert int8.engine.mixed.variant.met
    assert "fp32 engine" in sqnr(result)
    double()
    again = swept(tmp_path, "fp16", engine={"builds": 2})
    assert "fp16 mixed engine" in sqnr(again), "another time it may live"


@pytest.mark.thorough
def test_a_disk_that_is_full_when_an_engine_is_written_is_told_and_leaves_nothing_behind(
    double: Callable[..., None], tmp_path: Path
) -> None:
    double(full_disk={"flags": ["FP16"]})
    result = swept(tmp_path, "fp16,int8", engine={"builds": 2})
    fp16, int8 = result.precisions
    assert fp16.engine is not None
    assert fp16.engine.mixed is None
    assert any("cannot be written (No space left on device); make room" in note for note in fp16.engine.notes)
    assert int8.engine is not None
    assert int8.engine.mixed is not None
    kept = sorted(path.name for path in (tmp_path / "engines").iterdir() if path.suffix != ".cache")
    assert [Path(name).suffix for name in kept] == [".engine", ".json"] * 2, "fp32 and int8, and no halves"


def test_a_build_that_gives_nothing_and_says_nothing_is_told(double: Callable[..., None], tmp_path: Path) -> None:
    double(gives_nothing={"flags": ["FP16"]})
    result = swept(tmp_path, "fp16", engine={"builds": 2})
    found = engine_of(result)
    assert (found.low, found.mixed) == (None, None)
    assert any("TensorRT gives no engine: it does not say why" in note for note in found.notes), found.notes
    assert "fp32 engine" in sqnr(result)


@pytest.mark.thorough
def test_engines_are_built_once_and_taken_from_the_store_after(
    half: Plain, double: Callable[..., None], tmp_path: Path
) -> None:
    double(crash={"at": "build", "signal": "SIGSEGV"})
    again = swept(tmp_path, "fp16", engine={"store": str(half.out / "engines")})
    assert sqnr(again) == sqnr(half.result)


# What is there


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
class TestWithNeither:
    def test_tensorrt_says_what_is_missing_and_how_to_install_it(self, tmp_path: Path) -> None:
        command = ["sweep", str(MODEL), "--data", str(DIGITS), "--backend", "tensorrt", "--out", str(tmp_path / "run")]
        printed = CliRunner().invoke(cli, command)
        assert printed.exit_code == 2
        assert "the Python package tensorrt is not installed; install it with" in printed.output
        assert not (tmp_path / "run" / "engines").exists()

    def test_auto_takes_the_emulation_and_says_so(self, tmp_path: Path) -> None:
        command = ["sweep", str(MODEL), "--data", str(DIGITS), "--out", str(tmp_path), "--precisions", "bf16"]
        printed = CliRunner().invoke(cli, [*command, "--samples", "4", "--tolerance", "sqnr>=1"])
        assert printed.exit_code == 0
        assert "errors emulated by onnxruntime" in " ".join(printed.output.split())


def test_auto_takes_tensorrt_where_it_is_and_sees_a_gpu(double: Callable[..., None]) -> None:
    from precisionlab.backends.registry import which_backend

    assert which_backend("auto") == "tensorrt"
