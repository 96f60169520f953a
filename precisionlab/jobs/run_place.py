"""Where a run goes by itself: to `reports/<model>`, or beside what lies there already of a run with other options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from precisionlab.jobs.sweep_request import SweepRequest
from precisionlab.model import Model
from precisionlab.system.plainfiles import is_there
from precisionlab.system.reading import LARGEST_JSON, UnreadableError, parse_json, read_inside

RUN_FILE, REQUEST = "run.json", "request"
_MOST = 1000
"""So many runs of one model lie beside each other; then the last place is written over."""
_DIGITS = 16


def request_digest(request: SweepRequest, model: Model) -> str:
    """What identifies what a sweep is asked for, of which model.

    How long it may take, where it writes, and with how much of the machine it works are no part of it: the same
    command with more of these goes on in the same folder.
    """
    options = asdict(replace(request.options, budget=None, max_evaluations=None))
    del options["each_layer"]  # what is measured besides changes nothing of what is found
    run, source = request.run, request.source
    asked = {
        "model": model.sha256,
        "data": None if source.data is None else str(source.data),
        "source": asdict(replace(source, data=None)),
        "options": options,
        "backend": run.backend,
        "device": run.device,
        "batch": run.batch,
        "grouping": run.grouping,
        "target": run.target.name,
        "engine": asdict(run.engine),
        "plan": None if request.plan is None else str(request.plan),
        "random": request.random_asked,
    }
    text = json.dumps(asked, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:_DIGITS]


def default_folder(request: SweepRequest, model: Model, note: Callable[[str], None]) -> Path:
    """`reports/<model>`, or the first of `reports/<model>-2`, … that holds no finished run, or one of the same request.

    With a plan that is measured `reports/<model>-plan`, so that the sweep that found it stays. `note` is told where
    another run lies in the first.
    """
    first = Path("reports") / (model.name if request.plan is None else f"{model.name}-plan")
    digest = request_digest(request, model)
    for number in range(1, _MOST + 1):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        if not is_there(folder, RUN_FILE) or _request_in(folder) == digest:
            break
    if folder != first:
        note(f"{first} holds a run of something else, or with other options, and stays: this one goes to {folder}")
    return folder


def _request_in(folder: Path) -> Any:
    """What the run in a folder was asked for; None where it does not say so, or cannot be read."""
    try:
        run = parse_json(read_inside(folder, RUN_FILE, LARGEST_JSON))
    except (UnreadableError, ValueError, OSError):
        return None
    return run.get(REQUEST) if isinstance(run, dict) else None
