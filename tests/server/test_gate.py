"""The gate of a domain update: each condition fails alone, with its figure."""

import pytest

from perennial.core.config import Update
from perennial.server.gate import accuracy, gate, learnt

LIMITS = Update(max_loss=3.0, max_client_loss=10.0, min_accuracy=0.5, min_gain=5.0)


def report(rows, names=("a", "b", "c"), **changes):
    """A report of as many domains as `rows` has; its matrix's last row is what counts."""
    done = len(rows)
    base = {
        "finished": True,
        "learnt": done,
        "domains": [{"name": n, "labels": ["x"], "finished": True} for n in names[:done]],
        "accuracy_matrix": [row + [None] * (done - len(row)) for row in rows],
        "ahead": [None] * done,
        "failed_attempts": [],
        "over_clients": None,
        "privacy": None,
    }
    return {**base, **changes}


def clients(**domains):
    told = [{"node": int(n[1:]), "domains": d} for n, d in domains.items()]
    return {"clients": told}


BEFORE = report([[0.9], [0.88, 0.8]])
GOOD = [[0.9], [0.88, 0.8], [0.86, 0.79, 0.7]]


def failed(now, before=BEFORE, limits=LIMITS):
    return {check.what: check.words for check in gate(now, before, limits) if not check.holds}


def test_what_keeps_all_passes():
    assert failed(report(GOOD)) == {}
    assert accuracy(report(GOOD)) == {"a": 0.86, "b": 0.79, "c": 0.7}
    assert learnt(report(GOOD)) == ["a", "b", "c"]


def test_the_first_release_has_nothing_to_lose():
    assert failed(report([[0.9]]), before=None) == {}
    assert list(failed(report([[0.4]]), before=None)) == ["new domain a"]


def test_an_old_domain_may_lose_as_much_as_is_allowed_and_no_more():
    assert failed(report([*GOOD[:2], [0.85, 0.8, 0.7]])) == {}
    found = failed(report([*GOOD[:2], [0.84, 0.8, 0.7]]))
    assert list(found) == ["old domain a"]
    assert "88.0 % to 84.0 %" in found["old domain a"]
    assert list(failed(report([*GOOD[:2], [None, 0.8, 0.7]]))) == ["old domain a"]


def test_the_new_domain_must_be_known_and_better_than_before():
    assert list(failed(report([*GOOD[:2], [0.88, 0.8, 0.49]]))) == ["new domain c"]
    assert list(failed(report([*GOOD[:2], [0.88, 0.8, None]]))) == ["new domain c"]
    ahead = [None, None, 0.66]
    assert list(failed(report(GOOD, ahead=ahead))) == ["gain on c"]
    assert failed(report(GOOD, ahead=[None, None, 0.65])) == {}


def test_the_worst_client_counts_where_clients_tell():
    before = report(BEFORE["accuracy_matrix"], over_clients=clients(n1=[0.9, 0.9], n2=[0.8, None]))
    told = clients(n1=[0.85, 0.85, 0.1], n2=[0.6, None, 0.9], n3=[0.0, 0.0, 0.0])
    found = failed(report(GOOD, over_clients=told), before)
    assert list(found) == ["worst client"]
    assert found["worst client"].startswith("node 2 lost 20.0 points")
    assert failed(report(GOOD, over_clients=clients(n2=[0.75, None, 0.9])), before) == {}


@pytest.mark.parametrize("reason", ["given up: too few", "given up"])
def test_a_run_that_is_not_whole_is_held(reason):
    assert list(failed(report(GOOD, finished=False))) == ["finished"]
    lost = [{"domain": 2, "round": 1, "attempt": 0, "reason": reason}]
    assert failed(report(GOOD, failed_attempts=lost)) == {
        "finished": "1 rounds were given up; none may be"
    }
    tried = [{"domain": 2, "round": 1, "attempt": 0, "reason": "too few replies"}]
    earlier = [{"domain": 1, "round": 1, "attempt": 0, "reason": reason}]
    assert failed(report(GOOD, failed_attempts=tried + earlier)) == {}
    assert list(failed(report(GOOD, failed_attempts=earlier), before=None)) == ["finished"]


def unit(**changes):
    base = {"unit": "example", "epsilon": 7.9, "target": 8.0, "exceeded": False, "clients": []}
    return {**base, **changes}


def test_privacy_must_be_within_its_promise_and_known():
    def block(**changes):
        return {"units": [unit(**changes)], "noise": None}

    assert failed(report(GOOD, privacy=block())) == {}
    assert list(failed(report(GOOD, privacy=block(epsilon=8.1)))) == ["privacy per record"]
    assert list(failed(report(GOOD, privacy=block(epsilon=None)))) == ["privacy per record"]
    bare = {"units": [unit()], "noise": {"bare": 2, "weak": 0, "short": 0, "missing": 0}}
    assert "privacy" in failed(report(GOOD, privacy=bare))
