"""Images become the pixels that a user sees, whatever the file's format; what is done on the way is said."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import Array, examples, load, proto
from PIL import Image, ImageCms

from precisionlab.data import MANIFEST, Sample, open_dataset
from precisionlab.errors import DataError
from precisionlab.model import Model

IMAGE = "(float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }"
LOSSLESS = ("png", "bmp", "tiff", "tif", "webp")
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(proto(IMAGE), tmp_path_factory.mktemp("image"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def sample(folder: Path, of: Model, spec: str = "scale = 1") -> Sample:
    (folder / MANIFEST).write_text(f"[inputs.x]\n{spec}\n")
    (found,) = open_dataset(folder, of, None, 0)
    return found


def pixels(found: Sample) -> Array:
    """H×W×3."""
    return found.inputs["x"][0].transpose(1, 2, 0)


def said(found: Sample) -> str:
    return "; ".join(remark.text for remark in found.remarks)


def fails(folder: Path, of: Model, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        sample(folder, of)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), caught.value


def noise(*shape: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def save(image: Image.Image, path: Path, **options: Any) -> None:
    if path.suffix == ".webp":
        options["lossless"] = True
    image.save(path, **options)


# Every format


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_every_lossless_format_gives_its_pixels(folder: Path, of: Model, suffix: str) -> None:
    value = noise(5, 7, 3)
    save(Image.fromarray(value), folder / f"a.{suffix}")
    found = sample(folder, of)
    assert np.array_equal(pixels(found), value)
    assert not found.remarks


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG"])
def test_jpeg_gives_its_pixels_nearly(folder: Path, of: Model, suffix: str) -> None:
    value = np.full((16, 16, 3), [200, 100, 50], np.uint8)
    Image.fromarray(value).save(folder / f"a.{suffix}", "JPEG", quality=95)
    assert np.abs(pixels(sample(folder, of)) - value).max() <= 3


@pytest.mark.parametrize("suffix", [*LOSSLESS, "jpg"])
def test_half_of_any_image_is_refused_and_all_of_it_is_not(folder: Path, of: Model, suffix: str) -> None:
    file = folder / f"a.{suffix}"
    save(Image.fromarray(noise(40, 30, 3)), file)
    content = file.read_bytes()
    assert pixels(sample(folder, of)).shape == (40, 30, 3)
    file.write_bytes(content[: len(content) // 2])
    fails(folder, of, file.name, "not a readable image")


def test_a_telephones_second_picture_is_none_of_ours(folder: Path, of: Model) -> None:
    first, second = (Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (50, 200))
    first.save(folder / "a.jpg", "MPO", save_all=True, append_images=[second])
    found = sample(folder, of)
    assert np.abs(pixels(found) - 50).max() <= 3
    assert not found.remarks


# Orientation. What each value means: the place of the first row and of the first column (TIFF 6.0, page 36).

UPRIGHT = np.arange(1, 7, dtype=np.uint8).reshape(2, 3) * 40
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: UPRIGHT.T[::-1],
    7: UPRIGHT.T[::-1, ::-1],
    8: UPRIGHT.T[:, ::-1],
}


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg"])
@pytest.mark.parametrize("orientation", STORED)
def test_an_image_is_turned_as_its_exif_orientation_says(
    folder: Path, of: Model, suffix: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.repeat(np.repeat(STORED[orientation], 16, 0), 16, 1)  # blocks, so that JPEG keeps them apart
    save(Image.fromarray(np.repeat(stored[..., None], 3, 2)), folder / f"a.{suffix}", exif=exif)
    found = sample(folder, of)
    assert pixels(found).shape == (32, 48, 3)
    assert np.abs(pixels(found)[8::16, 8::16, 0] - UPRIGHT).max() <= (4 if suffix == "jpg" else 0)
    assert ("EXIF" in said(found)) == (orientation != 1)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_means_nothing_is_none(folder: Path, of: Model, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    value = noise(4, 6, 3)
    Image.fromarray(value).save(folder / "a.png", exif=exif)
    found = sample(folder, of)
    assert np.array_equal(pixels(found), value)
    assert not found.remarks


def test_the_size_of_a_turned_image_is_that_of_what_is_seen(folder: Path, tmp_path: Path) -> None:
    fixed = load(proto("(float[1,3,32,48] x) => (float[1,3,32,48] y) { y = Relu(x) }"), tmp_path)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = np.repeat(np.repeat(STORED[6], 16, 0), 16, 1)
    Image.fromarray(np.repeat(stored[..., None], 3, 2)).save(folder / "a.png", exif=exif)
    assert np.array_equal(pixels(sample(folder, fixed))[8::16, 8::16, 0], UPRIGHT)  # not resized


# Bits and kinds of colour


def png16(path: Path, channels: int) -> None:
    """Pillow writes no 16-bit colours; the file by hand: colour type 2 has three channels, 6 four, 4 grey and alpha."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 4, 4, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    row = b"\0" + np.full((4, channels), 1000, ">u2").tobytes()
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_16_bits_are_refused_and_not_cut(folder: Path, of: Model, channels: int) -> None:
    png16(folder / "a.png", channels)
    with Image.open(folder / "a.png") as image:
        image.load()  # it is a sound file, and Pillow cuts it to 8 bits
    fails(folder, of, "a.png", "more than 8 bits", ".npy")


