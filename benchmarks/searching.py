"""What the errors of single layers save a search for pins: `python -m benchmarks.searching [FOLDERS] [--samples N]`.

Each line is one tolerance: the precision's own, and 1 to 25 dB above what the model has without pins. On the same
ranking and evaluations pins are searched for by doubling from one layer, all groups tried, and as the product does it;
`pins/plans` of each. The models are random encoders, and those given (folders with ID.onnx and data/).
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.ranking import encoder, opened, ranges_of
from precisionlab.precision import Precision
from precisionlab.rewrite.plans import plan_for
from precisionlab.search.carriers import carriers_of
from precisionlab.search.expectation import NOTHING, Expectation
from precisionlab.search.options import Options
from precisionlab.search.pinning.evaluations import Evaluations
from precisionlab.search.pinning.suspects import suspects_by_own_error, suspects_by_sensitivity
from precisionlab.search.pinning.task import Task
from precisionlab.search.pins import Verdict, find_pins

ABOVE = (1.0, 3.0, 6.0, 10.0, 15.0, 25.0)  # dB
ENCODERS = {
    **{0: (3, 64), 1: (4, 96), 2: (6, 48)},
    **{10: (2, 32), 11: (2, 48), 12: (3, 32), 13: (3, 48), 14: (2, 64), 15: (4, 32)},
}
"""Seed → blocks and width."""


def main() -> None:
    """Print the lines, and the sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--samples", type=int, default=None)
    parser.add_argument("--precisions", default="fp16,int8")
    parser.add_argument("--encoders", type=int, default=9, help="How many random encoders.")
    asked = parser.parse_args()
    total = {"by doubling": [0, 0, 0], "as expected": [0, 0, 0]}
    with tempfile.TemporaryDirectory() as scratch:
        made = [
            encoder(Path(scratch) / f"encoder{seed}", *ENCODERS[seed], seed)
            for seed in list(ENCODERS)[: asked.encoders]
        ]
        for path in [*made, *(folder / f"{folder.name}.onnx" for folder in asked.folders)]:
            for precision in map(Precision.parse, asked.precisions.split(",")):
                _searched(path, asked.samples, precision, total)
    for name, (pins, plans, worse) in total.items():
        print(f"{name}: {pins} pins, {plans} plans, more pins in {worse}")


def _searched(path: Path, samples: int | None, precision: Precision, total: dict[str, list[int]]) -> None:
    options = Options(precisions=(precision,))
    model, evaluator, cost = opened(path, samples, options)
    table = ranges_of(evaluator, precision)
    task = Task(evaluator, options, cost, plan_for(model, precision, table), table)
    low = evaluator.compare(f"{precision}", task.low_plan, table, introduced=True)
    bound = task.tolerance[0]
    figure, suspects = bound.of(low), None
    values = [bound.value, *(figure + more for more in ABOVE if math.isfinite(figure))]
    for asked in (replace(bound, value=value) for value in values):
        if asked.holds(low) and not low.broken:
            continue
        one = replace(task, options=replace(options, tolerance=(asked,)))
        evaluations = Evaluations(one)
        evaluations.begin(low, suspects or suspects_by_own_error(one, low))
        if suspects is None:
            suspects = suspects_by_sensitivity(one, evaluations.suspects, low, evaluations.cost)
            evaluations.suspects = suspects
        found = {}
        for name, expected in (("by doubling", NOTHING), ("as expected", Expectation(suspects.harms))):
            tried: set[frozenset[str]] = set()
            judged = partial(_judged, evaluations, tried)
            pins = len(find_pins(suspects.ranking, judged, None, expected).pins)
            found[name] = f"{pins}/{len(tried)}"
            worse = pins > int(found["by doubling"].split("/")[0])
            total[name] = [sum(pair) for pair in zip(total[name], (pins, len(tried), worse), strict=True)]
        spread = carriers_of(harm for harm in suspects.harms.values() if math.isfinite(harm))
        print(
            f"{path.stem if path.stem != 'model' else path.parent.name:12} {precision.value:5} {asked.value:6.2f} dB "
            f"{spread.carrying if spread else 0:3} of {len(suspects.ranking.order):3} layers  "
            + "  ".join(f"{name} {text:>8}" for name, text in found.items()),
            flush=True,
        )


def _judged(evaluations: Evaluations, tried: set[frozenset[str]], pins: frozenset[str]) -> Verdict:
    tried.add(pins)
    return evaluations.verdict(pins)


if __name__ == "__main__":
    main()
