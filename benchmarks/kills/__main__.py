"""The command line of the kills."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from benchmarks.kills.disturb import Found, disturb
from benchmarks.kills.folder import BrokenError
from benchmarks.kills.jobs import jobs


@click.command()
@click.option("--kills", default=200, show_default=True, help="Over all jobs.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--threads", default=1, show_default=True, help="Of each run.")
@click.option("--only", multiple=True, metavar="WORD", help="Only jobs with one of these in their name.")
def main(kills: int, seed: int, threads: int, only: tuple[str, ...]) -> None:
    """Kill runs and start them again, and tell what came of it."""
    chosen = [job for job in jobs() if not only or any(word in job.name for word in only)]
    drawn, began, every = random.Random(seed), time.monotonic(), Found()
    for job, part in zip(chosen, _parts(kills, [job.share for job in chosen]), strict=True):
        with tempfile.TemporaryDirectory(prefix="kills") as work:
            found = Found()
            try:
                disturb(job, part, drawn, threads, Path(work), found)
            except BrokenError as error:
                raise click.ClickException(f"after {every.kills + found.kills} kills: {error}") from error
        every.kills += found.kills
        every.finished += found.finished
        workers = f"{found.everyone} of all processes at once, orphans ended within {found.orphans:.1f} s; "
        click.echo(
            f"{job.name}: {found.kills} kills over {found.seconds:.1f} s, {found.finished} runs came through to the "
            f"same files; {found.repeated} evaluations done again, {found.half_lines} half lines, {found.drafts} "
            f"drafts left behind; {workers if job.has_workers else ''}"
            f"killed during {', '.join(f'{name} {count}' for name, count in sorted(found.during.items()))}"
        )
    click.echo(f"{every.kills} kills, {every.finished} runs, {(time.monotonic() - began) / 60:.1f} min: all the same")


def _parts(kills: int, shares: Sequence[int]) -> Iterator[int]:
    given = 0
    for index, share in enumerate(shares):
        part = kills - given if index == len(shares) - 1 else round(kills * share / sum(shares))
        given += part
        yield part


if __name__ == "__main__":
    main()
