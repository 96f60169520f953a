"""The runtime: an engine's bytes become what `gpu/stub.py` runs, its arithmetic an emulation in ONNX Runtime."""

from __future__ import annotations

import json
import zlib
from base64 import b64decode
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from cuda.bindings import runtime as cuda_runtime
from gpu import stub
from gpu.stub import DataType, Shape, Spec, StubTensorRT, Tensor, TensorFormat, Values

from precisionlab.backends.session import Session
from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.observe import Flow, segments

from ._builder import MAGIC
from ._choice import model_of
from ._interfaces import ILogger, LayerInformationFormat, _Log
from ._plugins import OWN, REGISTRY
from ._settings import maybe_crash, settings

IExecutionContext = stub.IExecutionContext

_FORMATS = {
    Precision.FP32: "Row major linear FP32",
    Precision.FP16: "Row major linear FP16 format",
    Precision.BF16: "Row major linear BFloat16 format",
    Precision.INT8: "Row major Int8 format",
}
_TIMES = {Precision.FP32: 0.04, Precision.BF16: 0.02, Precision.FP16: 0.02, Precision.INT8: 0.01}
"""Milliseconds of a layer, by its precision; made up."""
_TACTICS = {
    Precision.FP32: "sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nhwckrsc_nhwc_tilesize128x64x8_stage3_g1_ffma",
    Precision.FP16: "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize64x64x64_g1_tensor16x8x16",
    Precision.BF16: "sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize64x64_g1_tensor16x8x16",
    Precision.INT8: "sm80_xmma_fprop_implicit_gemm_interleaved_i8f16_i8i32_f32_nchw_vect_c_32_g1_tensor16x8x32",
}
"""Names in the manner of real ones, for what sums products; a layer's own stands in the settings."""


class _Plan:
    """What an engine's bytes say, ready to run."""

    def __init__(self, content: bytes) -> None:
        self._told = json.loads(zlib.decompress(content.removeprefix(MAGIC)))
        self.model = model_of(b64decode(self._told["model"]))
        self.flags: list[str] = self._told["flags"]
        self.kernels = [(name, layer, nodes, Precision(p)) for name, layer, nodes, p in self._told["kernels"]]
        self.profile: dict[str, Any] = self._told["profile"]
        self.dla: int = self._told["tuning"][2]
        self.detailed: bool = self._told["detailed"]

    @property
    def plugins(self) -> set[str]:
        """The plugins that it runs."""
        nodes = self.model.onnx.graph
        return {node.op_type for node in nodes if node.op_type in OWN or node.domain not in ("", "ai.onnx")}

    def spec(self) -> Spec:
        """The engine for the stub to run."""
        inputs = []
        for info in self.model.inputs:
            shape = tuple(dim if isinstance(dim, int) else -1 for dim in info.shape or ())
            least, usual, most = (tuple(dims) for dims in self.profile.get(info.name, [shape] * 3))
            more = [profile[info.name] for profile in self._told["more"] if info.name in profile]
            further = tuple((tuple(low), tuple(opt), tuple(high)) for low, opt, high in more)
            form = self._format(info.name)
            inputs.append(Tensor(info.name, shape, profile=(least, usual, most), more=further, format=form))
        outputs = [
            Tensor(name, self._shape(name, {}), DataType[dtype], format=self._format(name))
            for name, dtype in self._told["stored"].items()
        ]
        return Spec(
            inputs, outputs, self._compute, self._shapes, layers=self.times(), on_run=self._on_run,
            debug=self._debug if self._told["debug"] else None,
            unfused=self._unfused if self._told["unfused"] else None,
        )  # fmt: skip

    def _format(self, name: str) -> TensorFormat:
        return TensorFormat[self._told["formats"][name]]

    def times(self) -> dict[str, float]:
        """Milliseconds of each layer."""
        return {name: _TIMES[precision] for name, _, _, precision in self.kernels}

    def has_spread(self, layer: str, precision: Precision) -> bool:
        """Whether it is INT8 in a layer that has no INT8 arithmetic for us: that is told, and computed as a float."""
        return precision is Precision.INT8 and not self.model.layer[layer].quantizable

    def _on_run(self) -> None:
        maybe_crash("run", self.flags)
        cuda_runtime._gpu.clock += sum(self.times().values())

    def _shapes(self, inputs: Mapping[str, Shape], values: Values) -> Mapping[str, Shape]:
        sizes: dict[str, int] = {}
        for info in self.model.inputs:
            for dim, size in zip(info.shape or (), inputs[info.name], strict=True):
                if isinstance(dim, str) and sizes.setdefault(dim, size) != size:
                    raise ValueError(f"{info.name}: dimension {dim} is {size} here, and {sizes[dim]} elsewhere")
        return {name: self._shape(name, sizes) for name in self._told["outputs"]}

    def _shape(self, name: str, sizes: Mapping[str, int]) -> Shape:
        dims = self.model.tensors[name].shape or ()
        return tuple(dim if isinstance(dim, int) else sizes.get(str(dim), -1) for dim in dims)

    @cached_property
    def _emulation(self) -> tuple[Session, Any]:
        model = self.model
        around = Precision(self._told["around"])
        runs = [(name, nodes, around if self.has_spread(name, p) else p) for _, name, nodes, p in self.kernels]
        pins = [Pin(layer, tuple(nodes), p, "") for layer, nodes, p in runs if p is not Precision.FP32]
        plan = PrecisionPlan(model.sha256, Precision.FP32, tuple(pins), around)
        ranges = {name: Range(scale * 127) for name, scale in self._told["scales"].items()}
        table = CalibrationTable(ranges, 1) if ranges else None
        flows = (Flow.REFERENCE, Flow.VARIANT)
        (segment,) = segments(model, plan, table, [list(model.layers)], flows, flows)
        return Session(segment.graph, 1), segment

    def _compute(self, inputs: Values) -> Values:
        return self._values(inputs, self._told["stored"])

    def _debug(self, inputs: Values) -> Values:
        return self._values(inputs, dict.fromkeys(self._told["debug"], "FLOAT"))

    def _unfused(self, inputs: Values) -> Values:
        """What goes from kernel to kernel, as it is stored, by the names that the inspector has."""
        names = [n for _, layer, *_ in self.kernels for n in self.model.layer[layer].outputs]
        inner = [name for name in names if name not in self._told["outputs"]]
        found = self._values(inputs, dict.fromkeys(inner, "FLOAT"))
        if settings().get("unfused") is None:
            return {}  # there is no guarantee that all, or any, are shown
        by_channels = told_of_unfused().get("channel_major", ())
        return {
            internal(name): np.ascontiguousarray(np.moveaxis(v, 1, -1)).reshape(v.shape) if name in by_channels else v
            for name, v in found.items()
        }

    def _values(self, inputs: Values, wanted: Mapping[str, str]) -> Values:
        session, segment = self._emulation
        values = session.run({feed: inputs[key[1]] for feed, key in segment.feeds.items()})
        found = {segment.fetches[shown]: value for shown, value in values.items()}
        # What no layer before it changes stands under the reference alone.
        return {
            name: np.array(found.get((Flow.VARIANT, name), found.get((Flow.REFERENCE, name)))).astype(
                stub.NUMPY[DataType[dtype]]
            )
            for name, dtype in wanted.items()
        }


