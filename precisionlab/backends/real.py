"""Layers in real low precision, beside the float32 reference: by ONNX Runtime's CUDA provider, integers by its CPU's.

What the emulation is held against on a machine without TensorRT. Nothing is optimised: each node is the provider's own
kernel, and no Cast is moved or left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from precisionlab.backends.base import Backend, Collector, Evaluation, SensitivityRequest
from precisionlab.backends.cuda.session import PROVIDER, load_libraries
from precisionlab.backends.device import parse_device
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.refusals import why_not_loaded, why_not_run
from precisionlab.backends.runner import side_by_side
from precisionlab.backends.session import serialized
from precisionlab.compare.errors import ErrorTable
from precisionlab.compare.gather import SampleResult
from precisionlab.compare.judged import judged_errors
from precisionlab.compare.judging import Judging
from precisionlab.compare.sensitivity import Toggled
from precisionlab.data import Sample
from precisionlab.errors import EngineError, ModelError, OptionError
from precisionlab.model import Layer, Model
from precisionlab.model.expression import RAISED
from precisionlab.plan.assign import check_opset, precision_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.builder import GraphBuilder
from precisionlab.rewrite.observe import (
    Flow,
    Key,
    Segment,
    cut,
    observed_rows,
    row_formats,
    segments,
)
from precisionlab.rewrite.real import IntegerCopier, RealCopier
from precisionlab.rewrite.real_float8 import OPSET, product, rows_in_float8
from precisionlab.rewrite.real_refusals import unsupported

CPU = "cpu"
NOT_REAL = "ONNX Runtime's CPU provider computes half in float32 or in half, as the processor goes"
_SEGMENT = 256 * 1024**2
"""Bytes of one sample's values that a graph shows; what it holds besides is the GPU's."""

Values = dict[Key, NDArray[Any]]


@dataclass(frozen=True)
class RealDevice:
    """Where layers are run: `cpu`, or a GPU by its number."""

    number: int | None

    @property
    def name(self) -> str:
        """As it is written in options."""
        return CPU if self.number is None else f"cuda:{self.number}"

    @property
    def providers(self) -> list[Any]:
        """As ONNX Runtime is told it, which adds its CPU provider. float32 stays float32: TF32 is off."""
        if self.number is None:
            return ["CPUExecutionProvider"]
        options = {"device_id": str(self.number), "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        return [(PROVIDER, options)]


def real_device(text: str) -> RealDevice:
    """The device of this name. Raises OptionError for anything but cpu, cuda and cuda:N."""
    return RealDevice(parse_device(text.strip().lower()))


def check_real(precision: Precision, device: RealDevice) -> None:
    """Raises OptionError where the device does not compute in the precision."""
    if precision.is_weight_only:
        raise OptionError(f"{precision} is for weights alone, with products in floats; leave {precision} out")
    if not precision.is_low_float and not is_float8(precision):
        return
    if device.number is None:
        how = "has no products in it" if is_float8(precision) else "computes most of it in float32"
        raise OptionError(
            f"{precision} is not real on the cpu, where ONNX Runtime {how}; use --device "
            "cuda:0 on a machine with an NVIDIA GPU, or --precisions int8"
        )
    if PROVIDER not in ort.get_available_providers():
        raise OptionError(
            f"{precision} needs a GPU, and this ONNX Runtime has no CUDA provider (its CPU provider computes half "
            "mostly in float32, which is not real); install onnxruntime-gpu on a machine with an NVIDIA GPU, or use "
            "--precisions int8"
        )


def is_float8(precision: Precision) -> bool:
    """Whether products of it are those of eight-bit floats, which a GPU has or has not; integers a CPU has too."""
    return precision.is_quantized and not precision.number_format.is_uniform


def check_float8(device: RealDevice) -> None:
    """Raises OptionError where the GPU, or ONNX Runtime for it, has no products of E4M3."""
    builder = GraphBuilder(ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}), ir_version=9))
    like = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([16, 16]))
    rows = rows_in_float8(builder, builder.input(like, "x", ir.DataType.FLOAT), np.float32(1), 16)
    try:
        session = RealSession(_bytes(builder.model([product(builder, rows, rows, 16, "y")])), device, optimised=False)
        session.run({"x": np.ones((16, 16), np.float32)})
    except ModelError as error:
        raise OptionError(
            f"{Precision.FP8} is not real on {device.name}: products of E4M3 need a GPU of compute capability 8.9 or "
            f"newer and an onnxruntime-gpu with GemmFloat8; leave fp8 out of --precisions ({error})"
        ) from None


class RealSession:
    """One graph on one device. Raises ModelError where ONNX Runtime cannot load it."""

    def __init__(self, content: bytes | str, device: RealDevice, *, optimised: bool, alone: bool = False) -> None:
        """`content` is the model or its path. `alone` refuses nodes that the GPU has no kernel for."""
        if device.number is not None:
            load_libraries()
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1 if device.number is None and not optimised else 0
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
        if alone and device.number is not None:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            with warnings.catch_warnings():  # of a provider that is not there; that is an error below
                warnings.simplefilter("ignore")
                # Where a kernel fails, ONNX Runtime would start again on the CPU, and not say so in its results.
                self._session = ort.InferenceSession(
                    content, options, providers=device.providers, enable_fallback=False
                )
        except RAISED as error:
            raise ModelError(f"ONNX Runtime cannot load the model on {device.name}: {why_not_loaded(error)}") from None
        if device.number is not None and PROVIDER not in self._session.get_providers():
            raise EngineError(
                f"ONNX Runtime cannot use {device.name}: its CUDA provider does not start; CUDA, cuDNN and driver must "
                "be those that its version asks for"
            )
        self.outputs = [info.name for info in self._session.get_outputs()]
        self._device = device

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs by name."""
        if not self.outputs:
            return {}
        try:
            values = self._session.run(self.outputs, dict(feeds))
        except RAISED as error:
            told = f"ONNX Runtime cannot run the model on {self._device.name}: {why_not_run(error)}"
            raise ModelError(told) from None
        return dict(zip(self.outputs, values, strict=True))


