"""`precisionlab verify`: a plan and its certificate, measured again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from precisionlab.cli.engines import engine_options, engine_options_of
from precisionlab.cli.help import Command
from precisionlab.cli.listing import Listing, backend_lines
from precisionlab.cli.verbosity import verbosity_options
from precisionlab.cli.work import work_options

if TYPE_CHECKING:
    from typing import TextIO

    from precisionlab.cli.console import Console
    from precisionlab.jobs.verify import Verification
    from precisionlab.search.certificate import Certificate, Figures, RepairRelease


@click.command(
    "verify",
    cls=Command,
    short_help="Measure a plan and its certificate again.",
    examples={
        "reports/model/plan.json": "on the samples that the plan was found on",
        "plan.json --model model.onnx --data other/": "on other samples",
    },
)
@click.argument("plan", type=click.Path())
@click.option("--model", type=click.Path(), help="The model.  [default: that of the run.json beside the plan]")
@click.option("--data", type=click.Path(), help="The samples.  [default: those of the run.json beside the plan]")
@click.option("--metric", metavar="SPEC", help="The run's own task metric, again: it is code, and no file has it run.")
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    cls=Listing,
    names=backend_lines,
    help="What measures: {names}, auto.",
)
@click.option(
    "--save-outputs",
    type=click.Path(),
    metavar="FILE",
    help="Write the outputs in float32 and under the plan as Polygraphy's RunResults.",
)
@engine_options
@work_options
@verbosity_options
@click.pass_context
def verify_command(
    ctx: click.Context,
    /,
    plan: str,
    model: str | None,
    data: str | None,
    metric: str | None,
    backend: str,
    processes: int | None,
    dask: str | None,
    threads: int | None,
    memory: str | None,
    device: str,
    save_outputs: str | None,
    **engine: Any,
) -> None:
    """Measure PLAN (a plan.json) and its certificate again: that it is right, and that each of its pins is needed.

    Exits with 0 where both are so, with 1 where one is not, with 2 for input that cannot be used.
    """
    from precisionlab.cli.progress import progress
    from precisionlab.jobs.verify import verify

    with progress() as observer:
        found = verify(
            plan, model=model, data=data, metric=metric, backend=backend, processes=processes, dask=dask,
            threads=threads, memory=memory, device=device, engine=engine_options_of(engine),
            save_outputs=save_outputs, observer=observer,
        )  # fmt: skip
    _print(found, sys.stdout)
    ctx.exit(0 if found.holds else 1)


def _print(found: Verification, stream: TextIO) -> None:
    """A table of what was measured beside what the plan claims, and the verdict."""
    from rich.table import Table

    from precisionlab.cli.console import shortened
    from precisionlab.cli.summary import console_for
    from precisionlab.jobs.verify import repair_name
    from precisionlab.system.wording import counted

    console, proof = console_for(stream), found.certificate
    names = list(proof.figures.values)
    repairs = f"{counted(len(found.plan.repairs), 'repair')} and " if found.plan.repairs else ""
    console.print(
        f"{repairs}{counted(len(found.plan.pins), 'pin')} on {found.plan.default}, held to {', '.join(proof.bounds)}; "
        f"figures {found.figures} on {counted(found.samples[0], 'sample')}"
        + (f", and on {found.samples[1]} that chose nothing" if found.samples[1] else "")
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("plan", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
        table.add_column("claimed", justify="right", no_wrap=True)
    table.add_column("")
    rows: list[tuple[str, str, Figures, bool]] = [("the plan", "", proof.figures, True)]
    rows += [(f"without {shortened(r.layer, 30)}", r.layer, r.figures, False) for r in proof.releases]
    first = next((number for number, r in enumerate(proof.repairs) if r.together > 1), None)
    emulated = "" if found.figures == "emulated" else ", emulated"
    rows += [
        (f"{_left_out(r)}{emulated}", repair_name(number), r.figures, False)
        for number, r in enumerate(proof.repairs)
        if r.figures is not None and (r.together == 1 or number == first)
    ]
    worse = {repair_name(i) for i, one in enumerate(proof.repairs) if one.is_needed and one.figures and one.figures.met}
    unclamped = {repair_name(number) for number, one in enumerate(proof.repairs) if one.hangs_on_clamping}
    for title, layer, figures, wanted in rows:
        claim = found.claimed.get(layer, {})
        cells = [cell for name in names for cell in (_figure(figures.values[name]), _figure(claim.get(name)))]
        verdict = "holds, with clearly less" if layer in worse else _verdict(figures.met, wanted)
        table.add_row(title, *cells, f"{verdict}{' where constants are not clamped' * (layer in unclamped)}")
    if found.held_out is not None:
        cells = [cell for name in names for cell in (_figure(found.held_out.values[name]), "–")]
        table.add_row("the plan, held-out samples", *cells, _verdict(found.held_out.met, True))
    console.print(table)
    if found.same is not None:
        console.print(f"in float32 the repaired model gives what the original gives, {found.same.words}")
    if found.holds:
        less = [*(["any one of its pins released"] if proof.releases else [])]
        less += _repairs_left_out(proof)
        worse_too = ", or clearly worse" if proof.repairs else ""
        worse_too += ", or right only as TensorRT clamps constants" * any(r.hangs_on_clamping for r in proof.repairs)
        how = f", and with {' or '.join(less)} it is not{worse_too}" if less else ""
        console.print(f"verified: the plan is right{how}", style="bold green")
        return
    _print_faults(console, found)


def _repairs_left_out(proof: Certificate) -> list[str]:
    """What was taken of a plan's repairs for the proof: of channels all at once, of others each."""
    joint, every = sum(one.together > 1 for one in proof.repairs), len(proof.repairs)
    if not joint:
        return ["any one of its repairs left out"] if every else []
    if joint == every:
        return ["all of its repairs left out"]
    return ["all of its channels as they were", "any other of its repairs left out"]


def _print_faults(console: Console, found: Verification) -> None:
    """What keeps the plan from being verified, a line each."""
    proof = found.certificate
    for said in found.overridden:
        console.print(f"NOT verified: the engine overrides a pin: {said}", style="bold red")
    if not proof.figures.met or (found.held_out is not None and not found.held_out.met):
        console.print("NOT verified: the plan does not hold its tolerance", style="bold red")
    for layer in (release.layer for release in proof.releases if release.figures.met):
        console.print(f"NOT verified: the pin of {layer} is not needed", style="bold red")
    for one in proof.repairs:
        if not one.is_needed:
            console.print(f"NOT verified: {one.repair} is not needed", style="bold red")


def _left_out(release: RepairRelease) -> str:
    """What the plan is without."""
    from precisionlab.cli.console import shortened

    if release.together > 1:
        return f"without {release.together} repairs of channels"
    return f"without {shortened(str(release.repair), 30)}"


def _figure(value: float | None) -> str:
    from precisionlab.system.wording import number

    return "–" if value is None else number(value, 4)


def _verdict(met: bool, wanted: bool) -> str:
    if met:
        return "holds" if wanted else "holds: not needed"
    return "does NOT hold" if wanted else "does not hold: needed"
