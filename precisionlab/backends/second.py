"""A second model beside the first, on every sample: each tensor that has a twin, and each given the first's values.

Both run as they are written, node by node, so that the same graph gives the same bits. In a copy of the second graph
every twin is cut: what comes behind takes the first model's value instead of its own. So what a tensor has lost there
was lost since the nearest twins ahead of it, as a layer's introduced error is in a sweep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from precisionlab.backends.beside import Both, OtherFailsError, given_by, other_session, side_by_side
from precisionlab.backends.session import AS_WRITTEN, Session
from precisionlab.compare.comparison import Comparison, Spreads
from precisionlab.compare.errors import ErrorSums, ErrorTable
from precisionlab.compare.gather import Gathering, SampleResult
from precisionlab.compare.judged import judged_errors
from precisionlab.compare.judging import Judging
from precisionlab.compare.task import Outputs, TaskMetric
from precisionlab.data import Dataset, Sample
from precisionlab.data.convert import LostValueError, convert
from precisionlab.errors import ModelError
from precisionlab.model import Model
from precisionlab.model.lift import OWN
from precisionlab.model.other import OtherModel
from precisionlab.model.twins import Twin, Twins
from precisionlab.precision import Format, Precision

_ENDING = ":taken"
_COPIES = 3
"""Of each tensor: the first model's value, the second's, and the second's given the first's."""


@dataclass(frozen=True)
class Group:
    """Twins that are looked at in one pass, and the graphs that show them.

    `taken` are the tensors, ours → the input of the cut graph that takes their values; `kept` the second model's own
    inputs that it takes still.
    """

    twins: tuple[Twin, ...]
    first: ir.Model
    second: ir.Model
    cut: ir.Model
    taken: Mapping[str, str]
    kept: frozenset[str]


class SecondRun:
    """The comparison of the twins of two models on the same samples."""

    def __init__(self, model: Model, other: OtherModel, twins: Twins, judging: Judging, threads: int) -> None:
        """`model` has the shapes of the data; the float outputs of its layers are compared."""
        self._model, self._other, self._twins, self._threads = model, other, twins, threads
        self._judging = judging
        self._made_by = {name: layer for layer in model.layers for name in layer.outputs}
        shown = dict.fromkeys(name for layer in model.layers for name in layer.outputs)
        self.twins = tuple(twins.tensors[n] for n in shown if n in twins.tensors and _is_float(model, n))
        self._cuts = tuple(twins.tensors[n] for n in shown if n in twins.tensors and self._is_given(n))

    def _is_given(self, name: str) -> bool:
        """Whether what comes behind a twin is given the first model's value: floats, and others of one type.

        Indices too: rows that are picked otherwise were picked ahead of what takes them.
        """
        kind = self._model.tensors[name].dtype
        is_same = kind == self._other.types.get(self._twins.tensors[name].read)
        return _is_float(self._model, name) or (is_same and kind not in (None, ir.DataType.STRING))

    @property
    def _names(self) -> dict[str, str]:
        """Ours → what is compared with it, of all that may be judged."""
        return {twin.ours: twin.read for twin in (*self._twins.tensors.values(), *self._twins.outputs)}

    def compare(
        self,
        samples: Dataset,
        metric: Callable[[], TaskMetric] | None,
        budget: int,
        stage: Callable[[int, int], None],
        advance: Callable[[int], None],
        shown: Callable[[Outputs, Outputs], None] = lambda first, second: None,
    ) -> Comparison:
        """Run both on all samples, with at most about `budget` bytes of one sample's values at a time.

        `stage` is told of each pass and of how many; `advance` of the samples done in it,
        and `shown` of what is judged of each sample, by the first model's names. Raises ModelError where the
        first or the second cannot be run, with the second's path.
        """
        started = time.perf_counter()
        parts = list(_parted(self.twins, self._model, budget))
        gathered = []
        for number, part in enumerate(parts, 1):
            stage(number, len(parts))
            group = self._group(part, is_first=number == 1)
            gathering = Gathering(2 * len(part), metric if number == 1 else None)
            for result in self._results(group, samples, is_first=number == 1):
                advance(gathering.add(result))
                if result.values is not None:
                    shown(*result.values)
            gathered.append((part, gathering))
        inherited, introduced, spreads = _statistics(gathered)
        broken = self._broken(inherited, introduced)
        seconds = time.perf_counter() - started
        return gathered[0][1].comparison(inherited, introduced, broken, seconds, spreads)

    def _results(self, group: Group, samples: Dataset, is_first: bool) -> Iterator[SampleResult]:
        alone: Session | None = None
        formats = [held_in(self._other.types[twin.read]) for twin in group.twins]
        try:
            for both in side_by_side(group.first, group.second, samples, self._threads, AS_WRITTEN, self._fed):
                if alone is None:
                    alone = other_session(group.cut, self._threads, AS_WRITTEN)
                own = given_by(alone, both.sample, self._cut_feeds(group, both))
                table = ErrorTable(2 * len(group.twins), [*formats, *formats])
                for row, twin in enumerate(group.twins):
                    true = both.wanted[twin.ours]
                    table.add(row, true, _like(both.given[twin.read], true))
                    table.add(row + len(group.twins), true, _like(own[twin.read], true))
                yield self._judged(both, table) if is_first else SampleResult(table, {}, None, None)
        except OtherFailsError as error:
            on = "" if error.sample is None else f"on sample {error.sample.name}, "
            raise ModelError(f"{self._other.path}: {on}{error}") from None
        finally:
            if alone is not None:
                alone.close()

    def _judged(self, both: Both, table: ErrorTable) -> SampleResult:
        names = self._names
        wanted = {name: both.wanted[name] for name in self._judging.names if name in both.wanted}
        given = {
            name: _like(both.given[names[name]], true)
            for name, true in wanted.items()
            if name in names and names[name] in both.given
        }
        return SampleResult(table, judged_errors(self._judging, wanted, given), (wanted, given), both.sample.label)

    def _fed(self, sample: Sample) -> Mapping[str, Any]:
        """What the second model's inputs are."""
        return {
            twin.theirs: self._converted(sample.inputs[twin.ours], twin.theirs, sample) for twin in self._twins.inputs
        }

    def _cut_feeds(self, group: Group, both: Both) -> dict[str, Any]:
        own = {name: value for name, value in self._fed(both.sample).items() if name in group.kept}
        theirs = {twin.ours: twin.read for twin in self._cuts}
        taken = {
            into: self._converted(both.wanted[name], theirs[name], both.sample) for name, into in group.taken.items()
        }
        return {**own, **taken}

    def _converted(self, value: Any, theirs: str, sample: Sample) -> Any:
        """A value as the second model's tensor holds it: half is rounded, and float32 again, as it is computed."""
        kind = self._other.types.get(theirs)
        if not isinstance(value, np.ndarray) or kind is None:
            return value
        with np.errstate(over="ignore"):
            if kind in OWN:
                return value.astype(kind.numpy()).astype(np.float32)
            if kind.is_floating_point() and value.dtype.kind == "f":
                return value.astype(kind.numpy())
        try:
            return convert(value, kind.numpy()).array
        except LostValueError as error:
            raise ModelError(
                f"{self._other.path}: input {theirs!r} takes {kind.name}, of sample {sample.name} it is "
                f"{value.dtype}, {error}; export it with the first model's type"
            ) from None

    def _group(self, part: Sequence[Twin], is_first: bool) -> Group:
        """The graphs of a pass; the first pass shows all that is judged, too."""
        cut, taken, kept = _cut(self._other.onnx, self._cuts, [twin.read for twin in part], self._other.types)
        ours = dict.fromkeys([twin.ours for twin in part] + list(taken))
        theirs = dict.fromkeys(twin.read for twin in part)
        if is_first:
            ours |= dict.fromkeys(self._judging.names)
            theirs |= dict.fromkeys(self._names[name] for name in self._judging.names if name in self._names)
        return Group(tuple(part), showing(self._model.onnx, ours), showing(self._other.onnx, theirs), cut, taken, kept)

    def _broken(self, inherited: Mapping[str, ErrorSums], introduced: Mapping[str, ErrorSums]) -> tuple[str, ...]:
        """The tensors with a NaN or Inf that no rounding gives, as `broken_tensors` has them of a plan.

        Every new NaN, an Inf of the reference that is gone, and an Inf that a layer gives of the reference's own values
        where its type could hold the reference's.
        """
        return tuple(
            name
            for name, errors in inherited.items()
            if errors.new_nan
            or errors.inf_mismatch
            or (errors.unforced_inf and introduced[name].unforced_inf and not self._rounds_to_inf(name, inherited))
        )

    def _rounds_to_inf(self, name: str, known: Mapping[str, ErrorSums]) -> bool:
        """Whether the nearest twins ahead have values that their types there cannot hold: those are Inf by rounding."""
        types = {twin.ours: self._other.types.get(twin.read) for twin in self.twins}
        waiting, seen = [self._made_by[name]], set[str]()
        while waiting:
            for taken in self._model.taken[waiting.pop().name] - seen:
                seen.add(taken)
                if taken in known:
                    if known[taken].max_ref >= held_in(types[taken]).overflowing:
                        return True
                elif taken in self._made_by:
                    waiting.append(self._made_by[taken])
        return False