class RealBackend(Backend):
    """Runs each layer in the precision itself, and compares it with the float32 reference on the same device.

    Layers that cannot be had so (`unsupported`) are refused: a plan has to keep them in float32.
    """

    name = "real"
    figures = "measured"

    def __init__(self, emulation: OnnxRuntimeBackend, device: RealDevice) -> None:
        """`emulation` has the model at the shapes of the data."""
        self.model = emulation.model
        self.threads = min(4, emulation.threads) if device.number is not None else emulation.threads
        self.device = device
        self._emulation = emulation
        self._kernels: dict[tuple[Any, ...], str | None] = {}

    def unsupported(self, plan: PrecisionPlan) -> dict[str, str]:
        """Layer → why it cannot be run in the plan's precision here, for those that cannot."""
        found = unsupported(self.model, plan)
        for layer in self.model.layers:
            precision = precision_of(layer, plan)
            if precision.is_low_float and self.device.number is None and layer.fixed is None:
                found[layer.name] = NOT_REAL  # such as an island of the model's own
            elif precision.is_low_float and layer.name not in found and self.device.number is not None:
                reason = self._lacking(layer, precision)
                if reason is not None:
                    found[layer.name] = reason
        return found

    def collector(self, tensors: Sequence[str]) -> Collector:
        """Takes the histograms from the emulation's reference passes."""
        return self._emulation.collector(tensors)

    def toggled(self, request: SensitivityRequest, samples: Iterable[Sample]) -> Iterator[Toggled]:
        """Raises EngineError: nothing is ranked by real layers."""
        raise EngineError("layers are toggled in the emulation alone; rank there")

    def results(self, evaluation: Evaluation, samples: Iterable[Sample]) -> Iterator[SampleResult]:
        """Reference, variant and where it is asked for each layer alone, in graphs beside each other."""
        check_opset(self.model.onnx, evaluation.plan)
        flows = tuple(dict.fromkeys((Flow.REFERENCE, *evaluation.flows)))
        parts = cut(self.model, len(flows), _SEGMENT)
        judging, model = evaluation.judging, evaluation.judging.watched(self.model)
        copies = IntegerCopier if self.device.number is None else RealCopier
        copier = partial(copies, arithmetic=evaluation.arithmetic)
        found = segments(model, evaluation.plan, evaluation.table, parts, flows, flows, copier)
        ready = [(part, RealSession(_bytes(part.graph), self.device, optimised=False)) for part in found]
        rows = observed_rows(self.model, evaluation.plan, evaluation.flows)
        formats = row_formats(self.model, evaluation.plan, (name for _, name in rows))

        def through(sample: Sample) -> SampleResult:
            return _through(ready, rows, ErrorTable(len(rows), formats), judging, sample)

        return side_by_side(through, samples, self.threads)

    def _lacking(self, layer: Layer, precision: Precision) -> str | None:
        """Which node of the layer the device has no kernel for in the precision; asked once for each kind of node."""
        for name in layer.nodes:
            node = self.model.node[name]
            types = tuple(
                None if v is None else getattr(self.model.tensors.get(str(v.name)), "dtype", None) for v in node.inputs
            )
            ranks = tuple(None if v is None or v.shape is None else v.shape.rank() for v in node.inputs)
            key = (node.domain, node.op_type, precision, types, ranks)
            if key not in self._kernels:
                self._kernels[key] = self._refusal(node, layer, precision)
            if self._kernels[key] is not None:
                return self._kernels[key]
        return None

    def _refusal(self, node: ir.Node, layer: Layer, precision: Precision) -> str | None:
        content = _bytes(_lone(self.model, node, precision))
        try:
            RealSession(content, self.device, optimised=False, alone=True)
        except ModelError:
            return f"ONNX Runtime has no kernel of {node.op_type} in {precision} on {self.device.name}"
        return None


