"""The models one after the other, each in a process of its own."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

import benchmarks.repairs
from benchmarks.processes import in_process
from benchmarks.repairs.measure import measured
from benchmarks.repairs.models import MODELS
from benchmarks.repairs.tables import tables

PATIENCE = 1800.0  # seconds for one model


@click.command(help=benchmarks.repairs.__doc__)
@click.argument("models", nargs=-1, type=click.Choice(MODELS))
@click.option("--peers", is_flag=True, help="Also ModelOpt and onnxconverter-common.")
@click.option("--samples", default=32, show_default=True, help="The most samples that a tool sees.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Keep the rows in this file.")
def main(models: tuple[str, ...], peers: bool, samples: int, json_file: Path | None) -> None:
    """Measure MODELS (all if none is named), and print the tables of all that is known."""
    known: dict[str, Any] = json.loads(json_file.read_text()) if json_file and json_file.exists() else {}
    for name in models or MODELS:
        started = time.perf_counter()
        known[name] = in_process(measured, name, samples, peers, seconds=PATIENCE)
        click.echo(f"{name}: {known[name].get('failed', f'{time.perf_counter() - started:.0f} s')}", err=True)
        if json_file:
            json_file.write_text(json.dumps(known, indent=1) + "\n")
    found = {name: known[name] for name in MODELS if "failed" not in known.get(name, {"failed": ""})}
    click.echo("\n".join(tables(found)))


main()
