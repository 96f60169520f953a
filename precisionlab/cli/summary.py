"""The answer in the terminal: is it right, which layers, why, and what to do now."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from precisionlab.cli.console import Console
from precisionlab.cli.worst_layers import by_itself_lines, print_worst_layers
from precisionlab.compare.confidence import inconclusive_bounds
from precisionlab.compare.metrics import SQNR, AgreementMetric, Metric, brief_metrics
from precisionlab.compare.tolerance import parse_tolerance
from precisionlab.jobs.result import SweepResult
from precisionlab.plan.file import plan_files
from precisionlab.report.commands import longer_command, repair_command_line, seen_from
from precisionlab.report.inside import (
    emulated_words,
    inside_facts,
    inside_lines,
    kernel_facts,
    kernels_text,
    nans_line,
)
from precisionlab.report.quantized_choice import choice_in
from precisionlab.report.repair_views import EXACTNESS, scale_texts
from precisionlab.report.rows import rows_text
from precisionlab.report.shipping import next_commands, recommendation_of
from precisionlab.report.variant_rows import engines_of
from precisionlab.rewrite.repairs import PASSES
from precisionlab.search.certificate import WORTH_A_REPAIR, Certificate, RepairRelease
from precisionlab.search.outcome import CompiledVariant, EngineResult, PrecisionResult, Variant
from precisionlab.search.size import saved_words
from precisionlab.search.undefined import Undefined
from precisionlab.search.unscaled import REMEDY
from precisionlab.search.verdict import Mark, State, Tone
from precisionlab.system.wording import counted, decibel, formed, number

_STYLES = {Tone.GOOD: "", Tone.BAD: "red", Tone.OPEN: "bright_black"}
_MARKED = {**_STYLES, Tone.GOOD: "green"}
_WIDTH = 80
_WORST = 8


def print_summary(result: SweepResult, stream: TextIO) -> None:
    """Print tables that fit 80 columns, without colour where there is no terminal."""
    console = console_for(stream)
    run = result.run
    advice = recommendation_of(result)
    console.print(advice.sentence, style=f"bold {_MARKED[advice.tone]}".strip())
    console.print()
    layers = sum(layer.fixed is None for layer in result.model.layers)
    figures = f"{run['figures']} {emulated_words(run)}".rstrip()
    console.print(
        f"{result.model.path.name}: {counted(layers, 'layer')} that can be given a precision; "
        f"{counted(run['data']['choosing'], 'sample')} chose, {_held_out(run['data']['held_out'])}; "
        f"errors {figures} by {run['backend']}, cost estimated for {run['target']['title']}"
    )
    if run["engines"] is not None:
        how = "MEASURED on" if run["engines"]["measured"] else "compiled, NOT run, for"
        by = run["engines"]
        console.print(f"engines {how} {by['device']}, {by['backend']} {by.get('tensorrt', '')}".rstrip())
        if said := nans_line(by):
            console.print(said)
    if run["layers"].get("own"):
        console.print(run["layers"]["own"])
    if run["layers"]["difference"]:
        console.print(run["layers"]["difference"])
    if run["layers"].get("note"):
        console.print(f"{run['layers']['note']}.", style="yellow")
    for precision, why in run["not_swept"].items():
        console.print(f"{precision}: {why}.", style="yellow")
    for note in run.get("judging", ()):
        console.print(note)
    if run["layers"]["held"]:
        console.print(run["layers"]["held"])
    if run["data"]["random"]:
        console.print(
            "WARNING: the inputs are random noise, which finds the wrong layers. Give real samples with --data.",
            style="bold red",
        )
    for undefined in run["reference"]["undefined"]:
        console.print(f"WARNING: {Undefined.from_dict(undefined).text}.", style="yellow")
    console.print()
    console.print(_variants(console, result))
    if result.engine is not None:
        console.print()
        console.print(_engines(result))
    for outcome in result.precisions:
        _print_precision(console, result, outcome)
    if (choice := choice_in(result)) is not None:
        console.print()
        console.print(f"{choice.question} {choice.sentence} (the report has the layers, and why)")
    if result.folder is not None:
        console.print()
        console.print(f"Report: {result.folder / 'report.html'}")
        for plan in plan_files(result.plans).values():
            console.print(f"Plan:   {result.folder / plan}")
        console.print()
        console.print("next:", style="bold")
        for command in next_commands(result, advice):
            console.print(f"  {command}", soft_wrap=True)


def console_for(stream: TextIO) -> Console:
    """A console for tables: as wide as the terminal, 80 columns and no colour where there is none."""
    return Console(file=stream, width=None if stream.isatty() else _WIDTH, highlight=False, markup=False)


def _variants(console: Console, result: SweepResult) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    metric = result.reference.comparison.metric_name
    table.add_column("variant", no_wrap=True)
    for name in ("pins", *_brief_heads(), *([metric] if metric else []), "cost"):
        table.add_column(name, justify="right")
    table.add_column("")
    table.add_row(*_variant_row(result.reference, metric, result.reference, None))
    for outcome in result.precisions:
        for variant in [outcome.low] if outcome.mixed is outcome.low else [outcome.low, outcome.mixed]:
            table.add_row(*_variant_row(variant, metric, result.reference, outcome.mark_of(variant)))
    if console.measure(table).maximum >= console.width:
        table.padding = (0, 1, 0, 0)  # one blank between columns, where two would cut words
    return table


def _engines(result: SweepResult) -> Table:
    """What was measured on the GPU: as the table of variants, with times in the place of estimates."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    metric = result.reference.comparison.metric_name
    table.add_column("measured", no_wrap=True)
    for name in ("pins", "SQNR dB", "held out", *([metric] if metric else []), "ms a sample"):
        table.add_column(name, justify="right")
    table.add_column("")
    marked = [] if result.engine is None else [(result.engine, result.engine.variant.mark(result.terms))]
    marked += [(e, outcome.mark_of(e.variant)) for outcome in result.precisions for e in engines_of(outcome)]
    for engine, mark in marked:
        row = _variant_row(engine.variant, metric, result.reference, mark)
        time = f"{engine.latency.median:.3g}"
        table.add_row(*row[:4], *([row[-3]] if metric else []), time, row[-1])
    return table