def _lone(model: Model, node: ir.Node, precision: Precision) -> ir.Model:
    """A graph of this node alone, in the precision."""
    from precisionlab.model.layers import layer_of

    builder = GraphBuilder(model.onnx)
    layer = layer_of([node], None, model.tensors)
    source = {
        model.values[name]: builder.input(model.values[name], name, model.tensors[name].dtype)
        for name in sorted(model.taken_by(layer))
    }
    given = RealCopier(builder, model, None).copy(layer, source, precision, Precision.FP32, "")
    return builder.model(given.values())


def _through(
    ready: Sequence[tuple[Segment, RealSession]],
    rows: Mapping[Key, int],
    sums: ErrorTable,
    judging: Judging,
    sample: Sample,
) -> SampleResult:
    """One sample through all graphs; only `sums` are kept, in which each observed tensor has its row."""
    state: Values = {(Flow.REFERENCE, name): array for name, array in sample.inputs.items()}
    last = {key: index for index, (part, _) in enumerate(ready) for key in part.feeds.values()}
    pairs: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
    for index, (part, session) in enumerate(ready):
        values = session.run({name: state[key] for name, key in part.feeds.items()})
        state.update((part.fetches[name], value) for name, value in values.items())
        for name in part.observed:
            true = state[Flow.REFERENCE, name]
            for flow in (Flow.VARIANT, Flow.ALONE):
                if (flow, name) in rows:
                    sums.add(rows[flow, name], true, state.get((flow, name), true))
        for name in judging.names:
            if (Flow.REFERENCE, name) in state:
                true = state[Flow.REFERENCE, name]
                pairs[name] = (true, state.get((Flow.VARIANT, name), true))
        state = {key: value for key, value in state.items() if last.get(key, -1) > index}
    values_of = ({name: true for name, (true, _) in pairs.items()}, {name: low for name, (_, low) in pairs.items()})
    errors = judged_errors(judging, *values_of)
    return SampleResult(sums, errors, values_of, sample.label)


def run_whole(path: str, device: RealDevice) -> RealSession:
    """A model as ONNX Runtime makes the most of it, with all its optimisations."""
    return RealSession(path, device, optimised=True)


def _bytes(graph: ir.Model) -> bytes:
    for value in graph.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):  # its file cannot be found from inside the protobuf
            value.const_value = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=value.name)
    return serialized(graph)
