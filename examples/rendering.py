"""Lines and pages of text as images, all from seeded random numbers.

Fonts are the DejaVu family that comes inside matplotlib's package, so that the images are the same on every
machine: what a system has installed does not matter.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from examples.packages import MATPLOTLIB

Font = ImageFont.FreeTypeFont
Color = tuple[int, int, int]

FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
)

_VOCABULARY = """
about across always answer autumn balance before between bright bridge careful carbon center change city
clear cloud coast common copper country current daily degree design dinner early engine evening factory
family field figure forest garden general gentle green ground harbor height history house hundred island
journey kitchen large letter light little machine market matter measure memory metal middle minute morning
mountain music nature never north number object ocean office orange other paper pattern people picture
plain planet point power pressure product public quarter quiet radio railway record result river school
science season second shadow silver simple single small south spring square station stone street summer
surface system table thousand through tower travel under valley value village visit water weather winter
without wonder yellow
"""
WORDS = tuple(_VOCABULARY.split())


@cache
def font_files() -> tuple[Path, ...]:
    """The TrueType files of FACES."""
    return tuple(MATPLOTLIB.file(f"matplotlib/mpl-data/fonts/ttf/{face}.ttf") for face in FACES)


def bgr_planes(image: Image.Image) -> NDArray[np.float32]:
    """float32[3, H, W] of 0…255 in the order blue, green, red that models trained with OpenCV expect."""
    rgb = np.asarray(image.convert("RGB"), dtype=np.float32)
    return np.ascontiguousarray(rgb[:, :, ::-1].transpose(2, 0, 1))


def text_line(rng: random.Random, aspect: float) -> tuple[Image.Image, str]:
    """A single line cut out close to its text, no wider than `aspect` times its height; and the text."""
    font = _font(rng, rng.randint(24, 40))
    margin = rng.randint(3, 7)
    text = _piece(rng)
    image_size = _line_size(text, font, margin)
    for _ in range(4):
        longer = f"{text} {_piece(rng)}"
        longer_size = _line_size(longer, font, margin)
        if longer_size[0] > aspect * longer_size[1]:
            break
        text, image_size = longer, longer_size
    ink, paper = _colors(rng)
    image = Image.new("RGB", image_size, paper)
    left, top, _, _ = _extent(text, font)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, fill=ink, font=font)
    return image, text


def scattered_page(rng: random.Random, size: int) -> tuple[Image.Image, list[list[int]]]:
    """A square page with rows of one or two pieces of text; and the box [x0, y0, x1, y1] of each piece."""
    ink, paper = _colors(rng)
    page = Image.new("RGB", (size, size), paper)
    draw = ImageDraw.Draw(page)
    boxes: list[list[int]] = []
    border = 20
    y = border + rng.randint(0, 20)
    while y < size - 60:
        points = rng.randint(16, 34)
        font = _font(rng, points)
        x = border + rng.randint(0, 80)
        for _ in range(rng.randint(1, 2)):
            text = " ".join(_piece(rng) for _ in range(rng.randint(1, 3)))
            left, top, right, bottom = _extent(text, font)
            if x + right - left > size - border:
                break
            draw.text((x - left, y - top), text, fill=ink, font=font)
            boxes.append([x, y, x + right - left, y + bottom - top])
            x += right - left + 3 * points  # far enough that the pieces are not one line
        y += 2 * points + rng.randint(0, 30)
    return page, boxes


def full_page(rng: random.Random) -> Image.Image:
    """An upright page of 480 x 640 with a heading and paragraphs, a fifth to wholly filled."""
    ink, paper = _colors(rng)
    page = Image.new("RGB", (480, 640), paper)
    draw = ImageDraw.Draw(page)
    points = rng.randint(8, 26)
    body = _font(rng, points)
    border = rng.randint(20, 50)
    end = rng.uniform(1 / 5, 1) * (page.height - border) - points
    heading = f"{_piece(rng)} {_piece(rng)}"
    draw.text((border, border), heading, fill=ink, font=_font(rng, 3 * points // 2))
    y = border + 5 * points // 2
    while y < end:
        indented = rng.random() < 0.2  # the first line of a paragraph
        _fill_line(rng, draw, (border + points * indented, y), page.width - border, body, ink)
        y += round(1.4 * points)
        if rng.random() < 0.15:
            y += points
    return page


def _fill_line(
    rng: random.Random, draw: ImageDraw.ImageDraw, start: tuple[int, int], end: int, font: Font, ink: Color
) -> None:
    text = _piece(rng)
    while True:
        longer = f"{text} {_piece(rng)}"
        if start[0] + _extent(longer, font)[2] > end:
            break
        text = longer
    draw.text(start, text, fill=ink, font=font)


def _piece(rng: random.Random) -> str:
    """A word in one of the usual cases, or a number, a price, a date, a code."""
    word = rng.choice(WORDS)
    kind = rng.random()
    if kind < 0.45:
        return word
    if kind < 0.65:
        return word.capitalize()
    if kind < 0.75:
        return word.upper()
    if kind < 0.85:
        return str(rng.randint(0, 99999))
    if kind < 0.90:
        return f"${rng.randint(1, 999)}.{rng.randint(0, 99):02d}"
    if kind < 0.95:
        return f"{rng.randint(1990, 2030)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    return f"{word[:2].upper()}-{rng.randint(100, 999)}"


def _colors(rng: random.Random) -> tuple[Color, Color]:
    """Ink and paper: dark on light, and once in six the other way round."""
    dark = (rng.randint(0, 70), rng.randint(0, 70), rng.randint(0, 70))
    light = (rng.randint(215, 255), rng.randint(215, 255), rng.randint(215, 255))
    return (light, dark) if rng.random() < 1 / 6 else (dark, light)


def _font(rng: random.Random, points: int) -> Font:
    return _load(rng.choice(font_files()), points)


@cache
def _load(path: Path, points: int) -> Font:
    # The basic layout is in every build of Pillow, the finer one is not.
    return ImageFont.truetype(path, points, layout_engine=ImageFont.Layout.BASIC)


def _extent(text: str, font: Font) -> tuple[int, int, int, int]:
    """Whole pixels around the ink of `text` drawn at the origin: left, top, right, bottom."""
    left, top, right, bottom = font.getbbox(text)
    return int(np.floor(left)), int(np.floor(top)), int(np.ceil(right)), int(np.ceil(bottom))


def _line_size(text: str, font: Font, margin: int) -> tuple[int, int]:
    left, top, right, bottom = _extent(text, font)
    return right - left + 2 * margin, bottom - top + 2 * margin
