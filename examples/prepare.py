"""Write real models and labelled data as calibration folders: `python -m examples.prepare all`."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path

import click

from examples.packages import LIBRARIES, MissingPackage

MODELS = ("magika", "minilm_l3", "ppocr4_rec", "ppocr4_det", "orient")


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", type=click.Choice([*MODELS, "all"]))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent / "prepared",
    help="Folder to write to; examples/prepared if left out.",
)
def main(models: tuple[str, ...], out: Path) -> None:
    """Write OUT/MODEL/MODEL.onnx and OUT/MODEL/data for each MODEL.

    MODEL is magika, minilm_l3, ppocr4_rec, ppocr4_det, orient, or all. They come from installed packages:
    nothing is downloaded.
    """
    for model in MODELS if "all" in models else dict.fromkeys(models):
        _prepare(model, out)


def _prepare(model: str, out: Path) -> None:
    # Imported here, so that a model needs only its own packages installed.
    from examples import dataset

    start = time.perf_counter()
    try:
        recipe: dataset.Recipe = import_module(f"examples.{model}").RECIPE
        count = dataset.write(recipe, out)
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            raise
        raise MissingPackage(f"{model} needs {error.name}", LIBRARIES[error.name]) from None
    click.echo(f"{model}: {count} samples in {out / model} ({time.perf_counter() - start:.1f} s)")


if __name__ == "__main__":
    main()
