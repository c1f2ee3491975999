"""Every planted bug is caught by whom it must be, and nobody cries at the code as it is."""

import pytest
from planted import BUGS, CAUGHT, caught, planted

pytestmark = pytest.mark.integration  # a bug is a round or two, and there are dozens


def marked(bugs):
    return [
        pytest.param(bug, id=bug.name, marks=[pytest.mark.integration] * bug.long) for bug in bugs
    ]


DETECTORS = {bug.detect: bug for bug in BUGS}


@pytest.mark.parametrize("bug", marked(BUGS))
def test_a_planted_bug_is_caught(bug, tmp_path):
    print(f"{bug.name}: by the {bug.by}: {caught(bug, tmp_path)}")


@pytest.mark.parametrize("bug", marked(DETECTORS.values()))
def test_the_code_as_it_is_passes(bug, tmp_path):
    """After the bugs, so that one which outlived its patch is noticed here."""
    with planted(None):
        bug.detect(tmp_path)


def test_the_suite_is_whole():
    assert len(BUGS) >= 18
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    assert {bug.by for bug in BUGS} == set(CAUGHT)
