"""Planted faults are found, all of them and nothing else: in made-up models, and in real chains of 50 layers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import proto

from precisionlab.jobs.sweep import sweep
from precisionlab.search.outcome import PrecisionResult
from precisionlab.search.pins import Found, Verdict, find_pins
from precisionlab.search.rank import Ranking

SEEDS = 100

# Made-up models


class Planted:
    """A model of 100 to 1,000 layers, with 1 to 6 bad ones, or as many pairs that only hurt together."""

    def __init__(self, seed: int, pairs: bool) -> None:
        self._random = random.Random(seed)
        self.layers = self._random.randint(100, 1000)
        self.count = self._random.randint(1, 6)
        self.names = tuple(f"layer{i}" for i in range(self.layers))
        chosen = self._random.sample(self.names, self.count * (1 + pairs))
        self.groups = [tuple(chosen[i :: self.count]) for i in range(self.count)]
        self.bad = frozenset(chosen)
        self.evaluations = 0

    @property
    def bound(self) -> float:
        return 4 * self.count * math.log2(self.layers) + 20

    def passes(self, pins: frozenset[str]) -> bool:
        """Of each group, a bad layer alone or a pair, one is pinned."""
        return all(any(name in pins for name in group) for group in self.groups)

    def order(self, kind: str) -> tuple[str, ...]:
        rest = [name for name in self.names if name not in self.bad]
        self._random.shuffle(rest)
        bad = [name for name in self.names if name in self.bad]
        self._random.shuffle(bad)
        if kind == "true":
            return (*bad, *rest)
        if kind == "bad last":
            return (*rest, *bad)
        return tuple(self._random.sample(self.names, self.layers))

    def search(self, kind: str, free: Sequence[str] = ()) -> Found:
        def evaluate(pins: frozenset[str]) -> Verdict:
            self.evaluations += 1
            missing = sum(not any(name in pins for name in group) for group in self.groups)
            return Verdict(not missing, (0, -missing), ())

        order = [name for name in self.order(kind) if name not in free]
        return find_pins(Ranking((*free, *order), tuple(free)), evaluate, None)


@pytest.mark.parametrize("kind", ["true", "random", "bad last"])
def test_planted_layers_are_found_in_few_evaluations_whatever_the_ranking(kind: str) -> None:
    over = []
    for seed in range(SEEDS):
        planted = Planted(seed, pairs=False)
        assert planted.search(kind) == Found(planted.bad, True), f"seed {seed}"
        if planted.evaluations > planted.bound:
            over.append((seed, planted.layers, planted.count, planted.evaluations, planted.bound))
    assert over == []


@pytest.mark.parametrize("kind", ["true", "random", "bad last"])
def test_of_planted_pairs_one_each_is_found_in_few_evaluations(kind: str) -> None:
    over = []
    for seed in range(SEEDS):
        planted = Planted(seed, pairs=True)
        found = planted.search(kind)
        assert found.passes
        assert found.pins <= planted.bad
        assert [sum(name in found.pins for name in pair) for pair in planted.groups] == [1] * planted.count
        assert not any(planted.passes(found.pins - {pin}) for pin in found.pins)
        if planted.evaluations > planted.bound:
            over.append((seed, planted.layers, planted.count, planted.evaluations, planted.bound))
    assert over == []


def test_with_the_true_ranking_the_search_takes_a_handful_of_evaluations() -> None:
    """The empty set, the prefix, and one release of each pin, with a few of groups."""
    for seed in range(SEEDS):
        planted = Planted(seed, pairs=False)
        planted.search("true")
        assert planted.evaluations <= 2 + 2 * math.ceil(math.log2(planted.count + 1)) + 3 * planted.count, (
            f"seed {seed}"
        )


def test_free_pins_beside_the_planted_ones_are_released_within_the_bound() -> None:
    for seed in range(SEEDS):
        planted = Planted(seed, pairs=False)
        free = [name for name in planted.names if name not in planted.bad][:5]
        assert planted.search("random", free) == Found(planted.bad, True)
        assert planted.evaluations <= planted.bound, f"seed {seed}"


# Real chains

CONSTANTS = {"two": 2.0, "half": 0.5, "one": 1.0}
HEALTHY = ["b = Mul(a, two)", "b = Mul(a, half)", "b = Add(a, one)", "b = Sub(a, one)", "b = Neg(a)", "b = Neg(a)"]
"""Exact in fp16 for small whole numbers; each pair gives back what it took."""

FAULTS: dict[str, tuple[list[str], dict[str, float], list[int]]] = {
    # Steps, their constants, and which of the steps must not be in fp16.
    "overflow": (["Mul(a, over)", "Mul(a, back)"], {"over": 2.0**20, "back": 2.0**-20}, [0, 1]),
    "weight": (
        ["Mul(a, up)", "Mul(a, underflows)", "Mul(a, again)"],
        {"up": 2.0**12, "underflows": 2.0**-26, "again": 2.0**14},
        [1],
    ),
    "root": (
        ["Mul(a, down)", "Mul(a, down)", "Sqrt(a)", "Mul(a, raise)", "Pow(a, two)"],
        {"down": 2.0**-14, "raise": 2.0**14},
        [1, 2],
    ),
    "large": (["Mul(a, much)", "Mul(a, little)"], {"much": 2.0**14, "little": 2.0**-14}, [0, 1]),  # from 4 on
    "cancellation": (["Add(a, far)", "Sub(a, far)"], {"far": 2.0**15}, [0, 1]),
}


def chain(seed: int, faults: Sequence[str], length: int, folder: Path) -> tuple[Path, Path, set[str]]:
    """A chain of layers with faults at random places: the model, its data, and the layers that break it."""
    drawn = random.Random(seed)
    blocks: list[tuple[str, list[str]]] = [("healthy", HEALTHY[i : i + 2]) for i in (0, 2, 4)] * (length // 6)
    drawn.shuffle(blocks)
    for fault in faults:
        blocks.insert(drawn.randrange(1, len(blocks)), (fault, FAULTS[fault][0]))
    nodes: list[str] = []
    planted: set[str] = set()
    for kind, steps in blocks:
        for index, step in enumerate(steps):
            number = len(nodes)
            operation = step.removeprefix("b = ").replace("(a", f"(t{number}")
            nodes.append(f'["n{number}"] t{number + 1} = {operation}')
            if kind != "healthy" and index in FAULTS[kind][2]:
                planted.add(f"n{number}")
    body = f"(float[1,8] t0) => (float[1,8] t{len(nodes)}) {{ {' '.join(nodes)} }}"
    used = {name: value for fault in faults for name, value in FAULTS[fault][1].items()}
    weights = {name: np.float32([value]) for name, value in {**CONSTANTS, **used}.items()}
    onnx.save_model(proto(body, weights), folder / "chain.onnx")
    data = folder / "data"
    data.mkdir()
    rng = np.random.default_rng(seed)
    for index in range(3):
        numbers = rng.integers(1, 4, (1, 8)).astype(np.float32)
        numbers[0, index] = 0
        np.save(data / f"{index}.npy", numbers)
    return folder / "chain.onnx", data, planted


def swept(model: Path, data: Path, out: Path, **options: object) -> PrecisionResult:
    (result,) = sweep(model, data, precisions="fp16", out=out, threads=2, repair=False, **options).precisions  # type: ignore[arg-type]
    return result


@pytest.mark.parametrize(
    ("seed", "faults"),
    [
        pytest.param(0, ["overflow"], marks=pytest.mark.thorough),
        (1, ["weight", "weight"]),
        (2, ["root", "overflow"]),
        (3, ["cancellation", "weight", "overflow", "root"]),
        (4, []),
    ],
    ids=lambda v: "+".join(v) if isinstance(v, list) else str(v),
)
def test_faults_in_a_real_chain_are_pinned_and_nothing_else(tmp_path: Path, seed: int, faults: list[str]) -> None:
    model, data, planted = chain(seed, faults, 48, tmp_path)
    found = swept(model, data, tmp_path / "run", ladder="fp32")
    assert {pin.layer for pin in found.mixed.plan.pins} == planted
    assert found.met
    if not faults:
        assert found.certificate is None
        return
    assert found.certificate is not None
    assert found.certificate.proven
    assert {release.layer for release in found.certificate.releases} == planted
    layers = 48 + sum(len(FAULTS[fault][0]) for fault in faults)
    # Of the search; the certificate's releases are among them, and the plans around it are at most 8 more.
    assert found.evaluations <= 4 * len(planted) * math.log2(layers) + 20 + 8
    written = json.loads((tmp_path / "run" / "plan.json").read_text())["certificate"]
    assert written["proven"]
    assert [r["met"] for r in written["releases"]] == [False] * len(planted)


def test_on_the_ladder_range_is_fixed_by_bf16_and_lost_digits_by_fp32(tmp_path: Path) -> None:
    """Powers of two are exact in bf16, and a sum next to 2¹⁵ is not."""
    model, data, planted = chain(5, ["overflow", "cancellation"], 60, tmp_path)
    found = swept(model, data, tmp_path / "run", minimize="cost", ladder="bf16,fp32")
    pins = {pin.layer: pin.precision.value for pin in found.mixed.plan.pins}
    assert set(pins) == planted
    assert sorted(pins.values()) == ["bf16", "bf16", "fp32", "fp32"]
    assert found.met
    assert found.certificate is not None
    assert found.certificate.proven


def test_a_fault_that_only_held_out_samples_show_is_pinned_too_and_the_pins_are_not_called_proven(
    tmp_path: Path,
) -> None:
    """The samples that choose hold numbers to 3 alone, and the planted layers break from 4 on."""
    model, data, planted = chain(7, ["large"], 30, tmp_path)
    for file in data.iterdir():
        file.unlink()
    for index in range(32):
        numbers = np.random.default_rng(index).integers(1, 4, (1, 8)).astype(np.float32)
        if index % 4 == 3:
            numbers[0, 0] = 8
        np.save(data / f"{index:02}.npy", numbers)
    found = swept(model, data, tmp_path / "run", ladder="fp32", holdout=0.25)
    assert found.met
    assert found.mixed.held_out is not None
    assert planted <= {pin.layer for pin in found.mixed.plan.pins}
    assert found.certificate is None
    assert "held out" in found.remark


def test_the_ranking_has_the_planted_layers_in_front(tmp_path: Path) -> None:
    """What breaks at the outputs is seen layer by layer, before any set of pins is tried."""
    model, data, planted = chain(6, ["weight", "overflow"], 36, tmp_path)
    found = swept(model, data, tmp_path / "run", ladder="fp32")
    front: Callable[[str], int] = found.ranked.index
    breaking = {name for name in planted if not name_is_behind(name, planted)}
    assert max(map(front, breaking)) < len(planted)


def name_is_behind(name: str, planted: set[str]) -> bool:
    """Whether the planted layer before it is its partner: alone it takes what the other has not broken."""
    return f"n{int(name[1:]) - 1}" in planted


@pytest.mark.thorough
def test_a_diffuse_error_is_called_so_and_its_pins_are_found_without_plans_that_cannot_be_right(tmp_path: Path) -> None:
    """Twenty additions that each lose digits alike; of them many must be in float32."""
    weights = {f"w{i}": np.float32([0.1 + i / 37]) for i in range(20)}
    steps = " ".join(f'["n{i}"] t{i + 1} = Add(t{i}, w{i})' for i in range(20))
    onnx.save_model(proto(f"(float[1,64] t0) => (float[1,64] t20) {{ {steps} }}", weights), tmp_path / "sums.onnx")
    (tmp_path / "data").mkdir()
    for index in range(3):
        numbers = np.random.default_rng(index).uniform(1, 9, (1, 64)).astype(np.float32)
        np.save(tmp_path / "data" / f"{index}.npy", numbers)
    found = swept(tmp_path / "sums.onnx", tmp_path / "data", tmp_path / "run", tolerance="sqnr>=72")
    carriers = found.carriers
    assert carriers is not None
    assert carriers.is_diffuse
    assert carriers.layers == 20
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["precisions"]["fp16"]
    assert facts["carriers"] == {"share": 0.9, "layers": carriers.carrying, "measured": 20, "diffuse": True}
    assert carriers.words(20).capitalize() in (tmp_path / "run" / "summary.md").read_text()
    assert found.certificate is not None
    assert found.certificate.proven
    tried = [len(point.pins) for point in found.points]
    assert len(found.mixed.plan.pins) > 6
    assert tried[0] == 0
    assert tried[1] > 4, "not one, two and four pins first"
