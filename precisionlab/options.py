"""Checks of option values that the jobs share."""

from __future__ import annotations

from precisionlab.calibration.thresholds import AUTO, METHODS
from precisionlab.errors import OptionError


def check_at_least(least: int, **options: int | None) -> None:
    """Raises OptionError for an option below `least`; None is an option that was not given."""
    for name, value in options.items():
        if value is not None and value < least:
            raise OptionError(f"{name} is {value}; it must be at least {least}")


def check_calibration(method: str | None) -> None:
    """Raises OptionError for what is neither a calibration method nor `auto`; None was not given."""
    if method is not None and method not in (*METHODS, AUTO):
        raise OptionError(f"unknown calibration method {method!r}; use one of {', '.join((*METHODS, AUTO))}")
