"""From an ONNX file to TensorRT's network, and what is known of that network's layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnx
from google.protobuf.message import DecodeError

from precisionlab.backends.tensorrt.api import Features
from precisionlab.backends.tensorrt.metadata import NO_NAMES, NodeNames, names_of, network_nodes
from precisionlab.errors import BuildError
from precisionlab.precision import Precision
from precisionlab.system.wording import counted

_DTYPES = {precision.number_format.tensorrt: precision.value for precision in Precision.formats()}
"""TensorRT's names of what we call otherwise; the other types have its names in small letters."""
_OLD_PARSER_OPSET = 17
_LISTED = 10
"""So many of the parser's errors are told in full."""


class Log(Protocol):
    """What TensorRT has said through its logger."""

    @property
    def errors(self) -> tuple[str, ...]:
        """Its errors so far, in order."""
        ...


@dataclass(frozen=True)
class NetworkTensor:
    """What one layer of a network takes or gives.

    `dtype` is `fp32`, `fp16`, `bf16`, `int8`, `int32`, `int64`, `bool`, …. `is_execution` is false for what is only
    computed with on the host: shapes and sizes.
    """

    name: str
    dtype: str
    is_execution: bool = True
    is_network_output: bool = False


@dataclass(frozen=True)
class NetworkLayer:
    """One layer of a network, before the build.

    `kind` is the name of its LayerType, such as `CONVOLUTION`. `nodes` are the ONNX nodes that its metadata names: one,
    or, where that stands in a subgraph or in a model-local function, the nodes round it as well; the last stands in
    the main graph. Constants and the parser's helpers have none.
    """

    index: int
    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[NetworkTensor, ...]
    outputs: tuple[NetworkTensor, ...]

    @property
    def node(self) -> str | None:
        """The node of the main graph that the layer is part of; None where its metadata names none."""
        return self.nodes[-1] if self.nodes else None


