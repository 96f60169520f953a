"""A build's parts that can be decided without a GPU, and real builds by TensorRT-RTX."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trtchild
from gpu.configuring import Config, OptimizationProfile, TimingCache
from models import DIGITS, load, proto
from rtx import drive, needs_rtx

from precisionlab.backends.tensorrt.api import Features
from precisionlab.backends.tensorrt.build import build
from precisionlab.backends.tensorrt.configuration import check_job, configure
from precisionlab.backends.tensorrt.jobs import (
    BuildJob,
    Built,
    EngineLayer,
    EngineTensor,
    LayerPin,
    PinOutcome,
    Profile,
    Shape,
)
from precisionlab.backends.tensorrt.logger import LogKeeper
from precisionlab.backends.tensorrt.process import EngineProcess
from precisionlab.backends.tensorrt.profiles import (
    check_profiles,
    dynamic_inputs,
    parse_shapes,
    profiles_of,
    shape_inputs,
    sizes_of,
)
from precisionlab.backends.tensorrt.refusal import layers_named, why_refused
from precisionlab.backends.tensorrt.store import EngineKey, EngineStore, key_of
from precisionlab.backends.tensorrt.timings import load_timings, save_timings
from precisionlab.errors import BuildError, DataError, EngineError, OptionError
from precisionlab.model import Model, load_model
from precisionlab.precision import Precision

ROOT = Path(__file__).parents[2]

# Shapes


@pytest.fixture
def two_inputs(tmp_path: Path) -> Model:
    return load(
        proto("(float[N,T,4] x, float[N,3] y, float[2] z) => (float[N,T,4] o) {o = Relu(x) a = Relu(y)}"), tmp_path
    )


@pytest.fixture
def reshaped(tmp_path: Path) -> Model:
    body = """(float[N,4] x, int64[2] to, int64[N] ids) => (float[a,b] o, int64[N] p) {
        one = Constant <value: tensor = int64[1] {1}> () same = Mul(to, one) o = Reshape(x, same) p = Identity(ids)}"""
    return load(proto(body), tmp_path)


def test_profiles_have_the_smallest_the_most_frequent_and_the_largest_shape(two_inputs: Model) -> None:
    seen = [{"x": (1, 9, 4), "y": (1, 3)}, *[{"x": (2, 5, 4), "y": (2, 3)}] * 2, {"x": (8, 3, 4), "y": (8, 3)}]
    assert profiles_of(two_inputs, seen) == {
        "x": Profile((1, 3, 4), (2, 5, 4), (8, 9, 4)),
        "y": Profile((1, 3), (2, 3), (8, 3)),
    }


def test_of_equally_frequent_shapes_the_larger_is_the_usual_one(two_inputs: Model) -> None:
    seen = [{"x": (1, 5, 4), "y": (1, 3)}, {"x": (2, 5, 4), "y": (2, 3)}, {"x": (1, 6, 4), "y": (1, 3)}]
    for order in (seen, seen[::-1]):
        assert profiles_of(two_inputs, order)["x"].opt == (2, 5, 4)


def test_the_usual_shapes_of_all_inputs_are_those_of_one_sample(two_inputs: Model) -> None:
    # By itself, y is most often of batch 1, and x most often of batch 2: together they would not fit.
    pairs: list[tuple[Shape, Shape]] = [((1, 5, 4), (1, 3)), ((1, 6, 4), (1, 3)), ((1, 7, 4), (1, 3))]
    seen = [{"x": x, "y": y} for x, y in [*pairs, *[((2, 5, 4), (2, 3))] * 2]]
    profiles = profiles_of(two_inputs, seen)
    assert (profiles["x"].opt, profiles["y"].opt) == ((2, 5, 4), (2, 3))
    check_profiles(two_inputs, profiles)


def test_a_model_of_fixed_shapes_needs_no_profile(tmp_path: Path) -> None:
    model = load(proto("(float[1,4] x) => (float[1,4] y) {y = Relu(x)}"), tmp_path)
    assert dynamic_inputs(model) == ()
    assert profiles_of(model, [{}]) == {}
    check_profiles(model, {})
    check_profiles(model, {"x": Profile((1, 4), (1, 4), (1, 4))})


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        ([], "no sample says how large 'x' is"),
        ([{"x": (1, 5, 4)}], "no input 'y'"),
        ([{"x": (1, 5, 3), "y": (1, 3)}], "has input 'x' as 1x5x3; the model takes NxTx4"),
        ([{"x": (5, 4), "y": (1, 3)}], "as 5x4"),
    ],
)
def test_samples_that_do_not_fit_are_told(two_inputs: Model, seen: list[Mapping[str, Shape]], text: str) -> None:
    with pytest.raises(DataError, match=text.replace("(", r"\(")):
        profiles_of(two_inputs, seen)


def test_an_input_that_carries_a_shape_has_its_values_in_the_profile(reshaped: Model) -> None:
    assert shape_inputs(reshaped) == {"to"}
    samples = [{"x": np.zeros((n, 4), np.float32), "to": np.array([4, n]), "ids": np.arange(n)} for n in (2, 6, 6, 9)]
    profiles = profiles_of(reshaped, [sizes_of(reshaped, sample) for sample in samples])
    assert profiles["to"] == Profile((4, 2), (4, 6), (4, 9))
    assert profiles["ids"] == Profile((2,), (6,), (9,))
    check_profiles(reshaped, profiles)
    with pytest.raises(OptionError, match="all of its 2 values"):
        check_profiles(reshaped, {**profiles, "to": Profile((4,), (4,), (4,))})
    with pytest.raises(DataError, match="3 values for input 'to'; the model takes 2"):
        profiles_of(reshaped, [{"x": (2, 4), "to": (1, 2, 3), "ids": (2,)}])


def test_shapes_are_read_as_they_are_written() -> None:
    assert parse_shapes("image:1x3x224x224,4x3x224x224,8x3x224x224") == (
        "image",
        Profile((1, 3, 224, 224), (4, 3, 224, 224), (8, 3, 224, 224)),
    )
    assert parse_shapes("scope:x:0:7") == ("scope:x:0", Profile((7,), (7,), (7,)))
    assert parse_shapes("x: 0x4, 1x4, 2x4") == ("x", Profile((0, 4), (1, 4), (2, 4)))


@pytest.mark.parametrize(
    "text", ["", "x", "x:", ":1x3", "x:1x3,2x3", "x:1,2,3,4", "x:1xa", "x:-1x3", "x:1x3,,2x3", "x:1.5"]
)
def test_shapes_that_cannot_be_read_are_told(text: str) -> None:
    with pytest.raises(OptionError, match=r"--shapes .*write NAME:MIN,OPT,MAX"):
        parse_shapes(text)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"w": Profile((1,), (1,), (1,))}, r"no such input; its inputs are x, y, z"),
        ({"x": Profile((1, 4), (1, 4), (1, 4))}, r"min is 1x4; the model takes NxTx4"),
        ({"x": Profile((1, 1, 4), (1, 1, 3), (1, 1, 4))}, r"opt is 1x1x3"),
        ({"x": Profile((1, 1, 4), (1, 9, 4), (1, 8, 4))}, r"not min ≤ opt ≤ max"),
        ({"x": Profile((1, 2, 4), (1, 1, 4), (1, 8, 4))}, r"not min ≤ opt ≤ max"),
        ({"x": Profile((1, 1, 4), (2, 1, 4), (4, 1, 4))}, r"input 'x' it is 2"),
        ({"z": Profile((3,), (3,), (3,))}, r"the model takes 2"),
        ({"y": None}, r"input 'y' has Nx3, and no shapes are given"),
    ],
)
def test_profiles_that_tensorrt_would_only_refuse_in_the_build_are_told_before(
    two_inputs: Model, changed: Mapping[str, Profile | None], text: str
) -> None:
    good: dict[str, Profile] = {"x": Profile((1, 1, 4), (1, 5, 4), (4, 8, 4)), "y": Profile((1, 3), (1, 3), (4, 3))}
    check_profiles(two_inputs, good)
    profiles = {name: shapes for name, shapes in {**good, **changed}.items() if shapes is not None}
    with pytest.raises(OptionError, match=text):
        check_profiles(two_inputs, profiles)


# Configuration, on a double of the builder: gpu/configuring.py

WEAK = Features(
    "10.9", pins=True, calibrators=True, precisions=frozenset(Precision), debug_tensors=True, implicit_batch=True
)
OLD = replace(WEAK, version="8.6.1", precisions=frozenset({Precision.FP16, Precision.INT8}))
STRONG = Features(
    "11.4", pins=False, calibrators=False, precisions=frozenset(), debug_tensors=True, implicit_batch=False
)
FLAGS = ("FP16", "INT8", "BF16", "TF32", "STRICT_NANS", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS")
TRT = SimpleNamespace(
    BuilderFlag=SimpleNamespace(**{name: name for name in FLAGS}),
    ProfilingVerbosity=SimpleNamespace(DETAILED="DETAILED"),
    MemoryPoolType=SimpleNamespace(WORKSPACE="WORKSPACE"),
)


BUILDER = SimpleNamespace(create_builder_config=Config, create_optimization_profile=OptimizationProfile)


def network(*inputs: tuple[str, Shape, bool]) -> SimpleNamespace:
    """A network with these inputs: name, dimensions, whether it is a shape tensor."""
    tensors = [SimpleNamespace(name=name, shape=shape, is_shape_tensor=carries) for name, shape, carries in inputs]
    return SimpleNamespace(num_inputs=len(tensors), get_input=lambda index: tensors[index])


FIXED = network(("x", (1, 4), False))
JOB = BuildJob(Path("model.onnx"), Path("model.engine"))
PIN = LayerPin("a", ("a",), ("t",), Precision.FP32)


def config_of(job: BuildJob, calibrator: Any = None, parsed: Any = FIXED) -> Config:
    config: Config = configure(TRT, BUILDER, parsed, job, WEAK, calibrator).config
    return config


def test_fp32_is_without_tf32() -> None:
    config = config_of(JOB)
    assert config.flags == set()
    assert config.profiling_verbosity == "DETAILED"
    assert config.pools == {}


def test_precisions_become_flags() -> None:
    calibrator = object()
    config = config_of(replace(JOB, enabled=frozenset({Precision.FP16, Precision.INT8})), calibrator)
    assert config.flags == {"FP16", "INT8"}
    assert config.int8_calibrator is calibrator
    assert config_of(replace(JOB, enabled=frozenset({Precision.BF16}))).flags == {"BF16"}


def test_pins_are_obeyed_or_preferred() -> None:
    pinned = replace(JOB, enabled=frozenset({Precision.FP16}), pins=(PIN,))
    assert config_of(pinned).flags == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}
    assert config_of(replace(pinned, obey=False)).flags == {"FP16", "PREFER_PRECISION_CONSTRAINTS"}


def test_nans_are_kept_where_this_tensorrt_can_be_asked_to_and_else_nobody_asks() -> None:
    asked = replace(JOB, strict_nans=True)
    config = configure(TRT, BUILDER, FIXED, asked, replace(WEAK, strict_nans=True), None).config
    assert config.flags == {"STRICT_NANS"}
    with pytest.raises(BuildError, match=r"TensorRT 8\.6\.1 cannot be asked to keep every NaN; 10\.6 and later can"):
        configure(TRT, BUILDER, FIXED, asked, OLD, None)


def test_the_workspace_is_limited_where_asked() -> None:
    assert config_of(replace(JOB, workspace=2**30)).pools == {"WORKSPACE": 2**30}


def test_dynamic_inputs_get_their_profile_and_calibration_the_same() -> None:
    parsed = network(("x", (-1, 4), False), ("z", (2,), False), ("to", (2,), True))
    shapes = Profile((1, 4), (2, 4), (3, 4))
    job = replace(JOB, enabled=frozenset({Precision.INT8}), profiles={"x": shapes, "to": shapes})
    config = config_of(job, object(), parsed)
    (profile,) = config.profiles
    assert profile.shapes == {"x": ((1, 4), (2, 4), (3, 4))}
    assert profile.values == {"to": ((1, 4), (2, 4), (3, 4))}
    assert config.calibration is profile
    assert config_of(replace(job, enabled=frozenset()), None, parsed).calibration is None


def test_an_input_whose_shapes_are_missing_is_named() -> None:
    with pytest.raises(BuildError, match="input 'x' has a dimension that is not fixed"):
        config_of(JOB, parsed=network(("x", (-1, 4), False)))
    with pytest.raises(BuildError, match="input 'to' carries a shape, and its values are not known"):
        config_of(JOB, parsed=network(("to", (2,), True)))


@pytest.mark.parametrize(
    ("job", "features", "text"),
    [
        (
            replace(JOB, enabled=frozenset({Precision.BF16})),
            OLD,
            "8.6.1 has no bf16; TensorRT 10.0 to 10.16 have it",
        ),
        (replace(JOB, pins=(replace(PIN, precision=Precision.BF16),)), OLD, "has no bf16"),
        (replace(JOB, enabled=frozenset({Precision.FP16})), STRONG, "11.4 cannot be asked for fp16: .*8.6 to 10.16"),
        (replace(JOB, pins=(PIN,)), STRONG, "cannot be asked for pinned layers"),
    ],
)
def test_what_a_tensorrt_has_not_is_told_with_the_one_that_has(job: BuildJob, features: Features, text: str) -> None:
    with pytest.raises(BuildError, match=text):
        check_job(job, features)


def test_int8_without_ranges_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="cache or samples"):
        config_of(replace(JOB, enabled=frozenset({Precision.INT8})))


# Kernel timings


def test_timings_are_kept_from_build_to_build(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "timing.cache"
    config = Config()
    timing_cache, warnings = load_timings(config, path)
    assert (warnings, config.timing_cache) == ((), timing_cache)
    timing_cache.timings |= {"conv 1"}
    assert save_timings(config, timing_cache, path) == ()
    again, warnings = load_timings(Config(), path)
    assert (again.timings, warnings) == ({"conv 1"}, ())


def test_timings_that_another_process_wrote_meanwhile_stay(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    mine, other = Config(), Config()
    my_cache, _ = load_timings(mine, path)
    other_cache, _ = load_timings(other, path)
    my_cache.timings |= {"conv 1"}
    other_cache.timings |= {"conv 2"}
    save_timings(other, other_cache, path)
    save_timings(mine, my_cache, path)
    assert load_timings(Config(), path)[0].timings == {"conv 1", "conv 2"}


@pytest.mark.parametrize("refuses", ["empty", "None", "raise"])
def test_a_broken_timing_cache_is_set_aside(tmp_path: Path, refuses: str) -> None:
    path = tmp_path / "timing.cache"
    path.write_bytes(b"\x00 no timings")
    config = Config(refuses)
    timing_cache, (warning,) = load_timings(config, path)
    assert config.timing_cache is timing_cache
    assert timing_cache.timings == set()
    assert "timing.cache.refused" in warning
    assert not path.exists()
    assert (tmp_path / "timing.cache.refused").read_bytes() == b"\x00 no timings"


def test_the_timings_of_another_gpu_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    path.write_bytes(TimingCache("another GPU", frozenset({"conv 9"})).serialize())
    config = Config()
    timing_cache, warnings = load_timings(config, path)
    assert len(warnings) == 1
    assert timing_cache.gpu == "this GPU"
    path.write_bytes(TimingCache("another GPU", frozenset({"conv 9"})).serialize())  # written meanwhile
    timing_cache.timings |= {"conv 1"}
    save_timings(config, timing_cache, path)
    assert load_timings(Config(), path)[0].timings == {"conv 1"}


def test_timings_that_cannot_be_written_are_only_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (warning,) = save_timings(Config(), TimingCache("this GPU", frozenset()), tmp_path / "file" / "timing.cache")
    assert "cannot be kept" in warning


# Why there is no engine

PINNED = (PinOutcome("block/norm", ("norm_a", "norm_b"), {}, None), PinOutcome("head", ("fc", "fc_1"), {}, None))


@pytest.mark.parametrize(
    ("errors", "warnings", "words"),
    [
        (
            ["IBuilder::build: Error Code 7: BuildCanceled (Build canceled by user In next at /_src/x.cpp:92)"],
            [],
            ["the build was cancelled", "BuildCanceled (Build canceled by user)"],
        ),
        (
            ["10: Error Code 10: Internal Error (No implementation of layer fc_1 obeys the requested constraints.)"],
            [],
            ["layer 'fc_1' (pinned as 'head') has no kernel that keeps to the pins"],
        ),
        (["No implementation obeys the requested constraints."], [], ["a layer has no kernel that keeps to the pins"]),
        (
            ["Error Code 10: Internal Error (Could not find any implementation for node norm_b + relu.)"],
            [],
            ["layer 'norm_b + relu' (pinned as 'block/norm') has no kernel that keeps to the pins"],
        ),
        (
            ["Error Code 10: Internal Error (Could not find any implementation for node norm_bad.)"],
            [],
            ["it has no kernel for layer 'norm_bad'"],
        ),
        (
            [
                "Error Code 10: Internal Error (Could not find any implementation for node "
                "{ForeignNode[a.w...MatMul_9]}. In computeCosts at /_src/optimizer/optimizer.cpp:4048)"
            ],
            [],
            ["it has no kernel for layer '{ForeignNode[a.w...MatMul_9]}'"],
        ),
        (
            [
                "Internal error: could not find any implementation for node conv0, "
                "try increasing the workspace size with IBuilder::setMaxWorkspaceSize()"
            ],
            ["Skipping tactic 3 due to insufficient memory on requested size of 68719476736 detected for tactic 0x74."],
            ["it ran out of GPU memory (layer 'conv0')"],
        ),
        (["2: [resizePhysical::145] Error Code 2: OutOfMemory (no further information)"], [], ["out of GPU memory:"]),
        (
            [],
            [
                "Engine generation failed with backend strategy 2.\n"
                "Error message: [x.cpp::computeCosts::3867] Error Code 4: Internal Error (Could not find any "
                "implementation for node /patch/patch.0/Conv due to insufficient workspace. See verbose log for "
                "requested sizes.).\nSkipping this backend strategy."
            ],
            ["layer '/patch/patch.0/Conv' needs more workspace"],
        ),
        (["Error Code 4: API Usage Error (bad network)"], [], ["it refuses the network.", "bad network"]),
        ([], [], ["it does not say why"]),
    ],
)
def test_a_failed_build_says_why(errors: list[str], warnings: list[str], words: list[str]) -> None:
    text = why_refused(errors, warnings, PINNED, obey=True)
    assert all(word in text for word in words), text
    assert "/_src" not in text


def test_a_pin_that_is_only_preferred_cannot_be_the_reason() -> None:
    warning = "No implementation of layer fc obeys the requested constraints in strict mode."
    error = "Error Code 10: Internal Error (Could not find any implementation for node fc.)"
    assert "no kernel for layer 'fc' with" in why_refused([error], [warning], PINNED, obey=False)
    assert "(pinned as 'head')" in why_refused([error], [warning], PINNED, obey=True)


def test_fused_layers_are_taken_apart_by_whole_names() -> None:
    assert set(layers_named("Conv_70[Conv] + Add_73[ElementWise]")) >= {"Conv_70", "Add_73"}
    assert layers_named("{ForeignNode[Unsqueeze_93...Softmax_2088]}") == ("Unsqueeze_93", "Softmax_2088")
    assert "a + b" in layers_named("a + b")


# The store


def built(folder: Path, name: str, content: bytes = b"engine", **changed: Any) -> Built:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.engine"
    path.write_bytes(content)
    tensor = EngineTensor("t", "fp16", (1, 2))
    layers = (EngineLayer("conv + relu", "Conv", ("conv", "relu"), (tensor,), (replace(tensor, shape=None),), "t1"),)
    outcomes = (PinOutcome("a", ("conv",), {"shape": "is a shape"}, None), PinOutcome("b", (), {}, "folded"))
    return replace(Built(path, 1.5, len(content), outcomes, layers, ("careful: ü",)), **changed)


def key(number: int = 0, **changed: Any) -> EngineKey:
    made = key_of(replace(JOB, workspace=number), "abc", None, module="tensorrt", version="10.9", device="L4 8.9 550")
    return replace(made, **changed)


def test_an_engine_comes_back_as_it_was_built(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "store")
    assert store.get(key()) is None
    fresh = built(tmp_path, "fresh")
    kept = store.put(key(), fresh)
    assert not fresh.engine.exists()
    assert replace(kept, engine=fresh.engine) == fresh
    assert EngineStore(tmp_path / "store").get(key()) == kept
    assert kept.engine.read_bytes() == b"engine"


def test_another_job_is_another_engine() -> None:
    job = replace(JOB, cache=b"1", pins=(PIN, replace(PIN, layer="b")), profiles={"x": Profile((1,), (1,), (2,))})
    where = {"module": "tensorrt", "version": "10.9", "device": "L4"}
    keys = [
        key_of(job, "abc", None, **where),
        key_of(job, "abd", None, **where),
        *(key_of(job, "abc", None, **{**where, name: "other"}) for name in where),
        key_of(replace(job, enabled=frozenset({Precision.FP16})), "abc", None, **where),
        key_of(replace(job, pins=(PIN,)), "abc", None, **where),
        key_of(replace(job, pins=(replace(PIN, tensors=("u",)), replace(PIN, layer="b"))), "abc", None, **where),
        key_of(replace(job, obey=False), "abc", None, **where),
        key_of(replace(job, cache=b"2"), "abc", None, **where),
        key_of(replace(job, cache=None), "abc", "samples", **where),
        key_of(replace(job, cache=None), "abc", "others", **where),
        key_of(replace(job, profiles={"x": Profile((1,), (2,), (2,))}), "abc", None, **where),
        key_of(replace(job, marked=("t",)), "abc", None, **where),
        key_of(replace(job, marked=("t",), marked_as={"t": Precision.FP16}), "abc", None, **where),
        key_of(replace(job, strict_nans=True), "abc", None, **where),
        key_of(replace(job, typed=True), "abc", None, **where),
        key_of(replace(job, workspace=1), "abc", None, **where),
    ]
    assert len({found.digest for found in keys}) == len(keys)


def test_a_strongly_typed_job_is_for_a_tensorrt_that_has_both_kinds_and_holds_no_flags() -> None:
    check_job(replace(JOB, typed=True), replace(WEAK, strongly_typed=True))
    with pytest.raises(BuildError, match=r"8\.6\.1 has no strongly typed networks"):
        check_job(replace(JOB, typed=True), OLD)
    with pytest.raises(ValueError, match="takes no precision flags"):
        check_job(replace(JOB, typed=True, enabled=frozenset({Precision.FP16})), replace(WEAK, strongly_typed=True))


def test_where_files_lie_and_in_which_order_pins_stand_makes_no_other_engine() -> None:
    pins = (PIN, replace(PIN, layer="b"))
    job = replace(JOB, pins=pins, marked=("s", "t"))
    same = replace(
        job, model=Path("/other.onnx"), engine=Path("x"), timing_cache=Path("y"), pins=pins[::-1], marked=("t", "s")
    )
    where = {"module": "tensorrt", "version": "10.9", "device": "L4"}
    assert key_of(job, "abc", None, **where).digest == key_of(same, "abc", None, **where).digest


@pytest.mark.parametrize("kind", ["cut short", "another", "no facts", "no JSON", "other schema", "no engine", "a list"])
def test_a_corrupt_entry_is_dropped_and_can_be_put_again(tmp_path: Path, kind: str) -> None:
    store = EngineStore(tmp_path / "store")
    kept = store.put(key(), built(tmp_path, "fresh"))
    facts = kept.engine.with_suffix(".json")
    data = json.loads(facts.read_text())
    if kind == "cut short":
        kept.engine.write_bytes(b"eng")
    elif kind == "another":
        kept.engine.write_bytes(b"other!")
    elif kind == "no engine":
        kept.engine.unlink()
    elif kind == "other schema":
        facts.write_text(json.dumps(data | {"schema": 99}))
    else:
        del data["built"]
        facts.write_text({"no facts": json.dumps(data), "no JSON": "{", "a list": "[]"}[kind])
    assert store.get(key()) is None
    assert not kept.engine.exists()
    assert not facts.exists()
    store.put(key(), built(tmp_path, "fresh"))
    assert store.get(key()) == kept


def test_the_least_recently_used_engines_go_when_there_is_no_room(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "store", limit=250)
    for number in range(2):
        kept = store.put(key(number), built(tmp_path, "fresh", b"x" * 100))
        os.utime(kept.engine.with_suffix(".json"), (number + 1, number + 1))
    assert store.get(key(0)) is not None  # used: the other one is older now
    store.put(key(2), built(tmp_path, "fresh", b"x" * 100))
    assert [store.get(key(number)) is not None for number in range(3)] == [True, False, True]


def test_an_engine_larger_than_the_store_is_kept_alone(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "store", limit=50)
    store.put(key(0), built(tmp_path, "fresh", b"x" * 40))
    store.put(key(1), built(tmp_path, "fresh", b"x" * 100))
    assert store.get(key(0)) is None
    assert store.get(key(1)) is not None


def test_the_rest_of_a_write_that_was_cut_short_goes_after_a_day(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "store")
    names = {"old.engine", ".old.building", ".old.json.x1", "timing.cache", "new.engine", ".new.building"}
    for name in names:
        (store.folder / name).write_bytes(b"half")
        if "new" not in name:  # another process may be at work on the new ones
            os.utime(store.folder / name, (1, 1))
    kept = store.put(key(), built(tmp_path, "fresh")).engine
    left = {path.name for path in store.folder.iterdir()} - {kept.name, kept.with_suffix(".json").name}
    assert left == {"timing.cache", "new.engine", ".new.building"}


def test_an_engine_moves_from_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.replace

    def replace_here(self: Path, target: Path) -> Path:
        if self.parent != Path(target).parent:
            raise OSError(18, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace_here)
    store = EngineStore(tmp_path / "store")
    fresh = built(tmp_path, "fresh")
    kept = store.put(key(), fresh)
    assert store.get(key()) == kept
    assert kept.engine.read_bytes() == b"engine"
    assert not fresh.engine.exists()


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    store = EngineStore(tmp_path / "store")
    fresh = built(tmp_path, "fresh")
    monkeypatch.setattr("precisionlab.backends.tensorrt.store.write_whole_bytes", full)
    with pytest.raises(EngineError, match="No space left on device"):
        store.put(key(), fresh)
    assert list((tmp_path / "store").iterdir()) == []


def test_a_store_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="cannot be kept there"):
        EngineStore(tmp_path / "file" / "store")


# A whole build, on a double of a weakly typed TensorRT: one Conv, and whatever its builder is told to do.


class Parser:
    """OnnxParser."""

    num_errors = 0

    def __init__(self, network: Network, logger: Any) -> None:
        pass

    def parse_from_file(self, path: str) -> bool:
        return True


class Network:
    """INetworkDefinition."""

    num_layers = num_inputs = num_outputs = 1

    def __init__(self) -> None:
        self.marked: list[str] = []
        given = SimpleNamespace(
            name="c", dtype=SimpleNamespace(name="FLOAT"), is_execution_tensor=True, is_network_output=False
        )
        self.layer = SimpleNamespace(
            name="conv",
            type=SimpleNamespace(name="CONVOLUTION"),
            metadata="[ONNX Layer: conv]",
            num_inputs=0,
            num_outputs=1,
            get_output=lambda index: given,
            precision=None,
            types={},
        )
        self.layer.set_output_type = self.layer.types.__setitem__

    def get_input(self, index: int) -> Any:
        return SimpleNamespace(name="x", shape=(1, 1, 4, 4), is_shape_tensor=False)

    def get_layer(self, index: int) -> Any:
        return self.layer

    def mark_output(self, tensor: Any) -> None:
        self.marked.append(tensor.name)


class Weak:
    """The module: its builder calls `building(trt, network, config, log)`, and serialises what that gives."""

    __version__ = "10.9"
    BuilderFlag, ProfilingVerbosity, MemoryPoolType = TRT.BuilderFlag, TRT.ProfilingVerbosity, TRT.MemoryPoolType
    NetworkDefinitionCreationFlag = SimpleNamespace(EXPLICIT_BATCH=0)
    LayerInformationFormat = SimpleNamespace(JSON="JSON")
    INetworkDefinition = SimpleNamespace(mark_debug=None)
    DataType = SimpleNamespace(FLOAT="float32", HALF="float16", INT64="int64")
    OnnxParser = Parser
    ILogger = type("ILogger", (), {})
    IInt8EntropyCalibrator2 = type("IInt8EntropyCalibrator2", (), {})
    IProgressMonitor = type("IProgressMonitor", (), {})

    def __init__(self, building: Any, layers: str | None = '{"Layers": ["conv"]}') -> None:
        self.building, self.layers = building, layers
        self.network, self.config = Network(), Config()

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        def log(severity: str, text: str) -> None:
            logger.log(SimpleNamespace(name=severity), text)

        return SimpleNamespace(
            create_network=lambda flag: self.network,
            create_builder_config=lambda: self.config,
            create_optimization_profile=OptimizationProfile,
            build_serialized_network=lambda network, config: self.building(network, config, log),
        )

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        inspector = SimpleNamespace(get_engine_information=lambda form: self.layers)
        engine = None if self.layers is None else SimpleNamespace(create_engine_inspector=lambda: inspector)
        return SimpleNamespace(deserialize_cuda_engine=lambda serialized: engine)


@pytest.fixture
def conv_job(tmp_path: Path) -> BuildJob:
    weights = {"w": np.ones((1, 1, 3, 3), np.float32)}
    model = load(proto("(float[1,1,4,4] x) => (float[1,1,2,2] y) {c = Conv(x, w) y = Relu(c)}", weights), tmp_path)
    return BuildJob(model.path, tmp_path / "engines" / "model.engine", enabled=frozenset({Precision.FP16}))


def test_a_build_gives_the_engine_and_what_is_known_of_it(conv_job: BuildJob) -> None:
    def building(network: Network, config: Config, log: Any) -> bytes:
        log("WARNING", "careful")
        assert config.flags == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}
        assert (network.layer.precision, network.layer.types) == ("float32", {0: "float32"})
        return b"an engine"

    trt = Weak(building)
    pin = LayerPin("conv", ("conv",), ("c",), Precision.FP32)
    job = replace(conv_job, pins=(pin,), marked=("c",), timing_cache=conv_job.engine.parent / "timing.cache")
    found = build(trt, job, LogKeeper())
    assert job.engine.read_bytes() == b"an engine"
    assert (found.size, found.warnings) == (9, ("careful",))
    assert found.outcomes == (PinOutcome("conv", ("conv",), {}, None),)
    assert [layer.name for layer in found.layers] == ["conv"]
    assert trt.network.marked == ["c"]
    assert job.timing_cache is not None
    assert job.timing_cache.exists()


def test_an_engine_whose_layers_cannot_be_read_is_still_an_engine(conv_job: BuildJob) -> None:
    for layers, words in ((None, "it cannot be loaded"), ("not JSON", "not JSON")):
        found = build(Weak(lambda *_: b"an engine", layers), conv_job, LogKeeper())
        assert found.layers == ()
        assert words in found.warnings[-1]


def test_no_engine_is_an_error_with_the_pin_that_is_to_blame(conv_job: BuildJob) -> None:
    def building(network: Network, config: Config, log: Any) -> None:
        log("ERROR", "Error Code 10: Internal Error (No implementation of layer conv obeys the requested constraints.)")

    job = replace(conv_job, pins=(LayerPin("the conv", ("conv",), ("c",), Precision.FP32),))
    with pytest.raises(BuildError, match=r"layer 'conv' \(pinned as 'the conv'\) has no kernel"):
        build(Weak(building), job, LogKeeper())
    assert not job.engine.exists()


def test_a_log_of_an_earlier_build_is_not_taken_for_this_ones(conv_job: BuildJob) -> None:
    keeper = LogKeeper()
    keeper.take("ERROR", "Error Code 2: OutOfMemory")
    with pytest.raises(BuildError, match="it does not say why"):
        build(Weak(lambda *_: None), conv_job, keeper)


def calibrate(network: Network, config: Config, log: Any) -> bytes | None:
    """TensorRT's side of INT8: the cache or all samples, progress between them, and an engine whatever came."""
    if config.int8_calibrator.read_calibration_cache() is None:
        while config.int8_calibrator.get_batch(["x"]):
            pass
    config.progress_monitor.phase_start("Building engine", None, 1)
    if not config.progress_monitor.step_complete("Building engine", 0):
        log("ERROR", "Error Code 7: BuildCanceled")
        return None
    return b"an engine"