def test_a_tiff_of_16_bit_colours_is_refused(folder: Path, of: Model) -> None:
    import struct

    value = np.full((2, 2, 3), 1000, "<u2").tobytes()
    bits = 8 + 2 + 12 * 9 + 4  # behind the directory
    tags = [
        (256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, bits + 6), (277, 3, 1, 3), (278, 3, 1, 2), (279, 4, 1, len(value)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0" * 4
    content = b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<HHH", 16, 16, 16) + value
    (folder / "a.tiff").write_bytes(content)
    with Image.open(folder / "a.tiff") as image:
        assert image.mode == "RGB"  # what Pillow makes of it: 3, 3, 3 and not 1000
    fails(folder, of, "a.tiff", "more than 8 bits", ".npy")


@pytest.mark.parametrize("value", [np.full((4, 4), 1000, np.uint16), np.full((4, 4), 0.5, np.float32)])
def test_grey_beyond_8_bits_is_refused(folder: Path, of: Model, value: Array) -> None:
    Image.fromarray(value).save(folder / "a.tiff")
    fails(folder, of, "a.tiff", "more than 8 bits", ".npy")


@pytest.mark.parametrize(("mode", "suffix"), [("1", "png"), ("1", "bmp"), ("1", "tiff"), ("L", "png"), ("P", "bmp")])
def test_few_bits_and_palettes_are_their_colours(folder: Path, of: Model, mode: str, suffix: str) -> None:
    value = np.kron(np.array([[0, 255], [255, 0]], np.uint8), np.ones((4, 4), np.uint8))
    Image.fromarray(value).convert(mode).save(folder / f"a.{suffix}")
    found = sample(folder, of)
    assert np.array_equal(pixels(found), np.repeat(value[..., None], 3, 2))
    assert not found.remarks


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
@pytest.mark.parametrize("alpha", [255, 7])
def test_an_alpha_channel_is_dropped_and_said_where_it_hides_something(
    folder: Path, of: Model, mode: str, alpha: int
) -> None:
    value = np.full((6, 6, 4), [51, 51, 51, alpha], np.uint8)
    image = Image.fromarray(value)
    if mode == "PA":
        image.quantize(8).save(folder / "a.png")
    else:
        image.convert(mode).save(folder / "a.png")
    found = sample(folder, of)
    assert pixels(found)[0, 0].tolist() == [51, 51, 51]
    assert ("transparent" in said(found)) == (alpha == 7)


def test_a_colour_that_a_png_calls_transparent_is_said(folder: Path, of: Model) -> None:
    value = np.zeros((4, 4, 3), np.uint8)
    value[0] = [1, 2, 3]
    Image.fromarray(value).save(folder / "a.png", transparency=(1, 2, 3))
    found = sample(folder, of)
    assert np.array_equal(pixels(found), value)
    assert "transparent" in said(found)


def test_cmyk_becomes_rgb_and_is_said(folder: Path, of: Model) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(folder / "a.jpg", quality=95)
    found = sample(folder, of)
    assert np.abs(pixels(found) - [255, 0, 0]).max() <= 3
    assert "CMYK" in said(found)


def test_lab_is_refused(folder: Path, of: Model) -> None:
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (4, 4)), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    lab.save(folder / "a.tiff")
    fails(folder, of, "a.tiff", "LAB", "save it as RGB")


@pytest.mark.parametrize(("suffix", "options"), [("tiff", {}), ("webp", {"lossless": True}), ("png", {})])
def test_of_several_pages_the_first_is_taken_and_it_is_said(
    folder: Path, of: Model, suffix: str, options: dict[str, Any]
) -> None:
    pages = [Image.fromarray(np.full((4, 4, 3), level, np.uint8)) for level in (50, 100, 200)]
    pages[0].save(folder / f"a.{suffix}", save_all=True, append_images=pages[1:], **options)
    found = sample(folder, of)
    assert pixels(found)[0, 0, 0] == 50
    assert "the first is taken" in said(found)


def test_remarks_are_told_once_with_the_samples(folder: Path, of: Model) -> None:
    for name in "abcde":
        Image.fromarray(noise(4, 4, 4)).save(folder / f"{name}.png")
    Image.fromarray(noise(4, 4, 3)).save(folder / "f.png")
    checked = open_dataset(folder, of, None, 0).checked()
    assert checked.look is not None
    (told,) = [finding for finding in checked.look.findings if "transparent" in finding.text]
    assert told.text.startswith("a.png, b.png, c.png and 2 more: ")
    assert told.input == "x"


# Damage


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    suffix = draw(st.sampled_from([*LOSSLESS, "jpg"]))
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = draw(st.sampled_from([1, 6]))
    mode = draw(st.sampled_from(["RGB", "L", "RGBA"])) if suffix in ("png", "tiff", "webp") else "RGB"
    kind = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix)
    options: dict[str, Any] = {} if suffix == "bmp" else {"exif": exif}
    if suffix == "tif":
        options["compression"] = draw(st.sampled_from(["tiff_lzw", "packbits", "tiff_deflate"]))
    Image.fromarray(noise(9, 8, 4)).convert(mode).save(stream, kind, **options)
    content = bytearray(stream.getvalue())
    if draw(st.booleans()):
        return f"a.{suffix}", bytes(content[: draw(st.integers(0, len(content) - 1))])
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, min(len(content), 400) - 1))
        content[place] = draw(st.integers(0, 255))
    return f"a.{suffix}", bytes(content)


@given(file=damaged())
@settings(max_examples=examples(200))
@example(file=("a.png", b""))
def test_a_damaged_image_is_read_or_told_but_never_crashes(
    file: tuple[str, bytes], of: Model, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged-images"
    folder.mkdir(exist_ok=True)
    name, content = file
    (folder / name).write_bytes(content)
    text = name
    try:
        for found in open_dataset(folder, of, None, 0):
            assert found.inputs["x"].dtype == np.float32
    except DataError as error:
        text = str(error)
    finally:
        (folder / name).unlink()
    assert name in text
    assert "\n" not in text
