"""Files of many types, each written by the library that owns the type, from seeded random numbers."""

from __future__ import annotations

import bz2
import configparser
import csv
import gzip
import importlib
import io
import json
import lzma
import pickle
import plistlib
import py_compile
import pydoc
import random
import sqlite3
import tarfile
import tempfile
import time
import wave
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from examples.rendering import WORDS, scattered_page


def written_files() -> Iterator[tuple[str, bytes]]:
    """Content type and content of each file."""
    for kind, count, write in WRITERS:
        for index in range(count):
            yield kind, write(random.Random(f"{kind} {index}"))


def bytecode(source: Path) -> bytes:
    """A Python module compiled."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "module.pyc"
        # Checked by hash, or it would hold the time at which the source was installed.
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(source), str(compiled), doraise=True, invalidation_mode=mode)
        return compiled.read_bytes()


def html_page(module: str) -> bytes:
    """The documentation of a standard library module, as `python -m pydoc -w` writes it."""
    return pydoc.html.page(module, pydoc.html.document(importlib.import_module(module))).encode()


def _image(encoder: str, **options: Any) -> Callable[[random.Random], bytes]:
    def write(rng: random.Random) -> bytes:
        page, _ = scattered_page(rng, rng.choice((160, 240, 320)))
        file = io.BytesIO()
        page.save(file, encoder, **options)
        return file.getvalue()

    return write


def _sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(6, 14))).capitalize() + "."


def _prose(rng: random.Random) -> str:
    paragraphs = (" ".join(_sentence(rng) for _ in range(5)) for _ in range(12))
    return "\n\n".join(paragraphs) + "\n"


def _table(rng: random.Random) -> list[list[str]]:
    header = ["id", *rng.sample(WORDS, 3)]
    rows = [[str(row), rng.choice(WORDS), f"{rng.uniform(0, 99):.2f}", _date(rng)] for row in range(60)]
    return [header, *rows]


def _date(rng: random.Random) -> str:
    return f"{rng.randint(1990, 2030)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def _settings(rng: random.Random) -> dict[str, dict[str, str | int | float | bool]]:
    """Sections of named values, as in a program's configuration."""

    def value() -> str | int | float | bool:
        number = rng.uniform(0, 1000)
        return rng.choice((rng.choice(WORDS), int(number), round(number, 3), number < 500))

    return {
        section: {f"{rng.choice(WORDS)}_{word}": value() for word in rng.sample(WORDS, 6)}
        for section in rng.sample(WORDS, 8)
    }


def _json(rng: random.Random) -> bytes:
    return json.dumps({"version": 1, **_settings(rng)}, indent=rng.choice((2, 4))).encode()


def _ini(rng: random.Random) -> bytes:
    parser = configparser.ConfigParser()
    parser.read_dict(_settings(rng))
    file = io.StringIO()
    parser.write(file)
    return file.getvalue().encode()


def _toml(rng: random.Random) -> bytes:
    # With the arrays and lists of tables of real ones: flat sections alone could as well be an INI file.
    lines = [f"title = {json.dumps(_sentence(rng))}", f"released = {_date(rng)}", ""]
    for name, values in _settings(rng).items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        lines += [f"tags = {json.dumps(rng.sample(WORDS, 3))}", ""]
        for _ in range(2):
            lines += [f"[[{name}.entry]]", f'name = "{rng.choice(WORDS)}"', f"since = {_date(rng)}", ""]
    return "\n".join(lines).encode()


def _yaml(rng: random.Random) -> bytes:
    sections = (
        "\n".join([f"{name}:", *(f"  {key}: {json.dumps(value)}" for key, value in values.items())])
        for name, values in _settings(rng).items()
    )
    return ("---\n" + "\n".join(sections) + "\n").encode()


def _xml(rng: random.Random) -> bytes:
    root = ElementTree.Element("configuration")
    for name, values in _settings(rng).items():
        section = ElementTree.SubElement(root, "section", name=name)
        for key, value in values.items():
            ElementTree.SubElement(section, key).text = str(value)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _svg(rng: random.Random) -> bytes:
    root = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg", width="400", height="400")
    for _ in range(40):
        position = {key: str(rng.randint(0, 400)) for key in ("x", "y", "width", "height")}
        ElementTree.SubElement(root, "rect", position, fill=f"#{rng.randrange(1 << 24):06x}")
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _csv(rng: random.Random) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows(_table(rng))
    return file.getvalue().encode()


