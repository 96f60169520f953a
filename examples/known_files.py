"""Files whose type is known for certain: found on this machine, or written here.

A found file has its type from where it stands or from its first bytes, a written one from the library that
wrote it; never from a model. The same machine gives the same files. Only Python, NumPy and Pillow have to be
there; scripts and fonts of the system are taken where they are.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ImageFont

from examples.rendering import font_files
from examples.written_files import bytecode, html_page, written_files

STDLIB = Path(sysconfig.get_path("stdlib"))

_MODULES = """
argparse ast base64 bdb bisect calendar cmd codecs configparser copy csv datetime difflib dis doctest enum
fractions ftplib gettext heapq
"""
MODULES = tuple(_MODULES.split())
"""Standard library modules taken as source files; the first five also compiled, and as HTML documentation."""


@dataclass(frozen=True)
class KnownFile:
    type: str
    """The content type's name in magika's configuration."""
    content: bytes


def known_files() -> list[KnownFile]:
    """About 160 files, the found ones first."""
    return [KnownFile(kind, content) for kind, content in (*_found(), *_derived(), *written_files())]


def _found() -> Iterator[tuple[str, bytes]]:
    yield from _read("python", (STDLIB / f"{name}.py" for name in MODULES), limit=20)
    yield from _read("c", _headers(), limit=12)
    yield from _read("elf", _native_code(), limit=8, magic=b"\x7fELF")
    yield from _read("ttf", font_files(), limit=4)
    font = ImageFont.load_default(10)
    if isinstance(font, ImageFont.FreeTypeFont):
        yield "ttf", font.font_bytes
    activation = STDLIB / "venv" / "scripts"
    yield from _read("powershell", [activation / "common" / "Activate.ps1"], limit=1)
    yield from _read("shell", [activation / "common" / "activate"], limit=1)
    programs = sorted(Path("/usr/bin").glob("*"))
    yield from _read("shell", programs, limit=6, magic=b"#!/bin/sh")
    yield from _read("perl", programs, limit=6, magic=b"#!/usr/bin/perl")


def _read(kind: str, paths: Iterable[Path], limit: int, magic: bytes = b"") -> Iterator[tuple[str, bytes]]:
    """The first `limit` files that are there, start with `magic`, and are long enough to tell anything."""
    taken = 0
    for path in paths:
        if taken == limit:
            return
        if path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
            continue
        with path.open("rb") as file:
            if file.read(len(magic)) != magic:
                continue
            content = magic + file.read()
        if len(content) >= 512:
            taken += 1
            yield kind, content


def _headers() -> Iterator[Path]:
    # Debian keeps Python's own headers in a package of their own; NumPy's are always there.
    yield from sorted(Path(sysconfig.get_path("include")).glob("*.h"))
    yield from sorted(Path(np.get_include(), "numpy").glob("*.h"))


def _native_code() -> Iterator[Path]:
    yield Path(sys.executable).resolve()
    yield from sorted((STDLIB / "lib-dynload").glob("*.so"))
    yield from sorted(Path(np.__file__).parent.rglob("*.so"))


def _derived() -> Iterator[tuple[str, bytes]]:
    for name in MODULES[:5]:
        yield "pythonbytecode", bytecode(STDLIB / f"{name}.py")
        yield "html", html_page(name)
