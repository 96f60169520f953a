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
from models import Array, examples, load, proto

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


def test_small_samples_are_read_once_and_each_time_have_arrays_of_their_own(folder: Path, one: Model) -> None:
    np.save(folder / "a.npy", np.ones((1, 3), np.float32))
    dataset = open_dataset(folder, one, None, 0)
    (first,) = dataset
    first.inputs["x"][:] = 7
    (folder / "a.npy").unlink()

    assert [s.inputs["x"].tolist() for s in dataset] == [[[1, 1, 1]]]
    with pytest.raises(DataError, match="No such file"):
        list(pickle.loads(pickle.dumps(dataset)))


def test_samples_beyond_the_room_for_them_are_read_again(
    folder: Path, one: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("precisionlab.data.kept._ROOM", 20)
    for name in ("a.npy", "b.npy"):
        np.save(folder / name, np.ones((1, 3), np.float32))
    dataset = open_dataset(folder, one, None, 0)
    assert len(list(dataset)) == 2
    for name in ("a.npy", "b.npy"):
        np.save(folder / name, np.zeros((1, 3), np.float32))

    assert [float(s.inputs["x"].sum()) for s in dataset] == [3, 0]


def test_a_missing_batch_dimension_is_added(folder: Path, one: Model) -> None:
    np.save(folder / "a.npy", np.float32([1, 2, 3]))
    assert read(folder, one)[0]["x"].shape == (1, 3)


def test_a_scalar_input_takes_a_scalar(folder: Path, tmp_path: Path) -> None:
    np.save(folder / "a.npy", np.float32(5))
    assert read(folder, model(tmp_path, "(float x) => (float y) { y = Relu(x) }"))[0]["x"].shape == ()


def test_fortran_order_is_taken_as_it_is(folder: Path, one: Model) -> None:
    np.save(folder / "a.npy", np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)))
    (first,) = read(folder, one)
    assert first["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert first["x"].flags.c_contiguous


def test_a_batch_of_no_rows_is_told_and_a_length_of_0_is_not(folder: Path, one: Model, tmp_path: Path) -> None:
    np.save(folder / "a.npy", np.empty((0, 3), np.float32))
    fails(folder, one, "a.npy", "'x'", "0×3", "a batch of no rows")
    (folder / "a.npy").unlink()
    body = "(float[B,1] x, float[B,2,P,4] past, float[K,4] boxes) => (float[B,1] y) { y = Relu(x) }"
    cached = model(tmp_path, body)
    shapes = {"x": (1, 1), "past": (1, 2, 0, 4), "boxes": (0, 4)}
    np.savez(folder / "a.npz", **{name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    (found,) = read(folder, cached)
    assert {name: array.shape for name, array in found.items()} == shapes
    shapes["past"] = (0, 2, 5, 4)
    np.savez(folder / "a.npz", **{name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    fails(folder, cached, "a.npz", "'past'", "0×2×5×4", "a batch of no rows")


def test_a_wrong_shape_names_file_tensor_and_both_shapes(folder: Path, one: Model) -> None:
    np.save(folder / "a.npy", np.zeros((1, 4), np.float32))
    fails(folder, one, "a.npy", "'x'", "1×4", "×3")


def test_a_wrong_name_says_what_the_model_takes(folder: Path, one: Model) -> None:
    np.savez(folder / "a.npz", y=np.zeros((1, 3), np.float32))
    fails(folder, one, "a.npz", "lacks x and has y", "inputs are x")


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
@settings(max_examples=examples(300))
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
        ("sample,label\n", "labels no sample"),
        ("sample,label\n0.npy,[1, 2]\n", "more cells than the header"),
        ("sample,label,label\n0.npy,1,2\n", "two columns 'label'"),
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
        ("[inputs.x]\nscale = 1e999", "inputs.x.scale"),
        ("[inputs.x]\nscale = 1e39", "inputs.x.scale"),
        ("[inputs.x]\nstd = 1e-60", "inputs.x.std"),
        (f"[inputs.x]\nmean = {10**400}", "inputs.x.mean"),
        (f"[inputs.x]\nsize = [{10**400}, 2.0]", "inputs.x.size"),
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


# Sub-folders and listings


def names(folder: Path, of: Model) -> list[str]:
    return [s.name for s in open_dataset(folder, of, None, 0)]


def save(folder: Path, *paths: str) -> None:
    for index, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / path, np.full((1, 3), index, np.float32))


def test_sub_folders_are_searched_and_name_the_samples(folder: Path, one: Model) -> None:
    save(folder, "dogs/001.npy", "cats/002.npy", "cats/001.npy", "cats/old/001.npy", "a.npy")
    save(folder, ".cache/001.npy", "cats/.hidden.npy", "cats/._001.npy")
    expected = ["a.npy", "cats/001.npy", "cats/002.npy", "cats/old/001.npy", "dogs/001.npy"]
    dataset = open_dataset(folder, one, None, 0)
    assert [s.name for s in dataset] == list(dataset.names) == expected
    assert not dataset.is_labelled
    with_labels(folder, "sample,label\n" + "".join(f"{name},{name[0]}\n" for name in expected))
    assert [s.label for s in open_dataset(folder, one, None, 0)] == ["a", "c", "c", "c", "d"]


def test_a_file_of_the_same_name_in_another_folder_is_other_data(folder: Path, one: Model) -> None:
    save(folder, "a/1.npy")
    before = open_dataset(folder, one, None, 0).sha256
    (folder / "a").rename(folder / "b")
    assert open_dataset(folder, one, None, 0).sha256 != before


def test_links_that_lead_out_of_the_folder_are_told(folder: Path, one: Model, tmp_path: Path) -> None:
    save(tmp_path, "outside/1.npy")
    save(folder, "a.npy")
    for link, target in (("1.npy", "outside/1.npy"), ("more", "outside")):
        (folder / link).symlink_to(tmp_path / target)
        fails(folder, one, link, "outside the data folder")
        (folder / link).unlink()
    save(folder, "sub/b.npy")
    (folder / "again").symlink_to(folder / "sub")
    (folder / "sub/loop").symlink_to(folder)
    (folder / "c.npy").symlink_to(folder / "a.npy")
    (folder / "gone.npy").symlink_to(folder / "nothing")
    assert names(folder, one) == ["a.npy", "c.npy", "sub/b.npy"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("samples.csv", "path,label\nsub/b.npy,1\na.npy,2\n"),
        ("samples.csv", "\ufeffcomment,label,path\r\nx,1,./sub/b.npy\r\n\r\n,2,sub/../a.npy\r\n"),
        ("samples.jsonl", '{"path": "sub/b.npy", "label": "1"}\n\n{"path": "a.npy", "label": 2, "split": "train"}\n'),
    ],
)
def test_a_listing_says_which_samples_in_which_order_and_their_labels(
    folder: Path, one: Model, name: str, text: str
) -> None:
    save(folder, "a.npy", "sub/b.npy", "c.npy")
    (folder / name).write_text(text, encoding="utf-8")
    dataset = open_dataset(folder, one, None, 0)
    assert [(s.name, s.label) for s in dataset] == [("sub/b.npy", "1"), ("a.npy", "2")]
    assert dataset.is_labelled


def test_labels_of_a_listing_may_be_left_out(folder: Path, one: Model) -> None:
    save(folder, "a.npy", "b.npy", "c.npy")
    (folder / "list.jsonl").write_text('{"path": "b.npy", "label": [1, 2]}\n{"path": "c.npy", "label": null}\n')
    (folder / MANIFEST).write_text('[samples]\nfile = "list.jsonl"\n')
    assert [(s.name, s.label) for s in open_dataset(folder, one, None, 0)] == [("b.npy", "[1, 2]"), ("c.npy", None)]
    (folder / "samples.csv").write_text("path\na.npy\n")  # the manifest's listing is the one
    assert names(folder, one) == ["b.npy", "c.npy"]
    (folder / MANIFEST).unlink()
    (folder / "samples.csv").write_text("path,label\na.npy,\nb.npy,x\n")
    assert [s.label for s in open_dataset(folder, one, None, 0)] == [None, "x"]


def test_a_label_file_called_like_a_listing_is_none(folder: Path, one: Model) -> None:
    save(folder, "a.npy", "b.npy")
    (folder / MANIFEST).write_text('[labels]\nfile = "samples.csv"\n')
    (folder / "samples.csv").write_text("sample,label\na.npy,1\nb.npy,2\n")
    assert [s.label for s in open_dataset(folder, one, None, 0)] == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("samples.csv", "", ["line 1", "path,label"]),
        ("samples.csv", "sample,label\na.npy,1\n", ["line 1", "path,label"]),
        ("samples.csv", "path,label\n", ["lists no sample"]),
        ("samples.csv", "path,label\na.npy,[1, 2]\n", ["line 2", "more cells than the header"]),
        ("samples.csv", "path,path\na.npy,b.npy\n", ["line 1", "two columns 'path'"]),
        ("samples.csv", "path,label\na.npy,1\n/etc/x.npy,1\n", ["line 3", "'/etc/x.npy' is absolute"]),
        ("samples.csv", "path\nC:\\data\\x.npy\n", ["line 2", "absolute"]),
        ("samples.csv", "path\na.npy\n\n../x.npy\n", ["line 4", "'../x.npy'", "outside the data folder"]),
        ("samples.csv", "path\nout/x.npy\n", ["line 2", "outside the data folder"]),
        ("samples.csv", "path\na.npy\n./a.npy\n", ["line 3", "second time", "line 2"]),
        ("samples.csv", "path,label\na.npy\n", ["line 2", "no label"]),
        ("samples.csv", "path,label\n,1\n", ["line 2", "no path"]),
        ("samples.csv", "path\na.txt\n", ["line 2", "a.txt", "nor an image"]),
        ("samples.csv", "path\na.npy\ngone.npy\n", ["line 3", "gone.npy", "no file"]),
        ("samples.csv", "path\nsub\\b.npy\n", ["line 2", "write / between folders"]),
        ("samples.jsonl", '{"path": "a.npy"}\n{"path"\n', ["line 2", "not JSON"]),
        ("samples.jsonl", '"a.npy"\n', ["line 1", '{"path"']),
        ("samples.jsonl", '{"path": 3}\n', ["line 1", '{"path"']),
        ("samples.jsonl", '{"path": "a\\u0000.npy"}\n', ["line 1", "no usable path"]),
        ("samples.jsonl", "[" * 100_000 + "\n", ["line 1", "not JSON"]),
    ],
)
def test_a_listing_that_cannot_be_used_is_told_with_its_line(
    folder: Path, one: Model, name: str, text: str, words: list[str]
) -> None:
    save(folder, "a.npy")
    (folder / "out").symlink_to("/etc")
    (folder / name).write_text(text)
    fails(folder, one, name, *words)


def test_one_listing_and_one_place_for_labels(folder: Path, one: Model) -> None:
    save(folder, "a.npy")
    (folder / "samples.csv").write_text("path,label\na.npy,1\n")
    (folder / "samples.jsonl").write_text('{"path": "a.npy"}\n')
    fails(folder, one, "both", "samples.csv", "samples.jsonl")
    (folder / "samples.jsonl").unlink()
    with_labels(folder, "sample,label\na.npy,2\n")
    fails(folder, one, "samples.csv", "labels.csv", "keep one")
    (folder / MANIFEST).write_text('[samples]\nfile = "list.txt"\n')
    fails(folder, one, MANIFEST, ".jsonl")
    (folder / MANIFEST).write_text('[samples]\nfile = "gone.csv"\n')
    fails(folder, one, "gone.csv", "cannot be read")


def test_the_hash_covers_the_listing(folder: Path, one: Model) -> None:
    save(folder, "a.npy")
    seen = []
    for label in "12":
        (folder / "samples.csv").write_text(f"path,label\na.npy,{label}\n")
        seen.append(open_dataset(folder, one, None, 0).sha256)
    assert seen[0] != seen[1]


# Many samples in one file

FIXED = "(float[1,3] x) => (float[1,3] y) { y = Relu(x) }"
FIXED_TWO = "(float[1,3] x, int64[1,2] ids) => (float[1,3] y, int64[1,2] z) { y = Relu(x) z = Abs(ids) }"


@pytest.fixture
def fixed(tmp_path: Path) -> Model:
    return model(tmp_path, FIXED)


def write(path: Path, kind: str, value: Array) -> Path:
    file = path.with_suffix(".npy" if kind in ("npy", "fortran") else ".npz")
    if kind == "npz":
        np.savez(file, x=value)
    elif kind == "compressed":
        np.savez_compressed(file, x=value)
    else:
        np.save(file, np.asfortranarray(value) if kind == "fortran" else value)
    return file


@pytest.mark.parametrize("kind", ["npy", "fortran", "npz", "compressed"])
def test_a_stack_is_split_where_the_model_has_a_fixed_batch_of_one(
    folder: Path, fixed: Model, one: Model, kind: str
) -> None:
    value = np.arange(60, dtype=np.float32).reshape(20, 3)
    file = write(folder / "calib", kind, value)
    dataset = open_dataset(folder, fixed, None, 0)
    assert [s.name for s in dataset] == [f"{file.name}[{i}]" for i in range(20)]
    assert all(s.inputs["x"].shape == (1, 3) for s in dataset)
    assert np.array_equal(np.concatenate([s.inputs["x"] for s in dataset]), value)
    few = open_dataset(folder, fixed, 4, 1)
    assert len(few) == 4
    for found in few:
        row = int(found.name.split("[")[1][:-1])
        assert np.array_equal(found.inputs["x"], value[row : row + 1])
    assert few.sha256 != dataset.sha256
    (whole,) = open_dataset(folder, one, None, 0)  # where the batch is dynamic, a file is one sample
    assert whole.name == file.name
    assert np.array_equal(whole.inputs["x"], value)


@given(shape=st.lists(st.integers(1, 4), min_size=2, max_size=4), kind=st.sampled_from(["npy", "npz", "compressed"]))
@settings(max_examples=examples(40))
def test_a_stack_is_the_same_as_its_rows_in_files(
    shape: list[int], kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("stack")
    (path / "data").mkdir()
    dims = ",".join(map(str, [1, *shape[1:]]))
    of = model(path, f"(float[{dims}] x) => (float[{dims}] y) {{ y = Relu(x) }}")
    value = np.random.default_rng(0).standard_normal(shape, np.float32)
    write(path / "data/a", kind, value)
    found = read(path / "data", of)
    assert [s["x"].tobytes() for s in found] == [row.tobytes() for row in value]


@pytest.mark.slow
def test_only_the_rows_that_are_asked_for_are_read(folder: Path, tmp_path: Path) -> None:
    wide = model(tmp_path, "(float[1,30000] x) => (float[1,30000] y) { y = Relu(x) }")
    with (folder / "a.npy").open("wb") as stream:  # 12 GB with a hole: nothing else could read it here
        stream.write(huge((10**5, 30000)))
        stream.seek(12 * 10**9 - 4, io.SEEK_CUR)
        stream.write(np.float32(7).tobytes())
    dataset = open_dataset(folder, wide, None, 0).only({"a.npy[99999]"})
    (found,) = dataset
    assert found.inputs["x"].sum() == found.inputs["x"][0, -1] == 7


def test_a_header_cannot_promise_samples_that_are_not_there(folder: Path, fixed: Model) -> None:
    (folder / "a.npy").write_bytes(huge((10**12, 3)))
    fails(folder, fixed, "a.npy", "4 GiB")
    (folder / "a.npy").write_bytes(huge((500, 3)))
    fails(folder, fixed, "a.npy", "cut off")
    with (folder / "a.npy").open("wb") as stream:
        stream.write(huge((10**7, 3)))
        stream.truncate(stream.tell() + 12 * 10**7)
    fails(folder, fixed, "a.npy", "10,000,000 samples", "split")


@given(data=st.data())
@settings(max_examples=examples(150))
def test_a_damaged_stack_is_read_or_told_but_never_crashes(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("stack")
    of = model(path, FIXED)
    (path / "data").mkdir()
    value = np.random.default_rng(0).standard_normal((20, 3), np.float32)
    file = write(path / "data/a", data.draw(st.sampled_from(["npy", "npz", "compressed"])), value)
    file.write_bytes(damaged(file.read_bytes(), data.draw))
    try:
        good = open_dataset(path / "data", of, None, 0).checked(skip_bad=True)
        reasons = [reason for _, reason in good.skipped]
    except DataError as error:
        reasons = [str(error)]
    assert all(file.name in reason and "\n" not in reason for reason in reasons)


def test_rows_of_several_inputs_go_together(folder: Path, tmp_path: Path) -> None:
    two = model(tmp_path, FIXED_TWO)
    x, ids = np.float32([[1, 2, 3], [4, 5, 6]]), np.array([[1, 2], [3, 4]])
    np.savez(folder / "a.npz", x=x, ids=ids)
    first, second = read(folder, two)
    assert first["x"].tolist() == [[1, 2, 3]]
    assert second["ids"].tolist() == [[3, 4]]
    np.savez(folder / "a.npz", x=x, ids=ids[:1])
    fails(folder, two, "a.npz", "'x'", "2×3", "1×3")


def test_what_is_wrong_in_a_stack_names_the_row(folder: Path, fixed: Model) -> None:
    value = np.zeros((3, 3), np.float32)
    value[1, 0] = np.nan
    np.save(folder / "a.npy", value)
    fails(folder, fixed, "a.npy[1]", "'x'", "1 value", "NaN or Inf")
    np.savez(folder / "a.npz", x=np.asfortranarray(np.zeros((3, 3), np.float32)))
    (folder / "a.npy").unlink()
    fails(folder, fixed, "a.npz", "Fortran", ".npy")


def test_one_label_cannot_stand_for_a_stack(folder: Path, fixed: Model) -> None:
    np.save(folder / "a.npy", np.zeros((3, 3), np.float32))
    (folder / "samples.csv").write_text("path,label\na.npy,1\n")
    fails(folder, fixed, "samples.csv", "line 2", "3 samples", "a.npy[0]")
    (folder / "samples.csv").write_text("path\na.npy\n")
    with_labels(folder, "sample,label\na.npy[0],5\na.npy[1],6\na.npy[2],7\n")
    assert [s.label for s in open_dataset(folder, fixed, None, 0)] == ["5", "6", "7"]


def test_a_cut_stack_is_told(folder: Path, fixed: Model) -> None:
    for kind in ("npy", "npz", "compressed"):
        file = write(folder / "a", kind, np.random.default_rng(0).standard_normal((500, 3), np.float32))
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        fails(folder, fixed, file.name, "not a readable")
        file.unlink()


# What is too large, and other traps


def huge(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_arrays_beyond_the_limit_are_refused_before_they_are_read(folder: Path, one: Model, fixed: Model) -> None:
    (folder / "a.npy").write_bytes(huge((10**12, 3)))
    fails(folder, one, "a.npy", "GiB", "4 GiB")
    (folder / "a.npy").unlink()
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        archive.writestr("x.npy", huge((10**12, 3)))
    fails(folder, one, "a.npz", "'x'", "4 GiB")
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        archive.writestr("x.npy", huge((10**6, 3)))
    fails(folder, one, "a.npz", "'x'", "cut off")
    fails(folder, fixed, "a.npz", "cut off")
    (folder / "a.npz").unlink()
    (folder / "a.npy").write_bytes(huge((10**6, 3)))
    fails(folder, one, "a.npy", "cut off")


def test_what_the_model_does_not_take_is_not_read(folder: Path, one: Model) -> None:
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"broken")
        archive.writestr("bomb.npy", b"broken")
    fails(folder, one, "a.npz", "has bomb")


def test_an_image_of_a_billion_pixels_is_refused(folder: Path, image_model: Model) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for side in (40_000, 13_500):
        size = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b""))
        fails(folder, image_model, "a.png", "pixels", "scale the image down")


def test_images_of_more_than_eight_bits_are_refused_and_not_clipped(folder: Path, image_model: Model) -> None:
    png(folder / "a.png", np.full((4, 4), 1000, np.uint16))
    fails(folder, image_model, "a.png", "8 bits", ".npy")


def test_the_other_byte_order_is_the_same_data(folder: Path, one: Model) -> None:
    np.save(folder / "a.npy", np.array([[1, 2, 3]], ">f4"))
    (found,) = read(folder, one)
    assert found["x"].dtype == np.float32
    assert found["x"].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("wanted", "shape", "hint"),
    [
        ("N,3,8,9", (1, 8, 9, 3), ".transpose(0, 3, 1, 2)"),
        ("N,3,H,W", (8, 9, 3), ".transpose(0, 3, 1, 2)"),
        ("N,8,9,3", (1, 3, 8, 9), ".transpose(0, 2, 3, 1)"),
        ("N,3,L", (2, 7, 3), ".transpose(0, 2, 1)"),
    ],
)
def test_channels_in_the_wrong_place_are_told_with_the_transpose(
    folder: Path, tmp_path: Path, wanted: str, shape: tuple[int, ...], hint: str
) -> None:
    np.save(folder / "a.npy", np.zeros(shape, np.float32))
    text = f"(float[{wanted}] x) => (float[{wanted}] y) {{ y = Relu(x) }}"
    fails(folder, model(tmp_path, text), "a.npy", "channels come", hint)


