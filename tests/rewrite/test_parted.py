"""What of a fused layer strongly typed TensorRT keeps apart: the table of its kernels, and what is rounded by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fused import BN, CONV, FUSED, RNG, WEIGHTS, C, model_of
from models import Flows, load, plan_for, proto

from precisionlab.model import Model
from precisionlab.plan.arithmetic import Arithmetic, Fusing
from precisionlab.precision import Precision
from precisionlab.rewrite.parted import rounded_behind

FP16, INT8 = Precision.FP16, Precision.INT8


def rounded(model: Model, precision: Precision, fusing: Fusing) -> list[str]:
    nodes = [model.node[name] for name in model.layers[0].nodes]
    return [str(node.name) for node in nodes if node in rounded_behind(nodes, precision, fusing)]


@pytest.mark.parametrize(("body", "is_one"), FUSED.values(), ids=FUSED)
def test_a_layer_of_patterns_is_one_kernel_where_the_compiler_was_seen_to_make_one(
    body: str, is_one: bool, tmp_path: Path
) -> None:
    model = model_of(body, tmp_path)
    assert len(model.layers[0].nodes) > 1
    assert bool(rounded(model, FP16, Fusing.TYPED)) is not is_one
    for precision, fusing in ((FP16, Fusing.FOLDED), (FP16, Fusing.COMPILED), (Precision.FP32, Fusing.TYPED)):
        assert rounded(model, precision, fusing) == []


def test_behind_a_matrix_product_all_is_rounded_and_around_int8_too(tmp_path: Path) -> None:
    model = model_of("[m] t = MatMul(x, m) [a] n = Add(t, b) [r] y = Relu(n)", tmp_path, "1,8")
    assert rounded(model, FP16, Fusing.TYPED) == ["m", "a"]
    for fusing in (Fusing.TYPED, Fusing.COMPILED):
        assert rounded(model, INT8, fusing) == ["m", "a"]
    assert rounded(model, INT8, Fusing.FOLDED) == []


def test_around_int8_a_batchnorm_s_factor_is_one_with_the_scales(tmp_path: Path) -> None:
    model = model_of(f"{CONV} {BN} [r] y = Relu(n)", tmp_path)
    assert rounded(model, INT8, Fusing.COMPILED) == ["bn"]


def test_what_is_rounded_between_overflows_there(tmp_path: Path) -> None:
    body = f"{CONV} [k] y = Mul(t, f)"
    large = {"w": WEIGHTS["w"] * 1e4, "f": np.full((C, 1, 1), 1e-4, np.float32)}
    model = load(proto(f"(float[1,{C},8,8] x) => (float[1,{C},8,8] y) {{ {body} }}", large), tmp_path)
    x = RNG.standard_normal((1, C, 8, 8)).astype(np.float32)
    plan = plan_for(model, FP16)
    folded, typed = (
        Flows(model, plan, arithmetic=Arithmetic(fusing=fusing))(x=x)["variant", "y"]
        for fusing in (Fusing.FOLDED, Fusing.TYPED)
    )
    assert np.isfinite(folded).all()
    assert np.isinf(typed).any()


@pytest.mark.parametrize("arithmetic", [Arithmetic(fusing=Fusing.TYPED), Arithmetic(fusing=Fusing.COMPILED)])
def test_an_arithmetic_is_read_as_it_was_written(arithmetic: Arithmetic) -> None:
    assert Arithmetic.from_plain(arithmetic.to_plain()) == arithmetic
