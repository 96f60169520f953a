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
        *("browser", "determinism", "engines", "executors", "fuzz", "internal", "kill", "memory", "node_models"),
        *("planted", "real_models", "rtx_sweep", "strange_runs", "streams", "trt_sweep", "typed"),
    }
)
"""Modules that `make quick` leaves out; a slow test in another is marked itself."""

hypothesis.settings.register_profile("precisionlab", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("precisionlab")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out slow modules as a whole where slow tests are not wanted: importing them takes long too."""
    is_slow = collection_path.stem.removeprefix("test_") in SLOW
    return True if is_slow and config.getoption("markexpr") == "not slow" else None


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark all that a slow module holds."""
    if item.path.stem.removeprefix("test_") in SLOW:
        item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def bundled() -> tuple[Model, Dataset]:
    """digits.onnx and 8 of its samples."""
    return digits()
