"""Every attribute, enumeration member and call of TensorRT that our code has is there in the real bindings.

The uses are collected from the source (tests/bindings/conformance.py), so that no call goes unseen; the versions are
the real bindings without their libraries, all that the package index has, and TensorRT-RTX as a whole.
"""

from __future__ import annotations

import ast
import json
import re
import signal
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import pytest
from bindings.conformance import DYNAMIC, Found, Surface, Use, merged, missing, misused, uses
from bindings.setup import unsupported
from bindings.versions import ROOT, RTX, TensorRT, everywhere, parameters
from rtx import has_rtx

from precisionlab.precision import Precision
from precisionlab.system.release import release_of

pytestmark = pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))

SOURCES = ROOT / "precisionlab" / "backends" / "tensorrt"
SURFACE = ROOT / "tests" / "bindings" / "surface.py"


class Absent(NamedTuple):
    """The versions that lack a name that we use, and what keeps the code from using it there.

    They are those below `until` and those from `since` on, without TensorRT-RTX unless `rtx` is true.
    """

    gate: str
    until: str = "0.0"
    since: str = "99.0"
    rtx: bool = False

    def covers(self, version: TensorRT) -> bool:
        if version.is_rtx:
            return self.rtx
        return version.release < release_of(self.until) or version.release >= release_of(self.since)


def strong(gate: str) -> Absent:
    """What went with precision flags, pins and calibrators: types stand in the network alone."""
    return Absent(gate, since="11.0", rtx=True)


def old(gate: str) -> Absent:
    """What TensorRT 8 does not have yet."""
    return Absent(gate, until="10.0")


def rtx_alone(gate: str) -> Absent:
    return Absent(gate, since="0.0")


_COMPILE = "_compile_for asks the module for ComputeCapability first"
_PINS = "Features.pins: there are no pins where types stand in the graph"
_CALIBRATORS = "Features.calibrators"
_ONE_ERROR = "network._error asks the error for node_name first"
ABSENT = {
    "BuilderFlag.FP16": strong("BuildJob.enabled is empty where types stand in the graph"),
    "BuilderFlag.INT8": strong("BuildJob.enabled is empty where types stand in the graph"),
    "BuilderFlag.BF16": Absent("Features.precisions", until="10.0", since="11.0", rtx=True),
    "BuilderFlag.STRICT_NANS": Absent("Features.strict_nans", until="10.6"),
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS": strong(_PINS),
    "BuilderFlag.PREFER_PRECISION_CONSTRAINTS": strong(_PINS),
    "DataType.BF16": old("Features.precisions"),
    "IBuilderConfig.int8_calibrator": strong(_CALIBRATORS),
    "IBuilderConfig.progress_monitor": old("make_monitor gives None"),
    "IBuilderConfig.set_calibration_profile": strong("profiles asks the config for it"),
    "IDebugListener": old("make_listener asks the module for it"),
    "ComputeCapability": rtx_alone(_COMPILE),
    "IBuilderConfig.num_compute_capabilities": rtx_alone(_COMPILE),
    "IBuilderConfig.set_compute_capability": rtx_alone(_COMPILE),
    "ICudaEngine.get_aliased_input_tensor": Absent("read_ports asks the engine for it", until="10.15"),
    "IExecutionContext.set_all_tensors_debug_state": old("make_listener gives None"),
    "IExecutionContext.set_debug_listener": old("make_listener gives None"),
    "IExecutionContext.unfused_tensors_debug_state": Absent("Engine._listen asks the context for it", until="10.12"),
    "IInt8EntropyCalibrator2": strong(_CALIBRATORS),
    "BuilderFlag.EDITABLE_TIMING_CACHE": Absent("Features.editable_timings", until="10.8"),
    "ITimingCache.query": Absent("Features.editable_timings", until="10.8"),
    "ITimingCache.queryKeys": Absent("Features.editable_timings", until="10.8"),
    "TimingCacheValue": Absent("Features.editable_timings", until="10.8"),
    "BuilderFlag.WEIGHT_STREAMING": old("check_tuning asks the flags for it"),
    "ICudaEngine.streamable_weights_size": old("check_tuning asks the engine for weight_streaming_budget_v2"),
    "ICudaEngine.weight_streaming_budget_v2": Absent("check_tuning asks the engine for it", until="10.1"),
    "ICudaEngine.get_weight_streaming_automatic_budget": Absent(
        "check_tuning asks the engine for weight_streaming_budget_v2", until="10.1"
    ),
    "INetworkDefinition.mark_unfused_tensors_as_debug_tensors": Absent("Features.unfused_tensors", until="10.12"),
    "ILayer.precision": strong(_PINS),
    "ILayer.reset_output_type": strong(_PINS),
    "ILayer.reset_precision": strong(_PINS),
    "ILayer.set_output_type": strong(_PINS),
    "IPluginRegistry.all_creators": old("_registered asks the registry for it"),
    "IPluginRegistry.plugin_creator_list": strong("_registered has all_creators there"),
    "INetworkDefinition.mark_debug": old("mark_debug asks Features.debug_tensors first"),
    "IProgressMonitor": old("make_monitor asks the module for it"),
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": strong("Features.implicit_batch"),
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": old("opening.py asks Features.strongly_typed first"),
    "ParserError.local_function_stack": old(_ONE_ERROR),
    "ParserError.local_function_stack_size": old(_ONE_ERROR),
    "ParserError.node_name": old(_ONE_ERROR),
    "ParserError.node_operator": old(_ONE_ERROR),
}

