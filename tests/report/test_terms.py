"""Words of the report say what they mean, and `auto` which ranges it took."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from test_report import Page, report

from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.report.html import head_of, render, term
from precisionlab.report.terms import TERMS
from precisionlab.search.outcome import PrecisionResult


def test_every_term_is_in_the_list_of_words() -> None:
    page = Page(render(*report()))
    words = page.text.rpartition(" Words ")[2]
    assert all(f"{word} {meaning}" in words for word, meaning in TERMS.items())


def test_a_term_has_its_meaning_as_a_tooltip_and_other_words_stand_as_they_are() -> None:
    assert term("Introduced, dB") == f'<abbr title="{TERMS["Introduced"]}">Introduced, dB</abbr>'
    assert term("<b>") == "&lt;b&gt;"
    assert head_of("layers.csv", "cause").startswith('<abbr title="What breaks in it')


@pytest.mark.parametrize(
    ("method", "taken", "words"),
    [
        ("entropy", ["entropy", "entropy"], "entropy over 4 samples"),
        ("auto", ["mse", "mse"], "auto over 4 samples: took mse"),
        ("auto", ["max", "mse", "mse"], "auto over 4 samples: took mse for 2 tensors, max for 1 tensor"),
    ],
)
def test_auto_names_the_methods_that_it_took(method: str, taken: list[str], words: str) -> None:
    table = CalibrationTable({str(n): Range(1.0, name, 1.0, 4) for n, name in enumerate(taken)}, 4)
    found = SimpleNamespace(table=table, low=SimpleNamespace(plan=SimpleNamespace(calibration=method)))
    assert PrecisionResult.ranges_text.fget(found) == words  # type: ignore[attr-defined]
