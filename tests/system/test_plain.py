"""Values of a journal are of the kinds that their fields have, or are measured again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from models import DIGITS

from precisionlab.calibration.coarse import COARSE, CoarseHistogram
from precisionlab.cli import cli
from precisionlab.compare.errors import ErrorSums
from precisionlab.evaluate.journal import digest_of
from precisionlab.evaluate.prepare import _powers
from precisionlab.system.plain import Amount, Count, of_kind, of_plain


@dataclass(frozen=True)
class Inner:
    share: float
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    number: int
    count: Count
    size: Amount
    flag: bool
    text: str | None
    inner: Mapping[str, Inner]


PLAIN = {"number": -1, "count": 2, "size": 0.5, "flag": True, "text": None, "inner": {"a": [1, ["b"]]}}
MADE = Outer(-1, 2, 0.5, True, None, {"a": Inner(1, ("b",))})


def test_plain_values_are_read_by_name_or_in_order() -> None:
    assert of_plain(Outer, PLAIN) == MADE
    assert of_plain(Outer, list(PLAIN.values())) == MADE
    assert math.isnan(of_plain(Outer, {**PLAIN, "size": math.nan}).size)
    assert of_plain(Outer, {**PLAIN, "text": "−∞"}).text == "−∞"


@pytest.mark.parametrize(
    ("field", "odd"),
    [
        *(("number", odd) for odd in (1.0, True, "1", None, 1 << 63, [])),
        *(("count", odd) for odd in (-1, 1.0, False)),
        *(("size", odd) for odd in (-0.5, "0.5", None, True, 10**400)),
        *(("flag", odd) for odd in (1, "true", None)),
        *(("text", odd) for odd in (1, [], "\ud800")),
        *(("inner", odd) for odd in ([], {"a": 1}, {"a": []}, {"a": [1, "b"]}, {"a": [1, [2]]}, {"\ud800": [1, []]})),
    ],
)
def test_a_value_of_another_kind_is_refused(field: str, odd: Any) -> None:
    with pytest.raises(ValueError, match=r"not |below|neither|surrogates"):
        of_plain(Outer, {**PLAIN, field: odd})


@pytest.mark.parametrize("odd", [None, 1, "abcdef", [], [1], {}, {**PLAIN, "more": 1}])
def test_values_of_other_fields_are_refused(odd: Any) -> None:
    with pytest.raises(ValueError, match="not the values of Outer"):
        of_plain(Outer, odd)


def test_sums_that_no_tensor_has_are_refused() -> None:
    plain = ErrorSums(3, 1.0, math.nan).to_dict()
    assert of_plain(ErrorSums, plain).elements == 3
    for odd in ({"ref2": -1.0}, {"elements": -3}, {"nan": None}):
        with pytest.raises(ValueError, match=r"not a|below 0"):
            of_plain(ErrorSums, {**plain, **odd})


def test_a_histogram_of_other_bins_is_refused() -> None:
    plain = CoarseHistogram(3, (1,) * COARSE, 0, 0, 0, 7.5).to_dict()
    assert CoarseHistogram.from_dict(plain).count == COARSE
    for odd in ({"bins": []}, {"bins": [-1] * COARSE}, {"exponent": 10**9}, {"amax": math.inf}, {"amax": math.nan}):
        with pytest.raises(ValueError, match="not a"):
            CoarseHistogram.from_dict({**plain, **odd})


def test_scales_of_other_outputs_are_measured_again() -> None:
    assert _powers({"y": [1.0, math.nan]}, {"y": 1}) is not None
    for odd in (None, [], {"z": [1.0]}, {"y": ["1"]}, {"y": 1.0}):
        assert _powers(odd, {"y": 1}) is None


def test_a_kind_that_no_plain_value_has_is_an_error_of_ours() -> None:
    with pytest.raises(TypeError, match="no kind of plain value"):
        of_kind(complex, 1)


# A whole run


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("swept")
    assert sweep(out)[0] in (0, 1)
    return out


def sweep(out: Path) -> tuple[int, str]:
    options = ["--data", str(DIGITS), "--samples", "2", "--threads", "1", "--max-evaluations", "1", "--out", str(out)]
    found = CliRunner().invoke(cli, ["sweep", str(DIGITS / "digits.onnx"), *options], catch_exceptions=False)
    return found.exit_code, found.stderr


def under(key: str, odd: Any) -> Callable[[Any], Any]:
    """Makes what stands under a key another thing, wherever that is."""

    def edit(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: odd if name == key else edit(inner) for name, inner in value.items()}
        return list(map(edit, value)) if isinstance(value, list) else value

    return edit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "anew"),
    [
        (under("none", 1), 0),
        (under("samples", 3), 5),
        (under("samples", "4"), 5),
        (under("inherited", {}), 3),
        (under("outputs", {}), 3),
        (under("each", {"logits": []}), 3),
        (under("metric", "0.9"), 3),
        (under("seconds", None), 3),
        (under("bins", []), 1),
        (under("methods", {}), 1),
        (lambda _: [], 6),
    ],
)
def test_an_entry_that_fits_its_digest_and_nothing_else_is_measured_again(
    swept: Path, tmp_path: Path, edit: Callable[[Any], Any], anew: int
) -> None:
    head, *lines = (swept / "journal.jsonl").read_text().splitlines()
    context = json.loads(head)["context"]
    forged = [head]
    for line in lines:
        entry = json.loads(line)
        value = edit(entry["value"])
        digest = digest_of([context, entry["key"], value])[:16]
        forged.append(json.dumps({"key": entry["key"], "value": value, "sha256": digest}))
    (tmp_path / "journal.jsonl").write_text("\n".join(forged) + "\n")
    code, said = sweep(tmp_path)
    assert code in (0, 1)
    assert "line not as" not in said, "the digest is right"
    assert said.count("not as precisionlab writes it; done anew") >= anew
    assert ("done anew" in said) == (anew > 0)
    for name in ("plan.fp16.json", "plan.int8.json", "histograms.json"):
        assert (tmp_path / name).read_bytes() == (swept / name).read_bytes()