def _variant_row(variant: Variant, metric: str | None, reference: Variant, mark: Mark | None) -> list[str | Text]:
    """`mark` is what is said of the variant; None for the reference."""
    comparison = variant.comparison
    row: list[str | Text] = [
        variant.name,
        str(len(variant.plan.pins)) if mark is not None else "",
        *(cell for metric in brief_metrics() for cell in _brief_cells(metric, variant)),
    ]
    if metric:
        row.append(number(comparison.worst("metric"), 3))
    row.append(f"{variant.cost.seconds / reference.cost.seconds:.0%}" if variant.cost and reference.cost else "–")
    row.append("reference" if mark is None else Text(str(mark), style=f"bold {_MARKED[mark.tone]}"))
    return row


def _brief_heads() -> list[str]:
    heads = [[f"{m.brief} {m.unit}".strip(), *(["held out"] if m.name == SQNR else [])] for m in brief_metrics()]
    return [head for one in heads for head in one]


def _brief_cells(metric: Metric, variant: Variant) -> list[str]:
    """The worst figure of a metric; of the headline that on the samples held out too."""
    comparison, held_out = variant.comparison, variant.held_out
    if isinstance(metric, AgreementMetric) and not any(o.top1.total for o in comparison.outputs.values()):
        return ["–"]
    cells = [formed(comparison.worst(metric.name), metric.form)]
    if metric.name == SQNR:
        cells.append(formed(held_out.worst(metric.name), metric.form) if held_out else "–")
    return cells


