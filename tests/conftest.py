"""What the tests share: the bundled model, loaded once, and hypothesis without deadlines on shared machines."""

from __future__ import annotations

import hypothesis
import pytest
from models import digits

from precisionlab.data import Dataset
from precisionlab.model import Model

hypothesis.settings.register_profile("precisionlab", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("precisionlab")


@pytest.fixture(scope="session")
def bundled() -> tuple[Model, Dataset]:
    """digits.onnx and 8 of its samples."""
    return digits()