def test_no_transpose_is_suggested_where_none_fits(folder: Path, tmp_path: Path) -> None:
    np.save(folder / "a.npy", np.zeros((1, 8, 9, 4), np.float32))
    assert ".transpose(" not in fails(folder, model(tmp_path, IMAGE), "a.npy")


# The check before the work


def with_bad(folder: Path) -> None:
    fill(folder, 4)
    np.save(folder / "1.npy", np.float32([[1, np.nan, 3]]))
    (folder / "3.npy").write_bytes(b"no array")


def test_a_bad_sample_stops_the_check_with_its_name(folder: Path, one: Model) -> None:
    with_bad(folder)
    with pytest.raises(DataError, match=r"1\.npy.*NaN"):
        open_dataset(folder, one, None, 0).checked()


def test_bad_samples_can_be_left_out_and_are_reported(folder: Path, one: Model) -> None:
    with_bad(folder)
    told: list[int] = []
    dataset = open_dataset(folder, one, None, 0)
    good = dataset.checked(skip_bad=True, progress=told.append)
    assert told == [1, 2, 3, 4]
    assert good.names == ("0.npy", "2.npy")
    assert [s.name for s in good] == ["0.npy", "2.npy"]
    assert [name for name, _ in good.skipped] == ["1.npy", "3.npy"]
    assert "NaN" in good.skipped[0].reason
    assert "not a readable" in good.skipped[1].reason
    assert len(dataset) == 4
    (folder / "1.npy").unlink()
    (folder / "3.npy").unlink()
    assert open_dataset(folder, one, None, 0).sha256 == good.sha256
    assert good.checked().skipped == good.skipped