def _print_precision(console: Console, result: SweepResult, outcome: PrecisionResult) -> None:
    console.print()
    name, low, pins = outcome.precision.value, outcome.before.comparison, outcome.plan.pins
    verdict = outcome.verdict
    console.print(
        f"{name}: {verdict.sentence} ({outcome.after.figures}: {verdict.figure})",
        style=f"bold {_STYLES[verdict.mark.tone]}".strip(),
    )
    if verdict.state is State.NOT_FINISHED and (more := longer_command(result.run)):
        console.print("go on from here, with what is done taken from the journal:")
        console.print(f"  {more}", soft_wrap=True)
    _print_proof(console, result, outcome)
    if outcome.engine is not None:
        _print_engine(console, outcome, outcome.engine)
    for compiled in outcome.compiled:
        _print_compiled(console, compiled)
    if (unscaled := outcome.unscaled) is not None:
        console.print(f"WARNING: {unscaled.title}: {unscaled.why}; {REMEDY}.", style="yellow")
    if outcome.ranges_text:
        is_blocks = outcome.precision.is_weight_only
        console.print(f"{'scales' if is_blocks else 'ranges'}: {outcome.ranges_text}")
    if saved := saved_words(result.model, outcome.plan):
        console.print(f"weights: {saved}")
    if low.nonfinite:
        first = next(layer for layer in result.model.layers if low.nonfinite[0] in layer.watched)
        count = counted(len(low.nonfinite), "tensor")
        bare = "as it is" if outcome.plan.repairs else "without pins"
        console.print(f"NaN or Inf in {count} {bare}; the first at {first.name}")
    _print_repairs(console, outcome)
    for pin in pins[:_WORST]:
        console.print(f"  {pin.precision} {pin.layer}")
        console.print(Padding(pin.reason, (0, 0, 0, 6)))
    if len(pins) > _WORST:
        console.print(f"  … and {len(pins) - _WORST} more, in the plan")
    if outcome.repairs and (repair := repair_command_line(seen_from(Path.cwd(), result.run), outcome.plan)):
        console.print("a repair may do without pins; none was tried:")
        console.print(f"  {repair}", soft_wrap=True)
    if outcome.each_layer is not None:
        for line in by_itself_lines(outcome, outcome.each_layer):
            console.print(line)
    if outcome.ranked:
        console.print()
        print_worst_layers(console, result, outcome)


def _print_repairs(console: Console, outcome: PrecisionResult) -> None:
    """What was made to the model, why, and what of it float32 sees."""
    if outcome.repaired is None:
        return
    for repair in outcome.repaired.repairs[:_WORST]:
        console.print(f"  repair {repair.layer}", soft_wrap=True)
        scales = "".join(f", {text}" for text in scale_texts(repair))
        made = f"{PASSES[repair.kind].title}{scales}; in float32 {EXACTNESS[repair.exactness]}"
        for line in (repair.reason, made, *repair.conditions):
            console.print(Padding(line, (0, 0, 0, 6)))
    if len(outcome.repaired.repairs) > _WORST:
        console.print(f"  … and {len(outcome.repaired.repairs) - _WORST} more, in the plan")
    console.print(f"in float32 the repaired model gives what the original gives, {outcome.repaired.same.words}")


def _print_engine(console: Console, outcome: PrecisionResult, engine: EngineResult) -> None:
    """What the GPU said: whether the plan holds there, pins that did not take, and what else was seen."""
    best = engine.mixed
    if best is None:
        console.print(f"on the GPU: no {outcome.precision} engine could be built", style="bold red")
    else:
        pins, count = best.variant.plan.pins, counted(engine.builds, "engine")
        verdict = "NOT right" if not best.variant.met else "NOT as planned," if best.inside.overridden else "right"
        console.print(
            f"on the GPU: {verdict} with {counted(len(pins), 'pin')}, "
            f"{decibel(best.variant.comparison.worst('sqnr'))} dB, measured; {count} tried",
            style="bold" if engine.met else "bold red",
        )
        for line in inside_lines(inside_facts(best.inside)):
            console.print(f"  {line}")
        for pin in best.inside.pins:
            if pin.advice:
                console.print(f"  pin of {pin.layer}: {pin.verdict} ({' '.join(pin.got) or 'types unknown'})")
                console.print(Padding(pin.advice, (0, 0, 0, 6)))
    for note in engine.notes[:_WORST]:
        console.print(f"  note: {note}", style="yellow")
    if len(engine.notes) > _WORST:
        console.print(f"  … and {len(engine.notes) - _WORST} more notes, in run.json")


def _print_compiled(console: Console, compiled: CompiledVariant) -> None:
    """What a compiler made of a variant, for a GPU that is not here."""
    if compiled.inside is None:
        console.print(f"{compiled.name}: NOT compiled for {compiled.target}: {compiled.refused}", style="bold red")
        return
    built, pins = compiled.inside.built, compiled.inside.pins
    taken = (
        f", {sum(pin.verdict == 'honoured' for pin in pins)} of {counted(len(pins), 'pin')} honoured" if pins else ""
    )
    inside = f"{kernels_text(kernel_facts(built))}{taken if built.is_read else ''}"
    console.print(f"{compiled.name} compiled for {compiled.target}: {inside}, {built.size / 1e6:.1f} MB")
    for line in inside_lines(inside_facts(compiled.inside)):
        console.print(f"  {line}")
    for pin in pins:
        if pin.verdict != "honoured":
            console.print(f"  pin of {pin.layer}: {pin.verdict} ({' '.join(pin.got) or 'types unknown'})")