def _markdown(rng: random.Random) -> bytes:
    parts = [f"# The {rng.choice(WORDS)} {rng.choice(WORDS)}", _sentence(rng)]
    for _ in range(5):
        first, second = rng.sample(WORDS, 2)
        parts += [
            f"## {first.capitalize()} and {second}",
            f"{_sentence(rng)} See **{first}** and [{second}](https://example.org/{second}).",
            "\n".join(f"- `{rng.choice(WORDS)}`: {_sentence(rng)}" for _ in range(4)),
            f"```python\nimport {first}\n\n{first}.{second}({rng.randint(0, 99)})\n```",
        ]
    return ("\n\n".join(parts) + "\n").encode()


def _database(rng: random.Random, path: str) -> sqlite3.Connection:
    header, *rows = _table(rng)
    connection = sqlite3.connect(path)
    columns = ", ".join(f'"{name}" TEXT' for name in header)  # quoted: some words are SQL's own
    connection.execute(f"CREATE TABLE record ({columns})")
    connection.executemany("INSERT INTO record VALUES (?, ?, ?, ?)", rows)
    connection.commit()
    return connection


def _sql(rng: random.Random) -> bytes:
    connection = _database(rng, ":memory:")
    try:
        return "\n".join(connection.iterdump()).encode()
    finally:
        connection.close()


def _sqlite(rng: random.Random) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.db"
        _database(rng, str(path)).close()
        return path.read_bytes()


def _gzip(rng: random.Random) -> bytes:
    return gzip.compress(_prose(rng).encode(), mtime=0)


def _bzip(rng: random.Random) -> bytes:
    return bz2.compress(_prose(rng).encode())


def _xz(rng: random.Random) -> bytes:
    return lzma.compress(_prose(rng).encode())


def _zip(rng: random.Random) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in rng.sample(WORDS, 4):
            archive.writestr(zipfile.ZipInfo(f"{name}/{name}.txt"), _prose(rng), zipfile.ZIP_DEFLATED)
    return file.getvalue()


def _tar(rng: random.Random) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in rng.sample(WORDS, 4):
            content = _prose(rng).encode()
            member = tarfile.TarInfo(f"{name}/{name}.txt")
            member.size, member.mtime = len(content), rng.randrange(10**9)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _matrix(rng: random.Random) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(rng.randrange(1 << 32)).normal(size=(40, 30)).astype(np.float32)


def _npy(rng: random.Random) -> bytes:
    file = io.BytesIO()
    np.save(file, _matrix(rng))
    return file.getvalue()


def _npz(rng: random.Random) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, first=_matrix(rng), second=_matrix(rng))
    return file.getvalue()


def _pickle(rng: random.Random) -> bytes:
    return pickle.dumps({"settings": _settings(rng), "table": _table(rng)}, protocol=4)


def _plist(rng: random.Random) -> bytes:
    return plistlib.dumps(_settings(rng), fmt=plistlib.FMT_BINARY)


def _wav(rng: random.Random) -> bytes:
    seconds = np.arange(8000) / 8000
    tone = np.sin(2 * np.pi * rng.randint(100, 1000) * seconds) * 20000
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(tone.astype("<i2").tobytes())
    return file.getvalue()


EPOCH = time.gmtime(0)  # for formats that would hold the time of writing

WRITERS: tuple[tuple[str, int, Callable[[random.Random], bytes]], ...] = (
    ("png", 6, _image("PNG")),
    ("jpeg", 6, _image("JPEG")),
    ("gif", 5, _image("GIF")),
    ("bmp", 3, _image("BMP")),
    ("tiff", 3, _image("TIFF")),
    ("webp", 3, _image("WEBP")),
    ("ico", 2, _image("ICO")),
    ("pdf", 3, _image("PDF", creationDate=EPOCH, modDate=EPOCH)),
    ("json", 5, _json),
    ("ini", 3, _ini),
    ("toml", 3, _toml),
    ("yaml", 3, _yaml),
    ("xml", 4, _xml),
    ("svg", 3, _svg),
    ("csv", 4, _csv),
    ("markdown", 4, _markdown),
    ("sql", 3, _sql),
    ("sqlite", 3, _sqlite),
    ("gzip", 4, _gzip),
    ("bzip", 3, _bzip),
    ("xz", 3, _xz),
    ("zip", 3, _zip),
    ("tar", 3, _tar),
    ("npy", 3, _npy),
    ("npz", 3, _npz),
    ("pickle", 3, _pickle),
    ("applebplist", 3, _plist),
    ("wav", 3, _wav),
)
"""Content type, number of files, what writes one."""
