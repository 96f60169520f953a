"""Help that is read from the top: what a command does, how it is typed, and its options by what they are about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Data": ("data", "model", "samples", "holdout", "seed", "shapes", "random", "skip_bad", "match"),
    "What is right": ("precisions", "precision", "tolerance", "metric", "each_layer"),
    "Search": (
        *("plan", "max_pins", "no_repair", "minimize", "spend", "ladder", "target", "max_cost"),
        *("budget", "max_evaluations"),
    ),
    "INT8": ("around", "calibration", "block", "method", "percentile", "tensorrt", "cache", "shard", "merge"),
    "Emulation": ("layers", "kernels", "sums", "against", "device", "batch"),
    "Engines": (
        *("backend", "engine_shapes", "workspace", "observe", "builds", "engines", "typed", "prefer", "hold_float"),
        *("engine_calibration", "plugins", "optimization_level", "avg_timing", "dla", "weight_streaming"),
        *("version_compatible", "formats", "refit"),
    ),
    "Work": ("processes", "dask", "threads", "memory"),
}
"""Titles, and the names of the options under them. What is in none stands at the end."""

_FEW = 8
"""A command with no more options shows them as they come."""


class Command(click.Command):
    """A command with examples, and with its options in sections where they are many.

    `examples` are what follows the command's name, each with what it does.
    """

    def __init__(self, *args: Any, examples: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.examples = examples

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What it does, and the examples."""
        super().format_help_text(ctx, formatter)
        with formatter.section("Examples"):
            for typed, words in self.examples.items():
                formatter.write_text(f"# {words}")
                formatter.write(f"{'':{formatter.current_indent}}{f'precisionlab {self.name} {typed}'.rstrip()}\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, section by section."""
        own = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        waiting = {str(one.name): record for one in own if (record := one.get_help_record(ctx))}
        sections = SECTIONS if len(waiting) > _FEW else {}
        for title, names in sections.items():
            if rows := [waiting.pop(name) for name in names if name in waiting]:
                with formatter.section(title):
                    formatter.write_dl(rows)
        with formatter.section("Output" if sections else "Options"):
            formatter.write_dl(list(waiting.values()))
