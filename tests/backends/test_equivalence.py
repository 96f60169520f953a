"""Two graphs side by side: the same bits, nearly, or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from models import load, proto

from precisionlab.backends.equivalence import Equivalence, equivalence
from precisionlab.data import Dataset, open_dataset


def graph(folder: Path, nodes: str, output: str = "float[4]") -> ir.Model:
    return load(proto(f"(float[4] x) => ({output} y) {{ {nodes} }}"), folder).onnx


@pytest.fixture
def samples(tmp_path: Path) -> Dataset:
    """Three samples, zeros and a large number among them."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        np.save(folder / f"{number}.npy", np.array([0, 1, -2, 1e30], np.float32) * np.float32(number + 1))
    model = load(proto("(float[4] x) => (float[4] y) { y = Neg(x) }"), tmp_path)
    return open_dataset(folder, model, None, seed=0)


def beside(one: ir.Model, two: ir.Model, samples: Dataset) -> Equivalence:
    return equivalence(one, two, samples, 1, lambda done: None)


def test_the_same_by_another_way_is_bitwise(tmp_path: Path, samples: Dataset) -> None:
    found = beside(graph(tmp_path, "y = Neg(x)"), graph(tmp_path, "z = Neg(x)  y = Identity(z)"), samples)

    assert found == Equivalence(3, True, 0.0)


def test_what_onnx_runtime_would_make_one_kernel_of_in_one_of_them_alone_is_still_bitwise(
    tmp_path: Path, samples: Dataset
) -> None:
    norm = """
        two = Constant <value_float = 2.0> ()
        k = Constant <value_float = {scale}> ()
        one = Constant <value_float = {scale}> ()
        e = Constant <value_float = {epsilon}> ()
        t = Tanh(x)
        s = Mul(t, k)
        p = Pow(s, two)
        m = ReduceMean <axes = [-1]> (p)
        a = Add(m, e)
        r = Sqrt(a)
        i = Div(one, r)
        y = Mul(t, i)
    """
    one, other = (graph(tmp_path, norm.format(scale=scale, epsilon=1e-3 * scale**2)) for scale in (1.0, 2.0**-40))

    assert beside(one, other, samples).is_bitwise


def test_nan_in_the_same_places_is_the_same(tmp_path: Path, samples: Dataset) -> None:
    found = beside(graph(tmp_path, "y = Log(x)"), graph(tmp_path, "z = Identity(x)  y = Log(z)"), samples)

    assert found.is_bitwise


def test_a_difference_is_told_as_a_share_of_the_largest_number(tmp_path: Path, samples: Dataset) -> None:
    found = beside(
        graph(tmp_path, "y = Neg(x)"),
        graph(tmp_path, "k = Constant <value_float = 1.25> ()  z = Neg(x)  y = Mul(z, k)"),
        samples,
    )

    assert not found.is_bitwise
    assert found.largest == pytest.approx(0.25, rel=1e-6)


@pytest.mark.parametrize("other", ["y = Exp(x)", "y = Log(x)"])
def test_inf_or_nan_in_other_places_is_infinitely_far(tmp_path: Path, samples: Dataset, other: str) -> None:
    assert beside(graph(tmp_path, "y = Neg(x)"), graph(tmp_path, other), samples).largest == np.inf


def test_another_type_or_shape_is_infinitely_far(tmp_path: Path, samples: Dataset) -> None:
    one, integer = graph(tmp_path, "y = Neg(x)"), graph(tmp_path, "y = Cast <to = 7> (x)", "int64[4]")
    short = graph(tmp_path, "y = ReduceMax <keepdims = 1> (x)", "float[1]")

    assert beside(one, integer, samples).largest == np.inf
    assert beside(one, short, samples).largest == np.inf