class ParsedNetwork:
    """A network, with all that must live as long as it.

    The parser holds the weights that the network refers to, and frees them with itself: keep this object until the
    engine is built. A parser whose network was freed before it brings the process down, so they go in order.
    `warnings` are ours, on what may go wrong later, `names` those of the file's nodes.
    """

    def __init__(
        self, parser: Any, network: Any, builder: Any, logger: Any, warnings: tuple[str, ...], names: NodeNames
    ) -> None:
        # Attributes are freed in the order of their assignment.
        self.parser = parser
        self.network = network
        self.builder = builder
        self.logger = logger
        self.warnings = warnings
        self.names = names

    def __enter__(self) -> ParsedNetwork:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the parser, then of the network. Builder and logger may be used again."""
        self.parser = None
        self.network = None


@dataclass(frozen=True)
class _ParserError:
    """One error of the parser; `node` and `operator` are empty where it belongs to none."""

    description: str
    node: str
    operator: str
    inside: str = ""


def parse(
    trt: Any,
    logger: Any,
    builder: Any,
    path: Path,
    features: Features,
    log: Log | None = None,
    *,
    typed: bool = False,
) -> ParsedNetwork:
    """Read an ONNX file, with external data beside it, into a network.

    With `typed` its types are those of the file, where TensorRT has networks of both kinds. `log` is what `logger`
    hands its messages on to: where the parser is vague, it may tell more. Raises BuildError that says what TensorRT
    does not take, naming the node and its operator.
    """
    # Polygraphy's `network_from_onnx_path` does nearly this, but imports `tensorrt` by itself (this serves TensorRT-RTX
    # as well) and has for all errors one text without the node's name.
    model = _read(path)
    known = () if log is None else log.errors
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH) if features.implicit_batch else 0
    if typed:
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    done = ParsedNetwork(parser, network, builder, logger, _warnings(trt, model, path), names_of(model))
    # From the file, not from its bytes: only so is external data found beside it.
    if not parser.parse_from_file(str(path)):
        said = () if log is None else tuple(line for line in log.errors if line not in known)
        raise BuildError(_refusal(path, _errors(parser, model), said, done.warnings))
    if network.num_layers == 0 or network.num_outputs == 0:
        missing = "no layers" if network.num_layers == 0 else "no outputs"
        raise BuildError(
            f"{path}: TensorRT's parser makes a network with {missing} of it; an output must be computed by a node"
        )
    return done


def describe(network: Any, names: NodeNames = NO_NAMES) -> tuple[NetworkLayer, ...]:
    """All layers of a network, in its order. `names` are those of the file that it was parsed from."""
    return tuple(_layer(network.get_layer(index), index, names) for index in range(network.num_layers))


def _layer(layer: Any, index: int, names: NodeNames) -> NetworkLayer:
    inputs = (layer.get_input(i) for i in range(layer.num_inputs))
    outputs = (layer.get_output(i) for i in range(layer.num_outputs))
    return NetworkLayer(
        index=index,
        name=layer.name,
        kind=layer.type.name,
        nodes=network_nodes(layer.metadata, names),
        inputs=tuple(_tensor(tensor) for tensor in inputs if tensor is not None),  # an optional one is None
        outputs=tuple(_tensor(tensor) for tensor in outputs if tensor is not None),
    )


def _tensor(tensor: Any) -> NetworkTensor:
    name = tensor.dtype.name
    return NetworkTensor(
        name=tensor.name,
        dtype=_DTYPES.get(name, name.lower()),
        is_execution=bool(tensor.is_execution_tensor),
        is_network_output=bool(tensor.is_network_output),
    )


def _read(path: Path) -> onnx.ModelProto:
    """The model without its external data: of a file that is none, TensorRT makes an empty network and says nothing."""
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise BuildError(f"{path}: cannot be read: {error.strerror}") from None
    except (DecodeError, ValueError):
        raise BuildError(f"{path}: not an ONNX model, or cut short (protobuf cannot parse it)") from None
    if not model.graph.node or not model.graph.output:
        raise BuildError(f"{path}: not an ONNX model: it holds no graph with nodes and outputs")
    return model


def _warnings(trt: Any, model: onnx.ModelProto, path: Path) -> tuple[str, ...]:
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    # The parser of 8.6, which has no int64 yet, reads newer operators by the older rules.
    if hasattr(trt.DataType, "INT64") or opset <= _OLD_PARSER_OPSET:
        return ()
    return (
        f"{path.name} has opset {opset}, this TensorRT's parser knows operators up to opset {_OLD_PARSER_OPSET}; "
        f"export the model with opset {_OLD_PARSER_OPSET}, or use a newer TensorRT",
    )


def _errors(parser: Any, model: onnx.ModelProto) -> tuple[_ParserError, ...]:
    return tuple(_error(parser.get_error(index), model) for index in range(parser.num_errors))


def _error(error: Any, model: onnx.ModelProto) -> _ParserError:
    if hasattr(error, "node_name"):
        inside = ", in ".join(reversed(error.local_function_stack())) if error.local_function_stack_size() else ""
        return _ParserError(error.desc(), error.node_name(), error.node_operator(), inside)
    # 8.6 tells only the node's place in the file.
    index = error.node()
    if not 0 <= index < len(model.graph.node):
        return _ParserError(error.desc(), "", "")
    node = model.graph.node[index]
    return _ParserError(error.desc(), node.name or f"node_of_{next(iter(node.output), '')}", node.op_type)


def _refusal(path: Path, errors: Sequence[_ParserError], said: Sequence[str], hints: Sequence[str]) -> str:
    """The sentence that tells why the model was refused."""
    texts = list(dict.fromkeys(_sentence(error, said) for error in errors[:_LISTED]))
    if len(errors) > _LISTED:
        texts.append(f"and {counted(len(errors) - _LISTED, 'error')} more")
    if not texts:
        texts = list(said) or ["it does not say why"]
    return f"{path}: TensorRT's parser refuses the model: {'; '.join([*texts, *hints])}"


def _sentence(error: _ParserError, said: Sequence[str]) -> str:
    """One error in our words."""
    what = _plain(error.description)
    where = f"node {error.node!r} ({error.operator})" if error.node else error.operator and f"a {error.operator} node"
    if error.inside:
        where = f"{where} in {error.inside}"
    if "Failed to import initializer" in error.description:
        # Where the data was looked for stands in the logger's line alone.
        files = [line.partition("Failed to open file: ")[2].strip() for line in said if "Failed to open file: " in line]
        name = what.rpartition("Failed to import initializer:")[2].strip(" .")
        data = f"; its data cannot be read from {files[0]}, put that file there" if files else ""
        return f"the initializer {name or 'of some node'} cannot be imported{data}"
    if not where:
        return what
    if "Plugin not found" in error.description:
        return (
            f"{where} is no operator that this TensorRT knows, and no plugin of that name is loaded; "
            "load the plugin's library with --plugins, or replace the operator"
        )
    if what in ("", "false"):
        return f"{where} is not supported by this TensorRT; replace the operator"
    return f"{where}: {what}"


def _plain(description: str) -> str:
    """What an error says to whoever does not read the parser's source: of `condition && "text"` the text."""
    text = " ".join(description.split())
    if (macro := re.fullmatch(r'.*&& "(.*)"', text)) is not None:
        return macro.group(1)
    # Where in TensorRT's own source it was found helps nobody.
    return re.sub(r" ?\(?In \w+ at /\S+?:\d+\)?", "", text)
