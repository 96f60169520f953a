"""The documentation is true of the code: files, links, commands and examples that it names are there, and run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = re.compile(r"`((?:precisionlab|tests|examples|benchmarks|docs)/[\w./-]*)`")


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md"])
def test_the_files_that_a_page_names_are_there(page: str) -> None:
    named = FILES.findall((ROOT / page).read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
