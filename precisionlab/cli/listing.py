"""Options that name what there is to choose from, looked up when the help is shown or a shell completes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem


class Listing(click.Option):
    """An option with `{names}` in its help, which stands for `names`, joined by commas; `more` it takes as well."""

    def __init__(
        self, *args: Any, names: Callable[[], Iterable[str]], more: Iterable[str] = (), **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._names, self._more = names, tuple(more)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The names of the option, and its help."""
        found = super().get_help_record(ctx)
        return found and (found[0], found[1].replace("{names}", ", ".join(self._names())))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """What the last item of a list may go on to be: backends without what they do."""
        before, comma, last = incomplete.rpartition(",")
        names = (name.partition(" ")[0] for name in (*self._names(), *self._more))
        return [CompletionItem(f"{before}{comma}{name}") for name in names if name.startswith(last)]


class Choosing(Listing):
    """The same of an option whose help names them itself."""

    def __init__(self, *args: Any, names: Iterable[str], **options: Any) -> None:
        super().__init__(*args, names=lambda: names, **options)


def low_precisions() -> Iterable[str]:
    """The precisions that can be swept."""
    from precisionlab.precision import Precision

    return (precision.value for precision in Precision.low())


def float_precisions() -> Iterable[str]:
    """The precisions of the float layers around quantized ones."""
    from precisionlab.precision import Precision

    return (precision.value for precision in Precision.floats())


def pin_precisions() -> Iterable[str]:
    """The precisions that a pin may have."""
    from precisionlab.precision import Precision

    return (precision.value for precision in Precision)


def metric_names() -> Iterable[str]:
    """The metrics that a tolerance may bound."""
    from precisionlab.compare.metrics import METRICS

    return METRICS


def method_names() -> Iterable[str]:
    """The calibration methods, `auto` left out."""
    from precisionlab.calibration.methods import METHODS

    return METHODS


def sweep_methods() -> Iterable[str]:
    """The same, and that which is for scales of weights alone."""
    from precisionlab.calibration.methods import AUTO, choices

    return [name for name in choices() if name != AUTO]


def backend_lines() -> Iterable[str]:
    """The backends, each with what it does; `auto` left out."""
    from precisionlab.backends.registry import KINDS

    return (f"{kind.name} ({kind.title})" for kind in KINDS.values())


def target_names() -> Iterable[str]:
    """The GPUs whose costs are known."""
    from precisionlab.search.devices import DEVICES

    return DEVICES
