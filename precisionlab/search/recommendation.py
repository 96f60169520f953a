"""Which precision to ship: one sentence over the verdicts of a run, the same wherever it is shown.

A precision is only ever taken where its own verdict is green: it judges nothing again. Beyond that it must gain
something over float32, and its verdict must not be one that other samples of the same kind might turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from precisionlab.search.verdict import NOTHING_GAINED, State, Tone, Verdict
from precisionlab.system.wording import counted

CHEAPER = 0.95
"""A plan is only called cheaper where it costs less than this share of the other: costs are no more exact than that.

Of plans that cost the same, one without ranges to calibrate is taken, then the one that changes least, then the more
exact one.
"""


@dataclass(frozen=True)
class Candidate:
    """One low precision, as what might be shipped.

    `how` says in which way it is right, as `right with 2 pins`, `changes` counts its pins and repairs. `figures` says
    where its errors come from, `metric` what the task says of it (may be empty). `share` is its cost as a share of
    float32's, by `cost_figures` (`estimated`), or its time where `milliseconds` (of one sample, in an engine) is known;
    None where nothing is. `doubt` says how far its figure may lie with other samples, where that is on both sides of
    what was asked; empty where it is not. `caveat` is a sentence on what its rightness hangs on, or empty. `touched`
    counts the layers that the precision touches. `sqnr` is that of its worst output in dB, None where it is not known.
    """

    name: str
    title: str
    verdict: Verdict
    how: str
    changes: int
    touched: int
    is_quantized: bool
    figures: str
    share: float | None = None
    cost_figures: str = ""
    milliseconds: float | None = None
    metric: str = ""
    doubt: str = ""
    caveat: str = ""
    sqnr: float | None = None

    @property
    def gains(self) -> bool:
        """Whether it is cheaper than float32, as far as that is known."""
        return self.touched > 0 and (self.share is None or self.share < NOTHING_GAINED)

    @property
    def may_be_taken(self) -> bool:
        """Whether nothing speaks against it."""
        return self.verdict.met and self.verdict.mark.tone is Tone.GOOD and not self.doubt and self.gains

    @property
    def is_open(self) -> bool:
        """Whether more work might still make it one that can be taken."""
        return self.verdict.mark.tone is Tone.OPEN or (self.verdict.met and bool(self.doubt))


@dataclass(frozen=True)
class Recommendation:
    """What to ship; `taken` is the precision's name, None where none can be taken.

    `sentences` have full stops: what to do, and behind it what there is to be known of the others and of the samples.
    """

    sentences: tuple[str, ...]
    taken: str | None
    tone: Tone

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        return " ".join(self.sentences)


def recommend(candidates: Sequence[Candidate], held_out: int) -> Recommendation:
    """What to ship of these; `held_out` samples chose nothing and confirmed the verdicts."""
    best = _best([one for one in candidates if one.may_be_taken])
    if best is None:
        is_open = any(one.is_open for one in candidates)
        head = "Take none yet" if is_open else "Stay in FP32"
        return Recommendation((f"{head}: {_against(candidates)}.",), None, Tone.OPEN if is_open else Tone.BAD)
    said = [f"Take {best.title}: {best.how} ({_evidence(best)}), {_cost(best)}."]
    said += [f"{best.caveat}."] if best.caveat else []
    said += [f"{_beside(one, best)}." for one in candidates if one is not best]
    said += [] if held_out else ["No sample was held out to confirm it."]
    return Recommendation(tuple(said), best.name, Tone.GOOD)


def _best(candidates: Sequence[Candidate]) -> Candidate | None:
    """The cheapest; of those that cost about the same the one that asks least. Unknown costs come last."""
    known = [one.share for one in candidates if one.share is not None]
    near = [one for one in candidates if one.share is not None and one.share * CHEAPER <= min(known)]

    def asked(one: Candidate) -> tuple[bool, int, float, float]:
        return one.is_quantized, one.changes, round(one.share or 0.0, 2), -(one.sqnr if one.sqnr is not None else 0.0)

    return min(near or candidates, key=asked, default=None)


def _evidence(one: Candidate) -> str:
    return f"{one.figures}; {one.metric}" if one.metric else one.figures


def _cost(one: Candidate) -> str:
    if one.share is None:
        return "at a cost that is not known"
    if one.milliseconds is not None:
        return f"{one.milliseconds:.3g} ms a sample, {_percent(one.share)} of FP32's time (measured)"
    return f"{_percent(one.share)} of FP32's cost ({one.cost_figures})"


def _beside(other: Candidate, best: Candidate) -> str:
    """What is said of one that is not taken, beside the one that is."""
    if not other.may_be_taken:
        return _why_not(other)
    if other.share is None or best.share is None:
        return f"{other.title} is {other.how} too, at a cost that is not known"
    if _is_as_cheap(other, best) and other.sqnr is not None and best.sqnr is not None:
        return f"{other.title} is {other.how} too, as cheap and less exact ({other.sqnr:.1f} dB, not {best.sqnr:.1f})"
    timed = other.milliseconds is not None
    word = "faster" if timed else "cheaper"
    amount = f"{other.milliseconds:.3g} ms" if timed else _percent(other.share)
    joint = f"but no {word}" if other.share >= best.share else f"and hardly {word}"
    return f"{other.title} is {other.how} {joint} ({amount})"


def _is_as_cheap(other: Candidate, best: Candidate) -> bool:
    """Whether two quantized precisions differ by their errors alone, and the other has the larger one."""
    if not (other.is_quantized and best.is_quantized) or other.changes != best.changes:
        return False
    same = round(other.share or 0.0, 2) == round(best.share or 0.0, 2)
    return same and other.sqnr is not None and best.sqnr is not None and other.sqnr < best.sqnr


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _against(candidates: Sequence[Candidate]) -> str:
    """Why none can be taken; once where the same speaks against all."""
    sentences = {one.verdict.sentence for one in candidates if one.verdict.state is State.NOT_KNOWN}
    if len(sentences) == 1 and all(one.verdict.state is State.NOT_KNOWN for one in candidates):
        return sentences.pop().removeprefix("not known: ")
    return "; ".join(map(_why_not, candidates))


_OF_STATES = {
    State.ONLY_FP32: "is right only as float32",
    State.NOT_MET: "does NOT meet what was asked",
    State.NOT_COMPILED: "has no engine",
    State.NOT_FINISHED: "is not searched to the end",
}


def _why_not(one: Candidate) -> str:
    """Why this one cannot be taken."""
    verdict, title = one.verdict, one.title
    if verdict.state is State.NOT_KNOWN:
        return f"{title} is {verdict.sentence}"
    if not verdict.met:
        return f"{title} {_OF_STATES[verdict.state]}"
    if not one.touched:
        return f"{title} touches no layer"
    flags = (
        (verdict.on_random, "on random inputs, which say nothing of real ones"),
        (verdict.in_part, "as far as it could be judged, which is not all of the outputs"),
        (verdict.needs_float32_sums, "only where kernels keep their sums in float32"),
        (verdict.as_onnx, "only as ONNX reads the model, which TensorRT reads otherwise"),
    )
    if limits := [words for is_so, words in flags if is_so]:
        return f"{title} is {one.how} {', and '.join(limits)}"
    if one.doubt:
        return f"{title} is {one.how}, but that is inconclusive: {one.doubt}"
    assert one.share is not None, "what may not be taken has a reason"
    return f"{title} is {one.how}, but no cheaper than FP32 ({_percent(one.share)})"


def how_right(pins: int, repairs: int) -> str:
    """`right as it is`, `right with 1 repair and 2 pins`."""
    parts = [counted(repairs, "repair")] * bool(repairs) + [counted(pins, "pin")] * bool(pins)
    return f"right with {' and '.join(parts)}" if parts else "right as it is"
