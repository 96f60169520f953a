"""Samples of another type than the model's: the same values, or a sentence with the first that would be lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from models import Array, load, proto

from precisionlab.data import MANIFEST, Sample, open_dataset
from precisionlab.data.convert import LostValueError, convert
from precisionlab.errors import DataError

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOATS = ("float16", "float32", "float64")
SPECIAL = [0, 1, -1, 2.5, 2**24, 2**24 + 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 65504, 65520, 1e30, 1e300]
SPECIAL += [float("nan"), float("inf"), -float("inf"), 127, 128, 255, 256, 2049, -(2**63), 1e-300]


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    dtype = np.dtype(draw(st.sampled_from(["bool", *INTEGERS, *FLOATS])))
    found = draw(npst.arrays(dtype, npst.array_shapes(max_dims=2, max_side=4, min_side=0)))
    if found.size and dtype.kind != "b":
        with np.errstate(all="ignore"):
            special = [v for v in SPECIAL if dtype.kind == "f" or (isinstance(v, int) and v in limits(dtype))]
            found.flat[draw(st.integers(0, found.size - 1))] = draw(st.sampled_from(special))
    return found


def limits(dtype: np.dtype[Any]) -> range:
    return range(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max) + 1)


@given(array=arrays(), target=st.sampled_from(["bool", *INTEGERS, *FLOATS]))
def test_whatever_is_converted_has_the_same_values_and_the_rest_is_refused(array: Array, target: str) -> None:
    """Python compares its integers and floats exactly, whatever their size: values are the same where it says so."""
    between_floats = array.dtype.kind == "f" and target in FLOATS
    before = array.reshape(-1).tolist()
    with np.errstate(all="ignore"):
        # Where the type holds a value, NumPy's own cast gives it; where not, it gives another (or what C leaves open).
        same = [a == b or (a != a and b != b) for a, b in zip(before, cast(array, target), strict=True)]
    lost = [value for value, kept in zip(array.reshape(-1), same, strict=True) if not kept]
    if between_floats:
        with np.errstate(over="ignore"):
            lost = [value for value in lost if np.isfinite(value) and np.isinf(value.astype(target))]
    if lost:
        with pytest.raises(LostValueError) as caught:
            convert(array, target)
        assert f"value {lost[0]!s} at" in str(caught.value)
        return
    found, rounded = convert(array, target)
    assert found.dtype == target
    assert found.shape == array.shape
    if between_floats:
        assert rounded == (not all(same))
    else:
        assert all(same)
        assert not rounded


def cast(array: Array, target: str) -> list[Any]:
    """Value by value in Python: None where the type has no such value."""
    kind = np.dtype(target).kind
    found: list[Any] = []
    for value in array.reshape(-1).tolist():
        if kind == "b":
            found.append(bool(value) if value in (0, 1) else None)
        elif kind in "iu":
            whole = value == value and abs(value) != float("inf") and value == int(value)
            found.append(int(value) if whole and int(value) in limits(np.dtype(target)) else None)
        else:
            found.append(float(np.asarray(value, array.dtype).astype(target)))
    return found


@given(array=npst.arrays(np.float64, 5, elements=st.floats(-1e38, 1e38)))
def test_exact_conversions_come_back(array: Array) -> None:
    once = convert(array, "float32").array
    there = convert(once, "float64")
    assert not there.rounded
    assert convert(there.array, "float32") == (pytest.approx(once, abs=0), False)


@pytest.mark.parametrize(
    ("array", "target", "why"),
    [
        (np.float32([7, 8]), ml_dtypes.int4, "value 8.0 at [1]"),
        (np.array([7, -9]), ml_dtypes.int4, "value -9 at [1] is not a value of int4"),
        (np.float32([1e38, 3.4e38]), ml_dtypes.bfloat16, "value 3.4e+38 at [1] is beyond bfloat16"),
        (np.array([1 + 0j, 1 + 2j]), np.float32, "(1+2j) at [1] has an imaginary part"),
        (np.array(["1", "2"]), np.float32, "not converted"),
        (np.array(["2026-11-27"], "M8[D]"), np.int64, "not converted"),
        (np.array([1, None]), np.int64, "not converted"),
        (np.zeros(2, "V2"), np.float32, "not converted"),
        (np.float64(2.5), np.int64, "value 2.5 is no whole number"),
    ],
)
def test_other_types_are_held_to_the_same(array: Array, target: Any, why: str) -> None:
    with pytest.raises(LostValueError) as caught:
        convert(np.asarray(array), target)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("array", "target", "values"),
    [
        (np.float32([7, -8]), ml_dtypes.int4, [7, -8]),
        (np.array([7, -8]), ml_dtypes.int4, [7, -8]),
        (np.array([7, -8], ml_dtypes.int4), np.float32, [7, -8]),
        (np.float32([1e38, 1.5]), ml_dtypes.bfloat16, [9.969209968386869e37, 1.5]),
        (np.array([1 + 0j, 2]), np.float32, [1, 2]),
        (np.array([1.5], ml_dtypes.bfloat16).view("V2"), ml_dtypes.bfloat16, [1.5]),
        (np.float64(2), np.int64, 2),
    ],
)
def test_and_what_they_hold_is_converted(array: Array, target: Any, values: Any) -> None:
    assert convert(np.asarray(array), target).array.astype(np.float64).tolist() == values


# From a folder

MIXED = """(float[N,2] f, int64[N,2] i, float16[N,2] h, bool[N,2] b) => (float[N,2] y) { y = Relu(f) }"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def sample(folder: Path, body: str, **values: Array) -> Sample:
    np.savez(folder / "a.npz", **values)
    (found,) = open_dataset(folder, load(proto(body), folder.parent), None, 0)
    return found


