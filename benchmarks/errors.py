"""Which errors of the user's no test raises or reads: `python -m benchmarks.errors [--data .coverage]`.

Lists every `raise` of a PrecisionLabError in the package, as the syntax tree has them. With the data of a run of the
whole suite with `--cov` it looks up whether the raise was executed. Without, it looks whether a test's strings hold
three words in a row of the sentence, or all where it has fewer: a hint, as a test may read a name alone. Exits with 1
where a raise was missed.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import coverage

import precisionlab
from precisionlab.errors import PrecisionLabError

PACKAGE = Path(precisionlab.__file__).parent
TESTS = Path(__file__).parents[1] / "tests"
_ROW = 3


@dataclass(frozen=True)
class Raise:
    """One `raise`: its file, the lines that it covers, and the constant parts of its sentence."""

    file: Path
    first: int
    last: int
    texts: tuple[str, ...]

    @property
    def place(self) -> str:
        """Its file and line."""
        return f"{self.file.relative_to(PACKAGE.parent)}:{self.first}"


def error_names() -> frozenset[str]:
    """The names of PrecisionLabError and all classes below it, wherever in the package they are."""
    for module in pkgutil.walk_packages([str(PACKAGE)], "precisionlab."):
        if "__main__" not in module.name:
            importlib.import_module(module.name)
    found: set[str] = set()
    left: list[type[Exception]] = [PrecisionLabError]
    while left:
        kind = left.pop()
        found.add(kind.__name__)
        left += kind.__subclasses__()
    return frozenset(found)


def raises_of(path: Path, names: frozenset[str]) -> list[Raise]:
    """The raises in a file: of the errors themselves, and of what its own functions make of them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    makers = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name) and node.returns.id in names
    }
    found = [
        Raise(path, node.lineno, node.end_lineno or node.lineno, tuple(_strings(node.exc)))
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and _called(node.exc) in names | makers
    ]
    return sorted(found, key=lambda one: one.first)


def _called(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _strings(tree: ast.AST) -> Iterator[str]:
    return (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def every_raise() -> list[Raise]:
    """Of the whole package."""
    names = error_names()
    return [one for path in sorted(PACKAGE.rglob("*.py")) for one in raises_of(path, names)]


def not_executed(data: Path, every: list[Raise]) -> list[Raise]:
    """Those of which no line was executed."""
    measured = coverage.CoverageData(str(data))
    measured.read()
    # By the path below the package, as the data may be of another checkout.
    executed = {
        name.replace("\\", "/").rpartition("/precisionlab/")[2]: frozenset(measured.lines(name) or ())
        for name in measured.measured_files()
    }
    return [
        one
        for one in every
        if executed.get(one.file.relative_to(PACKAGE).as_posix(), frozenset()).isdisjoint(
            range(one.first, one.last + 1)
        )
    ]


def not_read(every: list[Raise]) -> list[Raise]:
    """Those of whose sentence no test has three words in a row."""
    strings = (text for path in sorted(TESTS.rglob("*.py")) for text in _strings(ast.parse(path.read_text("utf-8"))))
    known = "\n".join(f" {' '.join(_words(text))} " for text in strings)
    return [one for one in every if not any(row in known for text in one.texts for row in _rows(_words(text)))]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _rows(words: list[str]) -> Iterator[str]:
    for start in range(max(1, len(words) - _ROW + 1)) if words else ():
        yield f" {' '.join(words[start : start + _ROW])} "


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True), help="What a whole run of the suite with --cov left."
)
@click.pass_context
def main(ctx: click.Context, data: Path | None) -> None:
    """Tell which errors no test has raised, or reads."""
    every = every_raise()
    missing = not_read(every) if data is None else not_executed(data, every)
    for one in missing:
        click.echo(f"{one.place}: {' … '.join(one.texts)[:150]}")
    what = "whose words no test has" if data is None else "not executed"
    click.echo(f"{len(every)} raises of an error of the user's; {len(missing)} {what}")
    ctx.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