READ_ONLY = {"ITensor.dtype cannot be set": strong("BuildJob.marked_as is empty where types stand in the graph")}
"""What these versions do not let anyone set."""

BY_FLAG = tuple(p.name for p in Precision.low() if p.is_low_float or p.number_format.is_implicit)

MADE_NAMES = {
    ("api.py", "BuilderFlag"): BY_FLAG,
    ("configuration.py", "BuilderFlag"): BY_FLAG,
    ("build.py", "DataType"): ("HALF", "BF16"),
    ("constraints.py", "DataType"): ("FLOAT", "HALF", "BF16", "INT8"),
}
"""(file, class) → the members that `getattr(trt.CLASS, name)` may ask for there."""

NOT_TENSORRTS = {member.name for member in signal.Signals}
"""Words in capitals that are no member of an enumeration of TensorRT."""


@cache
def surface_of(version: TensorRT) -> Surface:
    """All that this version has."""
    found: Surface = json.loads(version.run(SURFACE, version.module))
    return found


@cache
def all_versions() -> Surface:
    """All that any version has, of those that are tested wherever tests run."""
    return merged(surface_of(version) for version in (*everywhere(), *([RTX] if has_rtx() else [])))


def found_in(sources: Mapping[str, str]) -> Found:
    """The uses in these files, with the members that are asked for by a name that the code makes."""
    found = uses(sources, all_versions())
    every: list[Use] = []
    for use in found.uses:
        made = MADE_NAMES.get((use.file, use.owner), (DYNAMIC,))
        every.extend(replace(use, attribute=name) for name in made) if use.attribute == DYNAMIC else every.append(use)
    return Found(tuple(every), found.unseen)


@cache
def ours() -> Found:
    return found_in(sources())


@cache
def names_made() -> set[tuple[str, str]]:
    """(file, class) of each member that is asked for by a name that the code makes."""
    found = uses(sources(), all_versions()).uses
    return {(use.file, use.owner) for use in found if use.attribute == DYNAMIC}


@cache
def sources() -> Mapping[str, str]:
    return {path.name: path.read_text("utf-8") for path in sorted(SOURCES.glob("*.py"))}


def test_every_use_of_tensorrt_in_our_source_is_understood() -> None:
    assert ours().unseen == (), "name what is TensorRT's as CONVENTION has it, and annotate what is not"
    for file, text in sources().items():
        if re.search(r"\btrt\.[A-Za-z]", re.sub(r'"""[\s\S]*?"""|#.*', "", text)):
            assert any(use.file == file for use in ours().uses), f"nothing found in {file}"


@pytest.mark.parametrize("version", parameters())
def test_a_version_has_all_that_we_use_but_for_what_is_gated(version: TensorRT) -> None:
    lacking = missing(ours().uses, surface_of(version))
    gated = {name for name, absent in ABSENT.items() if absent.covers(version)}
    assert {name: where for name, where in lacking.items() if name not in gated} == {}
    read_only = [end for end, absent in READ_ONLY.items() if absent.covers(version)]
    wrong = misused(ours().uses, surface_of(version))
    assert [told for told in wrong if not told.endswith(tuple(read_only))] == []
    assert len(wrong) >= len(read_only), "nothing is excused that a version lets us set"


