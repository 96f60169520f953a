"""The command line: options in, one call, printing out. One file a command."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Any

import click

from precisionlab.cli.cache import cache_commands
from precisionlab.cli.calibrate import calibrate_command
from precisionlab.cli.diff import diff_command
from precisionlab.cli.doctor import doctor_command
from precisionlab.cli.export import export_command
from precisionlab.cli.report import report_command
from precisionlab.cli.selftest import selftest_command
from precisionlab.cli.sweep import sweep_command
from precisionlab.cli.verify import verify_command
from precisionlab.errors import PrecisionLabError

INPUT_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class _Commands(click.Group):
    """Prints the user's errors as one sentence, and exits with 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PrecisionLabError as error:
            click.echo(f"precisionlab: {error}", err=True)
            ctx.exit(INPUT_ERROR)
        except KeyboardInterrupt:  # click would exit with 1, which here means that the tolerance is not met
            click.echo("precisionlab: stopped; the same command goes on from here", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="precisionlab")
def cli() -> None:
    """Find the layers of an ONNX model that lose accuracy in FP16 or INT8 under TensorRT, pin as few of
    them as possible to FP32, and check that the model is right again."""


cli.add_command(sweep_command)
cli.add_command(verify_command)
cli.add_command(export_command)
cli.add_command(report_command)
cli.add_command(diff_command)
cli.add_command(calibrate_command)
cli.add_command(cache_commands)
cli.add_command(doctor_command)
cli.add_command(selftest_command)


def main() -> None:
    """The entry point of the `precisionlab` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that has no sign for ∞ must not end the run
            stream.reconfigure(errors="replace")
    cli(prog_name="precisionlab")
