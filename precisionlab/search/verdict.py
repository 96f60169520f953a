"""What is said of one precision: a state, one sentence and one figure, the same wherever it is shown.

`verdict_of` goes through rules, each about one kind of evidence; the first that applies speaks. What takes away the
ground that a figure stands on (inputs that are random) comes before what the figure says. Exit codes, the terminal,
the report, `summary.md`, JSON and `diff` show the verdict, and judge nothing themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from precisionlab.system.wording import counted

_ON_RANDOM = " on random inputs"
_IN_PART = " in part"
_FLOAT32_SUMS = " with sums in float32"
_AS_ONNX = " as ONNX reads it"

_NAMED = 3

NOTHING_GAINED = 0.995
"""From this share of float32's cost on, a plan gains nothing over float32."""


class State(str, Enum):
    """What is known of a precision."""

    MET = "met"
    ONLY_FP32 = "met only as float32"
    NOT_MET = "not met"
    NOT_COMPILED = "not compiled"
    NOT_KNOWN = "not known"
    NOT_FINISHED = "not finished"


class Tone(str, Enum):
    """How a state is shown: green, red, or grey where nothing is settled."""

    GOOD = "met"
    BAD = "missed"
    OPEN = "open"


_TONES = {
    State.MET: Tone.GOOD,
    State.ONLY_FP32: Tone.BAD,
    State.NOT_MET: Tone.BAD,
    State.NOT_COMPILED: Tone.BAD,
}
_LOUD = {State.NOT_MET: "NOT met", State.NOT_COMPILED: "NOT compiled"}
_SIGNS = {Tone.GOOD: "✓", Tone.BAD: "✗", Tone.OPEN: "?"}


@dataclass(frozen=True)
class Mark:
    """A state in two or three words, as tables hold it; on random inputs it says so, and is never green or red.

    `in_part` says that some values were not judged, as the reference has no number there: then it is never green.
    `needs_float32_sums`: it is right only where kernels add up in float32, which most of TensorRT's in half do not:
    nor then. `as_onnx`: nor where TensorRT reads the model otherwise than ONNX does.
    """

    state: State
    on_random: bool = False
    in_part: bool = False
    needs_float32_sums: bool = False
    as_onnx: bool = False

    def __str__(self) -> str:
        words = _LOUD.get(self.state, self.state.value)
        if self.state is State.MET:
            flags = ((self.in_part, _IN_PART), (self.needs_float32_sums, _FLOAT32_SUMS), (self.as_onnx, _AS_ONNX))
            words += "".join(text for flag, text in flags if flag)
        return words + (_ON_RANDOM if self.on_random and self.state is not State.NOT_KNOWN else "")

    @classmethod
    def parse(cls, text: str) -> Mark:
        """What `str` wrote. Raises ValueError for anything else."""
        words, flags = text, list[bool]()
        for suffix in (_ON_RANDOM, _AS_ONNX, _FLOAT32_SUMS, _IN_PART):
            flags.append(words.endswith(suffix))
            words = words.removesuffix(suffix)
        on_random, as_onnx, float32_sums, in_part = flags
        return cls(State(words.lower()), on_random, in_part, float32_sums, as_onnx)

    @property
    def tone(self) -> Tone:
        """Its colour."""
        limited = self.in_part or self.needs_float32_sums or self.as_onnx
        if self.on_random or (limited and self.state is State.MET):
            return Tone.OPEN
        return _TONES.get(self.state, Tone.OPEN)

    @property
    def sign(self) -> str:
        """Its sign, for who sees no colour."""
        return _SIGNS[self.tone]


