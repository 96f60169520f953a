"""Which of the plans that were evaluated is taken: pure decisions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from precisionlab.precision import Precision

Key = frozenset[tuple[str, Precision]]
"""Pinned layers, each with the precision that it is pinned to."""


class Aim(Enum):
    """What a plan has as little of as possible; the others break ties, in the order of `order_of`."""

    PINS = "pins"
    COST = "cost"
    ERROR = "error"


@dataclass(frozen=True)
class Trial:
    """One plan that was evaluated. `cost` is in seconds, of `closeness` more is better (see `compare.tolerance`)."""

    key: Key
    pins: int
    cost: float
    closeness: tuple[int, float]
    passes: bool

    def dominates(self, other: Trial) -> bool:
        """Whether it is no worse in pins, cost and error, and better in one."""
        no_worse = self.pins <= other.pins and self.cost <= other.cost and self.closeness >= other.closeness
        better = self.pins < other.pins or self.cost < other.cost or self.closeness > other.closeness
        return no_worse and better


def order_of(aim: Aim, trial: Trial) -> tuple[object, ...]:
    """The least of these is the best by the aim; one that dominates another always comes before it."""
    error = tuple(-part for part in trial.closeness)
    names = tuple(sorted((layer, precision.value) for layer, precision in trial.key))  # no choice by chance
    if aim is Aim.PINS:
        return trial.pins, trial.cost, error, names
    if aim is Aim.COST:
        return trial.cost, trial.pins, error, names
    return error, trial.cost, trial.pins, names


def best(trials: Iterable[Trial], aim: Aim) -> Trial | None:
    """The best trial that passes; None where none does."""
    return min((trial for trial in trials if trial.passes), key=lambda trial: order_of(aim, trial), default=None)


def better_than(chosen: Trial, trials: Iterable[Trial], aim: Aim) -> list[Trial]:
    """The trials that pass and dominate the one chosen, the best by the aim first."""
    found = [trial for trial in trials if trial.passes and trial.dominates(chosen)]
    return sorted(found, key=lambda trial: order_of(aim, trial))