def internal(tensor: str) -> str:
    """What the engine calls a tensor."""
    return f"__mye{tensor}" if tensor in told_of_unfused().get("renames", ()) else tensor


def told_of_unfused() -> Mapping[str, Any]:
    """How the double is to show its unfused tensors."""
    told = settings().get("unfused")
    return told if isinstance(told, dict) else {}


class _Engines(Mapping[bytes, Spec]):
    """The engine of some bytes, for the stub: none where the double has not made them."""

    def get(self, key: bytes, default: Any = None) -> Any:
        return _Plan(key).spec() if key.startswith(MAGIC) else default

    def __getitem__(self, key: bytes) -> Spec:
        raise NotImplementedError

    def __iter__(self) -> Any:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError


_MODULE = StubTensorRT(cuda_runtime._gpu, _Engines())


class Runtime(stub.Runtime):
    def __init__(self, logger: ILogger) -> None:
        super().__init__(_MODULE, _Log(logger))
        self.engine_host_code_allowed = False
        self.DLA_core = -1

    @property
    def num_DLA_cores(self) -> int:  # noqa: N802
        return int(settings().get("dla_cores", 0))

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        content = bytes(serialized_engine)
        if super().deserialize_cuda_engine(content) is None:
            return None
        plan = _Plan(content)
        if "VERSION_COMPATIBLE" in plan.flags and not self.engine_host_code_allowed:
            self.logger.log("ERROR", "Error Code 3: API Usage Error (the engine has host code, which is not allowed)")
            return None
        if plan.dla >= 0 and self.DLA_core != plan.dla:
            self.logger.log("ERROR", f"Error Code 3: API Usage Error (the engine is for DLA core {plan.dla})")
            return None
        if missing := [name for name in sorted(plan.plugins) if not REGISTRY._has(name)]:
            self.logger.log(
                "ERROR",
                f"IPluginRegistry::getCreator: Error Code 4: API Usage Error (Cannot find plugin: {missing[0]})",
            )
            return None
        return ICudaEngine(self.logger, plan)


class ICudaEngine(stub.ICudaEngine):
    weight_streaming_budget_v2 = 0

    def __init__(self, logger: _Log, plan: _Plan) -> None:
        super().__init__(_MODULE, logger, plan.spec())
        self._plan = plan

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._plan)


