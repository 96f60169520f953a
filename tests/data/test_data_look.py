"""The look at the data says what is in it in exact figures, and claims no more than they show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import Array, digits, load, proto

from precisionlab.data import Dataset, InputLook, Look, Sample, Severity, Skipped, open_dataset
from precisionlab.data.inspect import FEW, findings, look
from precisionlab.model import Model, TensorInfo

IMAGE = "(float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }"


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(proto(IMAGE), tmp_path_factory.mktemp("image"))


def of(model: Model, arrays: Sequence[Array]) -> Look:
    return look([Sample(f"s{i}", {"x": array}) for i, array in enumerate(arrays)], model)


def an_input(**changes: object) -> InputLook:
    """Normalised images without anything wrong."""
    fine = InputLook(
        name="x",
        dtype="float32",
        wanted_dtype="float32",
        wanted_shape="?×3×224×224",
        shapes={(1, 3, 224, 224): 64},
        values=64 * 3 * 224 * 224,
        nonfinite=0,
        minimum=-2.1,
        maximum=2.6,
        mean=0.0,
        std=1.0,
        whole=False,
    )
    return replace(fine, **changes)  # type: ignore[arg-type]


def texts(samples: int = 64, *, severity: Severity | None = None, **changes: object) -> str:
    found = findings(Look(samples, (an_input(**changes),)))
    return "; ".join(f.text for f in found if severity in (None, f.severity))


# Figures


@given(
    st.lists(
        hnp.arrays(
            np.float32,
            hnp.array_shapes(min_dims=1, max_dims=3, max_side=9),
            elements=st.floats(-1e6, 1e6, width=32),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_the_figures_are_those_of_all_values_together(image_model: Model, arrays: list[Array]) -> None:
    (found,) = of(image_model, arrays).inputs
    together = np.concatenate([a.reshape(-1) for a in arrays]).astype(np.float64)
    assert found.values == together.size
    assert found.minimum == together.min()
    assert found.maximum == together.max()
    scale = np.abs(together).max() + 1e-30
    assert found.mean == pytest.approx(together.mean(), rel=1e-9, abs=1e-9 * scale)
    assert found.std == pytest.approx(together.std(), rel=1e-6, abs=1e-7 * scale)
    assert found.whole == bool((together == np.trunc(together)).all())
    assert found.shapes == {a.shape: sum(b.shape == a.shape for b in arrays) for a in arrays}


def test_a_large_offset_does_not_swallow_the_deviation(image_model: Model) -> None:
    rng = np.random.default_rng(0)
    arrays = [(1e6 + rng.standard_normal((1, 3, 300, 300))).astype(np.float32) for _ in range(3)]  # several blocks
    (found,) = of(image_model, arrays).inputs
    assert found.std == pytest.approx(np.concatenate(arrays).astype(np.float64).std(), rel=1e-9)


def test_nan_and_inf_are_counted_and_left_out_of_the_range(image_model: Model) -> None:
    (found,) = of(image_model, [np.float32([1, np.nan, 3, np.inf])]).inputs
    assert (found.values, found.nonfinite, found.minimum, found.maximum, found.mean) == (4, 2, 1, 3, 2)
    (found,) = of(image_model, [np.float32([np.nan])]).inputs
    assert np.isnan([found.minimum, found.maximum, found.mean, found.std]).all()
    assert not found.whole


def test_integers_booleans_bfloat16_empty_arrays_and_text(image_model: Model) -> None:
    for array, low, high in (
        (np.array([3, 5]), 3, 5),
        (np.array([True, False]), 0, 1),
        (np.array([1.5, 2.5], ml_dtypes.bfloat16), 1.5, 2.5),
    ):
        (found,) = of(image_model, [array]).inputs
        assert (found.minimum, found.maximum) == (low, high)
    for array in (np.empty((0, 3), np.float32), np.array(["a"])):
        (found,) = of(image_model, [array]).inputs
        assert found.values == 0
        assert np.isnan(found.mean)


def test_the_look_stands_beside_what_the_model_wants(image_model: Model) -> None:
    (found,) = of(image_model, [np.zeros((1, 3, 4, 5), np.float32)]).inputs
    assert (found.name, found.dtype, found.wanted_dtype, found.wanted_shape) == ("x", "float32", "float32", "N×3×H×W")


def test_it_can_be_written_as_json(image_model: Model) -> None:
    found = of(image_model, [np.full((1, 3, 2, 2), np.nan, np.float32)])
    content = json.loads(json.dumps(replace(found, skipped=(Skipped("a", "bad"),)).to_dict(), allow_nan=False))
    assert content["samples"] == 1
    assert content["inputs"][0]["shapes"] == {"1×3×2×2": 1}
    assert content["inputs"][0]["minimum"] is None
    assert content["skipped"] == [{"sample": "a", "reason": "bad"}]
    assert {f["severity"] for f in content["findings"]} == {"warning"}


# Findings, from the figures alone


def test_there_is_nothing_to_say_about_good_data() -> None:
    assert texts() == ""
    assert texts(dtype="int64", shapes={(1, 128): 64}, minimum=0, maximum=30000, whole=True) == ""  # token ids
    assert texts(dtype="uint8", minimum=0, maximum=255, whole=True) == ""  # the model itself wants bytes
    assert texts(shapes={(1, 2048): 64}, minimum=0, maximum=255, whole=True) == ""  # not shaped like images


@pytest.mark.parametrize(
    ("low", "high", "whole", "word", "severity"),
    [
        (0, 255, True, "raw pixels", Severity.WARNING),
        (0, 254.7, False, "raw pixels", Severity.WARNING),
        (3, 201, False, "raw pixels", Severity.WARNING),
        (-128, 127, True, "not normalised", Severity.NOTE),
        (0, 4095, True, "not normalised", Severity.NOTE),
        (0, 1, False, "[0, 1]", Severity.NOTE),
        (0, 1, True, "[0, 1]", Severity.NOTE),
        (0.2, 0.7, False, "[0, 1]", Severity.NOTE),
        (-1, 1, False, "", None),
        (0, 5, True, "", None),
        (0, 199, False, "", None),
        (-1, 255, False, "", None),
        (0, 4000, False, "", None),
    ],
)
def test_pixel_ranges(low: float, high: float, whole: bool, word: str, severity: Severity | None) -> None:
    said = texts(minimum=low, maximum=high, whole=whole)
    assert word in said
    assert bool(said) == bool(word)
    if severity:
        assert word in texts(minimum=low, maximum=high, whole=whole, severity=severity)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (4, 3, 8, 8), (1, 8, 8, 3)])
def test_images_are_known_by_their_shape(shape: tuple[int, ...]) -> None:
    assert "raw pixels" in texts(shapes={shape: 64}, minimum=0, maximum=255)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 8, 8), (1, 3)])
def test_other_shapes_are_not_taken_for_images(shape: tuple[int, ...]) -> None:
    assert texts(shapes={shape: 64}, minimum=0, maximum=255) == ""


def test_few_samples() -> None:
    assert texts(FEW) == ""
    assert "rest on 15 samples" in texts(15)
    assert "rest on 1 sample;" in texts(1)
    assert "batch of 1000" in texts(1, shapes={(1000, 3, 224, 224): 1})


def test_a_batch_is_told_of_where_all_inputs_have_it_alone() -> None:
    def said(*inputs: tuple[tuple[int, ...], bool]) -> str:
        looks = [an_input(shapes={shape: 1}, fixed_batch=fixed) for shape, fixed in inputs]
        return "; ".join(finding.text for finding in Look(1, tuple(looks)).findings)

    assert "one holds a batch of 4: a file" in said(((4, 3), False), ((4, 5), False), ((1, 5), True))
    assert "each a batch of 4, as the model is made for" in said(((4, 3), True), ((4, 5), True))
    assert "batch" not in said(((43, 85), False), ((86, 13), False), ((2, 86), True))  # a graph's nodes and edges


def test_constant_samples() -> None:
    assert "2 samples constant, all values equal: a, b;" in texts(constant=("a", "b"))
    assert "a, b, c and 1 more" in texts(constant=("a", "b", "c", "d"))
    assert texts(dtype="int64", constant=("a",)) == ""  # token types are all 0 in most samples
    mask = {"constant": ("a", "b"), "minimum": 1, "maximum": 1}
    assert "every value of every sample is 1" in texts(**mask, severity=Severity.NOTE)
    assert texts(**mask, severity=Severity.WARNING) == ""


def test_duplicates_bad_samples_and_nonfinite_values() -> None:
    found = Look(64, (an_input(nonfinite=3),), (("b", "a"),), (Skipped("c", "why"),))
    said = [f.text for f in found.findings]
    assert "1 bad sample left out: c" in said[0]
    assert "b = a" in said[1]
    assert "3 values NaN or Inf" in said[2]
    assert all(f.severity is Severity.WARNING for f in found.findings)


def test_warnings_come_before_notes() -> None:
    found = Look(3, (an_input(minimum=0, maximum=1),)).findings
    assert [str(f.severity) for f in found] == ["warning", "note"]


# From the data to the findings


def test_the_check_pass_takes_the_look(tmp_path: Path, image_model: Model) -> None:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (1, 3, 8, 8)).astype(np.float32) for _ in range(4)]
    pixels[2] = pixels[0]
    pixels[3][:] = 9
    for i, array in enumerate(pixels):
        np.save(tmp_path / f"{i}.npy", array)
    np.save(tmp_path / "4.npy", np.full((1, 3, 8, 8), np.nan, np.float32))
    found = open_dataset(tmp_path, image_model, None, 0).checked(skip_bad=True).look
    assert found is not None
    assert found.samples == 4
    assert found.duplicates == (("2.npy", "0.npy"),)
    assert found.inputs[0].constant == ("3.npy",)
    said = " | ".join(f.text for f in found.findings)
    for word in ("4.npy", "2.npy = 0.npy", "3.npy", "raw pixels", "rest on 4 samples"):
        assert word in said


def test_each_sample_is_read_once_by_the_check(
    tmp_path: Path, image_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from precisionlab.data import folder

    reads = []
    read = folder.read_npy

    def counted(file: Path, info: TensorInfo) -> Array:
        reads.append(file.name)
        return read(file, info)

    monkeypatch.setattr(folder, "read_npy", counted)
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full((1, 3, 2, 2), i, np.float32))
    assert open_dataset(tmp_path, image_model, None, 0).checked().look
    assert reads == ["0.npy", "1.npy", "2.npy"]


def test_the_same_values_in_another_shape_are_no_duplicate(image_model: Model) -> None:
    arrays = [
        np.zeros((1, 3, 2, 4), np.float32),
        np.zeros((1, 3, 4, 2), np.float32),
        np.zeros((1, 3, 2, 4), np.float32),
    ]
    assert of(image_model, arrays).duplicates == (("s2", "s0"),)


def test_the_bundled_data_has_nothing_that_is_wrong(bundled: tuple[Model, Dataset]) -> None:
    model, _ = digits()
    found = look(open_dataset(Path(__file__).parents[2] / "calib_data", model, None, 0), model)
    assert [f for f in found.findings if f.severity is Severity.WARNING] == []
