"""Looking at the tensors within an engine: in which way each is to be had, those that change least first.

An engine's own unfused tensors can be shown as it is (10.12 on), as far as they are stored row by row and bear the name
of a tensor of the model: TensorRT shows them under the names that its inspector has. What is left is marked as outputs,
in groups, one engine each; where that changes the engine's final outputs, as debug tensors (10.0 on), whose memory need
not be held to the end. What no way shows is not observed, and it is said why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from precisionlab.backends.tensorrt.api import Features
from precisionlab.backends.tensorrt.buffers import widened
from precisionlab.backends.tensorrt.jobs import NOTHING, Arrays, Built, Watch
from precisionlab.backends.tensorrt.matching import FLOATS
from precisionlab.backends.tensorrt.observation import differs, groups
from precisionlab.compare.errors import ErrorSums, ErrorTable
from precisionlab.data import Sample
from precisionlab.errors import EngineError
from precisionlab.model import Model
from precisionlab.precision import Format
from precisionlab.system.wording import counted

UNFUSED, OUTPUT, DEBUG = "unfused", "output", "debug tensor"
"""The ways that a tensor is seen in."""
HIDDEN = "not observed"
_NAMED = 4


@dataclass(frozen=True)
class View:
    """Tensors that one engine lets see, and how: "" for nothing, else one of the ways; unfused are all that it has."""

    tensors: tuple[str, ...] = ()
    how: str = ""


@dataclass(frozen=True)
class Seen:
    """The errors of the tensors that were seen, in which way each was, why others were not, and what is to be said."""

    errors: Mapping[str, ErrorSums]
    ways: Mapping[str, str]
    hidden: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def each(self) -> dict[str, str]:
        """The way of each tensor; of one that was not seen, that it was not observed."""
        return {**self.ways, **dict.fromkeys(self.hidden, HIDDEN)}

    @property
    def told(self) -> tuple[str, ...]:
        """`summary`, where not all that was looked at are outputs of engines."""
        return (self.summary,) if self.hidden or set(self.ways.values()) - {OUTPUT} else ()

    @property
    def summary(self) -> str:
        """One sentence: how many tensors were seen in which way, and which were not."""
        count = Counter(self.ways.values())
        words = {UNFUSED: "unfused in the engine itself", OUTPUT: "marked as outputs", DEBUG: "as debug tensors"}
        parts = [f"{count[way]} {text}" for way, text in words.items() if count[way]]
        text = f"{counted(len(self.ways), 'tensor')} seen ({', '.join(parts)})" if parts else "no tensor seen"
        for why, number in Counter(self.hidden.values()).items():
            names = [repr(name) for name, reason in self.hidden.items() if reason == why]
            more = f" and {number - _NAMED} more" if number > _NAMED else ""
            text += f"; not observed: {', '.join(names[:_NAMED])}{more} ({why})"
        return text


UNSEEN = Seen({}, {}, {}, ())
"""Nothing was looked at."""


class Runs(Protocol):
    """Runs an engine; see `Engines`."""

    features: Features

    def run(self, engine: Path, inputs: Arrays, watch: Watch = NOTHING) -> Arrays:
        """All outputs of an engine, and what is watched, for one sample. Raises EngineError."""
        ...


@dataclass
class Looking:
    """Looks into the engine of one plan.

    `build` gives the engine of a view, raising EngineError; `reference` the function that computes tensors of the
    reference; `formats` how each is rounded; `plain` are samples with the final outputs of the engine nobody looks at.
    """

    model: Model
    runs: Runs
    build: Callable[[View], Built]
    reference: Callable[[Sequence[str]], Callable[[Sample], Arrays]]
    formats: Callable[[Sequence[str]], Sequence[Format]]
    plain: Sequence[tuple[Sample, Arrays]]
    budget: int
    _errors: dict[str, ErrorSums] = field(default_factory=dict)
    _ways: dict[str, str] = field(default_factory=dict)
    _hidden: dict[str, str] = field(default_factory=dict)
    _notes: list[str] = field(default_factory=list)

    def look(self, wanted: Collection[str], samples: Iterable[Sample]) -> Seen:
        """At these tensors of the network, over the samples. Call it once."""
        if self.runs.features.unfused_tensors and wanted:
            self._unfused(wanted, samples)
        left = [name for name in wanted if name not in self._errors]
        for group in groups(self.model, left, self.budget):
            self._group(group, samples)
        hidden = {name: why for name, why in self._hidden.items() if name not in self._ways}
        return Seen(self._errors, self._ways, hidden, tuple(self._notes))

    def _unfused(self, wanted: Collection[str], samples: Iterable[Sample]) -> None:
        view = View(how=UNFUSED)
        try:
            built = self.build(view)
            names = [name for name in shown_unfused(built) if name in wanted]
            told = self._changed(built.engine, Watch(unfused=True, tensors=frozenset(names)))
            if told:
                self._notes.append(f"unfused tensors: {told}; others are marked instead")
                return
            for group in groups(self.model, names, self.budget):
                found, _ = self._compared(built.engine, Watch(unfused=True, tensors=frozenset(group)), group, samples)
                self._take(found, UNFUSED)
        except EngineError as error:
            self._notes.append(f"unfused tensors could not be looked at: {error}")

    def _group(self, group: tuple[str, ...], samples: Iterable[Sample]) -> None:
        found, told = self._looked_at(View(group, OUTPUT), samples)
        way = OUTPUT
        if told and self.runs.features.debug_tensors:
            # Debug tensors need not be kept, and may leave alone what marked outputs do not.
            again, also = self._looked_at(View(group, DEBUG), samples)
            if again and (not also or not found):
                way = DEBUG
                found, told = again, also or "looked at as debug tensors: marked as outputs, they changed the engine"
        if told:
            self._notes.append(f"{counted(len(group), 'tensor')} from {group[0]} on: {told}")
        self._take(found, way)
        for name in group:
            if name not in found:
                self._hidden.setdefault(name, "no engine could be built or run that shows it")

    def _take(self, found: Mapping[str, ErrorSums], way: str) -> None:
        self._errors.update(found)
        self._ways.update(dict.fromkeys(found, way))

    def _looked_at(self, view: View, samples: Iterable[Sample]) -> tuple[dict[str, ErrorSums], str]:
        """The errors of the tensors in view, none where they cannot be seen; and what is to be said of them."""
        try:
            built = self.build(view)
            marked = tuple(name for name in view.tensors if name not in built.unmarked)
            self._hidden.update(dict.fromkeys(built.unmarked, "TensorRT takes it for no debug tensor"))
            watch = Watch(marked=True) if view.how == DEBUG else NOTHING
            changed = self._changed(built.engine, watch)
            found, missing = self._compared(built.engine, watch, marked, samples)
            self._hidden.update(dict.fromkeys(missing, "the engine did not show it"))
            return found, changed
        except EngineError as error:  # refused, or its process has died: other tensors are still to be had
            return {}, f"could not be looked at: {error}"

    def _compared(
        self, engine: Path, watch: Watch, names: tuple[str, ...], samples: Iterable[Sample]
    ) -> tuple[dict[str, ErrorSums], set[str]]:
        """The errors of these tensors, and those that the engine did not show.

        An unfused tensor in another shape is none of the model's, whatever its name.
        """
        table = ErrorTable(len(names), self.formats(names))
        reference_of = self.reference(names)
        missing: set[str] = set()
        for sample in samples:
            reference, variant = reference_of(sample), self._outputs(engine, sample, watch)
            for row, name in enumerate(names):
                if name not in variant or (watch.unfused and variant[name].shape != reference[name].shape):
                    missing.add(name)
                elif name not in missing:
                    table.add(row, reference[name], variant[name])
        return {name: table.row(row) for row, name in enumerate(names) if name not in missing}, missing

    def _changed(self, engine: Path, watch: Watch) -> str:
        """What looking has changed in the final outputs, so that the layers are another engine's; empty: nothing."""
        names = [info.name for info in self.model.outputs]
        for sample, before in self.plain:
            seen = self._outputs(engine, sample, watch)
            check = differs({n: before[n] for n in names}, {n: seen[n] for n in names})
            if check.warning is not None:
                return check.warning
        return ""

    def _outputs(self, engine: Path, sample: Sample, watch: Watch) -> Arrays:
        """What the engine gives; half and bfloat16 as float32, which holds all their values."""
        return {name: widened(value) for name, value in self.runs.run(engine, sample.inputs, watch).items()}


def shown_unfused(built: Built) -> tuple[str, ...]:
    """The tensors between an engine's layers that can be read as they are: float, and stored row by row."""
    found: dict[str, bool] = {}
    for layer in built.layers:
        for tensor in layer.outputs:
            fits = tensor.dtype in FLOATS and tensor.is_linear is True
            found[tensor.name] = fits and found.get(tensor.name, True)
    return tuple(name for name, fits in found.items() if fits)
