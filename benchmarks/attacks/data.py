"""Samples, manifests, calibration caches and states that somebody made to do harm."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from models import proto
from PIL import Image
from test_hostile import CACHES, DATA, STATES

from benchmarks.attacks.attempt import ANY, MODEL, REFUSED, RUNS, SWEEP, Attempt, Kind, Make, Words
from benchmarks.attacks.models import flipped
from tests.fuzz.mutate import mutated_archive

IMAGE = "(float[1,3,h,v] x) => (float[1,3,h,v] y) { y = Relu(x) }"
ROW = "(float[n,4] x) => (float[n,4] y) { y = Relu(x) }"
WHOLE = "(int64[n,4] x) => (float[n,4] y) { a = Cast<to = 1>(x) y = Relu(a) }"
OPTIONS = ("--precisions", "fp16", "--threads", "1", "--out", "run")


def sampled(body: str, write: Callable[[Path], Any], manifest: str = "") -> Make:
    """A sweep on a folder of samples."""

    def make() -> Words:
        Path("m.onnx").write_bytes(proto(body).SerializeToString())
        Path("data").mkdir()
        write(Path("data"))
        if manifest:
            Path("data", "dataset.toml").write_text(manifest)
        return ["sweep", "m.onnx", "--data", "data", *OPTIONS]

    return make


def array(values: Any, name: str = "a.npy") -> Callable[[Path], Any]:
    """One array."""
    return lambda folder: np.save(folder / name, values)


def pixels(mode: str, size: tuple[int, int] = (8, 6)) -> Image.Image:
    """A picture of noise."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    noise = np.random.default_rng(0).integers(0, 2 if mode == "1" else 256, shape, np.uint8)
    if mode in ("I;16", "I", "F"):
        return Image.fromarray(noise.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    return Image.fromarray(noise, mode) if mode not in ("1", "P") else Image.fromarray(noise).convert(mode)


def picture(mode: str, kind: str, share: float = 1.0, **options: Any) -> Callable[[Path], Any]:
    """A picture, or a part of its file."""

    def write(folder: Path) -> None:
        stream = io.BytesIO()
        pixels(mode).save(stream, kind, **options)
        (folder / f"a.{kind.lower()}").write_bytes(stream.getvalue()[: int(len(stream.getvalue()) * share)])

    return write


def turned(orientation: int) -> bytes:
    """EXIF data of this orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


ONES = np.ones((1, 4), np.float32)
ARRAYS: dict[str, tuple[str, Any]] = {
    "NaN for whole numbers": (WHOLE, ONES * np.nan),
    "1e30 for whole numbers": (WHOLE, ONES * 1e30),
    "halves for whole numbers": (WHOLE, ONES * 0.5),
    "beyond int64": (WHOLE, np.full((1, 4), 2**63 + 5, np.uint64)),
    "complex numbers": (ROW, ONES * 1j),
    "beyond float32": (ROW, np.full((1, 4), 1e300)),
    "NaN": (ROW, ONES * np.nan),
    "Inf": (ROW, ONES * np.inf),
    "no rows": (ROW, np.ones((0, 4), np.float32)),
    "one axis": (ROW, np.ones(4, np.float32)),
    "five axes": (ROW, np.ones((1, 1, 1, 1, 4), np.float32)),
    "no axis": (ROW, np.float32(1)),
    "too few columns": (ROW, np.ones((1, 3), np.float32)),
    "texts": (ROW, np.array([["1", "2", "3", "4"]])),
    "bytes": (ROW, np.array([[b"1", b"2", b"3", b"4"]])),
    "dates": (ROW, np.array([["2026-01-01"] * 4], "datetime64[D]")),
    "records": (ROW, np.zeros((1, 4), [("a", "<f4"), ("b", "<i4")])),
    "the other byte order": (ROW, ONES.astype(">f4")),
    "booleans": (ROW, np.ones((1, 4), bool)),
    "float16": (ROW, ONES.astype(np.float16)),
    "Fortran's order": (ROW, np.asfortranarray(np.ones((3, 4), np.float32))),
}
IMAGES: dict[str, Callable[[Path], Any]] = {
    **{f"turned as {number}": picture("RGB", "JPEG", exif=turned(number)) for number in (3, 6, 8, 0, 99)},
    **{f"{mode} as PNG": picture(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGBA", "I;16")},
    **{f"{mode} as TIFF": picture(mode, "TIFF") for mode in ("CMYK", "F", "I", "LAB")},
    "a palette with a transparent colour": picture("P", "PNG", transparency=3),
    "a palette with transparent bytes": picture("P", "PNG", transparency=bytes(range(256))),
    "CMYK as JPEG": picture("CMYK", "JPEG"),
    "a moving picture": picture("P", "GIF", save_all=True),
    **{
        f"{share:.0%} of a {kind}": picture("RGB", kind, share)
        for kind in ("BMP", "WEBP", "TIFF")
        for share in (0.1, 0.9)
    },
    "text called a picture": lambda folder: (folder / "a.png").write_text("no picture"),
}
MANIFESTS: tuple[str, ...] = (
    *('[inputs.x]\nscale = "x"\n', "[inputs.x]\nscale = nan\n", "[inputs.x]\nscale = inf\n", "[inputs.x]\nmean = []\n"),
    *("[inputs.x]\nstd = 0\n", "[inputs.x]\nsize = [0, 0]\n", "[inputs.x]\nsize = -1\n", "[inputs.y]\nscale = 1\n"),
    *(
        '[inputs.x]\nlayout = "pwned"\n',
        "[inputs]\nx = 3\n",
        "pwned = 1\n",
        "[labels]\nfile = 3\n",
        "[samples]\nfile = []\n",
    ),
    *(
        'name = ["a"]\n',
        '[inputs.x]\ndtype = "float99"\n',
        "[inputs.x]\npwned = 1\n",
        '[labels]\nmetric = "os:remove"\n',
    ),
)


def archive(seed: str) -> Callable[[Path], Any]:
    """An archive or an array with some bytes changed, within its frame."""

    def write(folder: Path) -> None:
        dice, stream = random.Random(seed), io.BytesIO()
        if dice.random() < 0.5:
            np.savez(stream, x=ONES, y=ONES)
            name = "a.npz"
        else:
            np.save(stream, ONES)
            name = "a.npy"
        mutate = lambda found, most: flipped(found, most, dice)  # noqa: E731
        (folder / name).write_bytes(mutated_archive(stream.getvalue(), 1 << 16, dice, mutate))

    return write


def kinds(dice: random.Random) -> Iterable[Kind]:
    """The attempts of this family."""
    yield Kind(
        "data that lie",
        "pickles, headers that lie, bombs, links, pipes, listings and labels led out of the folder, half files",
        "refused with the file's name; nothing is run",
        [Attempt(name, make, REFUSED, told) for name, (make, told) in DATA.items()],
    )
    yield Kind(
        "arrays and archives",
        "types and shapes that the model does not take, NaN and 1e30 for whole numbers, bytes drawn",
        "figures, or refused",
        list(arrays(dice)),
    )
    yield Kind(
        "pictures",
        "EXIF orientations, 16 bits, palettes with transparency, CMYK, parts of files",
        "figures, or refused with the file's name",
        [Attempt(name, sampled(IMAGE, write), ANY) for name, write in IMAGES.items()],
    )
    yield Kind(
        "manifests",
        "values of other kinds, inputs of nobody, unknown keys",
        "refused with the file's name",
        [Attempt(text, sampled(ROW, array(ONES), text), REFUSED, "dataset.toml") for text in MANIFESTS],
    )
    yield Kind(
        "calibration caches and states",
        "`cache` and `calibrate --merge` on devices, holes, other text, counts that lie; bytes drawn",
        "refused with the file's name",
        list(caches(dice)),
    )


def arrays(dice: random.Random) -> Iterator[Attempt]:
    """Arrays that no model takes, and some that it does."""
    yield Attempt("twin of an array", sampled(ROW, array(ONES)), RUNS, twin=True)
    yield Attempt("twin of whole numbers", sampled(WHOLE, array(ONES)), RUNS, twin=True)
    for name, (body, values) in ARRAYS.items():
        yield Attempt(name, sampled(body, array(values)), ANY)
    for seed in (f"{dice.random()}" for _ in range(10)):
        yield Attempt(f"bytes drawn, {seed}", sampled(ROW, archive(seed)), ANY)


def cached(edit: Callable[[bytes], bytes], *command: str) -> Make:
    """A command on a calibration cache that we have made, after a change."""

    def make() -> Words:
        from click.testing import CliRunner

        from precisionlab.cli import cli

        words = ["calibrate", str(MODEL), "--data", SWEEP[3], "--samples", "4", "--threads", "1", "--out", "run"]
        assert CliRunner().invoke(cli, words).exit_code == 0
        path = Path("run", "calibration.cache")
        path.write_bytes(edit(path.read_bytes()))
        return [*command]

    return make


SHOW, LINT = ("cache", "show", "run/calibration.cache"), ("cache", "lint", "run/calibration.cache")


def caches(dice: random.Random) -> Iterator[Attempt]:
    """Caches and states."""
    for name, (make, told) in (*CACHES.items(), *STATES.items()):
        yield Attempt(name, make, REFUSED, told)
    yield Attempt("twin of cache show", cached(bytes, *SHOW), RUNS, twin=True)
    yield Attempt("twin of cache lint", cached(bytes, *LINT), RUNS, twin=True)
    for seed in (f"{dice.random()}" for _ in range(6)):
        yield Attempt(f"bytes drawn, {seed}", cached(drawn(seed), *(SHOW if float(seed) < 0.5 else LINT)), ANY)


def drawn(seed: str) -> Callable[[bytes], bytes]:
    """Some bytes are others, or gone."""
    return lambda content: flipped(content, 1 << 20, random.Random(seed))
