from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest

from perennial.core.errors import RunError
from perennial.server.bar_charts import MOST_BARS
from perennial.server.chart_frame import MOST_POINTS, gather
from perennial.server.charts import heat_colours, luminance
from perennial.server.events import EventLog
from perennial.server.report import summarise, write_report
from perennial.server.report_page import render, verdict
from perennial.server.round_charts import KEYS
from perennial.server.svg import ticks

BANKS = ("banking", "credit cards", "travel", "kitchen and dining", "utility", "small talk")
EVIL = "<script>alert('x')</script> & \"co\""


def make_log(names=BANKS, rounds=5, clients=12, seed=0, finished=True, evaluate=True):
    """Events of a made-up run with realistic numbers."""
    rng = np.random.default_rng(seed)
    now = 1_760_000_000.0
    log = []

    def emit(event, **fields):
        nonlocal now
        now += float(rng.uniform(0.01, 0.4))
        log.append({"event": event, "time": round(now, 3), **fields})

    config = {
        "data": {"name": "clinc150"},
        "run": {"name": "weekly", "seed": 7, "folder": "runs"},
        "round": {"rounds": rounds, "cohort": 0, "deadline_s": 600.0},
        "strategy": {"name": "fedavg"},
        "continual": {"name": "replay", "per_label": 20},
        "privacy": {"name": "dp_sgd", "clip_norm": 1.0, "target_epsilon": 8.0},
        "secure_sum": {"name": "masks"},
    }
    domains = [{"name": n, "labels": [f"{n} {i}" for i in range(15)]} for n in names]
    model = {"name": "all-minilm-l6-v2", "identity": "sha256:9f2c…", "trainable": 294_912}
    model["tensors"] = 48
    emit(
        "run_started",
        run="weekly",
        config=config,
        model=model,
        domains=domains,
        clients=clients,
        version="0.1.0",
    )
    nodes = [int(n) for n in rng.integers(10**17, 10**19, clients, dtype=np.uint64)]
    records = rng.dirichlet(np.full(clients, 1.5)) * 1500
    scores = {}
    for d, name in enumerate(names):
        emit("domain_started", domain=d, name=name, labels=15 * (d + 1))
        for r in range(rounds):
            emit(
                "round_started",
                domain=d,
                round=r,
                attempt=0,
                asked=clients,
                bytes_down=clients * 1_180_000,
            )
            refused = {}
            for node, weight in zip(nodes, records, strict=True):
                ok = bool(rng.random() > 0.02)
                cause = (
                    "" if ok else str(rng.choice(["deadline passed", "not finite", "wrong length"]))
                )
                if not ok:
                    refused[cause] = refused.get(cause, 0) + 1
                loss = 2.9 * math.exp(-0.55 * r) + 0.35 + float(rng.normal(0, 0.05))
                emit(
                    "reply",
                    domain=d,
                    round=r,
                    attempt=0,
                    node=node,
                    ok=ok,
                    cause=cause,
                    bytes_up=1_181_000,
                    records=float(round(weight)),
                    loss=loss,
                    seconds=float(rng.uniform(4, 9)),
                )
            lost = sum(refused.values())
            emit(
                "round_finished",
                domain=d,
                round=r,
                attempt=0,
                accepted=clients - lost,
                rejected=refused,
                bytes_up=clients * 1_181_000,
                bytes_down=clients * 1_180_000,
                seconds=float(rng.uniform(9, 14)),
                loss=2.9 * math.exp(-0.55 * r) + 0.35 + float(rng.normal(0, 0.03)),
            )
            top = 0.91 + float(rng.normal(0, 0.02))
            scores[name] = top * (1 - math.exp(-0.9 * (r + 1)))
            for old in names[:d]:
                scores[old] *= 1 - 0.026 / (1 + 0.2 * d) * float(rng.uniform(0.4, 1.7))
            if evaluate:
                emit(
                    "evaluated",
                    domain=d,
                    round=r + 1,
                    accuracy=dict(scores),
                    where="server",
                    loss=dict.fromkeys(scores, 1.0),
                    totals=dict.fromkeys(scores, 450),
                )
        emit("domain_finished", domain=d, name=name, seconds=70.0)
    if finished:
        emit("run_finished", adapter_hash="3f6b" * 16, seconds=now - log[0]["time"])
    return log


