"""MkDocs' hooks: tables of columns come from the code; links out of `docs/`, where the site ends, are plain text."""

from __future__ import annotations

import posixpath
import re
from typing import Any

from precisionlab.report.columns import SCHEMAS

_COLUMNS = re.compile(r"<!-- columns of ([\w.]+) -->")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s:]+)\)")


def with_columns(markdown: str) -> str:
    """The page with the columns of each file that it asks for."""

    def table(match: re.Match[str]) -> str:
        schema = SCHEMAS[match[1]]
        return f"A row for {schema.rows}.\n\n{schema.markdown()}"

    return _COLUMNS.sub(table, markdown)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The page with its tables of columns, and with such links replaced by their text and, in brackets, the file."""
    folder = posixpath.dirname(page.file.src_uri)

    def plain(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2].partition("#")[0] or "."))
        if not target.startswith(".."):
            return match[0]
        return f"{match[1]} (`{target.removeprefix('../')}`)"

    return _LINK.sub(plain, with_columns(markdown))
