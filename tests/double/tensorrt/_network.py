"""The network: tensors and layers, as the parser leaves them and users constrain them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ._interfaces import DataType, LayerType, NetworkDefinitionCreationFlag, TensorLocation
from ._settings import settings

Shape = tuple[int, ...]


class ITensor:
    """A tensor; `is_execution_tensor` is false for what the host computes (shapes)."""

    def __init__(self, name: str, dtype: DataType, shape: Shape, on_host: bool = False) -> None:
        self.name, self._dtype, self.shape = name, dtype, shape
        self.location = TensorLocation.HOST if on_host else TensorLocation.DEVICE
        self.is_execution_tensor = not on_host
        self.is_shape_tensor = on_host
        self.allowed_formats = 1
        self.is_network_input = False
        self.is_network_output = False

    @property
    def dtype(self) -> DataType:
        return self._dtype

    @dtype.setter
    def dtype(self, value: DataType) -> None:
        """Of a tensor that is no input and no output the type stays as it is."""
        if self.is_network_input or self.is_network_output:
            self._dtype = value


class ILayer:
    """A layer, and the constraints on it."""

    def __init__(
        self,
        name: str,
        kind: LayerType,
        metadata: str,
        inputs: Sequence[ITensor],
        outputs: Sequence[ITensor],
        node: str | None,
    ) -> None:
        self.name, self.type, self.metadata = name, kind, metadata
        self._node = node
        """The node of the main graph that it is part of: what metadata says of that is not always the whole of it."""
        self._inputs, self._outputs = list(inputs), list(outputs)
        self._precision: DataType | None = None
        self._output_types: dict[int, DataType] = {}

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_input(self, index: int) -> ITensor | None:
        return self._inputs[index]

    def get_output(self, index: int) -> ITensor | None:
        return self._outputs[index]

    @property
    def precision(self) -> DataType:
        return self._precision or DataType.FLOAT

    @precision.setter
    def precision(self, value: DataType) -> None:
        self._precision = value

    @property
    def precision_is_set(self) -> bool:
        return self._precision is not None

    def reset_precision(self) -> None:
        self._precision = None

    def set_output_type(self, index: int, dtype: DataType) -> None:
        self._output_types[index] = dtype

    def get_output_type(self, index: int) -> DataType:
        return self._output_types.get(index, self._outputs[index].dtype)

    def output_type_is_set(self, index: int) -> bool:
        return index in self._output_types

    def reset_output_type(self, index: int) -> None:
        self._output_types.pop(index, None)


@dataclass
class _Parts:
    layers: list[ILayer] = field(default_factory=list)
    inputs: list[ITensor] = field(default_factory=list)
    outputs: list[ITensor] = field(default_factory=list)
    debug: list[str] = field(default_factory=list)
    unfused: bool = False
    content: bytes = b""
    """The ONNX model that it was parsed from, with all its data: the double computes by it."""


class INetworkDefinition:
    """A network; only a parser fills it."""

    def __init__(self, is_typed: bool = False) -> None:
        self._parts = _Parts()
        self._is_typed = is_typed

    def get_flag(self, flag: NetworkDefinitionCreationFlag) -> bool:
        return self._is_typed if flag is NetworkDefinitionCreationFlag.STRONGLY_TYPED else True

    @property
    def num_layers(self) -> int:
        return len(self._parts.layers)

    @property
    def num_inputs(self) -> int:
        return len(self._parts.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._parts.outputs)

    def get_layer(self, index: int) -> ILayer:
        return self._parts.layers[index]

    def get_input(self, index: int) -> ITensor:
        return self._parts.inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self._parts.outputs[index]

    def mark_output(self, tensor: ITensor) -> None:
        tensor.is_network_output = True
        self._parts.outputs.append(tensor)

    def mark_debug(self, tensor: ITensor) -> bool:
        if tensor.name in settings().get("no_debug", ()):
            return False
        self._parts.debug.append(tensor.name)
        return True

    def mark_unfused_tensors_as_debug_tensors(self) -> bool:
        if settings().get("unfused") == "refused":
            return False
        self._parts.unfused = True
        return True
