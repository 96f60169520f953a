"""Code that only a run's folder names: it is never run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.attacks.attempt import MODEL, RUNS, SWEEP, Attempt, Kind, after
from benchmarks.attacks.files import COMMANDS

CODE = "open('../ran', 'w').write('x')\n\n\ndef figure(outputs, label):\n    return 1.0\n"
NAMES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a metric": lambda run: run["data"].update(metric="run/own.py:figure"),
    "a metric at the top": lambda run: run.update(metric="run/own.py:figure"),
    "a hook as data": lambda run: run["data"].update(folder="run/own.py:figure"),
    "a module as data": lambda run: run["data"].update(folder="own:figure"),
    "a metric in the command": lambda run: run["command"].extend(["--metric", "run/own.py:figure"]),
    "a dask scheduler": lambda run: run["command"].extend(["--dask", "tcp://127.0.0.1:1"]),
    "a model elsewhere": lambda run: run["model"].update(path="../outside/secret"),
    "data elsewhere": lambda run: run["data"].update(folder="../outside"),
}


def naming(edit: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
    """Code beside the run, which its run.json names."""

    def make() -> None:
        for place in (Path("run", "own.py"), Path("own.py"), Path("run", "sitecustomize.py"), Path("run", "onnx.py")):
            place.write_text(CODE)
        data = json.loads(Path("run", "run.json").read_text())
        edit(data)
        Path("run", "run.json").write_text(json.dumps(data))

    return make


def labelled() -> None:
    """A folder of samples that names code as its metric."""
    Path("own.py").write_text(CODE)
    Path("data").mkdir()
    for name in ("dataset.toml", "labels.csv"):
        source = Path(SWEEP[3], name)
        if source.exists():
            Path("data", name).write_bytes(source.read_bytes())
    Path("data", "dataset.toml").write_text('[labels]\nfile = "labels.csv"\nmetric = "own.py:figure"\n')


def kinds(dice: random.Random) -> Iterable[Kind]:
    """The attempts of this family."""
    commands = {name: COMMANDS[name] for name in ("report", "diff", "verify", "export")}
    attempts = [
        Attempt(f"{command}: {what}", after(naming(edit), *parts), run=True)
        for what, edit in NAMES.items()
        for command, parts in commands.items()
    ]
    attempts.append(
        Attempt("sweep: a manifest that names code", after(labelled, "sweep", MODEL, "--data", "data", "--out", "run"))
    )
    attempts.append(
        Attempt("twin: the run as it is", after(lambda: None, *COMMANDS["verify"]), RUNS, run=True, twin=True)
    )
    yield Kind(
        "code that only a folder names",
        "a run.json or a manifest that names a metric, a hook, a scheduler, a model or data elsewhere; modules beside",
        "the code is not run, nothing but the run's folder changes",
        attempts,
    )
