"""How the house stands: which room may lean on which, how large a room and a function may be, what stands where."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "precisionlab"

ROOMS = (
    *("cli", "jobs", "report", "results", "search", "evaluate", "export", "backends", "rewrite", "calibration"),
    *("compare", "data", "plan", "model", "precision", "system", "errors"),
)
"""A room imports itself and those behind it, never one before it, nor for types alone."""

LONGEST_FILE, LONGEST_FUNCTION = 400, 60
LARGE: dict[str, str] = {}
"""Files beyond it, each with the reason."""

NAMES = re.compile(r"fp16|bf16|fp8|int8|65504(\.0)?")
"""A precision by its name, or by its largest value: what is known of one stands in `precision.py`."""

NAMED = {
    "precision.py": "where they are defined",
    "backends/tensorrt/inspector.py": "the words of TensorRT's inspector, beside types that are no precisions of ours",
    "backends/tensorrt/tactics.py": "the words in kernels' names, beside types that are no precisions of ours",
    "jobs/fidelity.py": "a default of the job",
    "jobs/sweep.py": "a default of the job",
}
"""Where such a name stands all the same, and why."""


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "precisionlab":
            for name in node.names:
                full = f"{node.module}.{name.name}"
                yield full if full in modules() else str(node.module)


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_leans_only_on_those_below_it(room: str) -> None:
    above = set(ROOMS[: ROOMS.index(room)])
    own = {name: path for name, path in modules().items() if name.startswith(f"precisionlab.{room}")}
    assert own
    for name, path in own.items():
        upwards = {to for to in imports(tree_of(path)) if to.count(".") and room_of(to) in above}
        assert not upwards, f"{name} imports {upwards}"


def test_no_room_is_left_out_and_there_are_few() -> None:
    there = {path.stem for path in PACKAGE.iterdir() if not path.stem.startswith("_") and path.suffix in ("", ".py")}
    assert there - {"py"} == set(ROOMS)
    assert len(ROOMS) < 20


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {name: {to for to in loaded(tree_of(path)) if to != name} for name, path in modules().items()}
    while ends := {name for name, taken in graph.items() if not taken & graph.keys()}:
        graph = {name: taken for name, taken in graph.items() if name not in ends}
    assert not graph


def loaded(tree: ast.Module) -> Iterator[str]:
    """What importing the module imports: not what its functions do, nor what is for types alone."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            yield from imports(ast.Module([node], []))


def test_no_file_is_long_without_a_reason() -> None:
    lines = {str(p.relative_to(PACKAGE)): p.read_text(encoding="utf-8").count("\n") for p in modules().values()}
    assert {name for name, count in lines.items() if count > LONGEST_FILE} == set(LARGE)


def test_no_function_is_longer_than_a_screen() -> None:
    """Its docstring and its parameters not counted: a public function may have many words for its user."""
    long = []
    for name, path in modules().items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                if node.end_lineno - body[0].lineno + 1 > LONGEST_FUNCTION:
                    long.append(f"{name}.{node.name}")
    assert not long


def test_what_is_known_of_a_precision_stands_with_it() -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in modules().values()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant) and NAMES.fullmatch(str(node.value))
    }
    assert found == set(NAMED)


def test_the_tests_stand_in_the_rooms_of_what_they_test() -> None:
    rooms = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert rooms <= set(ROOMS)
