"""Where the float32 reference itself has no number: what is not judged there, and where it begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.errors import ErrorSums
from precisionlab.model import Layer, Model
from precisionlab.system.wording import counted

_NAMED = 5


@dataclass(frozen=True)
class Undefined:
    """One final output that is NaN or Inf in the reference, in some places of some samples.

    `samples` are those by name, of `of` that there are, and `empty` those of them where it holds no number at all.
    `nan`, `inf` and `finite` count its values over all samples. `tensor` is the first in topological order, on the way
    to this output, that holds a NaN (or an Inf, where no NaN is), and `layer` of `kind` gives it; both are empty where
    none does. `blank` says that the samples that chose, or those held out, hold no number at all.
    """

    output: str
    samples: tuple[str, ...]
    of: int
    empty: tuple[str, ...]
    nan: int
    inf: int
    finite: int
    tensor: str
    layer: str
    kind: str
    blank: bool

    @property
    def brief(self) -> str:
        """What is not judged, in a few words."""
        return (
            f"{self.nan + self.inf} of {self.nan + self.inf + self.finite} values of output {self.output}, in "
            f"{len(self.samples)} of {counted(self.of, 'sample')}, are {self._what} in the float32 reference itself "
            "and are not judged"
        )

    @property
    def text(self) -> str:
        """All of it in one sentence, without a full stop."""
        where = f"{self.nan + self.inf} of {self.nan + self.inf + self.finite} values"
        begins = f", from layer {self.layer} ({self.kind}) on" if self.layer else ""
        rest = "no number is left to compare" if not self.finite else f"only the other {self.finite} are compared"
        said = (
            f"the float32 reference itself has {self._what} in output {self.output}, in {len(self.samples)} of "
            f"{counted(self.of, 'sample')} ({_names(self.samples)}){begins}: {where}; {rest}"
        )
        if self.empty and self.finite:
            said += f"; {counted(len(self.empty), 'sample')} without any number {_judges(len(self.empty))} nothing"
        return said

    @property
    def _what(self) -> str:
        return " and ".join(filter(None, ("NaN" if self.nan else "", "Inf" if self.inf else "")))

    def to_dict(self) -> dict[str, Any]:
        """The JSON object in `run.json`; read back by `from_dict`."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Undefined:
        """What `to_dict` wrote."""
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**fields)


def undefined_outputs(model: Model, parts: Sequence[tuple[Comparison, Sequence[str]]]) -> tuple[Undefined, ...]:
    """The outputs that the reference leaves undefined, in the model's order.

    `parts` are comparisons with the reference over parts of the data, each with the names of its samples.
    """
    comparisons = [comparison for comparison, _ in parts]
    found = []
    for info in model.outputs:
        each = [
            (name, one.errors)
            for comparison, names in parts
            for name, one in zip(names, comparison.each.get(info.name, ()), strict=False)
            if one.errors is not None
        ]
        lost = [(name, errors) for name, errors in each if errors.ref_nonfinite]
        if not lost:
            continue
        nan = sum(errors.ref_nan for _, errors in lost)
        layer, tensor = _begins(model, comparisons, info.name, nan > 0)
        found.append(
            Undefined(
                info.name,
                tuple(sorted(name for name, _ in lost)),
                len(each),
                tuple(sorted(name for name, errors in lost if errors.judges_nothing)),
                nan,
                sum(errors.ref_nonfinite for _, errors in lost) - nan,
                sum(errors.elements for _, errors in each),
                tensor,
                layer.name if layer else "",
                layer.kind if layer else "",
                any(one is not None and one.judges_nothing for one in _totals(comparisons, info.name)),
            )
        )
    return tuple(found)


def _totals(comparisons: Iterable[Comparison], output: str) -> list[ErrorSums | None]:
    return [comparison.outputs[output].errors for comparison in comparisons]


def _begins(model: Model, comparisons: Sequence[Comparison], output: str, nan: bool) -> tuple[Layer | None, str]:
    """The first layer on the way to an output that gives a NaN, or else what is not finite, and which tensor it is."""
    upstream = _upstream(model, output)
    for layer in upstream:
        for tensor in layer.outputs:
            known = [c.inherited[tensor] for c in comparisons if tensor in c.inherited]
            if any(_is_lost(errors, nan) for errors in known):
                return layer, tensor
    return (upstream[-1] if upstream else None), output  # a double's: tensors on the way are not looked at


def _upstream(model: Model, output: str) -> list[Layer]:
    """The layers that an output depends on, in topological order."""
    wanted = {output}
    found = []
    for layer in reversed(model.layers):
        if not wanted.isdisjoint(layer.outputs):
            found.append(layer)
            wanted |= model.taken[layer.name]
    return found[::-1]


def _is_lost(errors: ErrorSums, nan: bool) -> bool:
    return bool(errors.ref_nan if nan else errors.ref_nonfinite)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _judges(count: int) -> str:
    return "judges" if count == 1 else "judge"
