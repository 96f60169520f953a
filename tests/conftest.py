"""What the tests share: the bundled model, loaded once, and hypothesis without deadlines on shared machines."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
from models import digits

from precisionlab.data import Dataset
from precisionlab.model import Model

SLOW = frozenset(
    {
        *("added", "browser", "calibrate", "compiled_layers", "data_hook", "detector", "determinism", "disk", "doctor"),
        *("engines", "executors", "fuzz", "internal", "kill", "lift", "links", "memory", "node_models"),
        *("odd_models", "one_file", "planted", "real_models", "recurrent", "report_graph", "report_search"),
        *("rtx_sweep", "sensitivity", "strange_runs", "streams", "typed", "trt_build", "trt_callbacks"),
        *("trt_conformance", "trt_execution", "trt_explicit", "trt_inspector", "trt_network", "trt_process"),
        *("trt_sweep", "trt_told", "two_users"),
    }
)
"""Modules that `make quick` leaves out, by names without `test_`; a slow test in another is marked itself."""

THOROUGH = frozenset(
    {
        *(
            "browser",
            "determinism",
            "engines",
            "executors",
            "fuzz",
            "kill",
            "memory",
            "node_models",
            "planted",
            "real_models",
        ),
        *("rtx_layers", "strange_runs", "streams", "trt_explicit", "trt_plugins", "trt_sweep", "trt_told"),
        *("two_users", "typed"),
    }
)
"""Modules of `make thorough`: whole sweeps over and over, browsers and processes, which CI has no time for."""

hypothesis.settings.register_profile("precisionlab", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("precisionlab")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out slow modules as a whole where slow tests are not wanted: importing them takes long too."""
    name, wanted = collection_path.stem.removeprefix("test_"), config.getoption("markexpr")
    is_left_out = (name in SLOW and "not slow" in wanted) or (name in THOROUGH and "not thorough" in wanted)
    return True if is_left_out else None


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark all that a slow or thorough module holds."""
    name = item.path.stem.removeprefix("test_")
    for modules, mark in ((SLOW, pytest.mark.slow), (THOROUGH, pytest.mark.thorough)):
        if name in modules:
            item.add_marker(mark)


@pytest.fixture(scope="session")
def bundled() -> tuple[Model, Dataset]:
    """digits.onnx and 8 of its samples."""
    return digits()
