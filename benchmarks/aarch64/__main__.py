"""The steps, and the tables of what they have left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

import benchmarks.aarch64
from benchmarks.aarch64 import half, tables
from benchmarks.aarch64.job import Step, write_steps
from benchmarks.aarch64.machine import ROOT, Machine, SetupError, machines
from benchmarks.typed_models import files_of

MODELS = ("digits", "orient", "magika", "minilm_l3")
PRECISIONS = ("fp16", "int8")
# What depends on the processor: numerics, compiled loops, calibration, graphs and their rewriting, comparison.
TESTS = ("calibration", "compare", "rewrite", "model", "evaluate", "plan", "data", "backends")
MODULES = ("jobs/test_fidelity.py",)  # integer products in truth
PARTS = ("all", "setup", "kernels", "half", "models", "tests", "table")


@click.command(help=benchmarks.aarch64.__doc__)
@click.argument("part", type=click.Choice(PARTS), default="all")
@click.argument("names", nargs=-1)
@click.option("--folder", type=click.Path(path_type=Path), default=Path(__file__).parents[1] / ".aarch64")
@click.option("--samples", default=4, show_default=True, help="Samples of each model.")
def main(part: str, names: tuple[str, ...], folder: Path, samples: int) -> None:
    """Do what is not done yet, and print what is known."""
    folder = folder.resolve()
    results = folder / "results"
    if part != "table":
        try:
            both = machines(folder)
        except SetupError as error:
            raise click.ClickException(str(error)) from None
        results.mkdir(exist_ok=True)
        for machine in both:
            steps = folder / f"steps.{machine.name}.json"
            write_steps(list(_steps(part, machine, both[0], results, names, samples)), steps)
            code = machine.run(["-m", "benchmarks.aarch64.job", str(steps)])
            if code:
                click.echo(f"{machine.name}: ended with {code}; started again it goes on", err=True)
    click.echo("\n".join(tables.tables(results)))


def _steps(
    part: str, machine: Machine, first: Machine, results: Path, names: Sequence[str], samples: int
) -> Iterator[Step]:
    place = results / machine.name
    if part in ("all", "kernels"):
        yield Step(str(place / "kernels"), ("benchmarks.aarch64.kernels",))
    if part in ("all", "half"):
        yield from _half(place, results / "half models")
    if part in ("all", "models"):
        for name in [n for n in MODELS if n in names or not names]:
            yield from _model(name, place / name, results / first.name / name, samples)
    if part in ("all", "tests") and machine is not first:
        yield from _tests(results / "tests", names)


def _half(place: Path, models: Path) -> Iterator[Step]:
    yield Step(str(place / "half" / "runtime"), ("benchmarks.aarch64.half",))
    for name in half.write_models(models):
        folder = models / name
        yield _swept(folder / "model.onnx", folder / "data", place / "half" / name, half.SAMPLES, ("fp16",))


def _swept(model: Path, data: Path, place: Path, samples: int, precisions: Sequence[str]) -> Step:
    arguments = ["precisionlab", "sweep", str(model), "--data", str(data), "--samples", str(samples), "--holdout", "0"]
    arguments += ["--precisions", ",".join(precisions), "--backend", "onnxruntime", "--threads", "1"]
    return Step(str(place / "swept"), (*arguments, "--out", str(place / "sweep")))


def _model(name: str, place: Path, first: Path, samples: int) -> Iterator[Step]:
    """Swept, calibrated, and the plans of the first machine exported."""
    path, data = files_of(name)
    yield _swept(path, data, place, samples, PRECISIONS)
    arguments = ["precisionlab", "calibrate", str(path), "--data", str(data), "--samples", str(samples)]
    arguments += ["--cache", str(place / "calibration.cache"), "--out", str(place / "calibration"), "--threads", "1"]
    yield Step(str(place / "calibrated"), tuple(arguments))
    for precision in PRECISIONS:
        plan, out = first / "sweep" / f"plan.{precision}.json", place / f"{precision}.onnx"
        arguments = ["precisionlab", "export", str(plan), "--format", "typed-onnx", "--out", str(out), "--threads", "1"]
        yield Step(str(place / f"{precision}.exported"), tuple(arguments))


def _tests(place: Path, names: Sequence[str]) -> Iterator[Step]:
    """Each module by itself, those that `make quick` has."""
    rooms = (path for room in TESTS for path in sorted((ROOT / "tests" / room).glob("test_*.py")))
    for module in (*rooms, *(ROOT / "tests" / name for name in MODULES)):
        title = f"{module.parent.name}.{module.stem.removeprefix('test_')}"
        if not names or any(name in title for name in names):
            options = ("-q", "-p", "no:cacheprovider", "--tb=short", "-m", "not slow and not thorough")
            yield Step(str(place / title), ("pytest", str(module), *options, f"--junitxml={place / title}.xml"))


if __name__ == "__main__":
    main()
