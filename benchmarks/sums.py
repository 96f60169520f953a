"""What sums in half change, and what emulating them costs: `python -m benchmarks.sums [MODELS] [--samples 16]`.

For each model in FP16 without pins, with sums in float32, in half, and in half without tensor cores ("half-single"):
the SQNR of the worst final output and of the typical sample, the layers whose running sum passes 65504 on its way, and
whether the default tolerance still holds. Of the layers that add up most products (the largest K) what the law for sums
of their length says, an estimate, beside the SQNR of these sums alone (against float32 sums of the same halves, on the
first samples), and beside the layers' own error, in which operands and results are rounded too. `--only plans` sweeps
the models with all of their samples instead, and tells what the plan that was found is with sums in half.

Then the cost: one comparison of all layers, both kinds of error, with half sums over that with float32 sums, taken
alternately in one process, the first of each not counted (it loads the compiled loops).

The floor is in `benchmarks.sums_loops`: single operators, our loop over ONNX Runtime's in float32.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from benchmarks.comparison import plain_passes
from benchmarks.processes import in_process
from benchmarks.sums_loops import loops, print_loops
from benchmarks.typed_models import files_of
from precisionlab.backends.sums.kernel import add_up, in_the_end
from precisionlab.backends.sums.operands import product_of
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.half_sums import half_sums_sqnr
from precisionlab.compare.tolerance import meets
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.journal import NoJournal
from precisionlab.evaluate.prepare import Prepared, Source, prepare
from precisionlab.evaluate.ranges import typical_sqnr
from precisionlab.evaluate.running_sums import running_sums
from precisionlab.evaluate.values import observed_values
from precisionlab.model import Layer, Model, load_model
from precisionlab.model.contraction import blocks_of, products_of
from precisionlab.plan.arithmetic import TENSORRT, Sums
from precisionlab.precision import Precision
from precisionlab.report.layer_rows import layer_errors
from precisionlab.rewrite.constants import rounded_array
from precisionlab.rewrite.plans import plan_for
from precisionlab.rewrite.sums import adds_up
from precisionlab.search.options import Options
from precisionlab.system.observer import Silent

MODELS = ("magika", "minilm_l3", "ppocr4_rec", "ppocr4_det", "orient", "layout", "vit_focus")
PARTS = ("figures", "cost", "loops")
_WORST = 10
_FIRST = 2

Array = NDArray[Any]


@click.command()
@click.argument("models", nargs=-1)
@click.option("--samples", default=16, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--only", type=click.Choice([*PARTS, "plans"]), multiple=True, help="By default all but plans.")
def main(models: tuple[str, ...], samples: int, repeats: int, threads: int, only: tuple[str, ...]) -> None:
    """Print tables of MODELS (all if none is named)."""
    models, parts = models or MODELS, only or PARTS
    click.echo(f"{samples} samples, {threads} threads, medians of {repeats}")
    if "figures" in parts:
        _print_figures((name, in_process(_figures, name, samples, threads)) for name in models)
    if "cost" in parts:
        _print_costs((name, in_process(_cost, name, samples, repeats, threads)) for name in models)
    if "loops" in parts:
        print_loops(in_process(loops, repeats)["rows"])
    if "plans" in parts:
        for name in models:
            click.echo(in_process(_plan, name, threads)["said"])


def _opened(name: str, samples: int, threads: int) -> tuple[Prepared, Evaluator]:
    model_path, data = files_of(name)
    source = Source(data, {}, samples, 0, 0.25, False)
    ready = prepare(load_model(model_path), source, None, threads, None, Silent())
    judging = ready.judging(Options(precisions=(Precision.FP16,)).tolerance_of(Precision.FP16))
    judging = ready.with_groups(judging, NoJournal(), Silent())
    return ready, ready.evaluator(NoJournal(), Silent(), judging)


# Figures


def _figures(name: str, samples: int, threads: int) -> dict[str, Any]:
    ready, evaluator = _opened(name, samples, threads)
    model, tolerance = evaluator.model, Options().tolerance_of(Precision.FP16)
    plan = plan_for(model, Precision.FP16)
    found = {
        sums: replace(evaluator, arithmetic=replace(TENSORRT, sums=sums)).compare(
            sums.value, plan, None, introduced=True
        )
        for sums in Sums
    }
    largest = {tensor: h.amax for tensor, h in observed_values(evaluator, False, ready.local.look).histograms.items()}
    running = running_sums(evaluator, plan, largest, ready.local.look)
    end = Precision.FP16.number_format.largest
    return {
        "final": {sums.value: comparison.worst("sqnr") for sums, comparison in found.items()},
        "typical": {sums.value: typical_sqnr(comparison) for sums, comparison in found.items()},
        "met": {sums.value: meets(comparison, tolerance) for sums, comparison in found.items()},
        "summing": len(running),
        "looked_at": sum(r.largest is not None for r in running.values()),
        "passing": sum(r.largest is not None and r.largest > end for r in running.values()),
        "largest": max((r.largest for r in running.values() if r.largest is not None), default=None),
        "layers": _summing_layers(model, found, _sums_alone(ready, evaluator)),
    }


def _summing_layers(model: Model, found: dict[Sums, Comparison], alone: dict[str, float]) -> list[dict[str, Any]]:
    """Of all that add up products K, blocks, the SQNR of the sums and the own one as emulated; the largest K first."""
    rows = []
    for layer in model.layers:
        node = model.node[layer.nodes[0]]
        products, blocks = products_of(node, model.tensors), blocks_of(node, model.tensors)
        if not adds_up(node) or products is None or blocks is None:
            continue
        own = {sums.value: _own(layer, comparison) for sums, comparison in found.items()}
        row = {"layer": layer.name, "kind": node.op_type, "products": products, "blocks": blocks, "own": own}
        rows.append({**row, "alone": alone.get(layer.name, math.nan)})
    return sorted(rows, key=lambda row: -row["products"])


def _sums_alone(ready: Prepared, evaluator: Evaluator) -> dict[str, float]:
    """Layer name → the SQNR in dB of its sums in half, of operands that are rounded to half before."""
    model = evaluator.model
    anchors = {layer.name: model.node[layer.nodes[0]] for layer in model.layers if adds_up(model.node[layer.nodes[0]])}
    wanted = {str(value.name) for node in anchors.values() for value in node.inputs[:2] if value is not None}
    power: dict[str, tuple[float, float]] = {}
    for sample in list(evaluator.chosen)[:_FIRST]:
        held: dict[str, Array] = {}
        ready.local.look([sample], lambda name, value: held.update({name: np.array(value)} if name in wanted else {}))  # noqa: B023
        for name, node in anchors.items():
            operands = [_operand(node, index, held) for index in (0, 1)]
            if all(operand is not None and np.isfinite(operand).all() for operand in operands):
                half, exact = (
                    np.float64(product_of(node, Sums.HALF, loop)(*operands)) for loop in (add_up, in_the_end)
                )
                signal, noise = power.get(name, (0.0, 0.0))
                power[name] = (signal + float(np.sum(exact**2)), noise + float(np.sum((half - exact) ** 2)))
    return {name: 10 * math.log10(signal / noise) for name, (signal, noise) in power.items() if signal and noise}


def _operand(node: ir.Node, index: int, held: Mapping[str, Array]) -> Array | None:
    """An operand as the product takes it, rounded to half; None where it was not shown."""
    value = node.inputs[index]
    assert value is not None
    found = held.get(str(value.name)) if value.const_value is None else value.const_value.numpy()
    turned = ("transA", "transB")[index]
    is_turned = node.op_type == "Gemm" and turned in node.attributes and node.attributes[turned].as_int()
    return None if found is None else rounded_array(np.float32(found.T if is_turned else found), Precision.FP16)


def _own(layer: Layer, comparison: Comparison) -> float:
    errors = layer_errors(layer, comparison.introduced)
    return math.nan if errors is None else errors.sqnr


def _print_figures(rows: Iterator[tuple[str, dict[str, Any]]]) -> None:
    """A row a model as it is there, then the tables of layers."""
    click.echo("\nFP16 without pins: SQNR of the worst output, of the typical sample behind the comma, in dB\n")
    click.echo("| model | float32 sums | half | half-single | beyond 65504 / bound beyond / summing layers | turns |")
    click.echo("|---|---|---|---|---|---|")
    layers_of = {}
    for name, row in rows:
        layers_of[name] = row["layers"]
        cells = [f"{_db(row['final'][sums.value])}, {_db(row['typical'][sums.value])}" for sums in Sums]
        turns = [s.value for s in Sums if row["met"][s.value] != row["met"][Sums.FLOAT32.value]]
        largest = f" (largest {row['largest']:.3g})" if row["largest"] is not None else ""
        counts = f"{row['passing']} / {row['looked_at']} / {row['summing']}{largest}"
        click.echo(f"| {name} | {' | '.join(cells)} | {counts} | {', '.join(turns) or 'no'} |")
    for name, layers in layers_of.items():
        off = [abs(half_sums_sqnr(r["blocks"]) - r["alone"]) for r in layers if math.isfinite(r["alone"])]
        near = sum(distance <= 2 for distance in off)
        click.echo(f"\n{name}: the sums of {near} of {len(off)} layers are within 2 dB of the law; the largest K:\n")
        click.echo(
            "| layer | operator | K | blocks | law, dB | sums | own, float32 sums | own, half | own, half-single |"
        )
        click.echo("|---|---|---|---|---|---|---|---|---|")
        for r in layers[:_WORST]:
            own = " | ".join(_db(r["own"][sums.value]) for sums in Sums)
            law = _db(half_sums_sqnr(r["blocks"]))
            click.echo(
                f"| {r['layer']} | {r['kind']} | {r['products']} | {r['blocks']} | {law} | {_db(r['alone'])} | {own} |"
            )


def _db(value: float) -> str:
    return f"{value:.1f}"


# Cost


def _cost(name: str, samples: int, repeats: int, threads: int) -> dict[str, Any]:
    _, evaluator = _opened(name, samples, threads)
    plan, every = plan_for(evaluator.model, Precision.FP16), list(evaluator.chosen)
    model_path, _ = files_of(name)
    plain = plain_passes(model_path, every, threads)

    def compared(sums: Sums) -> Callable[[], None]:
        arithmetic = replace(TENSORRT, sums=sums)

        def run() -> None:
            evaluator.backend.compare(
                plan, None, every, lambda done: None, metric=None, introduced=True, judging=evaluator.judging,
                arithmetic=arithmetic,
            )  # fmt: skip

        return run

    works = {"plain": plain, "float32": compared(Sums.FLOAT32), "half": compared(Sums.HALF)}
    for work in works.values():
        work()
    times = [{what: _times(work) for what, work in works.items()} for _ in range(repeats)]

    def median(over: str, under: str, clock: int) -> float:
        return statistics.median(found[over][clock] / found[under][clock] for found in times)

    pairs = {"ratio": ("half", "float32"), "float32": ("float32", "plain"), "half": ("half", "plain")}
    return {
        "samples": len(every),
        "plain": statistics.median(found["plain"][0] for found in times) / len(every) * 1e3,
        **{name: [median(*pair, clock) for clock in (0, 1)] for name, pair in pairs.items()},
    }


def _times(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor in all threads."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def _print_costs(rows: Iterator[tuple[str, dict[str, Any]]]) -> None:
    click.echo("\nA comparison of all layers, both kinds of error: processor seconds (by the clock)\n")
    click.echo("| model | samples | half over float32 sums | float32 sums, plain passes | half, plain passes |")
    click.echo("|---|---|---|---|---|")
    for name, row in rows:
        cells = [f"{row[what][1]:.2f} ({row[what][0]:.2f})" for what in ("ratio", "float32", "half")]
        click.echo(f"| {name} ({row['plain']:.1f} ms a pass) | {row['samples']} | {' | '.join(cells)} |")


# Plans


def _plan(name: str, threads: int) -> dict[str, Any]:
    import precisionlab

    model, data = files_of(name)
    with tempfile.TemporaryDirectory() as folder:
        result = precisionlab.sweep(model, data, precisions="fp16", out=Path(folder) / "run", threads=threads)
    found = result.precisions[0]
    lines = [f"\n{name}: {found.verdict.sentence}"]
    for variant in [found.low] if found.mixed is found.low else [found.low, found.mixed]:
        others = (f"{a.comparison.worst('sqnr'):.1f} dB {a.kind.words}" for a in variant.alternatives)
        figures = ", ".join([f"{variant.comparison.worst('sqnr'):.1f} dB", *others])
        lines.append(f"  {variant.name}, {len(variant.plan.pins)} pins: {figures}")
    return {"said": "\n".join(lines)}


if __name__ == "__main__":
    main()