@pytest.mark.parametrize("version", parameters())
def test_nothing_is_excused_that_a_version_has_or_that_nobody_uses(version: TensorRT) -> None:
    lacking = missing(ours().uses, surface_of(version))
    assert {name for name, absent in ABSENT.items() if absent.covers(version)} - set(lacking) == set()
    assert set(MADE_NAMES) == names_made()


def test_what_the_code_only_asks_for_exists_in_some_version() -> None:
    asked = {use.name: use for use in ours().uses if use.asked}
    assert {"IDebugListener", "IProgressMonitor", "BuilderFlag.OBEY_PRECISION_CONSTRAINTS"} <= set(asked)
    unknown = [use.where for use in asked.values() if use.attribute not in all_versions().get(use.owner, {})]
    assert unknown == []


def test_words_in_capitals_are_members_of_tensorrts_enumerations() -> None:
    """Types of layers and data are compared by name: a name that is wrong would never match, and nobody would know."""
    members = {
        name
        for owner, things in all_versions().items()
        if "__members__" in things
        for name, thing in things.items()
        if thing == {"kind": "value", "type": owner}
    }
    words = {
        (file, node.value)
        for file, text in sources().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"[A-Z][A-Z0-9_]{2,}", node.value)
    }
    assert ("logger.py", "INTERNAL_ERROR") in words
    wrong = {(file, word) for file, word in words if word not in members | NOT_TENSORRTS and "Layer" not in word}
    assert wrong == set()


def names_in(body: str) -> set[str]:
    return {use.name for use in found_in({"a.py": body}).uses}


class TestCollecting:
    """What is found in a file; the types come from the real bindings."""

    def test_chains_from_the_module_also_by_another_name(self) -> None:
        body = "def f(trt: Any):\n flags = trt.BuilderFlag\n return flags.FP16, [trt.DataType.HALF for _ in 'a']"
        assert names_in(body) == {"BuilderFlag", "BuilderFlag.FP16", "DataType", "DataType.HALF"}

    def test_parameters_of_type_any_by_their_name(self) -> None:
        assert names_in("def f(network: Any, _layer: Any | None): network.num_layers; _layer.metadata") == {
            "INetworkDefinition.num_layers",
            "ILayer.metadata",
        }
        assert names_in("def f(layer: EngineLayer, tensor): layer.nodes; tensor.name") == set()

    def test_what_methods_and_properties_give(self) -> None:
        body = (
            "def f(trt: Any, network: Any):\n"
            " thing = network.get_layer(0).get_output(1)\n"
            " for one in [network.get_layer(i) for i in range(3)]:\n"
            "  for index, other in enumerate([one]): other.type.name, thing.dtype\n"
            " with trt.Builder(None) as who: who.create_builder_config().set_flag(0)\n"
        )
        assert names_in(body) == {
            "INetworkDefinition.get_layer",
            "ILayer.get_output",
            "ILayer.type",
            "LayerType.name",
            "ITensor.dtype",
            "Builder",
            "Builder.create_builder_config",
            "IBuilderConfig.set_flag",
        }

    def test_fields_of_our_own_classes_and_what_our_functions_give(self) -> None:
        body = (
            "class Parsed:\n network: Any\n path: Path\n"
            "class Engine:\n def __init__(self, trt: Any):\n  self._held = trt.Runtime(None)\n"
            " def run(self): self._held.deserialize_cuda_engine(b'').num_io_tensors\n"
            "def parse() -> Parsed: ...\n"
            "def configure() -> tuple[Any, int]: ...\n"
            "def f(parsed: Parsed):\n"
            " parsed.network.num_inputs; parse().network.num_outputs; parsed.path.name\n"
            " config, count = configure()\n config.clear_flag(count)\n"
        )
        assert names_in(body) == {
            "Runtime",
            "Runtime.deserialize_cuda_engine",
            "ICudaEngine.num_io_tensors",
            "INetworkDefinition.num_inputs",
            "INetworkDefinition.num_outputs",
            "IBuilderConfig.clear_flag",
        }

    def test_our_own_things_of_the_same_name_are_left_alone(self) -> None:
        body = (
            "class Layer:\n nodes: tuple[str, ...]\n"
            "class Job:\n engine: Path\n layers: tuple[Layer, ...]\n"
            "def f(job: Job, layers: Mapping[str, Layer]):\n"
            " job.engine.unlink()\n"
            " for layer in job.layers: layer.nodes\n"
            " for layer in layers.values(): layer.nodes\n"
        )
        assert found_in({"a.py": body}) == Found((), ())

    def test_what_cannot_be_followed_is_told(self) -> None:
        body = "def f(things: dict[str, Any], x: Any):\n things['a'].num_io_tensors\n x.execute_async_v3(0)\n x.name"
        assert found_in({"a.py": body}).unseen == ("a.py:2: things['a'].num_io_tensors", "a.py:3: x.execute_async_v3")


