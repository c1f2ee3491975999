"""How large the values of a summary are: agreed in half octaves, by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.core.errors import RunError
from perennial.core.wire import (
    PEAKS,
    in_units,
    peak_name,
    peak_of,
    peaks_of,
    summary_name,
    summary_parts,
)


@given(st.floats(2.0**-39, 2.0**39))
def test_no_value_is_above_its_unit_and_none_is_far_below(largest):
    place = peak_of(largest)
    size, (unit,) = summary_parts(summary_name(12, [place]))
    assert size == 12
    assert largest <= unit <= largest * 2.0**0.51


@given(st.floats(0.0, allow_infinity=False, allow_nan=False))
def test_every_value_has_a_place(largest):
    place = peak_of(largest)
    assert (place is None) == (largest == 0.0)
    assert place is None or 0 <= place < PEAKS


def test_a_summary_without_a_peak_has_no_unit():
    assert summary_parts(summary_name(7)) == (7, ())
    assert summary_parts(peak_name(7)) == (7, ())


def test_each_part_has_its_own_unit():
    vector = np.array([3.0, -100.0, 0.0, 0.0, 1e-6], np.float32)
    lengths = (2, 2, 1)
    places = peaks_of(vector, lengths)
    size, units = summary_parts(summary_name(5, places))
    assert size == 5
    assert units[1] == 0.0
    factors = [1.0 / unit if unit else 0.0 for unit in units]
    scaled = in_units(vector, lengths, factors)
    assert np.abs(scaled).max() <= 1.0
    assert np.abs(scaled[[1, 4]]).min() > 0.7
    assert in_units(scaled, lengths, units) == pytest.approx(vector, rel=1e-6)


@pytest.mark.parametrize("name", ["", "summary-", "summary-x", "summary-1-2-3", "summary-1-9999"])
def test_other_names_are_refused(name):
    with pytest.raises(RunError, match="must be asked for a summary"):
        summary_parts(name)
