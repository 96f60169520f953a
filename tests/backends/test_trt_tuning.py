"""A user's options on builds: refused where they cannot be had, and else in engine, key and report.

On the double, which has two DLA cores where it is told so; and on the real TensorRT-RTX, which has none.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trtchild
from click.testing import CliRunner, Result
from doubled import arrange
from models import DIGITS, load, proto
from rtx import needs_rtx

from precisionlab.backends.options import EngineOptions
from precisionlab.backends.tensorrt.api import Features
from precisionlab.backends.tensorrt.jobs import BuildJob, Profile, Tactics
from precisionlab.backends.tensorrt.ports import Port, check_inputs, profile_for
from precisionlab.backends.tensorrt.process import EngineProcess
from precisionlab.backends.tensorrt.profiles import profiles_for
from precisionlab.backends.tensorrt.store import key_of
from precisionlab.backends.tensorrt.timings import choices, compared
from precisionlab.backends.tensorrt.tuning import check_tuning, check_weakly_typed, make_runtime, stream_weights, tune
from precisionlab.backends.tuning import AUTOMATIC, UNTUNED, Tuning
from precisionlab.cli import cli
from precisionlab.errors import BuildError, DataError, EngineError, OptionError
from precisionlab.jobs.sweep import sweep

WEAK = Features("10.16", True, True, frozenset(), True, True)
STRONG = replace(WEAK, version="11.4", pins=False, calibrators=False)
ALL = Tuning(5, 4, 0, AUTOMATIC, True, True)
EACH = {
    "--optimization-level": Tuning(optimization_level=5), "--avg-timing": Tuning(avg_timing=4), "--dla": Tuning(dla=0),
    "--weight-streaming": Tuning(weight_streaming=0), "--version-compatible": Tuning(version_compatible=True),
    "--refit": Tuning(refit=True),
}  # fmt: skip


def module(cores: int = 2, **lacking: Any) -> Any:
    """TensorRT with all options."""
    names = ("GPU_FALLBACK", "WEIGHT_STREAMING", "VERSION_COMPATIBLE", "REFIT")
    return SimpleNamespace(
        BuilderFlag=SimpleNamespace(**{name: name for name in names}),
        IBuilderConfig=SimpleNamespace(builder_optimization_level=0, avg_timing_iterations=0),
        ICudaEngine=SimpleNamespace(weight_streaming_budget_v2=0),
        DeviceType=SimpleNamespace(DLA="DLA"),
        Runtime=lambda logger: SimpleNamespace(num_DLA_cores=cores),
    )


class Config:
    """A configuration that knows no level above 5."""

    def __init__(self) -> None:
        self.flags: set[str] = set()
        self._level = 3

    @property
    def builder_optimization_level(self) -> int:
        return self._level

    @builder_optimization_level.setter
    def builder_optimization_level(self, level: int) -> None:
        self._level = min(level, 5)

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)


# Refusals


@pytest.mark.parametrize("option", EACH)
def test_what_a_version_has_not_is_refused_by_option_and_version_and_taken_where_it_is(option: str) -> None:
    nothing = SimpleNamespace()
    bare = SimpleNamespace(BuilderFlag=nothing, IBuilderConfig=nothing, ICudaEngine=nothing)
    with pytest.raises(OptionError, match=f"^{option}: TensorRT 11.4 has no such thing; leave it out$"):
        check_tuning(bare, EACH[option], STRONG, None)
    check_tuning(module(), EACH[option], STRONG, None)
    check_tuning(bare, UNTUNED, STRONG, None)


def test_weights_are_streamed_by_strongly_typed_networks_alone() -> None:
    with pytest.raises(OptionError, match=r"--weight-streaming: TensorRT 10\.16 streams the weights of strongly typed"):
        check_weakly_typed(Tuning(weight_streaming=AUTOMATIC), WEAK)
    check_weakly_typed(Tuning(optimization_level=1), WEAK)
    check_tuning(module(), Tuning(weight_streaming=AUTOMATIC), STRONG, None)


@pytest.mark.parametrize(
    ("cores", "core", "words"), [(0, 0, "has no DLA"), (1, 1, "has core 0 alone"), (2, 2, "has the cores 0 to 1")]
)
def test_a_dla_core_that_is_not_there_is_refused(cores: int, core: int, words: str) -> None:
    with pytest.raises(OptionError, match=f"--dla {core}: this machine {words}"):
        check_tuning(module(cores), Tuning(dla=core), WEAK, None)
    if cores:
        check_tuning(module(cores), Tuning(dla=cores - 1), WEAK, None)


def asked(*words: str) -> Result:
    command = ["sweep", str(DIGITS / "digits.onnx"), "--data", str(DIGITS), "--samples", "4", "--precisions", "fp16"]
    return CliRunner().invoke(cli, [*command, "--observe", "0", "--threads", "1", "--builds", "2", *words])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--optimization-level", "-1"), "optimization_level is -1; it must be at least 0"),
        (("--avg-timing", "0"), "avg_timing is 0; it must be at least 1"),
        (("--dla", "-1"), "dla is -1; it must be at least 0"),
        (("--weight-streaming", "much"), "weight_streaming 'much': write a size such as 512M or 4G"),
    ],
)
def test_values_that_mean_nothing_are_refused_on_the_command_line(words: tuple[str, ...], said: str) -> None:
    printed = asked(*words)
    assert printed.exit_code == 2
    assert said in printed.output


@pytest.mark.parametrize("words", [("--dla", "0"), ("--weight-streaming", "1G")])
def test_a_sweep_with_an_option_that_cannot_be_had_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...]
) -> None:
    arrange(monkeypatch, tmp_path)
    printed = asked("--backend", "tensorrt", "--out", str(tmp_path / "run"), *words)
    assert printed.exit_code == 2, printed.output
    assert f"{words[0]}" in printed.output
    assert "TensorRT 10.14.1.48.post1" in printed.output


@needs_rtx
def test_rtx_says_that_it_has_no_dla_and_builds_with_what_it_has(tmp_path: Path) -> None:
    rtx = ("--backend", "tensorrt-rtx", "--target", "l4", "--out", str(tmp_path))
    printed = asked(*rtx, "--dla", "0")
    assert printed.exit_code == 2, printed.output
    assert "--dla 0: this machine has no DLA" in printed.output
    printed = asked(*rtx, "--optimization-level", "2", "--avg-timing", "2")
    assert printed.exit_code == 0, printed.output
    assert json.loads((tmp_path / "run.json").read_text())["engines"]["optimization_level"] == "2"


@needs_rtx
def test_a_build_that_an_option_makes_impossible_names_it(tmp_path: Path) -> None:
    """TensorRT-RTX 1.7.1 has the flag, and not the library that it needs for it."""
    job = BuildJob(
        load(proto("(float[1,4] x) => (float[1,4] y) {y = Relu(x)}"), tmp_path).path, tmp_path / "e", compute="SM89",
        tuning=Tuning(version_compatible=True),
    )  # fmt: skip
    with (
        EngineProcess(trtchild.rtx_handlers, tmp_path / "log", log=tmp_path / "log") as process,
        pytest.raises(BuildError, match=r"no engine \(asked for with --version-compatible\).*libnvinfer_lean"),
    ):
        process.call("build", job)
    assert Tuning(refit=True, formats=(("x", "HWC"),)).options == "--refit, --io-format"
    assert UNTUNED.options == ""


# What is built


def test_all_options_reach_the_configuration_and_a_level_that_is_cut_is_told() -> None:
    config = Config()
    assert tune(module(), config, ALL) == ()
    assert config.flags == {"GPU_FALLBACK", "WEIGHT_STREAMING", "VERSION_COMPATIBLE", "REFIT"}
    assert vars(config) | {"flags": set()} == {
        "flags": set(), "_level": 5, "avg_timing_iterations": 4, "default_device_type": "DLA", "DLA_core": 0
    }  # fmt: skip
    assert tune(module(), Config(), Tuning(optimization_level=9)) == ("--optimization-level 9: TensorRT takes 5",)
    untouched = Config()
    assert tune(module(), untouched, UNTUNED) == ()
    assert vars(untouched) == vars(Config())


def test_each_option_makes_another_engine_but_for_how_much_is_streamed() -> None:
    def digest(tuning: Tuning) -> str:
        job = BuildJob(Path("m.onnx"), Path("e"), tuning=tuning)
        return key_of(job, "m", None, module="tensorrt", version="10.16", device="GPU").digest

    assert len({digest(tuning) for tuning in (UNTUNED, *EACH.values(), ALL)}) == len(EACH) + 2
    assert digest(Tuning(weight_streaming=0)) == digest(Tuning(weight_streaming=AUTOMATIC))


def test_host_code_is_allowed_for_version_compatible_engines_alone() -> None:
    assert make_runtime(module(), None, Tuning(version_compatible=True)).engine_host_code_allowed
    assert not hasattr(make_runtime(module(), None, Tuning(refit=True)), "engine_host_code_allowed")
    assert make_runtime(module(), None, Tuning(dla=1)).DLA_core == 1


@pytest.mark.parametrize(("asked_for", "set_to"), [(0, 0), (1000, 1000), (AUTOMATIC, 700), (1 << 40, 5000)])
def test_weights_are_streamed_beyond_the_budget_and_no_more_is_asked_than_there_is(asked_for: int, set_to: int) -> None:
    engine = SimpleNamespace(streamable_weights_size=5000, get_weight_streaming_automatic_budget=lambda: 700)
    stream_weights(engine, Tuning(weight_streaming=asked_for), "m.engine")
    assert engine.weight_streaming_budget_v2 == set_to


def test_a_budget_that_tensorrt_does_not_take_is_an_error_and_none_asks_nothing() -> None:
    class Stubborn:
        streamable_weights_size = 5000
        weight_streaming_budget_v2 = property(lambda self: 5000, lambda self, value: None)

    with pytest.raises(EngineError, match=r"m\.engine: TensorRT does not stream its weights with 10 bytes"):
        stream_weights(Stubborn(), Tuning(weight_streaming=10), "m.engine")
    stream_weights(object(), UNTUNED, "m.engine")


def test_a_sweep_builds_loads_and_reports_what_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The double loads engines for a DLA core, and version-compatible ones, only in a runtime that is set up for it."""
    arrange(monkeypatch, tmp_path, dla_cores=2)
    result = sweep(
        DIGITS / "digits.onnx", DIGITS, precisions="fp16", backend="tensorrt", out=tmp_path / "run", samples=4,
        threads=1, engine=EngineOptions(observe=0, builds=2, tuning=Tuning(9, 4, 1, None, True, True)),
    )  # fmt: skip
    engine = result.precisions[0].engine
    assert engine is not None
    assert engine.mixed is not None
    assert engine.mixed.variant.met
    assert "--optimization-level 9: TensorRT takes 5" in engine.mixed.inside.built.warnings
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["engines"]
    expected = {"optimization_level": "9", "avg_timing": "4", "dla": "1", "version_compatible": "yes", "refit": "yes"}
    assert {name: facts[name] for name in expected} == expected
    assert "weight_streaming" not in facts


