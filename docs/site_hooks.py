"""MkDocs' hook: a link out of `docs/` works in the repository, and is plain text on the site, which ends there."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s:]+)\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The page with such links replaced by their text and, in brackets, the file."""
    folder = posixpath.dirname(page.file.src_uri)

    def plain(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2].partition("#")[0] or "."))
        if not target.startswith(".."):
            return match[0]
        return f"{match[1]} (`{target.removeprefix('../')}`)"

    return _LINK.sub(plain, markdown)
