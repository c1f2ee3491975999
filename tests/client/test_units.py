"""What is sealed at a domain's end keeps to the units that were agreed before, or stays at home."""

import numpy as np
import pytest

from perennial.client.answers import Question, _in_units
from perennial.client.parties import Sealing
from perennial.core.errors import RunError
from perennial.core.sums import Pact, Party
from perennial.core.values import Ticket
from perennial.privacy import masks

SUMS = masks.build(clip=0.5, bits=16)


def question(folder, lengths, units):
    pact = Pact("r", 0, 3, 0, "summary-5", "0" * 32, 5, 0.5, "")
    sealing = Sealing(pact, b"", Party(1, folder))
    return Question(Ticket("r", 0, 3, 0, "summary-5"), "", sealing, lengths, units)


VALUES = np.array([1.0, -2.0, 300.0, 0.0, 0.0], np.float32)


def test_each_part_fills_the_range(tmp_path):
    scaled = _in_units(VALUES, question(tmp_path, (2, 2, 1), (2.0, 300.0, 0.0)), SUMS)
    assert scaled.tolist() == [0.25, -0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("units", [(1.9, 300.0, 0.0), (2.0, 200.0, 0.0), (0.0, 300.0, 1.0)])
def test_a_client_whose_values_nobody_heard_of_sends_nothing(tmp_path, units):
    with pytest.raises(RunError, match="must keep to the unit"):
        _in_units(VALUES, question(tmp_path, (2, 2, 1), units), SUMS)


def test_as_many_units_as_parts(tmp_path):
    with pytest.raises(RunError, match="3 parts must have as many units; got 2"):
        _in_units(VALUES, question(tmp_path, (2, 2, 1), (1.0, 2.0)), SUMS)


def test_without_units_values_are_as_they_are(tmp_path):
    assert _in_units(VALUES, question(tmp_path, (5,), ()), SUMS) is VALUES
