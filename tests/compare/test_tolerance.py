"""How far a comparison is from what is asked, in the unit that the errors of single layers have too."""

from __future__ import annotations

import math

import numpy as np
import pytest

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.errors import Agreement, error_sums
from precisionlab.compare.metrics import METRICS
from precisionlab.compare.output import OutputErrors
from precisionlab.compare.tolerance import excess, parse_tolerance


def comparison_of(share: float, broken: tuple[str, ...] = ()) -> Comparison:
    """One output whose Σerr² / Σref² is the share."""
    reference = np.ones(64, np.float32)
    errors = error_sums(reference, (reference * (1 + math.sqrt(share))).astype(np.float32))
    return Comparison(1, {}, {}, {"y": OutputErrors(errors, Agreement())}, broken=broken)


@pytest.mark.parametrize(
    ("bounds", "share", "times"),
    [
        ("sqnr>=20", 0.04, 4.0),
        ("sqnr>=20", 0.005, 0.5),
        ("rel_l2<=0.1", 0.04, 4.0),
        ("sqnr[y]>=20, rel_l2<=0.2", 0.04, 4.0),
        ("sqnr>=20, cosine>=0.5", 0.04, 4.0),
    ],
)
def test_a_bound_says_how_many_times_the_squared_error_that_it_allows_there_is(
    bounds: str, share: float, times: float
) -> None:
    assert excess(comparison_of(share), parse_tolerance([bounds])) == pytest.approx(times, rel=1e-4)


@pytest.mark.parametrize("bounds", ["cosine>=0.999999", "max_error<=1e-9", "sqnr>=10, max_error<=1e-9"])
def test_where_no_bound_on_a_squared_error_fails_nothing_is_said(bounds: str) -> None:
    assert math.isnan(excess(comparison_of(0.04), parse_tolerance([bounds])))


def test_a_broken_tensor_is_no_matter_of_how_large_an_error_is() -> None:
    asked = parse_tolerance(["sqnr>=20"])
    assert math.isnan(excess(comparison_of(0.04, broken=("t",)), asked))
    assert excess(comparison_of(0.04), asked) > 1


def test_an_error_beyond_numbers_is_infinitely_too_much_and_none_is_none() -> None:
    sqnr = METRICS["sqnr"].squared
    assert sqnr is not None
    assert sqnr(-math.inf) == sqnr(-4000.0) == math.inf
    assert sqnr(math.inf) == 0.0
    assert math.isnan(sqnr(math.nan))
