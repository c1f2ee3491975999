"""Flower's programs as this package starts them."""

import stat

import pytest

from perennial.core import flower
from perennial.core.errors import RunError


def test_a_service_that_listens_everywhere_is_reached_on_loopback():
    assert flower.dial("0.0.0.0:9092") == "127.0.0.1:9092"
    assert flower.dial("[::]:9092") == "127.0.0.1:9092"
    assert flower.dial("10.0.0.1:9092") == "10.0.0.1:9092"


def test_programs_are_those_of_this_environment():
    assert flower.program("flower-superlink").endswith("flower-superlink")
    with pytest.raises(RunError, match="must be installed"):
        flower.program("flower-nothing")


def test_a_secret_is_made_once_and_for_its_owner(tmp_path):
    path = flower.secret(tmp_path)
    text = path.read_text()
    assert len(text) >= 64
    assert flower.secret(tmp_path).read_text() == text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
