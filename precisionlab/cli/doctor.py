"""`precisionlab doctor`: what this machine can do."""

from __future__ import annotations

import click

from precisionlab.cli.help import Command


@click.command(
    "doctor",
    cls=Command,
    short_help="Say what this machine can do.",
    examples={
        "": "what is ready, and how to make ready what is not",
    },
)
def doctor_command() -> None:
    """Say what this machine can do: for each backend that it is ready, or the command that makes it so."""
    from precisionlab.jobs.doctor import examine

    for finding in examine():
        mark = {None: "     ", True: "ready", False: "NO   "}[finding.ready]
        click.echo(f"{mark}  {finding.name}: {finding.seen}")
        if finding.remedy:
            click.echo(f"       → {finding.remedy}")