def test_each_input_takes_the_types_that_people_have(folder: Path) -> None:
    found = sample(
        folder,
        MIXED,
        f=np.array([[1, 255]], np.uint8),
        i=np.array([[5, -6]], np.int32),
        h=np.float32([[1.5, 0.1]]),
        b=np.array([[0, 1]]),
    )
    assert {k: (v.dtype.name, v.astype(float).tolist()) for k, v in found.inputs.items()} == {
        "f": ("float32", [[1, 255]]),
        "i": ("int64", [[5, -6]]),
        "h": ("float16", [[1.5, 0.0999755859375]]),  # 1638 / 2**14
        "b": ("bool", [[0, 1]]),
    }
    assert [(remark.input, remark.text) for remark in found.remarks] == [
        ("f", "uint8, made float32 as the model wants it, to the same values"),
        ("i", "int32, made int64 as the model wants it, to the same values"),
        ("h", "float32, rounded to the nearest float16"),
        ("b", "int64, made bool as the model wants it, to the same values"),
    ]


ONE = "(float[N,3] x) => (float[N,3] y) { y = Relu(x) }"
IDS = "(int64[N,3] x) => (int64[N,3] y) { y = Abs(x) }"


@pytest.mark.parametrize(
    ("body", "value", "words"),
    [
        (ONE, np.array([[1, 2, 2**24 + 1]]), ["int64", "wants float32", "16777217 at [0, 2]"]),
        (ONE, np.array([[1, 1e39, 2]]), ["float64", "wants float32", "1e+39 at [0, 1] is beyond float32"]),
        (ONE, np.array([["a", "b", "c"]]), ["<U1", "wants float32", "not converted"]),
        (IDS, np.array([[1, 2.5, 3]]), ["float64", "wants int64", "2.5 at [0, 1] is no whole number"]),
        (IDS, np.array([[1, np.nan, 3]]), ["nan at [0, 1] is no whole number"]),
        (IDS, np.array([[1, 1e30, 3]]), ["1e+30 at [0, 1]"]),
        (IDS, np.array([[1, 2**63, 3]], np.uint64), ["uint64", "9223372036854775808 at [0, 1]"]),
        (IDS, np.array([[1, 2j, 3]]), ["complex128", "2j at [0, 1] has an imaginary part"]),
    ],
)
def test_a_value_that_would_be_lost_is_told(folder: Path, body: str, value: Array, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        sample(folder, body, x=value)
    for word in ("a.npz", "'x'", f"inputs.x.dtype in {MANIFEST}", *words):
        assert word in str(caught.value)
    kept = np.array([[1, 2, 3]]).astype(value.dtype) if value.dtype.kind != "U" else np.array([[1, 2, 3]])
    assert sample(folder, body, x=kept).inputs["x"].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("dtype", "value", "word"),
    [
        ("int64", [1.5], "1.5 at [0, 0]"),
        ("int64", [np.nan], "nan at [0, 0]"),
        ("uint8", [-1], "-1"),
        ("float16", [1e5], "beyond float16"),
        ("bool", [2], "neither 0 nor 1"),
    ],
)
def test_a_manifest_converts_exactly_or_not_at_all(folder: Path, dtype: str, value: list[float], word: str) -> None:
    (folder / MANIFEST).write_text(f'[inputs.x]\ndtype = "{dtype}"\n')
    with pytest.raises(DataError) as caught:
        sample(folder, ONE, x=np.array([value * 3]))
    for told in ("a.npz", "'x'", MANIFEST, dtype, word):
        assert told in str(caught.value)
    found = sample(folder, ONE, x=np.array([[0.0, 1, 1]]))
    assert found.inputs["x"].tolist() == [[0, 1, 1]]


