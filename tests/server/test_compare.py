from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest

from perennial.core.errors import DataError
from perennial.server.compare import compare
from perennial.server.compare_charts import LIGHT
from perennial.server.compare_page import render, verdict
from perennial.server.report import summarise

EVIL = "<script>alert('x')</script> & \"co\""


def make_log(rows, names=("a", "b", "c"), labels=None, run="r", total=None, **tables):
    """A run that scored `rows`, one for each domain that it learnt, of one round each."""
    labels = labels or {}
    listed = [{"name": n, "labels": labels.get(n, [f"{n} 1"])} for n in names]
    config = {"run": {"name": run, "seed": 1}, "round": {"rounds": 1}, **tables}
    log = [{"event": "run_started", "run": run, "config": config, "domains": listed}]
    for d, row in enumerate(rows):
        place = {"domain": d, "round": 0, "attempt": 0}
        log += [
            {"event": "round_finished", **place, "bytes_up": 10, "bytes_down": 20, "seconds": 2.0},
            {"event": "evaluated", "domain": d, "round": 1, "where": "server",
             "accuracy": dict(zip(names, row, strict=False)),
             "totals": dict.fromkeys(names[: d + 1], 10)},
            {"event": "domain_finished", "domain": d, "name": names[d], "seconds": 2.0},
        ]  # fmt: skip
    log.append({"event": "run_finished", "adapter_hash": "x", "seconds": 6.0})
    return [{**event, "time": 100.0 + i} for i, event in enumerate(log)]


KEEPS = [[0.8], [0.8, 0.7], [0.8, 0.7, 0.6]]
FALLS = [[0.9], [0.5, 0.9], [0.1, 0.3, 0.8]]


def report(*args, **kwargs):
    return summarise(make_log(*args, **kwargs))


def text_of(page):
    main = page[page.index("<main>") : page.index("</main>") + len("</main>")]
    return " ".join(ET.fromstring(main).itertext())


def test_two_runs_by_hand():
    found = compare([("keeps", report(KEEPS)), ("falls", report(FALLS))])
    json.dumps(found, allow_nan=False)
    one, two = found["runs"]
    assert found["domains"] == ["a", "b", "c"]
    assert one["average_accuracy"] == pytest.approx([0.8, 0.75, 0.7])
    assert two["average_accuracy"] == pytest.approx([0.9, 0.7, 0.4])
    assert (one["final_accuracy"], two["final_accuracy"]) == pytest.approx((0.7, 0.4))
    assert two["final_forgetting"] == pytest.approx((0.8 + 0.6) / 2)
    assert two["domain_accuracy"] == pytest.approx([0.1, 0.3, 0.8])
    assert two["domain_best"] == pytest.approx([0.9, 0.9, 0.8])
    assert (two["bytes_up"], two["bytes_down"], two["seconds"]) == (30, 60, 6.0)
    assert found["notes"] == []
    assert verdict(found) == "After 3 domains keeps answers 70.0\xa0%, falls 40.0\xa0%."


def test_whole_runs_have_the_figures_of_their_own_reports():
    single = report(FALLS)
    run = compare([("x", single), ("y", report(KEEPS))])["runs"][0]
    for key in ("average_accuracy", "forgetting", "final_accuracy", "backward_transfer",
                "learning_accuracy", "weighted_accuracy", "forward_transfer"):  # fmt: skip
        assert run[key] == single[key]


def test_runs_of_different_domains_are_compared_on_what_they_share():
    other = report(FALLS, names=("a", "x", "c"))
    found = compare([("one", report(KEEPS)), ("two", other)])
    assert found["domains"] == ["a", "c"]
    one, two = found["runs"]
    assert one["average_accuracy"] == pytest.approx([0.8, 0.7])
    assert two["average_accuracy"] == pytest.approx([0.9, 0.45])
    assert two["final_forgetting"] == pytest.approx(0.8)
    assert two["weighted_accuracy"] is None
    assert len(found["notes"]) == 2
    assert all("1 domain that not all runs have learnt" in line for line in found["notes"])
    assert "left out here" in text_of(render(found))


def test_another_order_is_said_and_put_right():
    moved = report([[0.5], [0.4, 0.6], [0.2, 0.3, 0.9]], names=("c", "a", "b"))
    found = compare([("one", report(KEEPS)), ("two", moved)])
    assert found["runs"][1]["domain_accuracy"] == pytest.approx([0.3, 0.9, 0.2])
    assert found["runs"][1]["domain_best"] == pytest.approx([0.6, 0.9, 0.5])
    assert found["runs"][1]["average_accuracy"] == pytest.approx([0.5, 0.5, 1.4 / 3])
    (line,) = found["notes"]
    assert "another order than one" in line


