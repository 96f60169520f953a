"""What the tests share: the bundled model, loaded once, and hypothesis without deadlines on shared machines."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import hypothesis
import pytest
from models import DIGITS, digits, examples, only_one_example_in

from precisionlab.data import Dataset
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.model import Model

THOROUGH = frozenset(
    {
        *(
            "browser",
            "determinism",
            "engines",
            "executors",
            "fp8",
            "fuzz",
            "int4",
            "kill",
            "memory",
            "node_models",
            "overridden",
            "page_commands",
        ),
        *("rtx_layers", "strange_runs", "streams", "trt_explicit", "trt_looking", "trt_plugins"),
        *("trt_layouts", "trt_strong", "trt_told", "trt_tuning", "two_users", "typed_double"),
    }
)
"""Modules of `make thorough`: whole sweeps over and over, browsers and processes, which CI has no time for."""

SLOW = THOROUGH | {
    *("added", "calibrate", "compiled_layers", "data_hook", "detector", "disk", "doctor", "internal", "lift", "links"),
    *(
        "odd_models",
        "one_file",
        "planted",
        "real_models",
        "recurrent",
        "repairs_properties",
        "report_graph",
        "report_search",
        "rtx_sweep",
    ),
    *("sensitivity", "trt_build", "trt_callbacks", "trt_conformance", "trt_execution", "trt_inspector", "trt_network"),
    *("trt_process", "trt_sweep", "typed"),
}
"""Modules that `make quick` leaves out, by names without `test_`; a slow test in another is marked itself."""


FEWER_EXAMPLES = {"not slow": 5, "not thorough": 3}
"""Where such tests are left out: of so many examples of hypothesis one is tried."""


def pytest_configure(config: pytest.Config) -> None:
    """Have hypothesis be patient, repeat itself, and try few examples where not all tests are wanted."""
    os.fsync = lambda handle: None  # a sweep waits for the disk 38 times, and no test pulls the plug
    wanted = config.getoption("markexpr")
    only_one_example_in(next((share for without, share in FEWER_EXAMPLES.items() if without in wanted), 1))
    name, usual = "precisionlab", hypothesis.settings.get_profile("default").max_examples
    hypothesis.settings.register_profile(
        name, deadline=None, derandomize=True, print_blob=True, max_examples=examples(usual)
    )
    hypothesis.settings.load_profile(name)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out slow modules as a whole where slow tests are not wanted: importing them takes long too."""
    name, wanted = collection_path.stem.removeprefix("test_"), config.getoption("markexpr")
    is_left_out = (name in SLOW and "not slow" in wanted) or (name in THOROUGH and "not thorough" in wanted)
    return True if is_left_out else None


def pytest_collection_finish() -> None:
    """Leave what has been imported out of every later search for garbage: that took a tenth of the time."""
    gc.collect()
    gc.freeze()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark all that a slow or thorough module holds; a thorough test is a slow one too, wherever it stands.

    What hypothesis tries is a `property`: `make thorough` has it again, with all its examples.
    """
    name = item.path.stem.removeprefix("test_")
    is_thorough = name in THOROUGH or item.get_closest_marker("thorough") is not None
    if is_thorough:
        item.add_marker(pytest.mark.thorough)
    if is_thorough or name in SLOW:
        item.add_marker(pytest.mark.slow)
    if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
        item.add_marker(pytest.mark.property)


@pytest.fixture(scope="session")
def bundled() -> tuple[Model, Dataset]:
    """digits.onnx and 8 of its samples."""
    return digits()


@pytest.fixture(scope="session")
def swept_digits(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """Both precisions with pins alone, all samples, on two threads. Its folder is shared: change a copy."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    return sweep(DIGITS / "digits.onnx", DIGITS, threads=2, repair=False, out=out)


@pytest.fixture(scope="session")
def repaired_digits(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """The README's first command, which repairs. Its folder is shared: change a copy."""
    out = tmp_path_factory.mktemp("repaired") / "digits"
    return sweep(DIGITS / "digits.onnx", DIGITS, threads=2, precisions="fp16", out=out)
