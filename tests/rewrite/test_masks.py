"""Masks that half cannot hold: clamped where they lead to a Softmax, and not a bit of its shares changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from repaired import HALF, Array, every_value, found, made, run

from precisionlab.rewrite.repairs import repaired_model

HEAD = "(float[4,8] x, float[4,8] m) => (float[4,8] y) "
FAR = {"far": np.float32(-3.4028235e38), "high": np.float32(3e38), "one": np.float32(1), "eighth": np.float32(0.125)}
MASKS = {
    "added": "f = Mul(m, far) s = Add(x, f) y = Softmax(s)",
    "of what is not masked": "n = Sub(one, m) f = Mul(n, far) s = Add(f, x) y = Softmax(s)",
    "subtracted": "f = Mul(m, high) s = Sub(x, f) y = Softmax(s)",
    "chosen": "c = Greater(m, eighth) s = Where(c, far, x) y = Softmax(s)",
    "scaled behind": "f = Mul(far, m) s = Add(x, f) r = Mul(s, eighth) y = Softmax(r)",
    "moved": "f = Mul(m, far) t = Transpose(f) u = Transpose(t) s = Add(x, u) y = Softmax(s)",
}
OTHERS = {
    "taken by a Tanh": "f = Mul(m, far) s = Add(x, f) y = Tanh(s)",
    "subtracted from by mistake": "f = Mul(m, far) s = Sub(x, f) y = Softmax(s)",
    "added with the sign of what is subtracted": "f = Mul(m, high) s = Add(x, f) y = Softmax(s)",
    "times what is neither 0 nor 1": "f = Mul(x, far) s = Add(x, f) y = Softmax(s)",
    "times a small factor": "f = Mul(m, far) s = Add(x, f) r = Mul(s, tiny) y = Softmax(r)",
}


def inputs(whole: bool = False) -> dict[str, Array]:
    mask = np.triu(np.ones((4, 8), np.float32), 4)
    mask[0] = 1 if whole else mask[0]
    return {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32), "m": mask}


def numbers(body: str) -> dict[str, Array]:
    return {name: np.asarray(value) for name, value in {**FAR, "tiny": np.float32(1e-6)}.items() if name in body}


@pytest.mark.parametrize("kind", MASKS)
def test_a_clamped_mask_gives_the_same_bits(tmp_path: Path, kind: str) -> None:
    model = made(tmp_path, f"{HEAD} {{ {MASKS[kind]} }}", numbers(MASKS[kind]))

    (repair,) = found(model, inputs())
    repaired = repaired_model(model, (repair,))

    assert repair.kind == "clamp_constant"
    assert np.array_equal(run(model.onnx, inputs())["y"], run(repaired.onnx, inputs())["y"])
    assert max(float(np.abs(value).max()) for value in every_value(repaired, inputs()).values()) < HALF.largest


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_mask_is_not_clamped(tmp_path: Path, kind: str) -> None:
    model = made(tmp_path, f"{HEAD} {{ {OTHERS[kind]} }}", numbers(OTHERS[kind]))

    assert "clamp_constant" not in {repair.kind for repair in found(model, inputs())}


def test_a_constant_mask_is_not_clamped_where_a_row_is_masked_as_a_whole(tmp_path: Path) -> None:
    body = f"{HEAD} {{ n = Mul(x, m) s = Add(n, row) y = Softmax(s) }}"
    for row, is_found in ((np.triu(np.ones((4, 8))), False), (np.triu(np.ones((4, 8)), 4), True)):
        model = made(tmp_path, body, {"row": (row * -3e38).astype(np.float32)})

        assert bool(found(model, inputs())) is is_found