class TestChecking:
    """What is told of a use that is wrong."""

    def wrong(self, body: str, major: int = 10) -> tuple[set[str], int]:
        """The missing names, and how many calls and settings are wrong, in the first version of that number."""
        version = next((tested for tested in everywhere() if tested.release.major == major), None)
        if version is None:
            pytest.skip(f"there is no TensorRT {major} for this Python")
        found = found_in({"a.py": body}).uses
        return set(missing(found, surface_of(version))), len(misused(found, surface_of(version)))

    @pytest.mark.parametrize(
        ("body", "name"),
        [
            ("trt.BuilderFlags.FP16", "BuilderFlags"),
            ("trt.BuilderFlag.FP32", "BuilderFlag.FP32"),
            ("trt.ILogger.Severity.WARN", "ILogger.Severity.WARN"),
            ("network.layers", "INetworkDefinition.layers"),
            ("network.get_layer(0).get_output(0).nme", "ITensor.nme"),
            ("network.get_layer(0).precison = trt.DataType.FLOAT", "ILayer.precison"),
            ("getattr(trt.BuilderFlag, 'FP32')", "BuilderFlag.FP32"),
            ("getattr(trt.BuilderFlag, name)", f"BuilderFlag.{DYNAMIC}"),
        ],
    )
    def test_a_name_that_is_not_there(self, body: str, name: str) -> None:
        assert self.wrong(f"def f(trt: Any, network: Any, name: str): {body}") == ({name}, 0)

    def test_a_name_of_another_version(self) -> None:
        body = "def f(trt: Any, layer: Any): layer.reset_precision(); trt.IProgressMonitor.step_complete"
        assert self.wrong(body, 8) == ({"IProgressMonitor"}, 0)
        assert self.wrong(body, 10) == (set(), 0)
        assert self.wrong(body, 11) == ({"ILayer.reset_precision"}, 0)

    def test_a_name_that_is_only_asked_for_may_be_missing(self) -> None:
        body = "def f(trt: Any): hasattr(trt, 'ISomething'); getattr(trt.BuilderFlag, 'FP4', None)"
        assert self.wrong(body) == (set(), 0)

    @pytest.mark.parametrize(
        ("call", "right"),
        [
            ("network.get_layer(1)", True),
            ("network.get_layer(index=1)", True),
            ("network.get_layer()", False),
            ("network.get_layer(1, 2)", False),
            ("network.get_layer(number=1)", False),
            ("network.get_layer(1, index=1)", False),
            ("network.num_layers()", False),
            ("trt.Builder(0)", True),
            ("trt.Builder()", False),
            ("trt.OnnxParser(network, 0)", True),
            ("trt.OnnxParser(network)", False),
            ("context.set_input_shape('x', (1, 2))", True),
            ("context.set_input_shape('x')", False),
            ("builder.build_serialized_network(network, 0)", True),
            ("network.get_layer(*some)", True),
        ],
    )
    def test_calls_have_a_signature_that_takes_them(self, call: str, right: bool) -> None:
        body = f"def f(trt: Any, network: Any, context: Any, builder: Any, some: list[int]): {call}"
        assert self.wrong(body) == (set(), 0 if right else 1)

    def test_only_what_can_be_set_is_set(self) -> None:
        assert self.wrong("def f(layer: Any): layer.precision = 1; layer.name = ''") == (set(), 0)
        assert self.wrong("def f(layer: Any): layer.type = 1") == (set(), 1)
        assert self.wrong("def f(layer: Any): layer.get_output = 1") == (set(), 1)