def test_a_run_that_is_not_finished_counts_as_far_as_it_came():
    found = compare([("one", report(KEEPS)), ("two", report(FALLS[:2]))])
    assert found["domains"] == ["a", "b"]
    assert found["runs"][0]["average_accuracy"] == pytest.approx([0.8, 0.75])
    assert any("two has learnt 2 of its 3 domains so far" in line for line in found["notes"])


def test_domains_of_one_name_with_other_labels_are_not_the_same():
    other = report(KEEPS, labels={"a": ["else"]})
    assert compare([("one", report(KEEPS)), ("two", other)])["domains"] == ["b", "c"]


def test_nothing_to_compare_is_refused():
    with pytest.raises(DataError, match="at least two runs; got 1"):
        compare([("one", report(KEEPS))])
    with pytest.raises(DataError, match=r"one: a, b, c; two: x, y, z\. Compare runs on the same"):
        compare([("one", report(KEEPS)), ("two", report(KEEPS, names=("x", "y", "z")))])
    with pytest.raises(DataError, match="two: none"):
        compare([("one", report(KEEPS)), ("two", report([]))])


def test_settings_that_differ_are_named():
    one = report(KEEPS, run="x", continual={"name": "ewc", "strength": 2.0}, train={"lr": 0.1})
    two = report(KEEPS, run="y", continual={"name": "none"}, train={"lr": 0.1})
    found = compare([("one", one), ("two", two)])
    assert found["differences"] == {
        "continual.name": ["ewc", "none"], "continual.strength": [2.0, None],
    }  # fmt: skip
    assert found["runs"][0]["methods"] == ["ewc"]
    assert "continual.strength" in text_of(render(found))


def test_settings_of_a_chain_are_told_method_by_method():
    replay = {"name": "replay", "per_label": 5}
    one = report(KEEPS, continual={"name": "chain", "methods": [replay, {"name": "ewc"}]})
    two = report(KEEPS, continual={"name": "chain", "methods": [{**replay, "per_label": 20}]})
    assert compare([("one", one), ("two", two)])["differences"] == {
        "continual.methods.replay.per_label": [5, 20],
        "continual.methods.ewc.name": ["ewc", None],
    }


def test_the_same_name_twice():
    found = compare([("r", report(KEEPS)), ("r", report(FALLS)), ("r (2)", report(KEEPS))])
    assert len({run["run"] for run in found["runs"]}) == 3


def test_reports_of_older_versions():
    old = json.loads(json.dumps(report(KEEPS)))
    for key in ("answered_by", "own_head", "over_clients", "forward_transfer", "continual"):
        del old[key]
    found = compare([("old", old), ("new", report(FALLS))])
    assert found["runs"][0]["forward_transfer"] is None
    text_of(render(found))


@pytest.mark.parametrize("runs", [2, len(LIGHT) + 3])
@pytest.mark.parametrize("domains", [1, 3, 40])
def test_the_page_is_whole_and_escapes_all_it_names(runs, domains):
    names = tuple(f"{i} {EVIL} långt 名前 \x00" for i in range(domains))
    rows = [[0.9 - 0.02 * (i - j) for j in range(i + 1)] for i in range(domains)]
    tables = {"model": {"name": EVIL}}
    reports = [(f"{i} {EVIL}", report(rows, names=names, **tables)) for i in range(runs - 1)]
    page = render(compare([*reports, ("plain", report(rows, names=names))]))
    text = text_of(page)
    assert "<script" not in page
    assert "http" not in page
    assert EVIL in text
    # A swatch for each run, and each chart in two widths; one domain has no line to draw.
    assert page.count("<svg") == runs + (2 if domains == 1 else 4)
    for picture in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        root = ET.fromstring(picture)
        wide, high = (float(part) for part in root.get("viewBox").split()[2:])
        for circle in root.iter("circle"):
            assert 0 <= float(circle.get("cx")) <= wide
            assert 0 <= float(circle.get("cy")) <= high
        for line in root.iter("text"):
            assert 0 <= float(line.get("y")) <= high


def test_cells_that_were_not_measured():
    holes = [[0.8], [None, 0.7], [None, 0.6, None]]
    found = compare([("one", report(holes)), ("two", report(KEEPS))])
    json.dumps(found, allow_nan=False)
    assert found["runs"][0]["domain_accuracy"] == [None, 0.6, None]
    text_of(render(found))
    nothing = report([[None], [None, None]])
    assert "Fewer than two" in verdict(compare([("one", nothing), ("two", report(KEEPS))]))
