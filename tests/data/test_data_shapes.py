"""Shapes for random inputs: what is missing is told in a command that works, what is wrong with what is right."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import examples, load, proto

from precisionlab.cli.sweep import _shapes
from precisionlab.data import random_dataset
from precisionlab.data.noise import example_shapes
from precisionlab.errors import DataError, OptionError
from precisionlab.model import Model, TensorInfo

BERT = (
    "(int64[B,L] ids, int64[B,L] mask, float[B,8,P,64] past, float[2] scale) => (int64[B,L] y) { y = Add(ids, mask) }"
)


def model(folder: Path, body: str) -> Model:
    return load(proto(body), folder)


def told(of: Model, **shapes: tuple[int, ...]) -> str:
    with pytest.raises(DataError) as caught:
        random_dataset(of, shapes, 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shapes_in(text: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the command line that a sentence ends with, as the command reads them."""
    words = shlex.split(text[text.index("precisionlab sweep") :])
    return _shapes([after for word, after in pairwise(words) if word == "--shape"])


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (BERT, {"ids": (1, 128), "mask": (1, 128), "past": (1, 8, 224, 64)}),
        ("(float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }", {"x": (1, 3, 224, 224)}),
        ("(float[N,H,W,3] x) => (float[N,H,W,3] y) { y = Relu(x) }", {"x": (1, 224, 224, 3)}),
        ("(float[N,T] x) => (float[N,T] y) { y = Relu(x) }", {"x": (1, 128)}),
        ("(float[N,T,80] x) => (float[N,T,80] y) { y = Relu(x) }", {"x": (1, 128, 80)}),
        ("(float[N,1,D,H,W] x) => (float[N,1,D,H,W] y) { y = Relu(x) }", {"x": (1, 1, 128, 128, 128)}),
    ],
)
def test_all_inputs_that_need_a_shape_are_named_with_one_of_their_rank(
    tmp_path: Path, body: str, wanted: dict[str, tuple[int, ...]]
) -> None:
    of = model(tmp_path, body)
    text = told(of)
    assert all(f"'{name}'" in text for name in wanted)
    assert shapes_in(text) == wanted
    assert len(random_dataset(of, shapes_in(text), 0)) == 8  # what was told works


def test_odd_names_are_quoted_for_the_shell(tmp_path: Path) -> None:
    made = proto("(float[N,T] x) => (float[N,T] y) { y = Relu(x) }")
    made.graph.input[0].name = made.graph.node[0].input[0] = "serving default:0 $x"
    of = load(made, tmp_path)
    assert shapes_in(told(of)) == {"serving default:0 $x": (1, 128)}


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 4, 8, 8), ["--shape x:1x4x8x8", "wants N×3×H×W", "--shape x:1x3x224x224"]),
        ((3, 8, 8), ["--shape x:3x8x8", "wants N×3×H×W", "--shape x:1x3x224x224"]),
        ((1, 3, 8, 8, 1), ["--shape x:1x3x8x8x1", "--shape x:1x3x224x224"]),
        ((0, 3, 8, 8), ["a batch of no rows"]),
        ((1, 3, 10**6, 10**6), ["--shape x", "make no sample"]),
    ],
)
def test_a_shape_that_does_not_fit_is_told_with_one_that_does(
    tmp_path: Path, shape: tuple[int, ...], words: list[str]
) -> None:
    text = told(model(tmp_path, "(float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }"), x=shape)
    for word in words:
        assert word in text, text


def test_an_input_that_the_model_does_not_have_is_told_before_what_is_missing(tmp_path: Path) -> None:
    text = told(model(tmp_path, BERT), input_ids=(1, 8))
    assert "--shape input_ids: the model has no such input; it has ids, mask, past, scale" in text


def test_a_length_of_0_is_a_shape_like_others(tmp_path: Path) -> None:
    of = model(tmp_path, BERT)
    sample = next(iter(random_dataset(of, {"ids": (1, 4), "mask": (1, 4), "past": (1, 8, 0, 64)}, 0)))
    assert sample.inputs["past"].shape == (1, 8, 0, 64)


@given(
    st.lists(
        st.lists(st.one_of(st.integers(1, 9), st.sampled_from(["N", "L", "H", None])), min_size=0, max_size=5),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=examples(100))
def test_examples_have_the_rank_and_the_fixed_sizes_of_their_input(shapes: list[list[int | str | None]]) -> None:
    inputs = [TensorInfo(f"i{n}", None, tuple(shape)) for n, shape in enumerate(shapes)]
    sizes: dict[str, int] = {}
    for info, text in zip(inputs, example_shapes(inputs).values(), strict=True):
        found = [int(size) for size in text.split("x")] if text else []
        assert info.shape is not None
        assert len(found) == len(info.shape)
        for dim, size in zip(info.shape, found, strict=True):
            assert size == (dim if isinstance(dim, int) else sizes.setdefault(dim, size) if dim else size)


@pytest.mark.parametrize("text", ["x", "1x3", ":1x3", "x:", "x:1x", "x:1x-3", "x:1.5x3", "x:axb", "x:1x" + "9" * 40])
def test_what_is_no_shape_is_told(text: str) -> None:
    with pytest.raises(OptionError, match=re.escape(f"--shape {text!r}: write the input's name")):
        _shapes([text])
    assert _shapes(["x:0:1x3", "y:5"]) == {"x:0": (1, 3), "y": (5,)}