class Strict(HTMLParser):
    """Collects what the tests ask of a page and refuses tags that do not match."""

    VOID = frozenset({"meta"})

    def __init__(self, page):
        super().__init__()
        self.stack, self.attributes, self.tags, self.text = [], [], set(), []
        self.feed(page)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check_page(page):
    """The laws of every page: well-formed, self-contained, nothing that runs."""
    parsed = Strict(page)
    assert not parsed.tags & {"script", "link", "img", "iframe", "object", "embed", "base"}
    for name, value in parsed.attributes:
        assert name not in ("src", "href", "xlink:href", "srcset", "style")
        assert not name.startswith("on")
        assert "nan" not in str(value).split()
    assert "url(" not in page
    assert "@import" not in page
    assert "http" not in page
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    for picture in pictures:
        root = ET.fromstring(picture)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        wide, high = (float(part) for part in root.get("viewBox").split()[2:])
        for box in root.iter("rect"):
            assert float(box.get("width")) >= 0
            assert float(box.get("height")) >= 0
            assert -1 <= float(box.get("x")) <= wide + 1
            assert -1 <= float(box.get("y")) <= high + 1
    return parsed, pictures


def resumed(log, domain, round_):
    """`log` as if the run had died after all of it was done and resumed at (domain, round)."""
    again = [
        event
        for event in log
        if event["event"] != "run_started"
        and (
            event.get("domain", domain) > domain
            or (event.get("domain", domain) == domain and event.get("round", round_) >= round_)
        )
    ]
    mark = {"event": "run_resumed", "time": log[-1]["time"], "domain": domain, "round": round_}
    return [*log, mark, *again]


def test_numbers_by_hand():
    def done(r, node, ok, weight, loss):
        return {"event": "reply", "time": 2.0, "domain": 0, "round": r, "attempt": 0, "node": node,
                "ok": ok, "cause": "" if ok else "late", "bytes_up": 10, "records": weight,
                "loss": loss, "seconds": 1.5}  # fmt: skip

    place = {"domain": 0, "attempt": 0, "time": 3.0}
    log = [
        {"event": "run_started", "time": 1.0, "run": "r", "version": "1", "clients": 2,
         "config": {"round": {"rounds": 2}}, "model": {"name": "m"},
         "domains": [{"name": "a", "labels": ["x"]}, {"name": "b", "labels": []}]},
        done(0, 1, True, 30.0, 1.0), done(0, 2, True, 10.0, 3.0),
        {"event": "round_finished", **place, "round": 0, "accepted": 2, "rejected": {},
         "bytes_up": 20, "bytes_down": 40, "seconds": 5.0, "loss": 1.5},
        {"event": "evaluated", "time": 3.0, "domain": 0, "round": 1, "accuracy": {"a": 0.4}},
        done(1, 1, True, 30.0, 0.5), done(1, 2, False, 10.0, None),
        {"event": "round_finished", **place, "round": 1, "accepted": 1, "rejected": {"late": 1},
         "bytes_up": 20, "bytes_down": 40, "seconds": 6.0, "loss": None},
        {"event": "evaluated", "time": 3.0, "domain": 0, "round": 2, "accuracy": {"a": 0.8},
         "totals": {"a": 10}, "where": "server"},
        {"event": "domain_finished", "time": 4.0, "domain": 0, "name": "a", "seconds": 12.0},
        {"event": "evaluated", "time": 5.0, "domain": 1, "round": 2,
         "accuracy": {"a": 0.5, "b": 0.9}, "totals": {"a": 10, "b": 30}, "where": "server"},
        {"event": "run_finished", "time": 6.0, "adapter_hash": "abc", "seconds": 20.0},
    ]  # fmt: skip
    report = summarise(log)
    assert report["accuracy_matrix"] == [[0.8, None], [0.5, 0.9]]
    assert report["average_accuracy"] == pytest.approx([0.8, 0.7])
    assert report["forgetting"] == pytest.approx([0.0, 0.3])
    assert report["backward_transfer"] == pytest.approx(-0.3)
    assert report["learning_accuracy"] == pytest.approx(0.85)
    assert report["final_accuracy"] == pytest.approx(0.7)
    assert report["weighted_accuracy"] == pytest.approx((0.5 * 10 + 0.9 * 30) / 40)
    assert [entry["accuracy"] for entry in report["rounds"]] == [0.4, 0.8]
    assert [entry["loss"] for entry in report["rounds"]] == [1.5, None]
    one, two = report["clients"]
    assert (one["rounds"], one["records"], one["records_total"]) == (2, 30.0, 60.0)
    assert one["share"] == pytest.approx(60 / 70)
    assert one["mean_loss"] == pytest.approx(0.75)
    assert (two["rounds"], two["rejected"], two["bytes_up"], two["seconds"]) == (1, 1, 20, 3.0)
    assert report["rejected"] == {"late": 1}
    assert report["totals"] == {
        "bytes_up": 40, "bytes_down": 80, "seconds": 20.0, "rounds": 2, "replies": 4,
        "bytes_up_at_ends": 0,
    }  # fmt: skip
    assert (report["finished"], report["adapter_hash"], report["missing"]) == (True, "abc", [])
    assert verdict(report) == (
        "After 2 domains the model answers 80.0\xa0% of all test requests correctly; it has "
        "forgotten 30 points of what it once knew."
    )


