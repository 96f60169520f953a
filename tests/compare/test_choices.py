"""ArgMax and ArgMin choose entries of a table: near-ties that flip are set aside, other flips are errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import Array, load, proto

from precisionlab.compare.judged import judged_errors
from precisionlab.compare.judging import judging_of
from precisionlab.compare.output import OutputErrors, settled
from precisionlab.jobs.sweep import sweep
from precisionlab.model import Model
from precisionlab.model.choices import chosen_outputs

RNG = np.random.default_rng(5)
TABLE = np.float32(RNG.standard_normal((16, 8)))

VQ = """(float[1,8,4,25] x) => (float[1,8,4,25] y) {
    h = Mul (x, one)  t = Transpose <perm = [0,2,3,1]> (h)  f = Reshape (t, flat)
    dot = MatMul (f, W)  d = Sub (norms, dot)  i = ArgMin <axis = 1, keepdims = 0> (d)
    q = Gather (table, i)  r = Reshape (q, back)  y = Transpose <perm = [0,3,1,2]> (r) }"""
WEIGHTS: dict[str, Array] = {
    "one": np.float32([1.01]),
    "flat": np.array([100, 8]),
    "W": 2 * TABLE.T,
    "norms": (TABLE**2).sum(1),
    "table": TABLE,
    "back": np.array([1, 4, 25, 8]),
}


def vq(folder: Path) -> Model:
    """The middle of a quantised autoencoder: each vector's nearest entry of a table."""
    return load(proto(VQ, WEIGHTS), folder)


def values(d: Array) -> dict[str, Array]:
    """What the model makes of these distances, (100, 16), in float64 numpy."""
    return {"d": d, "y": TABLE[d.argmin(1)].reshape(1, 4, 25, 8).transpose(0, 3, 1, 2)}


def distances(seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    x = TABLE[rng.integers(0, 16, 100)] + 0.1 * rng.standard_normal((100, 8))
    return np.float32((TABLE**2).sum(1) - 2 * x @ TABLE.T)


def judged(model: Model, true: Array, low: Array) -> OutputErrors:
    return judged_errors(judging_of(model), values(true), values(low))["y"]


def tie(d: Array, place: int, apart: float) -> None:
    """Have the best entry lead another one by so much, or follow it."""
    order = np.argsort(d[place])
    d[place, order[1]] = d[place, order[0]] + np.float32(apart)


def test_a_near_tie_is_set_aside_and_another_entry_is_an_error(tmp_path: Path) -> None:
    model, true = vq(tmp_path), distances()
    low = true + np.float32(1e-3 * np.random.default_rng(1).standard_normal(true.shape))
    tie(true, 40, 1e-3)
    best, other = np.argsort(true[40])[:2]
    low[40, [best, other]] = true[40, [other, best]]
    found = judged(model, true, low)
    assert found.rows is not None
    assert found.errors is not None
    assert (found.rows.choices, found.rows.near, found.rows.differ) == (100, 1, 0)
    assert found.errors.err2 == 0
    far = low.copy()
    far[41, np.argsort(true[41])[1]] = true[41].min() - 5  # an entry that was far off wins
    found = judged(model, true, far)
    assert found.rows is not None
    assert found.errors is not None
    assert (found.rows.near, found.rows.differ) == (1, 1)
    # Alone the vector of that place is wrong.
    taken, right = TABLE[far[41].argmin()], TABLE[true[41].argmin()]
    assert found.errors.err2 == pytest.approx(((taken - right).astype(float) ** 2).sum(), rel=1e-5)


def test_more_flips_than_a_twentieth_are_no_near_ties(tmp_path: Path) -> None:
    model, true = vq(tmp_path), distances()
    low = true + np.float32(1e-3 * np.random.default_rng(1).standard_normal(true.shape))
    for place in range(10):
        tie(true, place, 1e-3)
        best, other = np.argsort(true[place])[:2]
        low[place, [best, other]] = true[place, [other, best]]
    total, _ = settled([judged(model, true, low)] * 3)
    assert total.rows is not None
    assert total.errors is not None
    assert (total.rows.near, total.rows.differ) == (0, 30)
    assert total.errors.sqnr < 15


def data(folder: Path, count: int = 8) -> Path:
    rng = np.random.default_rng(2)
    folder.mkdir()
    for k in range(count):
        x = TABLE[rng.integers(0, 16, 100)] + 0.9 * rng.standard_normal((100, 8))
        x[0, 0] = 60  # int8's steps are half a unit wide
        np.save(folder / f"s{k}.npy", np.float32(x.reshape(1, 4, 25, 8).transpose(0, 3, 1, 2)))
    return folder


@pytest.mark.slow
def test_a_table_looked_up_is_right_in_fp16_and_wrong_in_int8(tmp_path: Path) -> None:
    onnx.save(proto(VQ, WEIGHTS), tmp_path / "m.onnx")
    out = tmp_path / "out"
    result = sweep(
        tmp_path / "m.onnx", data(tmp_path / "d"), precisions="fp16,int8", tolerance="sqnr>=45", out=out, max_pins=0
    )
    fp16, int8 = (found.low for found in result.precisions)
    assert fp16.met
    assert {name for name, errors in fp16.comparison.outputs.items() if errors.role} == {"d"}
    assert not int8.met
    rows = int8.comparison.outputs["y"].rows
    assert rows is not None
    assert rows.differ > 0.05 * rows.choices
    assert any("ArgMin" in note and "d" in note for note in result.run["judging"])


@pytest.mark.parametrize(
    ("shape", "body", "expected"),
    [
        ("20,1,8", "y = Gather (table, i)", (0,)),
        ("20,8", "g = Gather (table, i)  s = Squeeze (g, k)  y = Relu (s)", (0,)),
        ("20,8", "g = Gather (table, i)  s = Squeeze (g, k)  y = MatMul (s, W)", (0,)),
        ("8,20", "g = Gather (table, i)  s = Squeeze (g, k)  y = Transpose (s)", (1,)),
        ("1,1,1", "g = Gather (table, i)  y = ReduceSum (g)", None),
        ("20,1", "y = Cast <to = 1> (i)", None),
    ],
)
def test_places_are_followed_to_the_output(
    shape: str, body: str, expected: tuple[int, ...] | None, tmp_path: Path
) -> None:
    weights = {"table": TABLE, "k": np.array([1]), "W": np.eye(8, dtype=np.float32)}
    graph = proto(
        f"(float[20,16] x) => (float[{shape}] y) {{ d = Exp (x)  i = ArgMax <axis = 1> (d)  {body} }}", weights
    )
    found = {chosen.tensor: chosen.axes for chosen in chosen_outputs(load(graph, tmp_path))}
    assert found == ({} if expected is None else {"y": expected})
