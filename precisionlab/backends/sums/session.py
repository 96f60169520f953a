"""A graph with products whose sums are kept in half: ONNX Runtime runs what lies between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.backends.session import contents_of
from precisionlab.model.flow import outer_values
from precisionlab.rewrite.sums import Part, constants_of, is_product, part_of, steps_of


class TypedRunning(Protocol):
    """A graph that is ready to run, and tells the element types of what it gives."""

    @property
    def types(self) -> Mapping[str, ir.DataType | None]:
        """The element type of each output; None where it is no tensor."""
        ...

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """All outputs by name."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def has_products(graph: ir.Model) -> bool:
    """Whether some of the graph's nodes are such products."""
    return any(is_product(node) for node in graph.graph)


@dataclass(frozen=True)
class _Product:
    """One product: its operands' names, or the constants in their place, and how what it gives is called."""

    work: Callable[[Any, Any], Any]
    operands: tuple[str, ...]
    constants: Mapping[str, Any]
    output: str

    def run(self, state: Mapping[str, Any]) -> Any:
        first, second = (self.constants[name] if name in self.constants else state[name] for name in self.operands)
        return self.work(first, second)


@dataclass(frozen=True)
class _Ready:
    """One step, ready to run; `done` are the values that nobody needs behind it.

    `session` is None where no node's value is needed: ONNX Runtime takes no empty graph.
    """

    part: Part
    session: TypedRunning | None
    products: tuple[_Product, ...]
    done: tuple[str, ...]


class HalfSumsSession:
    """One graph in steps, ready to run. `open_session` makes the sessions of what ONNX Runtime runs.

    `product_of` gives what computes a product, `settle` waits for those that are queued. Raises what `open_session`
    does.
    """

    def __init__(
        self,
        graph: ir.Model,
        open_session: Callable[[ir.Model], TypedRunning],
        product_of: Callable[[ir.Node], Callable[[Any, Any], Any]],
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self._settle = settle
        self.outputs = [str(value.name) for value in graph.graph.outputs]
        constants = constants_of(graph.graph)
        steps = steps_of(graph.graph, constants)
        operands = _constant_operands(graph, constants, open_session)
        types = {str(v.name): v.dtype for v in graph.graph.inputs if v.dtype is not None}
        last = {value: i for i, step in enumerate(steps) for value in _needed((*step.nodes, *step.products))}
        last.update(dict.fromkeys(graph.graph.outputs, len(steps)))
        made: set[ir.Value] = set()
        self._steps: list[_Ready] = []
        for index, step in enumerate(steps):
            now = _needed(step.products)
            outputs = (value for node in step.nodes for value in node.outputs)
            given = [value for value in outputs if value in now or last.get(value, -1) > index]
            if index == 0:  # constants that are final outputs
                given += [value for value in dict.fromkeys(graph.graph.outputs) if value in constants]
            part = part_of(graph, step.nodes, given, constants, types)
            session = open_session(part.graph) if given else None
            if session is not None:
                types.update((name, kind) for name, kind in session.types.items() if kind is not None)
            products = []
            for node in step.products:
                product = _product(node, operands, product_of(node))
                types[product.output] = types.get(product.operands[0], ir.DataType.FLOAT)
                products.append(product)
            made.update(given, (value for node in step.products for value in node.outputs))
            done = {value for value in made if last.get(value, -1) <= index}
            made -= done
            names = tuple(str(value.name) for value in done)
            self._steps.append(_Ready(part, session, tuple(products), names))

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """All outputs by name."""
        state = dict(feeds)
        for step in self._steps:
            if step.session is not None:
                state.update(step.session.run({name: state[name] for name in step.part.feeds}))
            for product in step.products:
                state[product.output] = product.run(state)
            self._settle()
            for name in step.done:
                state.pop(name, None)
        return {name: state[name] for name in self.outputs}

    def close(self) -> None:
        """Let go of all its graphs."""
        for step in self._steps:
            if step.session is not None:
                step.session.close()
        self._steps = []


def _needed(nodes: Sequence[ir.Node]) -> set[ir.Value]:
    return {value for node in nodes for value in (*node.inputs, *outer_values(node)) if value is not None}


def _product(node: ir.Node, operands: Mapping[str, Any], work: Callable[[Any, Any], Any]) -> _Product:
    names = tuple(str(value.name) for value in node.inputs if value is not None)
    own = {name: operands[name] for name in names if name in operands}
    return _Product(work, names, own, str(node.outputs[0].name))


def _constant_operands(
    graph: ir.Model, constants: set[ir.Value], open_session: Callable[[ir.Model], TypedRunning]
) -> dict[str, Any]:
    """What the products take that is the same in every run, computed once."""
    wanted = [
        value
        for value in dict.fromkeys(v for node in graph.graph if is_product(node) for v in node.inputs)
        if value is not None and value in constants
    ]
    held = [value for value in wanted if value.const_value is not None]
    tensors = [value.const_value for value in held if value.const_value is not None]
    found: dict[str, Any] = {str(v.name): array for v, array in zip(held, contents_of(tensors), strict=True)}
    if computed := [value for value in wanted if value.const_value is None]:
        session = open_session(part_of(graph, (), computed, constants, {}).graph)
        found.update((name, _on_host(value)) for name, value in session.run({}).items())
        session.close()
    return found


def _on_host(value: Any) -> NDArray[Any]:
    """A copy in this process's memory of what a session gave."""
    copied: NDArray[Any] = value.copy() if isinstance(value, np.ndarray) else value.host()
    return copied