def _print_proof(console: Console, result: SweepResult, outcome: PrecisionResult) -> None:
    """What speaks for the pins, and what the verdict hangs on."""
    asked = ", ".join(map(str, outcome.mixed.tolerance))
    console.print(f"tolerance {asked}; {counted(outcome.evaluations, 'plan')} evaluated")
    if said := _worst_part(outcome):
        console.print(said)
    for line in rows_text(result.model, outcome.low, result.samples):
        console.print(line)
    proof = outcome.certificate
    if proof is not None and proof.proven:
        how = "" if outcome.engine is None else ", emulated"
        console.print(f"proven{how}: with {without_any(outcome)}, {lost_without(proof)} (certificate in the plan)")
    elif proof is not None and proof.figures.met:
        what = "pin and repair" if outcome.plan.repairs else "pin"
        console.print(f"not proven that every {what} is needed: the search was cut short, or one proved needless")
    if outcome.remark:
        console.print(outcome.remark)
    if outcome.mixed.met and outcome.mixed.comparison.nonfinite:
        count = counted(len(outcome.mixed.comparison.nonfinite), "tensor")
        console.print(f"Inf in {count} on the way, which the layers behind make finite again (see the report)")
    for bound, ends in inconclusive_bounds(outcome.mixed.comparison, outcome.mixed.tolerance):
        console.print(
            f"WARNING: {bound} is inconclusive: with other samples of their kind {bound.figure} would lie between "
            f"{ends.low:.4g} and {ends.high:.4g} (95 %). Give more.",
            style="yellow",
        )


def _holds(release: RepairRelease) -> bool:
    return release.figures is not None and release.figures.met


def without_any(outcome: PrecisionResult) -> str:
    """What was taken from the plan found, one after the other, to prove that it needs all of it."""
    said = ["any one of the pins released"] if outcome.certificate and outcome.certificate.releases else []
    joint = outcome.certificate.repairs if outcome.certificate else ()
    said += ["any one repair left out"] if any(one.together == 1 for one in joint) else []
    said += ["all channels as they were"] if any(one.together > 1 for one in joint) else []
    return ", or ".join(said)


def lost_without(proof: Certificate) -> str:
    """What becomes of the plan found without any of that."""
    bounds = ", ".join(proof.bounds)
    hang = [one.hangs_on_clamping for one in proof.repairs]
    if hang and all(hang) and not proof.releases:
        return f"{bounds} holds only as TensorRT clamps constants"
    said = f"{bounds} does not hold{_or_nonfinite(proof)}"
    said += f", or more than {WORTH_A_REPAIR:g} dB is lost" if any(_holds(one) for one in proof.repairs) else ""
    return said + (", or holds only as TensorRT clamps constants" if any(hang) else "")


def _or_nonfinite(proof: Certificate) -> str:
    """What else may be wrong with a pin released: nothing where the bounds alone say so of each."""
    bounds = parse_tolerance(proof.bounds)
    released = [one.figures for one in proof.releases]
    released += [one.figures for one in proof.repairs if one.figures is not None]
    is_within = [all(bound.admits(figures.values[bound.figure]) for bound in bounds) for figures in released]
    return ", or a NaN or Inf appears that the reference does not have" if any(is_within) else ""


def _worst_part(outcome: PrecisionResult) -> str:
    """Which of several outputs, parts and tensors within is the worst one, without pins and with them."""
    figures = outcome.low.comparison.figures("sqnr")
    if len(figures) < 2:
        return ""
    said = []
    for variant in [outcome.low] if outcome.mixed is outcome.low else [outcome.low, outcome.mixed]:
        name, value = variant.comparison.worst_of("sqnr")
        source = variant.comparison.made_from(name)
        said.append(f"{name}{f' ({source})' if source else ''}, {decibel(value)} dB")
    changed = "; repaired " if outcome.plan.repairs else "; with the pins "
    return f"worst of {len(figures)} judged: {changed.join(dict.fromkeys(said))}"


def _held_out(count: int) -> str:
    return f"{count} were held out" if count else "none was held out"