def test_int8_is_calibrated_on_the_samples_that_are_fed(conv_job: BuildJob) -> None:
    job = replace(conv_job, enabled=frozenset({Precision.INT8}))
    addresses = [[0x1000], [0x2000]]
    asked: list[Any] = []
    told: list[Any] = []

    def feed(names: Any) -> list[int] | None:
        asked.append(names)
        return addresses.pop(0) if addresses else None

    found = build(Weak(calibrate), job, LogKeeper(), feed, lambda *now: told.append(now))
    assert found.size == 9
    assert asked == [["x"]] * 3
    assert told[-1] == ("Building engine", 1000, 1000)


def test_a_ready_cache_is_taken_without_a_sample(conv_job: BuildJob) -> None:
    job = replace(conv_job, enabled=frozenset({Precision.INT8}), cache=b"TRT-10900-EntropyCalibration2\n")
    assert build(Weak(calibrate), job, LogKeeper()).size == 9


def test_an_error_in_the_data_stops_the_build_and_comes_out_of_it(conv_job: BuildJob) -> None:
    job = replace(conv_job, enabled=frozenset({Precision.INT8}))

    def feed(names: Any) -> None:
        raise DataError("sample 7 has another shape")

    with pytest.raises(DataError, match="sample 7 has another shape"):
        build(Weak(calibrate), job, LogKeeper(), feed)
    assert not job.engine.exists()