def held_in(kind: ir.DataType | None) -> Format:
    """The format of a tensor of this element type; float32 for what is none of ours."""
    return next((p.number_format for p in Precision.floats() if p.number_format.element == kind), _FLOAT32)


_FLOAT32 = Precision.FP32.number_format


def showing(model: ir.Model, names: Collection[str]) -> ir.Model:
    """A copy whose outputs are these tensors of the main graph, and that computes nothing else."""
    shown = model.clone()
    given = {str(value.name): value for value in (*shown.graph.inputs, *shown.graph.initializers.values())}
    given |= {str(v.name): v for node in shown.graph for v in node.outputs if v.name}
    shown.graph.outputs.clear()
    shown.graph.outputs.extend(given[name] for name in names)
    passes.RemoveUnusedNodesPass()(shown)
    return shown


def _cut(
    model: ir.Model, twins: Sequence[Twin], wanted: Sequence[str], types: Mapping[str, ir.DataType | None]
) -> tuple[ir.Model, dict[str, str], frozenset[str]]:
    """A copy that gives what is wanted, and takes each twin's value as an input wherever it is used."""
    cut = model.clone()
    made = {str(v.name): v for node in cut.graph for v in node.outputs if v.name}
    for twin in twins:
        values = [made[name] for name in twin.taken or (twin.theirs,) if name in made]
        uses = [use for value in values for use in value.uses()]
        if uses:
            kind = types.get(twin.read)
            dtype = ir.DataType.FLOAT if kind is None or kind in OWN else kind  # half is computed in float32
            taken = ir.Value(name=f"{twin.theirs}{_ENDING}", type=ir.TensorType(dtype))
            for use in uses:
                use.node.replace_input_with(use.idx, taken)
            cut.graph.inputs.append(taken)
    cut.graph.outputs.clear()
    cut.graph.outputs.extend(made[name] for name in wanted)
    passes.RemoveUnusedNodesPass()(cut)
    inputs = [value for value in cut.graph.inputs if value.uses()]
    cut.graph.inputs.clear()
    cut.graph.inputs.extend(inputs)
    names = {str(value.name) for value in inputs}
    taken_by = {twin.ours: into for twin in twins if (into := f"{twin.theirs}{_ENDING}") in names}
    return cut, taken_by, frozenset(names - set(taken_by.values()))


