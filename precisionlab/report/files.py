"""The files of a run: run.json, the plans with their evidence, the tables, the report, and the annotated model."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precisionlab.compare.confidence import inconclusive_bounds
from precisionlab.compare.tolerance import Tolerance
from precisionlab.evaluate.prepare import Prepared, Source
from precisionlab.evaluate.run_folder import RunFolder
from precisionlab.export.offers import names_in_file, refusals
from precisionlab.model import Model
from precisionlab.model.compiled import Fusions
from precisionlab.model.held import held_layers, held_text
from precisionlab.model.measurable import own_types
from precisionlab.model.portable import tensorrt_notes
from precisionlab.plan.file import REPAIRED, plan_files
from precisionlab.precision import Precision
from precisionlab.report.annotate import ANNOTATED, annotated_model, why_not_annotated
from precisionlab.report.cells import records_of
from precisionlab.report.earlier import RUN_SCHEMA
from precisionlab.report.inside import inside_facts, kernel_facts
from precisionlab.report.kernel_times import kernel_times
from precisionlab.report.repaired import repaired_facts, repairs_drawn
from precisionlab.report.rows import rows_text
from precisionlab.results.sweep import SampleNames, SweepFindings
from precisionlab.search.alternatives import Alternative
from precisionlab.search.certificate import json_number
from precisionlab.search.devices import DevicePeaks
from precisionlab.search.options import Options
from precisionlab.search.outcome import CompiledVariant, EngineResult, PrecisionResult, Variant
from precisionlab.search.size import saved_words
from precisionlab.system.disk import write_whole, write_whole_bytes
from precisionlab.system.versions import versions

if TYPE_CHECKING:
    import pandas as pd

    from precisionlab.backends.engine import EngineBackend


def run_facts(
    ready: Prepared,
    source: Source,
    options: Options,
    device: DevicePeaks,
    results: Sequence[PrecisionResult],
    engines: EngineBackend | None,
    fusions: Fusions | None,
    folder: Path,
    seconds: float,
) -> dict[str, Any]:
    """The content of `run.json`; `engines` are those that the plans were measured on, None where all is emulated.

    `folder` is the run's own, as it was given: commands that the report shows name it, below the folder that the run
    was started in, as they do with other paths that were given so.
    """
    backend, dataset, model = ready.backend, ready.dataset, ready.backend.model
    known = versions()
    names = SampleNames(ready.chosen.names, ready.held_out.names if ready.held_out else ())
    note = why_not_annotated(model, ready.local.memory)
    return {
        "schema": RUN_SCHEMA,
        "precisionlab": known.get("precisionlab", ""),
        "versions": {**known, "python": sys.version.split()[0]},
        "command": [Path(sys.argv[0]).name.replace("__main__.py", "precisionlab"), *sys.argv[1:]],
        "folder": str(folder),
        "started_in": str(Path.cwd()),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "backend": backend.name,
        "figures": backend.figures,
        "engines": None if engines is None else {**engines.identity, "measured": engines.can_run},
        "target": {"name": device.name, "title": device.title, "source": device.source},
        "model": {
            "path": str(model.path),
            "sha256": model.sha256,
            "layers": len(model.layers),
            "tensorrt": [note.to_dict() for note in tensorrt_notes(model)],
        },
        "layers": _layer_facts(model, fusions),
        "data": {
            "folder": None if dataset.is_random else dataset.origin,
            "name": dataset.manifest.name,
            "description": dataset.manifest.description,
            "samples": len(dataset),
            "choosing": len(ready.chosen),
            "held_out": len(ready.held_out) if ready.held_out else 0,
            "holdout": source.holdout,
            "limit": source.samples,
            "skip_bad": source.skip_bad,
            "shapes": {name: list(shape) for name, shape in source.shapes.items()},
            "metric": options.metric,
            "skipped": [bad.name for bad in dataset.skipped],
            "look": None if dataset.look is None else dataset.look.to_dict(),
            "random": dataset.is_random,
            "sha256": dataset.sha256,
            "seed": dataset.seed,
        },
        "tolerance": {p.value: ", ".join(map(str, options.tolerance_of(p))) for p in options.precisions},
        "device": ready.local.title,
        "threads": backend.threads,
        "seconds": round(seconds, 3),
        "annotated": {"file": None if note else ANNOTATED, "note": note},
        "precisions": {
            r.precision.value: {
                **_precision_facts(model, r, names),
                "not_for": _not_for(model, r) if r.met and not note else {},
                **_own_groups(r, fusions),
            }
            for r in results
        },
    }


def _not_for(model: Model, result: PrecisionResult) -> dict[str, str]:
    """Why the plan found cannot be exported for some tools; not asked of models that are too large for a copy."""
    repaired = model if result.repaired is None else result.repaired.model
    return refusals(repaired, result.plan, result.table, names_in_file(repaired))


def _held(model: Model) -> dict[str, Any]:
    """The layers that every export holds at float32: no pins, as the search had no choice."""
    held = [{"layer": h.name, "nodes": list(h.nodes), "reason": h.fixed} for h in held_layers(model)]
    return {"held": held} if held else {}


def _layer_facts(model: Model, fusions: Fusions | None) -> dict[str, Any]:
    """Where the layers come from, which could not be emulated, and what the model has types of its own in.

    `groups` are those of a compiled engine, by which the plan is read again.
    """
    facts: dict[str, Any] = {"from": "patterns", "difference": "", "own": own_types(model), "held": held_text(model)}
    if fusions is None:
        return facts
    groups = [list(layer.nodes) for layer in model.layers]
    return {**facts, "from": "a compiled engine", "difference": fusions.text, "groups": groups}


def _own_groups(result: PrecisionResult, fusions: Fusions | None) -> dict[str, Any]:
    """The layers of a repaired model that a compiled engine has; see `_layer_facts`."""
    if fusions is None or result.repaired is None:
        return {}
    return {"groups": [list(layer.nodes) for layer in result.repaired.model.layers]}


def _precision_facts(model: Model, result: PrecisionResult, names: SampleNames) -> dict[str, Any]:
    first = result.first_nonfinite
    layer = next((layer.name for layer in model.layers if first in layer.watched), None)
    return {
        "met": result.met,
        "verdict": result.verdict.to_dict(),
        "pins": len(result.plan.pins),
        "touched": len(result.ranked),
        "evaluations": result.evaluations,
        "proven": None if result.certificate is None else result.certificate.proven,
        "remark": result.remark,
        "carriers": None if result.carriers is None else result.carriers.to_dict(),
        "repairs": list(map(str, result.repairs)),
        "repaired": repairs_drawn(result),
        "rows": rows_text(model, result.low, names),
        "engine": None if result.engine is None else _engine_facts(result.engine),
        "compiled": [_compiled_facts(compiled) for compiled in result.compiled],
        "each_layer": _each_layer_facts(result),
        "unscaled": None if result.unscaled is None else result.unscaled.to_dict(),
        "inconclusive": [
            {"bound": str(bound), "low": json_number(ends.low), "high": json_number(ends.high)}
            for bound, ends in inconclusive_bounds(result.mixed.comparison, result.mixed.tolerance)
        ],
        "first_nonfinite": first,
        "first_nonfinite_layer": layer,
        "table": result.ranges_text or None,
        "weights": saved_words(model, result.plan) or None,
    }


def _each_layer_facts(result: PrecisionResult) -> dict[str, Any] | None:
    """What figures of each layer by itself stand beside: float32, and the precision throughout, on the same samples."""
    each, low = result.each_layer, result.low.comparison
    if each is None:
        return None
    sqnr, metric, reference = (
        None if value is None else json_number(value)
        for value in (each.low.sqnr, each.low.metric, each.reference_metric)
    )
    return {
        "samples": each.samples,
        "metric": low.metric_name if each.low.metric is not None else None,
        "higher_is_better": low.higher_is_better,
        "reference": {"metric": reference},
        "low": {"sqnr": sqnr, "nonfinite": each.low.nonfinite, "metric": metric},
    }


def _engine_facts(engine: EngineResult) -> dict[str, Any]:
    """What was measured of one precision on the GPU, beside the tables."""
    taken = engine.mixed
    facts = {"met": engine.met, "builds": engine.builds, "notes": list(engine.notes), "times": kernel_times(taken)}
    return {**facts, **({"warnings": [], "pins": []} if taken is None else inside_facts(taken.inside))}


def _compiled_facts(compiled: CompiledVariant) -> dict[str, Any]:
    """What a compiler made of a variant, for a GPU that is not here."""
    facts = {"variant": compiled.name, "target": compiled.target, "refused": compiled.refused}
    if compiled.inside is None:
        return facts
    built = compiled.inside.built
    return {
        **facts,
        "bytes": built.size,
        "seconds": round(built.seconds, 3),
        **kernel_facts(built),
        **inside_facts(compiled.inside),
    }


def write_results(
    run: RunFolder, result: SweepFindings, variants: pd.DataFrame, layers: pd.DataFrame, *, measured: bool
) -> None:
    """Write everything that a run leaves behind: all files of it, or none.

    `variants` and `layers` are the result's tables. `measured` says that a plan of the user's was measured, and none
    was searched.
    """
    from precisionlab.report.csvfile import to_csv
    from precisionlab.report.histograms import HISTOGRAMS, histograms_text
    from precisionlab.report.network import NETWORK, network_text
    from precisionlab.report.pareto import pareto_table
    from precisionlab.report.redraw import page_of, read_run, summary_of
    from precisionlab.report.tables import samples_table
    from precisionlab.report.written import RUN_FILE, with_digests

    # The plans of an earlier search would contradict this one. A plan that the user had measured may be one
    # of them, and a file of another name is the user's own: those stay.
    gone = [] if measured else ["plan.json", *(f"plan.{p}.json" for p in Precision)]
    # Somebody may sweep the annotated copy, in its own folder: it is the model then.
    is_model = (run.path / ANNOTATED).resolve() == result.model.path.resolve()
    is_annotated = not is_model and not result.run["annotated"]["note"]
    plans = plan_files(result.plans)
    with run.results([*gone, *([] if is_model else [ANNOTATED])]) as drafts:
        for found in result.precisions:
            repaired = {} if found.repaired is None else {REPAIRED: repaired_facts(found.repaired)}
            content = {**found.plan.to_dict(), **repaired, **_held(result.model), **_plan_evidence(found)}
            write_whole(drafts / plans[found.precision.value], json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        write_whole(drafts / "variants.csv", to_csv(variants))
        write_whole(drafts / "layers.csv", to_csv(layers))
        write_whole(drafts / "pareto.csv", to_csv(pareto_table(result)))
        write_whole(drafts / "samples.csv", to_csv(samples_table(result)))
        write_whole(drafts / HISTOGRAMS, histograms_text(result))
        write_whole(drafts / NETWORK, network_text(result.model))
        tables = ("variants.csv", "layers.csv", "pareto.csv", "samples.csv", HISTOGRAMS, NETWORK)
        facts = with_digests(result.run, drafts, (*tables, *plans.values()))
        write_whole(drafts / RUN_FILE, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        # Drawn from what will lie in the folder, so that it can be drawn again to the same bytes.
        files = read_run(drafts)
        write_whole(drafts / "report.html", page_of(files))
        write_whole(drafts / "summary.md", summary_of(files))
        if is_annotated:
            write_whole_bytes(drafts / ANNOTATED, annotated_model(result.model, records_of(layers)))
    for found in result.precisions:
        run.drop_kept_plan(found.precision.value)


def _plan_evidence(result: PrecisionResult) -> dict[str, Any]:
    """What speaks for the plan: whether it holds its tolerance, and the figures without and with pins."""
    bounds = result.mixed.tolerance
    return {
        "tolerance": [str(b) for b in bounds],
        "met": result.met,
        "verdict": result.verdict.sentence,
        "figures": result.mixed.figures,
        "samples": result.mixed.comparison.samples,
        "without_pins": {b.figure: json_number(b.of(result.low.comparison)) for b in bounds},
        "with_pins": {b.figure: json_number(b.of(result.mixed.comparison)) for b in bounds},
        "held_out": _held_out(result.mixed),
        "arithmetic": result.arithmetic.to_plain(),
        "alternatives": [_alternative(other, bounds) for other in result.mixed.alternatives],
        **({} if result.certificate is None else {"certificate": result.certificate.to_dict()}),
    }


def _alternative(other: Alternative, bounds: Tolerance) -> dict[str, Any]:
    """The plan's figures under another arithmetic, on the samples that choose."""
    figures = {b.figure: json_number(b.of(other.comparison)) for b in bounds}
    return {**other.arithmetic.to_plain(), "met": other.met, "with_pins": figures}


def _held_out(variant: Variant) -> dict[str, Any] | None:
    """The plan's figures on the samples that chose nothing."""
    if variant.held_out is None:
        return None
    figures = {b.figure: json_number(b.of(variant.held_out)) for b in variant.tolerance}
    return {"samples": variant.held_out.samples, **figures}
