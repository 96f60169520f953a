"""Options on builds and libraries of plugins in the words of trtexec and Polygraphy, whose own parser reads them."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from models import DIGITS, plan_for

from precisionlab.backends.tuning import AUTOMATIC, UNTUNED, Tuning
from precisionlab.cli import cli
from precisionlab.errors import OptionError
from precisionlab.export.tuned import check_weakly, polygraphy_tuning, registers_itself, trtexec_tuning
from precisionlab.model import load_model
from precisionlab.precision import Precision

MODEL = load_model(DIGITS / "digits.onnx")
FULL = Tuning(optimization_level=5, avg_timing=4, dla=1, version_compatible=True, refit=True)


@pytest.fixture
def static(tmp_path: Path) -> Path:
    """A library that calls TensorRT's registry."""
    path = tmp_path / "static.so"
    path.write_bytes(b"\0getPluginRegistry\0")
    return path


@pytest.fixture
def dynamic(tmp_path: Path) -> Path:
    """A library that waits to be asked."""
    path = tmp_path / "dynamic.so"
    path.write_bytes(b"\0getPluginCreators\0")
    return path


def test_trtexec_is_told_each_option_and_how_each_library_is_opened(static: Path, dynamic: Path) -> None:
    assert trtexec_tuning(FULL, [static, dynamic], MODEL) == [
        "--builderOptimizationLevel=5", "--avgTiming=4", "--useDLACore=1", "--allowGPUFallback", "--versionCompatible",
        "--refit", f"--staticPlugins={static}", f"--dynamicPlugins={dynamic}", f"--setPluginsToSerialize={dynamic}",
    ]  # fmt: skip
    assert trtexec_tuning(UNTUNED, [dynamic], MODEL) == [f"--dynamicPlugins={dynamic}"]
    assert trtexec_tuning(UNTUNED, [], MODEL) == []


def test_polygraphy_is_told_what_it_has_options_for(static: Path) -> None:
    tuning = Tuning(optimization_level=0, dla=0, version_compatible=True, refit=True)
    assert polygraphy_tuning(tuning, [static]) == [
        "--builder-optimization-level", "0", "--use-dla", "--allow-gpu-fallback", "--version-compatible",
        "--refittable", "--plugins", str(static),
    ]  # fmt: skip
    assert polygraphy_tuning(UNTUNED, []) == []


@pytest.mark.skipif(importlib.util.find_spec("polygraphy") is None, reason="Polygraphy is not installed")
def test_polygraphys_own_parser_reads_its_words(static: Path, tmp_path: Path) -> None:
    from polygraphy.tools.args import TrtConfigArgs, TrtLoadPluginsArgs
    from polygraphy.tools.convert.convert import Convert

    tuning = Tuning(optimization_level=2, dla=0, version_compatible=True, refit=True)
    tool = Convert()
    parser = argparse.ArgumentParser()
    tool.setup_parser(parser.add_subparsers())
    words = ["convert", "m.onnx", "--convert-to", "trt", "-o", "m.engine", *polygraphy_tuning(tuning, [static])]
    tool.parse(parser.parse_args(words))
    config = tool.arg_groups[TrtConfigArgs]
    assert (config.builder_optimization_level, config.use_dla, config.allow_gpu_fallback) == (2, True, True)
    assert (config.version_compatible, config.refittable) == (True, True)
    assert tool.arg_groups[TrtLoadPluginsArgs].plugins == [str(static)]


@pytest.mark.parametrize(
    ("tuning", "words"),
    [
        (Tuning(avg_timing=2), "--avg-timing: Polygraphy has no such option"),
        (Tuning(dla=1), "--dla 1: Polygraphy takes core 0 alone"),
    ],
)
def test_what_polygraphy_cannot_be_asked_is_refused_and_trtexec_takes_it(tuning: Tuning, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        polygraphy_tuning(tuning, [])
    assert trtexec_tuning(tuning, [], MODEL)


def test_a_library_that_waits_is_none_for_polygraphy(dynamic: Path, static: Path) -> None:
    with pytest.raises(OptionError, match=r"dynamic\.so: waits to be asked for its plugins, and Polygraphy"):
        polygraphy_tuning(UNTUNED, [static, dynamic])
    assert registers_itself(static)
    assert not registers_itself(dynamic)


def test_weakly_typed_builds_stream_no_weights() -> None:
    with pytest.raises(OptionError, match="--weight-streaming: weakly typed builds stream no weights"):
        check_weakly(Tuning(weight_streaming=AUTOMATIC))
    check_weakly(Tuning(refit=True))


def test_strongly_typed_builds_stream_them() -> None:
    tuning = Tuning(weight_streaming=AUTOMATIC)
    assert trtexec_tuning(tuning, [], MODEL) == ["--allowWeightStreaming"]
    assert polygraphy_tuning(tuning, []) == ["--weight-streaming"]


def test_the_command_line_hands_them_on_and_refuses_them_where_no_engine_is_built(tmp_path: Path, static: Path) -> None:
    model = load_model(DIGITS / "digits.onnx")
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(plan_for(model, Precision.FP16).to_dict()))
    command = ["export", str(plan), "--model", str(model.path), "--shapes", "image:1x1x8x8"]
    options = ["--optimization-level", "4", "--refit", "--plugins", str(static)]
    printed = CliRunner().invoke(cli, [*command, "--format", "trtexec", *options])
    assert printed.exit_code == 0, printed.output
    assert f"--builderOptimizationLevel=4 --refit --staticPlugins={static}" in printed.output
    printed = CliRunner().invoke(cli, [*command, "--format", "polygraphy", *options])
    assert printed.exit_code == 0, printed.output
    assert f"--builder-optimization-level 4 --refittable --plugins {static}" in printed.output
    for refused in (["--refit"], ["--plugins", str(static)]):
        printed = CliRunner().invoke(cli, [*command, "--format", "json", *refused])
        assert printed.exit_code == 2
        assert "are for polygraphy or trtexec: json builds no engine" in printed.output
    printed = CliRunner().invoke(cli, [*command, "--format", "trtexec", "--plugins", str(tmp_path / "no.so")])
    assert printed.exit_code == 2
    assert "no.so: cannot be read (No such file or directory)" in printed.output


def test_several_profiles_are_told_one_after_the_other(tmp_path: Path) -> None:
    model = load_model(DIGITS / "digits.onnx")
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(plan_for(model, Precision.FP16).to_dict()))
    shapes = ["--shapes", "image:1x1x8x8", "--shapes", "image:2x1x8x8,4x1x8x8,8x1x8x8"]
    for target, words in (
        (
            "trtexec",
            "--profile=0 --minShapes=image:1x1x8x8 --optShapes=image:1x1x8x8 --maxShapes=image:1x1x8x8 "
            "--profile=1 --minShapes=image:2x1x8x8 --optShapes=image:4x1x8x8 --maxShapes=image:8x1x8x8",
        ),
        (
            "polygraphy",
            "--trt-min-shapes 'image:[1,1,8,8]' --trt-opt-shapes 'image:[1,1,8,8]' --trt-max-shapes 'image:[1,1,8,8]' "
            "--trt-min-shapes 'image:[2,1,8,8]' --trt-opt-shapes 'image:[4,1,8,8]' --trt-max-shapes 'image:[8,1,8,8]'",
        ),
    ):
        printed = CliRunner().invoke(
            cli, ["export", str(plan), "--model", str(model.path), "--format", target, *shapes]
        )
        assert printed.exit_code == 0, printed.output
        assert words in printed.output
