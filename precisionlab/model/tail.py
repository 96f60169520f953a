"""A model's end that was cut off because ONNX Runtime cannot compute it, and how exports get it back."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from precisionlab.system.wording import counted


@dataclass(frozen=True)
class Tail:
    """The nodes that were cut off, in order, and the outputs that the model had with them.

    `strangers` are those that ONNX Runtime has no operator for, as text; `taken` the tensors that are judged instead.
    """

    nodes: tuple[ir.Node, ...]
    outputs: tuple[ir.Value, ...]
    strangers: tuple[str, ...]
    taken: tuple[str, ...]

    @property
    def tensors(self) -> tuple[str, ...]:
        """What the nodes give."""
        return tuple(str(v.name) for node in self.nodes for v in node.outputs if v.name)

    @property
    def text(self) -> str:
        """One sentence for the user."""
        behind = len(self.nodes) - len(self.strangers)
        also = f", and {counted(behind, 'node')} behind" if behind else ""
        return (
            f"{', '.join(self.strangers)}: no operator that ONNX Runtime knows{also}; the model is judged in front of "
            f"it, by what it takes ({', '.join(self.taken)}), and exports have it as it is"
        )


def graft(model: ir.Model, tail: Tail) -> None:
    """Put the nodes back behind the tensors that they take, in place, and give the model its outputs again."""
    values = {str(v.name): v for v in (*model.graph.inputs, *model.graph.initializers.values())}
    values |= {str(v.name): v for node in model.graph for v in node.outputs if v.name}
    for node in tail.nodes:
        for value in node.inputs:
            if value is not None and str(value.name) not in values:
                constant = ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=value.const_value)
                model.graph.register_initializer(constant)
                values[str(value.name)] = constant
        copy = ir.Node(
            node.domain,
            node.op_type,
            [None if v is None else values[str(v.name)] for v in node.inputs],
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=node.name,
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.type, new.shape = old.name, old.type, old.shape
            values[str(old.name)] = new
        model.graph.append(copy)
    model.graph.outputs.clear()
    model.graph.outputs.extend(values[str(v.name)] for v in tail.outputs)