def test_what_a_manifest_rounds_is_said_and_what_it_keeps_is_not(folder: Path) -> None:
    (folder / MANIFEST).write_text('[inputs.x]\ndtype = "float32"\n')
    assert not sample(folder, ONE, x=np.array([[0.5, 1, 2]])).remarks
    (remark,) = sample(folder, ONE, x=np.array([[0.1, 1, 2]])).remarks
    assert remark.text == "float64, rounded to the nearest float32"


def test_what_was_done_is_told_once(folder: Path) -> None:
    for index in range(5):
        np.save(folder / f"{index}.npy", np.array([[index, 0.1, 2]]))
    checked = open_dataset(folder, load(proto(ONE), folder.parent), None, 0).checked()
    assert checked.look is not None
    told = [finding.text for finding in checked.look.findings if "float64" in finding.text]
    assert told == ["all samples: float64, rounded to the nearest float32"]


# Names


def test_names_in_another_case_or_order_are_the_models_own(folder: Path) -> None:
    two = "(float[N,2] Images, float[N,2] sizes) => (float[N,2] y) { y = Add(Images, sizes) }"
    found = sample(folder, two, sizes=np.float32([[3, 4]]), images=np.float32([[1, 2]]))
    assert {name: array.tolist() for name, array in found.inputs.items()} == {"Images": [[1, 2]], "sizes": [[3, 4]]}
    assert [(r.input, "'images'" in r.text) for r in found.remarks] == [("Images", True)]


def test_the_same_name_goes_before_one_that_differs_by_case(folder: Path) -> None:
    two = "(float[N,1] a, float[N,1] A) => (float[N,1] y) { y = Add(a, A) }"
    found = sample(folder, two, A=np.float32([[2]]), a=np.float32([[1]]))
    assert (found.inputs["a"].item(), found.inputs["A"].item()) == (1, 2)
    with pytest.raises(DataError, match="lacks aa and has AA, Aa"):
        sample(folder, "(float[N,1] aa, float[N,1] b) => (float[N,1] y) { y = Add(aa, b) }", **both())


def both() -> dict[str, Array]:
    return {"AA": np.float32([[1]]), "Aa": np.float32([[1]]), "b": np.float32([[1]])}


def test_an_array_without_a_name_is_that_of_the_only_input(folder: Path) -> None:
    np.savez(folder / "a.npz", np.float32([[1, 2, 3]]))
    (found,) = open_dataset(folder, load(proto(ONE), folder.parent), None, 0)
    assert found.inputs["x"].tolist() == [[1, 2, 3]]
    two = load(proto("(float[N,3] x, float[N,3] z) => (float[N,3] y) { y = Add(x, z) }"), folder.parent)
    with pytest.raises(DataError, match="lacks x, z and has arr_0"):
        list(open_dataset(folder, two, None, 0))
