"""Why TensorRT built no engine: its errors, told apart and put into words.

It answers a failed build with None, and says why in its log alone: kernels that a pin rules out, memory, a cancelled
build, or a layer that it has no kernel for. They ask for different things, and none of them says that a plan is bad.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from precisionlab.backends.tensorrt.jobs import PinOutcome

_LAST = 3
"""So many of TensorRT's errors are quoted."""
_LONGEST = 300

_OBEYS = re.compile(r"no implementation (?:of (?:layer |node )?(?P<layer>.+?) )?obeys", re.IGNORECASE | re.DOTALL)
_NO_KERNEL = re.compile(
    r"could not find any implementation for node (?P<layer>.+?)(?P<workspace> due to insufficient workspace.*)?"
    r"(?:, try increasing the workspace.*)?[.)\s]*(?:Skipping this backend strategy\.)?\s*$",
    re.IGNORECASE | re.DOTALL,
)
_PLACE = re.compile(r"\s*\bIn \S+ at \S+:\d+")
"""Where in TensorRT's own source an error arose; it helps nobody, and hides the end of a layer's name."""
_MEMORY = re.compile(
    r"out ?of ?memory|insuff?icient memory|memory \(\d+ bytes\) could not be allocated|memory allocation error"
    r"|cudaErrorMemoryAllocation",
    re.IGNORECASE,
)
_CANCELLED = re.compile(r"build ?(?:was )?cancell?ed", re.IGNORECASE)
_FOREIGN = re.compile(r"\{?ForeignNode\[(?P<first>.+?)\.\.\.(?P<last>.+?)\]\}?", re.DOTALL)
_KIND = re.compile(r"(?P<name>.+)\[\w+\]", re.DOTALL)


def why_refused(errors: Sequence[str], warnings: Sequence[str], outcomes: Sequence[PinOutcome], obey: bool) -> str:
    """Why a build gave nothing, in one sentence; TensorRT's last errors stand at its end.

    `outcomes` are the job's pins, `obey` whether they were to be held to at any price.
    """
    quoted = f" TensorRT's last errors: {' | '.join(_short(e) for e in errors[-_LAST:])}" if errors else ""
    return f"{_cause(errors, warnings, outcomes, obey)}.{quoted}"


def layers_named(text: str) -> tuple[str, ...]:
    """The network layers in TensorRT's name of a fused one: `a + b`, `{ForeignNode[a...b]}`, `a[Conv] + b[Relu]`."""
    foreign = _FOREIGN.fullmatch(text)
    if foreign is not None:
        return foreign["first"], foreign["last"]
    found: dict[str, None] = {text: None}  # a name may hold a plus itself
    for part in text.split(" + "):
        found[part] = None
        kind = _KIND.fullmatch(part)
        if kind is not None:
            found[kind["name"]] = None
    return tuple(found)


def _cause(errors: Sequence[str], warnings: Sequence[str], outcomes: Sequence[PinOutcome], obey: bool) -> str:
    if any(_CANCELLED.search(error) for error in errors):
        return "the build was cancelled"
    # Where pins are only preferred, a warning says that one is not kept to; the build goes on.
    refused = _last(_OBEYS, (*warnings, *errors) if obey else errors)
    if refused is not None:
        return _ruled_out(refused["layer"], outcomes)
    missing = _last(_NO_KERNEL, (*warnings, *errors))
    if missing is not None and missing["workspace"]:
        return f"layer {missing['layer']!r} needs more workspace than it may have: give more, or no limit"
    if any(_MEMORY.search(line) for line in (*errors, *warnings)):
        # Kernels that do not fit are left out with a warning; "no implementation" is then what remains.
        where = "" if missing is None else f" (layer {missing['layer']!r})"
        advice = "free some, set a smaller workspace, or look at fewer tensors in one engine"
        return f"it ran out of GPU memory{where}: {advice}"
    if missing is not None:
        if obey and _pins_at(missing["layer"], outcomes):
            return _ruled_out(missing["layer"], outcomes)
        return f"it has no kernel for layer {missing['layer']!r} with these precisions, shapes and workspace"
    if not errors:
        return "it does not say why; the log may hold more"
    return "it refuses the network"


def _last(pattern: re.Pattern[str], lines: Sequence[str]) -> re.Match[str] | None:
    """The last of these lines that the pattern is found in."""
    found = [match for line in lines if (match := pattern.search(_PLACE.sub("", line))) is not None]
    return found[-1] if found else None


def _ruled_out(layer: str | None, outcomes: Sequence[PinOutcome]) -> str:
    """No kernel keeps to the constraints: of which layer, and which pin asks for it."""
    if layer is None:
        return "a layer has no kernel that keeps to the pins: pin fewer layers, or let pins be preferred only"
    pins = _pins_at(layer, outcomes)
    whose = f" (pinned as {', '.join(map(repr, pins))})" if pins else ""
    advice = "pin its neighbours to the same precision, release it, or let pins be preferred only"
    return f"layer {layer!r}{whose} has no kernel that keeps to the pins: {advice}"


def _pins_at(layer: str, outcomes: Sequence[PinOutcome]) -> tuple[str, ...]:
    """The pins whose network layers are in this one; by whole names alone."""
    names = set(layers_named(layer))
    return tuple(outcome.layer for outcome in outcomes if not names.isdisjoint(outcome.network_layers))


def _short(error: str) -> str:
    text = _PLACE.sub("", " ".join(error.split()))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
