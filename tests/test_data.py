"""Samples are read as the manifest says, and whatever is wrong with them is told in one sentence."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Array, load, proto

from precisionlab.data import MANIFEST, RANDOM_SAMPLES, Dataset, InputSpec, inside, open_dataset, random_dataset
from precisionlab.errors import DataError
from precisionlab.model import Model

ONE = "(float[N,3] x) => (float[N,3] y) { y = Relu(x) }"
IMAGE = "(float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }"
TWO = "(float[N,3] x, int64[N,2] ids) => (float[N,3] y, int64[N,2] z) { y = Relu(x) z = Abs(ids) }"


@pytest.fixture
def one(tmp_path: Path) -> Model:
    return model(tmp_path, ONE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def model(folder: Path, body: str) -> Model:
    return load(proto(body), folder)


def read(folder: Path, of: Model) -> list[dict[str, Array]]:
    return [dict(s.inputs) for s in open_dataset(folder, of, None, 0)]


def fails(folder: Path, of: Model, *words: str) -> str:
    """That reading the folder is a DataError: one sentence with these words."""
    with pytest.raises(DataError) as caught:
        read(folder, of)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    return text


def png(path: Path, pixels: Array) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path)


# Arrays


def test_samples_come_in_the_order_of_their_names(folder: Path, one: Model) -> None:
    for name in ("b.npz", "a.npy", "C.NPZ"):
        value = np.full((1, 3), ord(name[0]), np.float32)
        if name.endswith("npy"):
            np.save(folder / name, value)
        else:
            with (folder / name).open("wb") as stream:
                np.savez(stream, x=value)
    (folder / "readme.txt").write_text("not a sample")
    (folder / "sub.npz").mkdir()
    dataset = open_dataset(folder, one, None, 0)
    assert [s.name for s in dataset] == ["C.NPZ", "a.npy", "b.npz"]
    assert [s.inputs["x"][0, 0] for s in dataset] == [67, 97, 98]
    assert len(dataset) == 3
    assert not dataset.is_random


def test_a_missing_batch_dimension_is_added(folder: Path, one: Model) -> None:
    np.save(folder / "a.npy", np.float32([1, 2, 3]))
    assert read(folder, one)[0]["x"].shape == (1, 3)


def test_no_batch_dimension_is_added_where_the_model_wants_a_larger_batch(folder: Path, tmp_path: Path) -> None:
    np.save(folder / "a.npy", np.float32([1, 2, 3]))
    fails(folder, model(tmp_path, "(float[2,3] x) => (float[2,3] y) { y = Relu(x) }"), "a.npy", "'x'", "2×3")


def test_a_scalar_input_takes_a_scalar(folder: Path, tmp_path: Path) -> None:
    np.save(folder / "a.npy", np.float32(5))
    assert read(folder, model(tmp_path, "(float x) => (float y) { y = Relu(x) }"))[0]["x"].shape == ()


def test_fortran_order_and_zero_rows_are_taken_as_they_are(folder: Path, one: Model) -> None:
    np.save(folder / "a.npy", np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)))
    np.save(folder / "b.npy", np.empty((0, 3), np.float32))
    first, second = read(folder, one)
    assert first["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert first["x"].flags.c_contiguous
    assert second["x"].shape == (0, 3)


def test_a_wrong_shape_names_file_tensor_and_both_shapes(folder: Path, one: Model) -> None:
    np.save(folder / "a.npy", np.zeros((1, 4), np.float32))
    fails(folder, one, "a.npy", "'x'", "1×4", "×3")


def test_a_wrong_dtype_says_how_to_convert_it(folder: Path, one: Model) -> None:
    np.save(folder / "a.npy", np.zeros((1, 3)))
    fails(folder, one, "a.npy", "'x'", "float64", "float32", "inputs.x.dtype", MANIFEST)
    (folder / MANIFEST).write_text('[inputs.x]\ndtype = "float32"\n')
    assert read(folder, one)[0]["x"].dtype == np.float32


def test_text_that_cannot_become_a_number_is_told(folder: Path, one: Model) -> None:
    np.save(folder / "a.npy", np.array([["a", "b", "c"]]))
    (folder / MANIFEST).write_text('[inputs.x]\ndtype = "float32"\n')
    fails(folder, one, "a.npy", "'x'")


def test_a_wrong_name_says_what_the_model_takes(folder: Path, one: Model) -> None:
    np.savez(folder / "a.npz", y=np.zeros((1, 3), np.float32))
    fails(folder, one, "a.npz", "lacks x")


def test_an_extra_array_is_told(folder: Path, one: Model) -> None:
    np.savez(folder / "a.npz", x=np.zeros((1, 3), np.float32), extra=np.zeros(1))
    fails(folder, one, "a.npz", "has extra", "inputs are x")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_nan_or_inf_is_told_and_not_replaced(folder: Path, one: Model, value: float) -> None:
    np.save(folder / "a.npy", np.float32([[1, value, 3]]))
    fails(folder, one, "a.npy", "'x'", "1 value", "NaN or Inf")


def test_several_inputs_need_npz(folder: Path, tmp_path: Path) -> None:
    two = model(tmp_path, TWO)
    np.save(folder / "a.npy", np.zeros((1, 3), np.float32))
    fails(folder, two, "a.npy", "2 inputs", "x, ids", ".npz")
    (folder / "a.npy").unlink()
    np.savez(folder / "a.npz", x=np.zeros((1, 3), np.float32), ids=np.ones((1, 2), np.int64))
    assert {k: v.dtype.name for k, v in read(folder, two)[0].items()} == {"x": "float32", "ids": "int64"}


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/nowhere/precisionlab-pickle-ran").write_text, ("x",))


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_pickles_are_refused(folder: Path, one: Model, name: str) -> None:
    objects = np.array([Evil()], dtype=object)
    if name == "a.npy":
        np.save(folder / name, objects, allow_pickle=True)
    else:
        np.savez(folder / name, x=objects)
    fails(folder, one, name, "not a readable")
    (folder / name).write_bytes(pickle.dumps(Evil()))
    fails(folder, one, name, "not a readable")


def test_a_zip_called_npy_and_an_array_called_npz_are_told(folder: Path, one: Model) -> None:
    np.savez(folder / "a.npz", x=np.zeros((1, 3), np.float32))
    (folder / "a.npz").rename(folder / "a.npy")
    fails(folder, one, "a.npy", "not a readable .npy")
    np.save(folder / "a.npy", np.zeros((1, 3), np.float32))
    (folder / "a.npy").rename(folder / "a.npz")
    fails(folder, one, "a.npz", "not a readable .npz")


def test_a_zip_with_a_file_that_is_no_array_is_told(folder: Path, one: Model) -> None:
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        archive.writestr("x", "hello")
    fails(folder, one, "a.npz", "x")


def test_an_empty_file_is_told(folder: Path, one: Model) -> None:
    for name in ("a.npy", "a.npz", "a.png"):
        (folder / name).write_bytes(b"")
        fails(folder, one, name, "not a readable")
        (folder / name).unlink()


def damaged(content: bytes, draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["cut", "flip", "noise"]))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content) - 1))]
    broken = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content) - 1))
        broken[place] = draw(st.integers(0, 255)) if kind == "noise" else broken[place] ^ 1 << draw(st.integers(0, 7))
    return bytes(broken)


@st.composite
def damaged_files(draw: st.DrawFn) -> tuple[str, bytes]:
    from PIL import Image

    stream, kind = io.BytesIO(), draw(st.sampled_from(["npy", "npz", "compressed", "png", "jpg", "bmp"]))
    value = np.arange(300, dtype=np.float32).reshape(1, 3, 10, 10)
    if kind == "npy":
        np.save(stream, value)
    elif kind == "npz":
        np.savez(stream, x=value)
    elif kind == "compressed":
        np.savez_compressed(stream, x=value)
    else:
        Image.fromarray(value.astype(np.uint8)[0].transpose(1, 2, 0)).save(stream, {"jpg": "JPEG"}.get(kind, kind))
    return f"a.{'npz' if kind == 'compressed' else kind}", damaged(stream.getvalue(), draw)


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return model(tmp_path_factory.mktemp("image"), IMAGE)


@given(file=damaged_files())
@settings(max_examples=300)
def test_a_damaged_file_is_read_or_told_but_never_crashes(
    file: tuple[str, bytes], image_model: Model, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    name, content = file
    (folder / name).write_bytes(content)
    try:
        for found in open_dataset(folder, image_model, None, 0):
            assert found.inputs["x"].dtype == np.float32
            assert found.inputs["x"].ndim == 4
    except DataError as error:
        text = str(error)
    else:
        text = name
    finally:
        (folder / name).unlink()
    assert name in text
    assert "\n" not in text


# Folder and labels


def test_no_folder_or_nothing_in_it_is_told(folder: Path, one: Model) -> None:
    fails(folder, one, str(folder), "no sample", ".npz")
    fails(folder / "absent", one, "absent", "no such folder")
    (folder / "file").write_text("")
    fails(folder / "file", one, "file", "no such folder")


def fill(folder: Path, count: int) -> None:
    for index in range(count):
        np.save(folder / f"{index}.npy", np.full((1, 3), index, np.float32))


def test_samples_are_chosen_by_the_seed_and_keep_their_order(folder: Path, one: Model) -> None:
    fill(folder, 9)
    chosen = [[f.name for f in open_dataset(folder, one, 4, seed).files] for seed in (0, 0, 1, 2)]
    assert chosen[0] == chosen[1]
    assert len({tuple(c) for c in chosen}) > 1
    assert all(c == sorted(c) and len(set(c)) == 4 for c in chosen)
    assert len(open_dataset(folder, one, 99, 0)) == 9


def test_the_hash_covers_samples_names_labels_and_manifest(folder: Path, one: Model) -> None:
    fill(folder, 2)

    def digest() -> str:
        return open_dataset(folder, one, None, 0).sha256

    seen = [digest()]
    assert digest() == seen[0]
    (folder / MANIFEST).write_text('[labels]\nfile = "labels.csv"\n')
    (folder / "labels.csv").write_text("sample,label\n0.npy,1\n")
    seen.append(digest())
    (folder / "labels.csv").write_text("sample,label\n0.npy,2\n")
    seen.append(digest())
    np.save(folder / "1.npy", np.zeros((1, 3), np.float32))
    seen.append(digest())
    (folder / "1.npy").rename(folder / "2.npy")
    seen.append(digest())
    assert len(set(seen)) == 5


def with_labels(folder: Path, text: str | bytes, extra: str = "") -> None:
    (folder / MANIFEST).write_text(f'[labels]\nfile = "labels.csv"\n{extra}')
    (folder / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())


def test_labels_go_with_their_samples(folder: Path, one: Model) -> None:
    fill(folder, 3)
    with_labels(folder, 'comment,label,sample\r\nx,7,0.npy\r\n,"[1, 2]",1.npy\r\n')
    dataset = open_dataset(folder, one, None, 0)
    assert [s.label for s in dataset] == ["7", "[1, 2]", None]
    assert not dataset.is_labelled
    with_labels(folder, "sample,label\n0.npy,1\n1.npy,1\n2.npy,1\n")
    assert open_dataset(folder, one, None, 0).is_labelled


def test_a_byte_order_mark_before_the_labels_does_no_harm(folder: Path, one: Model) -> None:
    fill(folder, 1)
    with_labels(folder, b"\xef\xbb\xbfsample,label\n0.npy,1\n")
    assert open_dataset(folder, one, None, 0).labels == {"0.npy": "1"}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "header"),
        ("a,b\n0.npy,1\n", "header"),
        (b"\xff\xfe\x00", "cannot be read"),
        ("sample,label\n0.npy\n", "0.npy"),
    ],
)
def test_labels_that_cannot_be_used_are_told(folder: Path, one: Model, text: str | bytes, word: str) -> None:
    fill(folder, 1)
    with_labels(folder, text)
    fails(folder, one, "labels.csv", word)


def test_missing_labels_are_told(folder: Path, one: Model) -> None:
    fill(folder, 1)
    (folder / MANIFEST).write_text('[labels]\nfile = "none.csv"\n')
    fails(folder, one, "none.csv", "cannot be read")


# Manifest


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("nam = 'x'", "unknown key nam"),
        ("[inputs.x]\ncolour = 'RGB'", "unknown key inputs.x.colour"),
        ("[labels]\nfiles = 'x'", "unknown key labels.files"),
        ("name = 3", "name must be a string"),
        ("inputs = 3", "must be a table"),
        ("[inputs]\nx = 3", "must be a table"),
        ("labels = 'labels.csv'", "must be a table"),
        ("[inputs.z]\ndtype = 'float32'", "[inputs.z]"),
        ("[inputs.x]\ndtype = 'float33'", "inputs.x"),
        ("[inputs.x]\ndtype = 32", "must be a string"),
        ("[inputs.x]\nlayout = 'CHW'", "NCHW or NHWC"),
        ("[inputs.x]\ncolor = 'rgb'", "RGB, BGR or L"),
        ("[inputs.x]\nsize = 8", "inputs.x"),
        ("[inputs.x]\nsize = [8]", "inputs.x"),
        ("[inputs.x]\nsize = [8, 8, 3]", "inputs.x"),
        ("[inputs.x]\nsize = '88'", "inputs.x"),
        ("[inputs.x]\nsize = [8, 0]", "inputs.x"),
        ("[inputs.x]\nsize = [8, -8]", "inputs.x"),
        ("[inputs.x]\nsize = [8.5, 8]", "inputs.x"),
        ("[inputs.x]\nscale = 'big'", "inputs.x"),
        ("[inputs.x]\nscale = [1, 2, 3]", "inputs.x"),
        ("[inputs.x]\nscale = inf", "inputs.x"),
        ("[inputs.x]\nmean = ['a']", "inputs.x"),
        ("[inputs.x]\nmean = [[1, 2, 3]]", "inputs.x"),
        ("[inputs.x]\nmean = [nan]", "inputs.x"),
        ("[inputs.x]\nmean = []", "inputs.x.mean"),
        ("[inputs.x]\nscale = true", "inputs.x.scale"),
        ("[inputs.x]\nstd = [1, 0, 1]", "inputs.x"),
        ("[labels]\noutput = 'q'", "labels.output 'q'"),
        ("[labels]\nfile = 'l.csv'\nmetric = 'os:system'", "--metric"),
        ("[labels]\nmetric = 'accuracy'", "labels.file"),
        ("[labels]\nfile = '../l.csv'", "outside the data folder"),
        ("[labels]\nfile = '/etc/passwd'", "outside the data folder"),
        ("name = ", "cannot be read"),
    ],
)
def test_a_manifest_error_names_the_key(folder: Path, one: Model, text: str, word: str) -> None:
    fill(folder, 1)
    (folder / MANIFEST).write_text(text)
    fails(folder, one, MANIFEST, word)


def test_a_manifest_that_is_no_text_is_told(folder: Path, one: Model) -> None:
    fill(folder, 1)
    (folder / MANIFEST).write_bytes(b"\xff\xfe")
    fails(folder, one, MANIFEST, "cannot be read")


def test_a_link_out_of_the_folder_is_outside(folder: Path) -> None:
    (folder / "link").symlink_to("/etc")
    with pytest.raises(DataError, match="outside"):
        inside(folder, "link/passwd", "here")
    assert inside(folder, "a/../b", "here") == (folder / "b").resolve()


# Images


def pixels_of(folder: Path, of: Model, spec: str) -> Array:
    (folder / MANIFEST).write_text(f"[inputs.x]\n{spec}\n")
    (found,) = read(folder, of)
    return found["x"]


@pytest.fixture
def picture(folder: Path) -> Array:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    png(folder / "a.png", pixels)
    return pixels


@pytest.mark.parametrize("color", ["RGB", "BGR"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_pixels_are_scaled_centred_and_laid_out(
    folder: Path, tmp_path: Path, picture: Array, color: str, layout: str
) -> None:
    of = model(tmp_path, "(float[N,A,B,C] x) => (float[N,A,B,C] y) { y = Relu(x) }")
    spec = f"color = '{color}'\nlayout = '{layout}'\nscale = 0.5\nmean = [1, 2, 3]\nstd = [2, 4, 8]"
    expected = ((picture[..., ::-1] if color == "BGR" else picture) * 0.5 - [1, 2, 3]) / [2, 4, 8]  # exact in float32
    expected = expected.transpose(2, 0, 1) if layout == "NCHW" else expected
    assert np.array_equal(pixels_of(folder, of, spec), expected[None])


def test_without_a_manifest_pixels_are_rgb_between_0_and_1(folder: Path, image_model: Model, picture: Array) -> None:
    (found,) = read(folder, image_model)
    assert np.array_equal(found["x"], picture.transpose(2, 0, 1)[None] * np.float32(1 / 255))


def test_an_image_is_resized_to_what_the_model_or_the_manifest_says(
    folder: Path, tmp_path: Path, image_model: Model, picture: Array
) -> None:
    assert pixels_of(folder, image_model, "size = [3, 5]").shape == (1, 3, 3, 5)
    fixed = model(tmp_path, "(float[1,3,8,9] x) => (float[1,3,8,9] y) { y = Relu(x) }")
    assert pixels_of(folder, fixed, "").shape == (1, 3, 8, 9)


def test_one_grey_value_for_all_is_kept_by_resizing(folder: Path, tmp_path: Path) -> None:
    png(folder / "a.png", np.full((7, 5), 51, np.uint8))
    of = model(tmp_path, "(float[1,1,8,8] x) => (float[1,1,8,8] y) { y = Relu(x) }")
    assert np.array_equal(
        pixels_of(folder, of, "color = 'L'"), np.full((1, 1, 8, 8), np.float32(51) * np.float32(1 / 255))
    )


def test_channels_that_do_not_fit_the_mean_are_told(folder: Path, tmp_path: Path, picture: Array) -> None:
    of = model(tmp_path, IMAGE)
    for color, values in (("RGB", "[1, 2]"), ("L", "[1, 2, 3]")):
        (folder / MANIFEST).write_text(f"[inputs.x]\ncolor = '{color}'\nmean = {values}\n")
        fails(folder, of, "mean or std", "channel")


def test_an_image_of_the_wrong_size_for_the_model_is_told(folder: Path, tmp_path: Path, picture: Array) -> None:
    of = model(tmp_path, "(float[1,3,8,9] x) => (float[1,3,8,9] y) { y = Relu(x) }")
    (folder / MANIFEST).write_text("[inputs.x]\nsize = [4, 4]\n")
    fails(folder, of, "a.png", "1×3×4×4", "1×3×8×9")


def test_a_palette_and_an_alpha_channel_become_rgb(folder: Path, image_model: Model) -> None:
    from PIL import Image

    Image.fromarray(np.full((2, 2, 4), [255, 0, 51, 7], np.uint8)).save(folder / "a.png")
    Image.fromarray(np.full((2, 2, 3), [255, 0, 51], np.uint8)).convert("P", palette=Image.Palette.ADAPTIVE).save(
        folder / "b.png"
    )
    first, second = read(folder, image_model)
    assert np.array_equal(first["x"], second["x"])
    assert first["x"][0, :, 0, 0] == pytest.approx([1, 0, 0.2])


# Random data


def random(of: Model, seed: int = 0, **shapes: tuple[int, ...]) -> Dataset:
    return random_dataset(of, shapes, seed)


def test_random_data_is_the_same_for_a_seed_and_fits_the_model(tmp_path: Path) -> None:
    of = model(
        tmp_path, "(float[N,3] x, int64[2] ids, bool[1] mask, float16[4] h, float s) => (float[N,3] y) { y = Relu(x) }"
    )
    dataset = random(of)
    samples = list(dataset)
    assert dataset.is_random
    assert not dataset.is_labelled
    assert len(dataset) == len(samples) == RANDOM_SAMPLES
    found = {name: (array.dtype.name, array.shape) for name, array in samples[0].inputs.items()}
    assert found == {
        "x": ("float32", (1, 3)),
        "ids": ("int64", (2,)),
        "mask": ("bool", (1,)),
        "h": ("float16", (4,)),
        "s": ("float32", ()),
    }
    for a, b in zip(samples, random(of), strict=True):
        assert all(np.array_equal(a.inputs[k], b.inputs[k]) for k in a.inputs)
    assert not np.array_equal(samples[0].inputs["x"], samples[1].inputs["x"])
    assert not np.array_equal(samples[0].inputs["x"], next(iter(random(of, 1))).inputs["x"])
    assert random(of).sha256 != random(of, 1).sha256


def test_random_data_needs_the_dynamic_dimensions(tmp_path: Path) -> None:
    of = model(tmp_path, IMAGE)
    with pytest.raises(DataError, match=r"'x'.*--shape x:"):
        random(of)
    assert next(iter(random(of, x=(2, 3, 4, 5)))).inputs["x"].shape == (2, 3, 4, 5)
    with pytest.raises(DataError, match=r"z.*no such input.*x"):
        random(of, x=(2, 3, 4, 5), z=(1,))


@pytest.mark.parametrize("shape", [(2, 4, 4, 5), (3, 4, 5)])
def test_a_shape_that_the_model_cannot_take_is_told(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="x"):
        random(model(tmp_path, IMAGE), x=shape)


def test_different_shapes_are_different_data(tmp_path: Path) -> None:
    of = model(tmp_path, IMAGE)
    assert random(of, x=(1, 3, 4, 4)).sha256 != random(of, x=(1, 3, 8, 8)).sha256


def test_the_bundled_data_is_whole(bundled: tuple[Model, Dataset]) -> None:
    of, dataset = bundled
    assert dataset.is_labelled
    assert dataset.manifest.metric == "accuracy"
    assert dataset.manifest.output == "logits"
    assert dataset.manifest.inputs == {"image": InputSpec(dtype="float32")}
    assert [s.inputs["image"].shape for s in dataset] == [(1, 1, 8, 8)] * 8
    assert of.sha256 != dataset.sha256
