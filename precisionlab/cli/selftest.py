"""`precisionlab selftest`: does the TensorRT backend work on this machine?"""

from __future__ import annotations

from pathlib import Path

import click

from precisionlab.cli.help import Command
from precisionlab.cli.verbosity import verbosity_options


@click.command(
    "selftest",
    cls=Command,
    short_help="Try the TensorRT backend on this machine's GPU.",
    examples={
        "": "small engines are built, run and looked into",
    },
)
@click.option(
    "--out", default="reports/selftest", show_default=True, type=click.Path(), help="Where engines and logs go."
)
@verbosity_options
@click.pass_context
def selftest_command(ctx: click.Context, out: str) -> None:
    """Try the TensorRT backend on this machine's GPU: engines, pins, INT8 both ways, layers, times.

    At the end it says of each rule that the emulation assumes whether this machine's engines hold to it: FP16's clamped
    constants, sums in float32, nothing rounded inside a layer, NaN that is kept; BF16's rounded operands and results;
    INT8's scales, rounding and exact sums; that a model's own Q/DQ pairs round. Takes a few minutes. Exits with 0 where
    everything went as it has to, whatever the rules say, 1 where something did not, 2 where TensorRT or the GPU cannot
    be used.
    """
    from precisionlab.cli.progress import progress
    from precisionlab.jobs.selftest import RESULT_FILE, selftest

    failed = 0
    with progress() as observer:
        for step in selftest(Path(out), observer):
            if step.is_assumption:
                click.echo(f"{'as assumed' if step.passed else 'not as assumed'}: {step.name}: {step.seen}")
            else:
                failed += not step.passed
                click.echo(f"{'PASS' if step.passed else 'FAIL'}  {step.name}: {step.seen}")
    click.echo(f"All of it, to be attached to an issue: {Path(out) / RESULT_FILE}")
    if failed:
        click.echo(f"{failed} failed; TensorRT's own words are in {Path(out) / 'tensorrt.log'}")
    ctx.exit(1 if failed else 0)
