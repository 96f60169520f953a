"""Opens a page in the browser, or says where it lies."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

_DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def open_page(path: Path, tell: Callable[[str], None] = _tell) -> None:
    """Open a page in the browser; where there is none, or no display for it, say where the page lies.

    By default on standard error, so that what a command prints for machines stays as it is.
    """
    import webbrowser  # with all that it imports, only for who opens a page

    address = path.resolve().as_uri()
    # Without a display webbrowser would start a browser inside the terminal, and wait for it.
    has_display = sys.platform in ("win32", "darwin") or any(os.environ.get(name) for name in _DISPLAYS)
    if not has_display or not webbrowser.open(address):
        tell(f"no browser could be opened here; open this yourself: {address}")