def test_nothing_but_bad_samples_is_told(folder: Path, one: Model) -> None:
    (folder / "a.npy").write_bytes(b"")
    (folder / "b.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"all 2 samples are bad; the first: .*a\.npy"):
        open_dataset(folder, one, None, 0).checked(skip_bad=True)


def test_a_listed_file_that_is_gone_is_a_bad_sample(folder: Path, one: Model) -> None:
    save(folder, "a.npy")
    (folder / "samples.csv").write_text("path\ngone.npy\na.npy\n")
    good = open_dataset(folder, one, None, 0).checked(skip_bad=True)
    assert good.names == ("a.npy",)
    assert "line 2" in good.skipped[0].reason


def test_checking_changes_neither_samples_nor_hash(bundled: tuple[Model, Dataset]) -> None:
    _, dataset = bundled
    checked = dataset.checked()
    assert checked.sha256 == dataset.sha256
    assert checked.names == dataset.names
    assert checked.is_labelled
    assert [s.label for s in checked] == [s.label for s in dataset]


def test_a_part_reads_only_its_samples(folder: Path, one: Model) -> None:
    with_bad(folder)
    part = open_dataset(folder, one, None, 0).only({"2.npy", "0.npy"})
    assert [s.name for s in part] == ["0.npy", "2.npy"]
    assert [f.name for f in part.files] == ["0.npy", "2.npy"]


def test_random_inputs_can_be_checked(tmp_path: Path) -> None:
    dataset = random(model(tmp_path, ONE))
    checked = dataset.checked()
    assert checked.is_random
    assert checked.sha256 == dataset.sha256
    assert checked.look is not None
    assert checked.look.samples == RANDOM_SAMPLES
