"""Where channels begin that are scaled: at what a product takes; and copies of what makes it, for products alone."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from precisionlab.model import Model
from precisionlab.rewrite.repairs.passing import is_constant
from precisionlab.rewrite.repairs.profiles import BlockedError, Profile, channels

_COPY = "~channels"
_AFFINE = frozenset({"Add", "Sub"})
_FACTORS = frozenset({"Mul", "Div"})
_NORMALISATIONS = frozenset({"LayerNormalization", "RMSNormalization", "BatchNormalization", "InstanceNormalization"})
_CARRIES = frozenset({"Transpose", "Reshape", "Add", "Sub", "Mul", "Div", "Identity"})


def is_copy(name: str) -> bool:
    """Whether a node or tensor of this name is computed a second time."""
    return name.endswith(_COPY)


def original_name(name: str) -> str:
    """What it was copied from; itself where it was not."""
    return name.removesuffix(_COPY)


def copies_in(graph: ir.Graph, original: Model) -> dict[str, str]:
    """The tensors of a repaired graph that are computed a second time, and what they are copies of."""
    made = (str(value.name) for node in graph for value in node.outputs)
    return {name: original_name(name) for name in made if is_copy(name) and name not in original.tensors}


def start_of(product: ir.Node) -> tuple[ir.Value, Profile]:
    """The value whose channels a product sums over, and their profile; of two activations what makes the first.

    Raises BlockedError where its weights are no constants, and what it takes is made of none.
    """
    operands = product.inputs[:2]
    constants = [is_constant(value) for value in operands]
    if len(operands) < 2 or all(constants):
        raise BlockedError
    if not any(constants):
        return _projected(product, operands[0])
    index = constants.index(False)
    value, weights = operands[index], operands[1 - index]
    assert weights is not None
    if value is None or weights.shape is None or len(weights.shape) < 2:
        raise BlockedError
    shape = [int(length) for length in weights.shape if isinstance(length, int)]
    if product.op_type in ("Conv", "ConvTranspose"):
        if index:
            raise BlockedError
        groups = product.attributes["group"].as_int() if "group" in product.attributes else 1
        count = shape[0] if product.op_type == "ConvTranspose" else shape[1] * groups
        return value, channels(count, len(shape) - 2)
    turned = [_is_turned(product, name) for name in ("transA", "transB")]
    # The right operand's rows are summed over, the left one's columns.
    along_rows = (index == 1) != turned[index]
    weights_rows = (index == 0) != turned[1 - index]
    return value, channels(shape[-2 if weights_rows else -1], 1 if along_rows else 0)


def _is_turned(node: ir.Node, name: str) -> bool:
    return node.op_type == "Gemm" and name in node.attributes and bool(node.attributes[name].as_int())


def _projected(product: ir.Node, value: ir.Value | None) -> tuple[ir.Value, Profile]:
    """What a product with constant weights gives that the value is a reshaped form of, as the queries of attention."""
    made = None if value is None else value.producer()
    while made is not None and product.op_type == "MatMul":
        first = made.inputs[0]
        if made.op_type in ("MatMul", "Gemm") and is_constant(made.inputs[1]):
            weights = made.inputs[1]
            assert weights is not None
            assert weights.shape is not None
            length = weights.shape[0 if _is_turned(made, "transB") else -1]
            if not isinstance(length, int):
                raise BlockedError
            return made.outputs[0], channels(length, 0)
        if made.op_type not in _CARRIES:
            break
        carried = made.inputs[1] if is_constant(first) else first
        made = None if carried is None else carried.producer()
    raise BlockedError


def copied(
    graph: ir.Graph, product: ir.Node, products: Collection[str], names: Collection[str] | None = None
) -> ir.Value | None:
    """Have those of the `products` that take the same activation take a copy of it, made by copies of what makes it.

    A normalisation is copied, or a factor with a shift behind it. Returns the copy; None where it is one already.
    Raises BlockedError where something else makes it, or with `names`, where other nodes than these would be copied.
    """
    value, _ = start_of(product)
    if value not in product.inputs:
        raise BlockedError
    if is_copy(str(value.name)):
        return None
    chain = _chain(value)
    taken = {str(node.name) for node in graph}
    if names is not None and {node.name for node in chain} != set(names):
        raise BlockedError
    if any(f"{node.name}{_COPY}" in taken for node in chain):
        raise BlockedError
    uses = [
        (use.node, use.idx)
        for use in value.uses()
        if use.node.name in products and use.idx < 2 and is_constant(use.node.inputs[1 - use.idx])
    ]
    source: ir.Value | None = None
    for node in reversed(chain):
        inputs = list(node.inputs)
        if source is not None:
            inputs[1 if is_constant(inputs[0]) else 0] = source
        copy = ir.Node(
            node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=1, name=f"{node.name}{_COPY}"
        )
        source, old = copy.outputs[0], node.outputs[0]
        source.name, source.type, source.shape = f"{old.name}{_COPY}", old.type, old.shape
        source.meta.update(old.meta)
        graph.insert_after(node, copy)
    assert source is not None
    for node, index in uses:
        node.replace_input_with(index, source)
    return source


def _chain(value: ir.Value) -> list[ir.Node]:
    """What is copied, the last first. Raises BlockedError where scales do not end in it."""
    chain: list[ir.Node] = []
    while True:
        made = value.producer()
        if made is None or made.domain not in ("", "ai.onnx"):
            raise BlockedError
        chain.append(made)
        if made.op_type in _NORMALISATIONS:
            return chain
        constants = [is_constant(operand) for operand in made.inputs]
        if made.op_type not in _AFFINE | _FACTORS or sum(constants) != 1:
            raise BlockedError
        if made.op_type in _FACTORS:
            return chain
        following = made.inputs[constants.index(False)]
        if following is None:
            raise BlockedError
        value = following