# Tactics


def test_an_observed_engine_keeps_the_kernels_of_the_plain_one_where_a_timing_cache_holds_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The double's kernels drift where tensors are marked, but for those that an editable timing cache has."""
    arrange(monkeypatch, tmp_path, drifts=["/stem/conv"])
    result = sweep(
        DIGITS / "digits.onnx", DIGITS, precisions="fp16", backend="tensorrt", out=tmp_path / "run", samples=4,
        threads=1, engine=EngineOptions(observe=1 << 20, builds=2),
    )  # fmt: skip
    engine = result.precisions[0].engine
    assert engine is not None
    assert engine.notes == (), "looking has changed nothing"
    assert engine.mixed is not None
    assert engine.mixed.inside.built.tactics is not None
    assert engine.mixed.inside.built.tactics.changed == 0
    assert engine.mixed.inside.built.tactics.held > 10, "those of the engines before"
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["engines"]["tactics"] == "held by an editable timing cache"
    assert (tmp_path / "run" / "engines" / "tactics.cache").exists()


def test_choices_are_told_apart_by_key() -> None:
    cache = SimpleNamespace(queryKeys=lambda: ["a", "b"], query=lambda key: SimpleNamespace(tacticHash=ord(key)))
    assert choices(cache) == {"a": 97, "b": 98}
    assert compared({"a": 97, "b": 1, "gone": 2}, {"a": 97, "b": 98, "c": 99}) == Tactics(1, 2, 1)