def test_a_failed_attempt_costs_but_counts_for_no_client():
    place = {"domain": 0, "round": 0}
    log = [
        {"event": "round_started", "time": 1.0, **place, "attempt": 0, "bytes_down": 8},
        {"event": "reply", "time": 2.0, **place, "attempt": 0, "node": 1, "ok": True,
         "bytes_up": 5, "records": 3.0},
        {"event": "round_failed", "time": 4.0, **place, "attempt": 0, "reason": "too few"},
        {"event": "round_finished", "time": 9.0, **place, "attempt": 1, "bytes_up": 10,
         "bytes_down": 8, "seconds": 2.0, "accepted": 2},
    ]  # fmt: skip
    report = summarise(log)
    (entry,) = report["rounds"]
    assert (entry["bytes_up"], entry["bytes_down"], entry["seconds"]) == (15, 16, 5.0)
    assert entry["attempts"] == 2
    assert report["clients"][0]["records_total"] == 0.0
    assert report["clients"][0]["bytes_up"] == 5
    assert report["totals"]["bytes_up"] == 15
    assert report["failed_attempts"] == [{**place, "attempt": 0, "reason": "too few"}]
    check_page(render(report))


@pytest.mark.parametrize(("domain", "round_"), [(0, 0), (1, 3), (2, 0), (5, 4)])
def test_events_repeated_after_a_resume_change_nothing(domain, round_):
    log = make_log(rounds=4)
    assert summarise(resumed(log, domain, round_)) == summarise(log)
    cut = log[:-2]
    assert summarise([*cut, *resumed(log, domain, round_)[len(log) :]]) == summarise(log)


def test_a_row_is_filled_when_its_domain_is_learnt_to_its_end():
    log = make_log(rounds=3)
    begun = next(i for i, e in enumerate(log) if e["event"] == "evaluated" and e["domain"] == 1)
    report = summarise(log[: begun + 1])
    assert report["learnt"] == 1
    assert report["accuracy_matrix"][1] == [None] * 6
    assert report["rounds"][-1]["accuracy"] is not None
    assert report["average_accuracy"][1:] == [None] * 5
    assert report["backward_transfer"] is None


@pytest.mark.parametrize("cut", range(0, 80, 3))
def test_a_run_cut_anywhere_has_a_report_and_a_page(cut):
    report = summarise(make_log(names=BANKS[:2], rounds=3, clients=4)[:cut])
    json.dumps(report, allow_nan=False)
    assert report["finished"] == (not any("not finished" in line for line in report["missing"]))
    check_page(render(report))


def test_what_is_missing_is_said():
    nothing = summarise([])["missing"]
    assert any("no run_started" in line for line in nothing)
    assert any("not finished" in line for line in nothing)
    assert any("No client replied" in line for line in nothing)
    assert any("No round was finished" in line for line in nothing)
    unmeasured = summarise(make_log(evaluate=False))
    assert any("accuracy and forgetting are unknown" in line for line in unmeasured["missing"])
    assert "was not measured" in verdict(unmeasured)
    assert unmeasured["final_accuracy"] is None
    assert any("two domains" in line for line in summarise(make_log(BANKS[:1]))["missing"])


def test_one_old_domain_that_was_not_measured():
    log = make_log(BANKS[:3], rounds=1)
    for event in log:
        if event["event"] == "evaluated" and event["domain"] == 2:
            del event["accuracy"]["banking"]
    report = summarise(log)
    assert report["accuracy_matrix"][2][0] is None
    assert any("cells are empty" in line for line in report["missing"])
    check_page(render(report))


@pytest.mark.parametrize("bad", [None, "x", [], 3, {"banking": "high"}])
def test_an_evaluation_of_another_shape_is_not_measured(bad):
    log = make_log(BANKS[:1], rounds=1)
    for event in log:
        if event["event"] == "evaluated":
            event["accuracy"] = event["totals"] = bad
    report = summarise(log)
    assert report["final_accuracy"] is None
    check_page(render(report))


def test_an_event_without_its_place_is_refused():
    with pytest.raises(RunError, match="'reply' must have an integer 'node'"):
        summarise([{"event": "reply", "time": 1.0, "domain": 0, "round": 0, "attempt": 0}])