class EngineInspector:
    """Tells of an engine as 10.x does: with dynamic shapes no types, unless a context has its input shapes set.

    It has the layers of every profile; from the second on, names end in that profile's.
    """

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self.execution_context: Any = None

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        assert format is LayerInformationFormat.JSON, "the double tells JSON alone"
        if not self._plan.detailed:
            return json.dumps({"Layers": [name for name, *_ in self._plan.kernels], "Bindings": []})
        count = 1 + len(self._plan._told["more"])
        layers = [
            _marked(layer, index, self._is_at(index))
            for index in range(count)
            for kernel in self._plan.kernels
            for layer in self._layers(*kernel)
        ]
        names = [info.name for info in self._plan.model.inputs] + self._plan._told["outputs"]
        # The separators of metadata stand in the text as they are, which JSON does not allow.
        return json.dumps({"Layers": layers, "Bindings": names}).replace("\\u001e", "\x1e")

    def _layers(self, name: str, layer: str, nodes: list[str], precision: Precision) -> list[dict[str, Any]]:
        """A kernel, with the copies that convert what it takes, and a network output that it gives."""
        model = self._plan.model
        around = Precision(self._plan._told["around"])
        finals = set(self._plan._told["outputs"])
        found, inputs = [], []
        for index, tensor in enumerate(model.layer[layer].inputs):
            given = self._given(tensor)
            inputs.append(self._tensor(tensor, given))
            if given is not precision:
                inputs[-1] = self._tensor(f"Reformatted Input Tensor {index} to {name}", precision, tensor)
                title = f"Reformatting CopyNode for Input Tensor {index} to {name}"
                found.append(self._layer(title, "Reformat", [self._tensor(tensor, given)], [inputs[-1]], ""))
        spreads = self._plan.has_spread(layer, precision)
        stored = around if precision is Precision.INT8 and not spreads else precision
        is_sum = model.node[nodes[0]].op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        tactic = settings().get("tactics", {}).get(nodes[0]) or (_TACTICS[precision] if is_sum else "double")
        outputs = model.layer[layer].outputs
        gives = [self._tensor(tensor, stored) for tensor in outputs]
        after = []
        for index, tensor in enumerate(outputs):
            if tensor in finals and stored is not Precision.FP32:
                gives[index] = self._tensor(f"Reformatted Output Tensor {index} to {name}", stored, tensor)
                title = f"Reformatting CopyNode for Output Tensor {index} to {name}"
                after.append(self._layer(title, "Reformat", [gives[index]], [self._tensor(tensor, Precision.FP32)], ""))
        return [
            *found,
            self._layer(
                name,
                "CaskConvolution" if len(nodes) > 1 else "Kgen",
                inputs,
                gives,
                self._plan._told["metadata"][layer],
                tactic,
            ),
            *after,
        ]

    def _given(self, tensor: str) -> Precision:
        """What a tensor is stored as."""
        for _, layer, _, precision in self._plan.kernels:
            if tensor in self._plan.model.layer[layer].outputs and tensor not in self._plan._told["outputs"]:
                spreads = self._plan.has_spread(layer, precision)
                is_float = precision is Precision.INT8 and not spreads
                return Precision(self._plan._told["around"]) if is_float else precision
        return Precision.FP32

    def _layer(
        self, name: str, kind: str, inputs: list[Any], outputs: list[Any], metadata: str, tactic: str = "double"
    ) -> dict[str, Any]:
        return {
            "Name": name, "LayerType": kind, "Inputs": inputs, "Outputs": outputs,
            "TacticName": tactic, "StreamId": 0, "Metadata": metadata,
        }  # fmt: skip

    def _tensor(self, name: str, precision: Precision, of: str | None = None) -> dict[str, Any]:
        known = self._plan.model.tensors.get(of or name)
        finals = {*self._plan._told["outputs"], *(info.name for info in self._plan.model.inputs)}
        dims = () if known is None else known.shape or ()
        is_int8 = known is not None and known.dtype is not None and known.dtype.name == "INT8"
        stored = _FORMATS[Precision.INT8 if is_int8 else precision]
        by_channels = (of or name) in told_of_unfused().get("channel_major", ())
        layout = "Channel major FP16 format where channel % 8 == 0" if by_channels else stored
        return {
            "Name": name if of is not None or name in finals else internal(name),
            "Location": "Device",
            "Dimensions": [dim if isinstance(dim, int) else -1 for dim in dims],
            "Format/Datatype": layout,
        }

    def _is_at(self, profile: int) -> bool:
        """Whether its context is in this profile and knows all shapes, or none is dynamic."""
        context = self.execution_context
        known = context is not None and all(info.name in context._shapes for info in self._plan.model.inputs)
        return not self._plan.profile or (known and context.active_optimization_profile == profile)


def _marked(layer: dict[str, Any], profile: int, tells: bool) -> dict[str, Any]:
    """A layer as one of this profile, with its types where they are told."""
    mark = f" [profile {profile}]" if profile else ""
    hidden = {} if tells else {"Format/Datatype": "N/A due to dynamic shapes"}
    tensors = {
        side: [{**tensor, **hidden, "Name": tensor["Name"] + mark} for tensor in layer[side]]
        for side in ("Inputs", "Outputs")
    }
    return {**layer, **tensors, "Name": layer["Name"] + mark}