# Several profiles


def test_an_input_that_is_given_twice_has_two_profiles_and_what_is_given_once_is_in_both(tmp_path: Path) -> None:
    model = load(proto("(float[N,T] x, float[N,3] y) => (float[N,T] o) {o = Relu(x) a = Relu(y)}"), tmp_path)
    texts = ["x:1x4,1x4,1x8", "y:1x3,1x3,8x3", "x:2x4,4x4,8x4"]
    first, second = profiles_for(
        load(proto("(float[N,T] x, float[M,3] y) => (float[N,T] o) {o = Relu(x) a = Relu(y)}"), tmp_path), texts, none
    )
    assert (first["x"], second["x"]) == (Profile((1, 4), (1, 4), (1, 8)), Profile((2, 4), (4, 4), (8, 4)))
    assert first["y"] == second["y"] == Profile((1, 3), (1, 3), (8, 3))
    with pytest.raises(OptionError, match=r"--shapes y: given 2 times, and another input 3 times"):
        profiles_for(model, [*texts, "x:1x4", "y:1x3,1x3,8x3"], none)
    with pytest.raises(OptionError, match="dimensions of one name are equal"):  # each profile is checked
        profiles_for(model, texts, none)


def none(name: str) -> Any:
    raise AssertionError(f"no sample is needed for {name}")


