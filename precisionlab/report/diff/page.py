"""The comparison as a page, in the style of the report."""

from __future__ import annotations

from precisionlab.report.diff.compare import RunDiff
from precisionlab.report.diff.figures import BETTER, WORSE

LAYERS_SHOWN = 200


def render_diff(diff: RunDiff) -> str:
    """The page, from `diff.html.j2`."""
    from precisionlab.report.html import load_template

    page = load_template().environment.get_template("diff.html.j2")
    text = page.render(diff=diff, layers=diff.layers[:LAYERS_SHOWN], signs={WORSE: "▼", BETTER: "▲", "mixed": "◆"})
    # A path on a POSIX system may hold bytes that are not UTF-8, as lone surrogates that no file can take.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
