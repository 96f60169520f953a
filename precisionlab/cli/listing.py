"""Options whose help names what there is to choose from, looked up when the help is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click


class Listing(click.Option):
    """An option with `{names}` in its help, which stands for `names`, joined by commas."""

    def __init__(self, *args: Any, names: Callable[[], Iterable[str]], **options: Any) -> None:
        super().__init__(*args, **options)
        self._names = names

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The names of the option, and its help."""
        found = super().get_help_record(ctx)
        return found and (found[0], found[1].replace("{names}", ", ".join(self._names())))


def low_precisions() -> Iterable[str]:
    """The precisions that can be swept."""
    from precisionlab.precision import Precision

    return (precision.value for precision in Precision.low())


def float_precisions() -> Iterable[str]:
    """The precisions of the float layers around quantized ones."""
    from precisionlab.precision import Precision

    return (precision.value for precision in Precision.floats())


def metric_names() -> Iterable[str]:
    """The metrics that a tolerance may bound."""
    from precisionlab.compare.metrics import METRICS

    return METRICS


def method_names() -> Iterable[str]:
    """The calibration methods, `auto` left out."""
    from precisionlab.calibration.methods import METHODS

    return METHODS


def backend_lines() -> Iterable[str]:
    """The backends, each with what it does; `auto` left out."""
    from precisionlab.backends.registry import KINDS

    return (f"{kind.name} ({kind.title})" for kind in KINDS.values())
