"""`precisionlab export`: a plan for other tools."""

from __future__ import annotations

from typing import Any

import click

from precisionlab.cli.engines import build_tuning_options, tuning_of
from precisionlab.cli.help import Command
from precisionlab.cli.verbosity import verbosity_options

FORMATS = ("trtexec", "polygraphy", "modelopt", "onnxruntime", "json", "typed-onnx", "repaired-onnx")


@click.command(
    "export",
    cls=Command,
    short_help="Write a plan as another tool wants it.",
    examples={
        "plan.json --format trtexec --out build.sh": "a script that builds the engine",
        "plan.json --format typed-onnx --out typed.onnx": "a strongly typed model, for TensorRT 11 and TensorRT-RTX",
    },
)
@click.argument("plan", type=click.Path())
@click.option("--format", "target", type=click.Choice(FORMATS), required=True, help="What the plan is for.")
@click.option("--out", type=click.Path(), help="The file to write.  [default: standard output, for text alone]")
@click.option("--model", type=click.Path(), help="The model.  [default: that of the run.json beside the plan]")
@click.option("--data", type=click.Path(), help="The samples.  [default: those of the run.json beside the plan]")
@click.option(
    "--shapes",
    multiple=True,
    metavar="NAME:MIN,OPT,MAX",
    help="Shapes of a dynamic input, as image:1x3x224x224,4x3x224x224,8x3x224x224.  [default: the data's]",
)
@click.option(
    "--tensorrt",
    metavar="VERSION",
    help="TensorRT that a cache is for, as 8.6.1.  [default: the installed one, else 10.16.1]",
)
@click.option(
    "--hold-float",
    is_flag=True,
    help="Hold what the plan has in float beside int8; else TensorRT may run any layer in int8.",
)
@build_tuning_options
@click.option("--typed", is_flag=True, help="For a strongly typed network: the plan is the types of a model beside.")
@click.option("--threads", type=int, help="Threads to use.  [default: all processors]")
@verbosity_options
def export_command(
    plan: str,
    target: str,
    out: str | None,
    model: str | None,
    data: str | None,
    shapes: tuple[str, ...],
    tensorrt: str | None,
    hold_float: bool,
    typed: bool,
    threads: int | None,
    **build: Any,
) -> None:
    """Write PLAN (a plan.json) as another tool wants it.

    \b
    trtexec        a command line, or with --out a shell script, for TensorRT 8.6 to 10.16
    polygraphy     a script that holds the layers of the network, and the command to run it
    modelopt       ModelOpt's commands and lists of nodes, as JSON
    onnxruntime    a Q/DQ model with the plan's int8 scales
    json           every layer with its precision, and what TensorRT is to be told
    typed-onnx     a model that holds its types itself, for TensorRT 11 and TensorRT-RTX
    repaired-onnx  the model with the plan's repairs, in float32, for any tool

    Of a plan with repairs, each of them is for the repaired model, which is written beside what names it.
    Where data is needed, for int8 ranges or the shapes of dynamic inputs, it is looked at anew.
    """  # noqa: D301 – click's own sign, for lines that are not to be joined
    from precisionlab.cli.progress import progress
    from precisionlab.jobs.export import export_plan

    with progress() as observer:
        found = export_plan(
            plan, target, out=out, model=model, data=data, shapes=shapes, tensorrt=tensorrt, hold_float=hold_float,
            typed=typed, tuning=tuning_of(build), plugins=build["plugins"], threads=threads, observer=observer,
        )  # fmt: skip
    if found.text is not None:
        click.echo(found.text, nl=False)
    for file in found.files:
        click.echo(f"written: {file}", err=True)
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