TWO = (Profile((1, 3), (1, 3), (2, 3)), Profile((8, 3), (8, 3), (8, 3)))
PORT = Port("x", np.dtype(np.float32), (-1, 3), False, TWO)


def test_a_run_takes_the_first_profile_that_fits_all_inputs_together() -> None:
    other = replace(PORT, name="y", limits=(Profile((1, 3), (1, 3), (8, 3)), Profile((4, 3), (8, 3), (8, 3))))

    def number(x: int, y: int) -> int:
        return profile_for({"x": np.zeros((x, 3)), "y": np.zeros((y, 3))}, (PORT, other))

    assert [number(1, 8), number(2, 1), number(8, 8)] == [0, 0, 1]
    with pytest.raises(DataError, match=r"no profile of the engine takes these shapes together: 'x' 8x3, 'y' 1x3"):
        number(8, 1)
    assert profile_for({"z": np.zeros(3)}, (replace(PORT, name="z", shape=(3,), limits=()),)) == 0


def test_shapes_between_the_profiles_are_told_with_both() -> None:
    with pytest.raises(DataError, match=r"the engine takes 1x3 to 2x3 or 8x3 to 8x3: give it other shapes"):
        check_inputs({"x": np.zeros((4, 3), np.float32)}, (PORT,))


def test_samples_of_two_sizes_run_each_in_a_profile_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The double takes no shape that the active profile has not."""
    arrange(monkeypatch, tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    for number, file in enumerate(sorted(DIGITS.glob("*.npz"))[:6]):
        image = np.load(file)["image"]
        np.savez(data / f"{number}.npz", image=np.concatenate([image] * (4 if number % 2 else 1)))
    shapes = ("image:1x1x8x8,1x1x8x8,2x1x8x8", "image:4x1x8x8,4x1x8x8,4x1x8x8")
    result = sweep(
        DIGITS / "digits.onnx", data, precisions="fp16", backend="tensorrt", out=tmp_path / "run", threads=1,
        engine=EngineOptions(observe=1 << 20, builds=2, shapes=shapes),
    )  # fmt: skip
    engine = result.precisions[0].engine
    assert engine is not None
    assert engine.mixed is not None, engine.notes
    assert engine.mixed.variant.met
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["engines"]
    assert facts["shapes of image"].count(";") == 1