def test_write_report_writes_both_files(tmp_path):
    with EventLog(tmp_path / "events.jsonl") as log:
        for event in make_log(rounds=2):
            log.emit(**{key: value for key, value in event.items() if key != "time"})
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"event":"torn')
    report = write_report(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(report)


def test_the_page_of_a_whole_run():
    page = render(summarise(make_log()))
    parsed, pictures = check_page(page)
    text = " ".join(parsed.text)
    assert len(pictures) == 2 * 6
    for words in ("After 6 domains", "deadline passed", "kitchen and dining", "3f6b3f6b"):
        assert words in text
    assert "privacy.target_epsilon" in text
    assert len(page) < 150_000


@pytest.mark.parametrize("domains", [1, 2, 24, 50])
@pytest.mark.parametrize("rounds", [1, 3])
def test_few_and_many_domains_with_evil_names(domains, rounds):
    names = tuple(f"{i} {EVIL} " + "långt 名前 \ud800\x00" * 8 for i in range(domains))
    page = render(summarise(make_log(names, rounds, clients=3)))
    check_page(page)
    assert "<script" not in page
    assert "alert('x')" not in page
    assert page.encode("utf-8")


def test_two_thousand_rounds_are_thinned_domain_by_domain():
    rounds = summarise(make_log(BANKS[:5], rounds=400, clients=1))["rounds"]
    points = gather(rounds, KEYS)
    assert len(points) <= MOST_POINTS + 5
    assert [point.domain for point in points] == sorted(point.domain for point in points)
    assert points[0].values["loss"] == pytest.approx(np.mean([r["loss"] for r in rounds[:9]]))
    assert points[-1].last == 2000
    assert {point.last for point in points} >= {400, 800, 1200, 1600, 2000}


def test_the_evaluation_of_few_rounds_is_drawn():
    log = make_log(BANKS[:3], rounds=4)
    seldom = [e for e in log if e["event"] != "evaluated" or e["round"] == 4]
    _, pictures = check_page(render(summarise(seldom)))
    assert sum("mean accuracy" in picture for picture in pictures) == 2


def test_many_clients_are_summed_up():
    report = summarise(make_log(BANKS[:2], rounds=2, clients=200))
    page = render(report)
    check_page(page)
    assert f"{200 - MOST_BARS} more clients hold" in page
    assert sum(client["share"] for client in report["clients"]) == pytest.approx(1.0)


def test_text_on_every_colour_of_the_heat_map_is_legible():
    for dark in (False, True):
        for fill, ink in heat_colours(dark):
            low, high = sorted((luminance(fill), luminance(ink)))
            assert (high + 0.05) / (low + 0.05) >= 4.5
    lights = [luminance(fill) for fill, _ in heat_colours(False)]
    assert lights == sorted(lights, reverse=True)


def test_ticks_are_round_and_cover():
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0, 3.2, 4) == [0, 1, 2, 3, 4]
    assert ticks(-0.1, 0.9) == pytest.approx([-0.2, 0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(5, 5)[-1] > 5
    assert ticks(0, 0) == [0, 0.2, 0.4, 0.6, 0.8, 1]


def test_every_attempt_of_a_round_that_was_given_up_counts_for_no_client():
    place = {"domain": 0, "round": 0}
    reply = {"event": "reply", **place, "node": 1, "ok": True, "bytes_up": 5, "records": 3.0}
    log = [
        {"event": "round_started", "time": 1.0, **place, "attempt": 0, "bytes_down": 8},
        {**reply, "time": 2.0, "attempt": 0},
        {"event": "round_failed", "time": 3.0, **place, "attempt": 0, "reason": "too few"},
        {"event": "round_started", "time": 4.0, **place, "attempt": 1, "bytes_down": 8},
        {**reply, "time": 6.0, "attempt": 1},
        {"event": "round_failed", "time": 9.0, **place, "attempt": 0, "reason": "given up: no"},
    ]
    report = summarise(log)
    assert report["clients"][0]["rounds"] == 0
    totals = report["totals"]
    assert (totals["bytes_up"], totals["bytes_down"], totals["seconds"]) == (10, 16, 8.0)


def test_old_logs_and_plain_runs():
    assert summarise(make_log())["sums"] is None
    assert "Who could see what" not in render(summarise(make_log()))
    plain = {"words": "in the clear: the server sees every update", "hidden": False,
             "masks": False, "scheme": None, "key": "", "keyholder": ""}  # fmt: skip
    log = make_log(BANKS[:1], rounds=1)
    log[0]["sealing"] = plain
    report = summarise(log)
    assert (report["sums"]["hidden"], report["sums"]["rounds"]) == (False, [])
    parsed, _ = check_page(render(report))
    assert "In the clear: the server sees every update." in " ".join(parsed.text)
    assert "every update" in parsed.text