@dataclass(frozen=True)
class Verdict:
    """What is said of one precision. `sentence` begins small and has no full stop, `figure` is what it rests on.

    `overridden`: it is not met because an engine does not keep to pins.
    """

    state: State
    sentence: str
    figure: str = ""
    on_random: bool = False
    in_part: bool = False
    needs_float32_sums: bool = False
    as_onnx: bool = False
    overridden: bool = False

    @property
    def met(self) -> bool:
        """Whether the tolerance is met, and something gained: what the exit code says."""
        return self.state is State.MET

    @property
    def mark(self) -> Mark:
        """The state in short."""
        return Mark(self.state, self.on_random, self.in_part, self.needs_float32_sums, self.as_onnx)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object in `run.json`; read back by `from_dict`."""
        return {
            "state": self.state.value,
            "sentence": self.sentence,
            "figure": self.figure,
            "on_random": self.on_random,
            "in_part": self.in_part,
            "needs_float32_sums": self.needs_float32_sums,
            "as_onnx": self.as_onnx,
            "overridden": self.overridden,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verdict:
        """What `to_dict` wrote. Raises KeyError or ValueError for anything else."""
        state = State(data["state"])
        later = ("in_part", "needs_float32_sums", "as_onnx", "overridden")  # which older runs do not have
        flags = (bool(data["on_random"]), *(bool(data.get(name)) for name in later))
        return cls(state, str(data["sentence"]), str(data["figure"]), *flags)


@dataclass(frozen=True)
class Terms:
    """What the verdicts of a sweep hang on besides the figures.

    `random` says that the inputs were, `random_asked` that the user wanted them so. `max_cost` is the most that a plan
    may cost, as a share of float32's; None: less than float32. `fp32_seconds` is float32's cost, None where it is not
    known. `searched` is false where a plan of the user's was measured. `otherwise` says what of the model TensorRT
    reads as something else than ONNX says, which an emulation does not; empty where that is nothing.
    """

    random: bool = False
    random_asked: bool = False
    max_cost: float | None = None
    fp32_seconds: float | None = None
    searched: bool = True
    otherwise: str = ""


NO_TERMS = Terms()


@dataclass(frozen=True)
class Condition:
    """What kernels may do instead of what was emulated, and the figure that misses the tolerance then."""

    is_half_sums: bool
    figure: str

    def __str__(self) -> str:
        if self.is_half_sums:
            return (
                f"but NOT with sums in half ({self.figure}), as most FP16 kernels of weakly typed TensorRT keep them: "
                "--sums half searches for a plan that holds then"
            )
        return (
            "this hangs on TensorRT clamping constants that FP16 cannot hold, as its builder's logs say it does "
            f"(without that: {self.figure})"
        )


@dataclass(frozen=True)
class Evidence:
    """What one verdict is made from.

    `met` says whether the plan's figures hold on all samples. `pins` of the `touched` layers have one, to `rungs`;
    `left` are still in the low precision. `cost` and `bare_cost` are the plan's and that without pins, as shares of
    float32's; None where not known. `limit` says what the user allowed that the search ran into ("at most 3 pins"),
    `stopped` what ended it before it was through ("the budget of 30 s is spent"); both empty where nothing did.
    `unknown` says why the reference is no ground for a verdict, `caveat` what of it is none; empty where all of it is.
    `conditions` are what it is not right under. `refused` says that its engine could not be built and why,
    `overridden` which pins its engine does not keep to; empty where there is no engine. `repairs` counts those that
    were made to the model first: then it is not right as it is.
    """

    precision: str
    met: bool
    pins: int
    touched: int
    left: int
    rungs: str
    figure: str
    cost: float | None
    bare_cost: float | None
    terms: Terms
    limit: str = ""
    stopped: str = ""
    unknown: str = ""
    caveat: str = ""
    conditions: tuple[Condition, ...] = ()
    refused: str = ""
    overridden: tuple[str, ...] = ()
    repairs: int = 0

    @property
    def kept(self) -> str:
        """`2 of 78 layers pinned to fp32`, `1 repair and no pin`, or both; for a plan that has either."""
        repaired = counted(self.repairs, "repair")
        if not self.pins:
            return f"{repaired} and no pin"
        pinned = f"{self.pins} of {counted(self.touched, 'layer')} pinned to {self.rungs}"
        return f"{repaired}, and {pinned}" if self.repairs else pinned

    @property
    def changed(self) -> bool:
        """Whether the plan is another than the precision throughout, of the model as it is."""
        return bool(self.pins or self.repairs)

    @property
    def rightness(self) -> str:
        """How a plan that is right is so."""
        return f"right with {self.kept}" if self.changed else "right as it is"


Rule = Callable[[Evidence], Verdict | None]


def verdict_of(evidence: Evidence) -> Verdict:
    """The first verdict that a rule comes to."""
    return next(found for rule in _RULES if (found := rule(evidence)) is not None)


def _random(e: Evidence) -> Verdict | None:
    if not e.terms.random or e.terms.random_asked:
        return None
    sentence = "not known: the inputs were random; give real samples with --data, or ask for random ones with --random"
    return Verdict(State.NOT_KNOWN, sentence, e.figure, on_random=True)


def _groundless(e: Evidence) -> Verdict | None:
    if not e.unknown:
        return None
    return Verdict(State.NOT_KNOWN, f"not known: {e.unknown}", e.figure, on_random=e.terms.random)


def _untouched(e: Evidence) -> Verdict | None:
    if e.touched or not e.met:
        return None
    return _said(e, State.MET, f"{e.precision} touches no layer of this model")


def _not_finished(e: Evidence) -> Verdict | None:
    if e.met or not e.stopped:
        return None
    best = f"the best plan so far has {e.kept}" if e.changed else "no plan so far is better than that without pins"
    return _said(e, State.NOT_FINISHED, f"not finished: {e.stopped}; {best}")


def _wrong(e: Evidence) -> Verdict | None:
    if e.met:
        return None
    if not e.terms.searched:
        repaired = f"{counted(e.repairs, 'repair')} and " if e.repairs else ""
        return _said(e, State.NOT_MET, f"the plan given is NOT right, with {repaired}{counted(e.pins, 'pin')}")
    nearest = f"the nearest plan has {e.kept}" if e.changed else "no plan tried is nearer than that without pins"
    within = f" with {e.limit}" if e.limit else ""
    return _said(e, State.NOT_MET, f"the tolerance could NOT be met{within}; {nearest}")


def _not_compiled(e: Evidence) -> Verdict | None:
    """What no engine can be built of is of no use there, whatever the emulation says of its errors."""
    if not e.refused:
        return None
    return _said(e, State.NOT_COMPILED, f"{e.refused}; {e.rightness} in the emulation alone")


def _overridden(e: Evidence) -> Verdict | None:
    """An engine that runs a pinned layer in less than was asked for is not the plan's."""
    if not e.overridden:
        return None
    named = ", ".join(e.overridden[:_NAMED]) + (", …" if len(e.overridden) > _NAMED else "")
    sentence = f"NOT as planned: the engine overrides {len(e.overridden)} of {counted(e.pins, 'pin')}: {named}"
    return replace(_said(e, State.NOT_MET, sentence), overridden=True)