def _parted(twins: Sequence[Twin], model: Model, budget: int) -> Iterator[tuple[Twin, ...]]:
    """Twins in the model's order, as many at a time as the budget has room for; one part at least."""
    part: list[Twin] = []
    size = 0
    for twin in twins:
        need = 4 * _COPIES * (model.tensors[twin.ours].elements or 0)
        if part and size + need > budget:
            yield tuple(part)
            part, size = [], 0
        part.append(twin)
        size += need
    yield tuple(part)


def _statistics(
    gathered: Sequence[tuple[tuple[Twin, ...], Gathering]],
) -> tuple[dict[str, ErrorSums], dict[str, ErrorSums], Spreads]:
    sums: tuple[dict[str, ErrorSums], dict[str, ErrorSums]] = ({}, {})
    spreads: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for part, gathering in gathered:
        for flow in (0, 1):
            rows = {twin.ours: row + flow * len(part) for row, twin in enumerate(part)}
            sums[flow].update((name, gathering.layers.row(row)) for name, row in rows.items())
            spreads[flow].update(gathering.spreads(rows))
    return *sums, Spreads(*spreads)


def _like(value: Any, true: Any) -> Any:
    """The second model's value in the type of the first's, where both are whole numbers, or floats of another size."""
    if not isinstance(value, np.ndarray) or not isinstance(true, np.ndarray):
        return value
    whole = value.dtype.kind in "iub" and true.dtype.kind in "iub"
    result: NDArray[Any] = value.astype(np.int64) if whole and value.dtype != true.dtype else value
    return result


def _is_float(model: Model, name: str) -> bool:
    return model.tensors[name].dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