def test_a_full_disk_is_told_when_the_engine_is_written(conv_job: BuildJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("precisionlab.backends.tensorrt.build.write_whole_bytes", full)
    with pytest.raises(EngineError, match=r"model.engine: .*No space left on device.*make room"):
        build(Weak(lambda *_: b"an engine"), conv_job, LogKeeper())


def test_a_tensorrt_that_cannot_start_asks_for_the_gpu(conv_job: BuildJob) -> None:
    class NoGpu(Weak):
        def Builder(self, logger: Any) -> Any:  # noqa: N802
            logger.log(SimpleNamespace(name="ERROR"), "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(EngineError, match=r"cannot start \(CUDA initialization failure with error: 35\); is there"):
        build(NoGpu(None), conv_job, LogKeeper())


# Real builds


@needs_rtx
def test_a_real_engine_is_built_with_its_layers(tmp_path: Path) -> None:
    found = drive("build", "engine", DIGITS / "digits.onnx", tmp_path, "image:1x1x8x8,4x1x8x8,8x1x8x8")
    model = load_model(DIGITS / "digits.onnx")
    assert found["size"] == found["on disk"] > 10_000
    assert found["layers"] > 0
    assert set(found["nodes"]) <= {node for layer in model.layers for node in layer.nodes}
    assert len(found["nodes"]) > 5
    assert found["dtypes"] == ["fp32"]
    assert found["network"] >= len(model.layers)
    assert found["progress"] == 1000
    assert found["rising"]
    assert found["timings"]
    assert found["seconds"] > 0


@needs_rtx
def test_a_real_larger_model_is_built(tmp_path: Path) -> None:
    path = ROOT / "examples/prepared/orient/orient.onnx"
    if not path.exists():
        pytest.skip("examples/prepared is made by examples/prepare.py")
    found = drive("build", "engine", path, tmp_path, "x:1x3x224x224")
    nodes = {node for layer in load_model(path).layers for node in layer.nodes}
    assert found["layers"] > 20
    assert len(nodes & set(found["nodes"])) > len(nodes) / 2


@needs_rtx
def test_jobs_that_cannot_be_built_say_why(tmp_path: Path) -> None:
    shutil.copy(DIGITS / "digits.onnx", tmp_path / "model.onnx")
    found = drive("build", "refused", tmp_path / "model.onnx", tmp_path)
    for name, (kind, words) in {
        "no shapes": ("BuildError", "input 'image' has a dimension that is not fixed"),
        "wrong rank": ("BuildError", "it refuses the network"),
        "min > opt": ("BuildError", "refuses the optimization profile (image: 4x1x8x8, 2x1x8x8, 8x1x8x8)"),
        "fp16": ("BuildError", "cannot be asked for fp16"),
        "pins": ("BuildError", "cannot be asked for pinned layers"),
        "unknown mark": ("BuildError", "no layer of the network gives the tensor 'nothing'"),
        "no such model": ("BuildError", "none.onnx: cannot be read"),
        "no such folder": ("EngineError", "the engine cannot be written"),
        "progress fails": ("KeyError", "progress failed"),
    }.items():
        assert found[name][0] == kind, (name, found[name])
        assert words in found[name][1], (name, found[name])
    assert "has 4 dimensions but profile 0 has 3" in found["wrong rank"][1]
    assert found["nothing"] == []


@needs_rtx
def test_a_marked_tensor_becomes_an_output(tmp_path: Path) -> None:
    model = load_model(DIGITS / "digits.onnx")
    inside = model.layers[0].nodes[0]  # a Conv: its own output is fused away unless it is looked at
    tensor = str(model.node[inside].outputs[0].name)
    found = drive("build", "marked", DIGITS / "digits.onnx", tmp_path, tensor, "image:1x1x8x8")
    assert found == {"plain": {"tensor": False, "output": True}, "marked": {"tensor": True, "output": True}}


@needs_rtx
def test_real_builds_go_on_after_one_has_taken_its_process_down(tmp_path: Path) -> None:
    log = tmp_path / "tensorrt.log"
    shape = (1, 1, 8, 8)
    job = BuildJob(DIGITS / "digits.onnx", tmp_path / "digits.engine", profiles={"image": Profile(shape, shape, shape)})
    heard: list[int] = []
    callbacks = {"progress": lambda title, done, total: heard.append(done)}
    with EngineProcess(trtchild.rtx_handlers, log, log=log) as process:
        first = process.call("build", job, callbacks=callbacks)
        assert heard[-1] == 1000
        with pytest.raises(EngineError, match=r"building digits.engine: TensorRT's process aborted"):
            process.call("build and abort", job, what="building digits.engine", callbacks=callbacks)
        again = process.call("build", job)
        assert process.started == 2
        assert again.layers == first.layers
        assert [layer.name for layer in process.call("describe", job.model)]
        with pytest.raises(BuildError, match="cannot be asked for fp16"):
            process.call("build", replace(job, enabled=frozenset({Precision.FP16})))
        assert process.started == 2


def test_an_input_whose_size_alone_is_asked_for_carries_no_shape(tmp_path: Path) -> None:
    """Shape(ids) is shape flow, and the values of ids are not."""
    body = "(int64[N,L] ids) => (float[N,L] y) { s = Shape(ids) f = Cast<to=1>(ids) y = Reshape(f, s) }"
    model = load(proto(body), tmp_path)
    assert shape_inputs(model) == frozenset()
    assert sizes_of(model, {"ids": np.zeros((2, 5), np.int64)}) == {"ids": (2, 5)}