def _as_float32(e: Evidence) -> Verdict | None:
    """Pinned back as a whole, or so far that nothing is left of what the precision saves."""
    if not e.pins:
        return None
    if not e.left:
        what = "float32" if e.rungs == "fp32" else e.rungs
        return _said(e, State.ONLY_FP32, f"met only as {what}: no layer is left in {e.precision}")
    if 2 * e.pins <= e.touched or e.cost is None or e.bare_cost is None:
        return None  # few pins that cost all that is saved are the target's affair, and --max-cost's
    if not e.bare_cost < NOTHING_GAINED <= e.cost:
        return None
    gained = f"{e.kept} leave nothing of what {e.precision} saves: {e.cost:.0%} of FP32's cost"
    return _said(e, State.ONLY_FP32, f"met only as float32: {gained}")


def _too_dear(e: Evidence) -> Verdict | None:
    most = e.terms.max_cost
    if most is None or e.cost is None or e.cost <= most:
        return None
    return _said(e, State.NOT_MET, f"{e.rightness}, but at {e.cost:.0%} of FP32's cost, where {most:.0%} is the most")


def _right(e: Evidence) -> Verdict:
    if e.pins:
        return _said(e, State.MET, f"{e.kept} make it right")
    how = f"right with {counted(e.repairs, 'repair')}" if e.repairs else "right as it is"
    return _said(e, State.MET, f"{how}: no layer needs a pin")


def _said(e: Evidence, state: State, sentence: str) -> Verdict:
    """The verdict, with a word on random inputs where they were asked for, what was not judged, and conditions."""
    said = sentence + (_ON_RANDOM if e.terms.random else "") + (f"; but {e.caveat}" if e.caveat else "")
    sums = state is State.MET and any(condition.is_half_sums for condition in e.conditions)
    for condition in e.conditions if state is State.MET else ():
        said += f"; {condition}"
    otherwise = e.terms.otherwise if state is State.MET else ""
    said += f"; but this is not judged as TensorRT reads the model: {otherwise}" if otherwise else ""
    return Verdict(state, said, e.figure, e.terms.random, bool(e.caveat), sums, bool(otherwise))


_RULES: tuple[Rule, ...] = (
    *(_random, _groundless, _not_finished, _wrong, _not_compiled, _overridden),
    *(_untouched, _as_float32, _too_dear, _right),
)
