from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest

from perennial.core.errors import RunError
from perennial.server.client_charts import MOST_ROWS
from perennial.server.report import summarise
from perennial.server.report_continual import absent, answered, said
from perennial.server.report_events import settled
from perennial.server.report_page import render, verdict

NAMES = ("bank", "travel", "home")
EVIL = "<script>alert('x')</script> & \"co\""


def text_of(page):
    """All that stands on `page`, which must be well-formed but for its head."""
    main = page[page.index("<main>") : page.index("</main>") + len("</main>")]
    return " ".join(ET.fromstring(main).itertext())


def make_log(names=NAMES, rounds=2, clients=(11, 22), head=True, ahead=True, facts=None):
    """A run with a head that answers, sums at the ends of domains, and clients that tell."""
    config = {"round": {"rounds": rounds}, "evaluate": {"where": "clients"},
              "continual": {"name": "chain", "methods": [{"name": "replay"}, {"name": "ewc"},
                                                         {"name": "analytic_head"}]}}  # fmt: skip
    log = [{"event": "run_started", "run": "r", "version": "1", "clients": len(clients),
            "config": config, "domains": [{"name": n, "labels": [n]} for n in names]}]  # fmt: skip
    if ahead:
        log.append({"event": "baseline", "accuracy": dict.fromkeys(names, 0.1)})
    for d, name in enumerate(names):
        log.append({"event": "domain_started", "domain": d, "name": name, "labels": d + 1})
        for r in range(rounds):
            place = {"domain": d, "round": r, "attempt": 0}
            log.append({"event": "round_started", **place, "asked": 2, "bytes_down": 8})
            log += [{"event": "reply", **place, "node": node, "ok": True, "records": 4.0,
                     "bytes_up": 5, "loss": 1.0, "seconds": 1.0} for node in clients]  # fmt: skip
            log.append({"event": "round_finished", **place, "accepted": 2, "rejected": {},
                        "bytes_up": 5 * len(clients), "bytes_down": 8, "seconds": 2.0,
                        "loss": 1.0})  # fmt: skip
        old = names[: d + 1]
        log.append({"event": "evaluated", "domain": d, "round": rounds, "where": "clients",
                    "by": "model", "totals": dict.fromkeys(old, 10),
                    "accuracy": {n: 0.9 - 0.3 * (d - j) for j, n in enumerate(old)}})  # fmt: skip
        told = {"regulariser": 0.1, "domains_left": len(names) - 1 - d} if facts is None else facts
        log.append({"event": "learnt", "domain": d, "values": 1000, "bytes_up": 4000 * len(clients),
                    "clients": len(clients), "seconds": 3.0,
                    "facts": {f"analytic_head.{k}": v for k, v in told.items()}})  # fmt: skip
        if head:
            coming = dict.fromkeys(names[d + 1 :], 0.3 + 0.1 * d) if ahead else {}
            answers = {
                str(node): {n: [8 - d + i - j, 10] for j, n in enumerate(old)}
                for i, node in enumerate(clients[:4])
            }
            log.append({"event": "evaluated", "domain": d, "round": rounds, "where": "clients",
                        "by": "head", "totals": dict.fromkeys(old, 10), "clients": answers,
                        "accuracy": dict.fromkeys(old, 0.8), "ahead": coming})  # fmt: skip
        log.append({"event": "domain_finished", "domain": d, "name": name, "seconds": 9.0})
    log.append({"event": "run_finished", "adapter_hash": "abc", "seconds": 12.0})
    return [{**event, "time": 100.0 + i} for i, event in enumerate(log)]


def test_a_head_beats_the_model_and_both_are_kept():
    report = summarise(make_log())
    json.dumps(report, allow_nan=False)
    assert report["accuracy_matrix"] == [[0.8, None, None], [0.8, 0.8, None], [0.8, 0.8, 0.8]]
    assert report["answered_by"] == ["head", "head", "head"]
    assert report["forgetting"] == pytest.approx([0.0, 0.0, 0.0])
    own = report["own_head"]
    assert own["accuracy_matrix"][2] == pytest.approx([0.3, 0.6, 0.9])
    assert own["average_accuracy"] == pytest.approx([0.9, 0.75, 0.6])
    assert own["forgetting"][2] == pytest.approx((0.6 + 0.3) / 2)
    assert answered(report) == (
        "Answered by the analytic head; the adapter\N{RIGHT SINGLE QUOTATION MARK}s own head: "
        "60.0 %, forgetting 45.0 points."
    )
    # The rounds are the model's own.
    assert report["rounds"][-1]["accuracy"] == pytest.approx(0.6)


def test_a_head_that_answers_some_domains_only():
    log = [e for e in make_log() if not (e.get("by") == "head" and e["domain"] == 1)]
    report = summarise(log)
    assert report["answered_by"] == ["head", "model", "head"]
    assert report["accuracy_matrix"][1][:2] == pytest.approx([0.6, 0.9])
    assert answered(report).startswith("Answered by the analytic head after domain 1 and 3; ")


def test_forward_transfer_by_hand():
    # A[0,1] = 0.3, A[1,2] = 0.4, each 0.1 before anything was learnt
    report = summarise(make_log())
    assert report["forward_transfer"] == pytest.approx((0.2 + 0.3) / 2)
    assert report["ahead"] == [None, pytest.approx(0.3), pytest.approx(0.4)]
    assert report["baseline"] == pytest.approx([0.1] * 3)
    assert "25.0 points" in text_of(render(report))
    without = summarise(make_log(ahead=False))
    assert without["forward_transfer"] is None
    assert "needs labels that are known before their domain comes" in text_of(render(without))


def test_over_clients_by_hand():
    over = summarise(make_log())["over_clients"]
    first, second = over["clients"]
    # Node 11, right of ten after each domain: 8; 7 6; 6 5 4. Node 22 has one more each time.
    assert (first["node"], first["answers"]) == (11, 30)
    assert first["domains"] == pytest.approx([0.6, 0.5, 0.4])
    assert first["average_accuracy"] == pytest.approx(0.5)
    assert first["forgetting"] == pytest.approx((0.2 + 0.1) / 2)
    assert second["average_accuracy"] == pytest.approx(0.6)
    assert over["average_accuracy"] == pytest.approx(
        {"mean": 0.55, "weighted": 0.55, "worst": 0.5, "worst_node": 11, "spread": 0.05}
    )
    assert over["forgetting"]["worst_node"] == 11


def test_clients_are_weighted_by_their_answers_and_may_lack_domains():
    log = make_log(NAMES[:1], clients=(1, 2, 3))
    head = next(e for e in log if e.get("by") == "head")
    head["clients"] = {"1": {"bank": [1, 1]}, "2": {"bank": [0, 3]}, "3": {}, "x": {"bank": [1, 1]},
                       "4": {"bank": [5, 2]}, "5": "no", "6": {"bank": [1]}}  # fmt: skip
    over = summarise(log)["over_clients"]
    assert [client["node"] for client in over["clients"]] == [1, 2]
    assert over["average_accuracy"]["mean"] == pytest.approx(0.5)
    assert over["average_accuracy"]["weighted"] == pytest.approx(0.25)
    assert over["forgetting"] is None
    text_of(render(summarise(log)))


def test_the_ends_of_domains_cost():
    report = summarise(make_log())
    totals = report["totals"]
    assert totals["bytes_up_at_ends"] == 3 * 8000
    assert totals["bytes_up"] == 6 * 10 + 3 * 8000
    assert totals["bytes_down"] == 6 * 8
    told = [{**e, "bytes_down": 7} if e["event"] == "learnt" else e for e in make_log()]
    assert summarise(told)["totals"]["bytes_down"] == 6 * 8 + 3 * 7
    assert totals["seconds"] == 6 * 2.0 + 3 * 3.0
    end = report["continual"]["domains"][1]
    assert (end["bytes_per_client"], end["values"], end["clients"]) == (4000.0, 1000, 2)
    text = text_of(render(report))
    assert "24 kB of it at ends of domains" in text
    row = re.search(r"<tr><th scope=\"row\">2 travel</th>.*?</tr>", render(report)).group()
    assert re.findall(r"<td>(.*?)</td>", row) == ["1,000", "2", "4 kB", "8 kB", "3 s"]


def test_facts_that_change_have_a_column_for_each_domain():
    page = render(summarise(make_log()))
    left = r"<tr><th scope=\"row\">analytic head: domains left</th>(.*?)</tr>"
    assert re.findall(r"<td>(.*?)</td>", re.search(left, page).group(1)) == ["2", "1", "0"]
    same = r"<tr><th scope=\"row\">analytic head: regulariser</th>(.*?)</tr>"
    assert re.findall(r"<td>(.*?)</td>", re.search(same, page).group(1)) == ["0.1"]
    assert "After each domain" not in render(summarise(make_log(facts={"width": 4000})))


def test_a_fact_of_many_words_stands_once():
    log = make_log()
    for event in log:
        if event["event"] == "learnt":
            event["facts"] = {"drift.alarm_shares": ", ".join(["0.25"] * (event["domain"] + 1) * 3)}
    page = render(summarise(log))
    assert page.count("drift: alarm shares") == 1
    assert ", ".join(["0.25"] * 9) in page
    assert "After each domain" not in page


def test_methods_facts_and_a_warning_when_room_runs_out():
    report = summarise(make_log())
    block = report["continual"]
    assert block["methods"] == ["replay", "ewc", "analytic_head"]
    assert block["domains"][0]["facts"]["analytic_head.domains_left"] == 2
    (line,) = block["warnings"]
    assert "no room for another domain" in line
    text = text_of(render(report))
    assert "In force: replay, ewc and analytic head." in text
    assert "analytic head: regulariser" in text
    assert text.count("no room for another domain") == 2  # at the top and in its section
    one = summarise(make_log(facts={"domains_left": 1}))
    assert "room for one more domain only" in one["continual"]["warnings"][0]
    for left in (2, "no limit", None, True):
        assert summarise(make_log(facts={"domains_left": left}))["continual"]["warnings"] == []


def ended(log, domain, **fields):
    return [{**e, **fields} if e["event"] == "learnt" and e["domain"] == domain else e for e in log]


def test_a_domain_that_ended_without_some_clients_is_told_in_words():
    away = {"missing": 3, "rejected": {"dropped out": 2, "late": 1}}
    report = summarise(ended(make_log(facts={}), 1, **away))
    (line,) = report["continual"]["warnings"]
    assert line == (
        "Domain 2 (travel) ended without 3 of 5 clients (2 dropped out, 1 late). Nothing of those "
        "clients' records of this domain is in the statistics until they answer at a later "
        "domain's end, nor ever in what ewc holds on to. Sums that are taken anew (encoder = "
        "'refresh' or 'both') lack their earlier records, too. A client that was away for it keeps "
        "no replay of this domain."
    )
    assert text_of(render(report)).count(line) == 2  # at the top and in its section
    # Whoever is connected and not counted is missing, though the last attempt rejected nobody.
    report = summarise(ended(make_log(facts={}), 0, missing=1, rejected={}))
    assert "Domain 1 (bank) ended without 1 of 3 clients. Nothing" in text_of(render(report))


def test_clients_that_failed_are_said_with_where_their_errors_stand():
    end = {"clients": 1, "missing": 1, "values": 9, "rejected": {"finish: RunError": 1}}
    said = absent(end, ["analytic_head"], private=False)
    assert "(1 finish: RunError). Their logs, in a simulation the run's log.txt, say what" in said
    assert "log.txt" not in absent({**end, "rejected": {"late": 1}}, ["ewc"], private=False)
    # Logs of before that say only whose answers were rejected.
    report = summarise(ended(make_log(facts={}), 0, rejected={EVIL: 1}))
    assert f"without 1 of 3 clients (1 {EVIL})" in text_of(render(report))
    assert summarise(make_log(facts={}))["continual"]["warnings"] == []


@pytest.mark.parametrize(
    ("methods", "values", "private", "wanted"),
    [
        (["analytic_head"], 9, False, ["statistics until they answer"]),
        (["analytic_head"], 9, True, ["in what was summed, then or later"]),
        (["ewc"], 9, False, ["in what was summed, then or later"]),
        (["replay"], 0, False, ["keeps no replay"]),
        (["elastic_mask"], 0, False, ["ended without 1 of 3 clients."]),
        ([], 0, False, []),
    ],
)
def test_what_a_missing_client_means_depends_on_the_methods(methods, values, private, wanted):
    found = absent({"missing": 1, "clients": 2, "values": values}, methods, private=private)
    assert bool(found) == bool(wanted)
    for words in wanted:
        assert words in found
    assert ("replay" in found) == ("replay" in methods)
    assert ("Nothing of" in found) == bool(values)


def test_a_method_alone_has_its_name_before_its_facts():
    log = make_log(facts={"domains_left": 1})
    log[0]["config"]["continual"] = {"name": "elastic_mask"}
    for event in log:
        if event["event"] == "learnt":
            event["facts"] = {"domains_left": 1}
    block = summarise(log)["continual"]
    assert block["domains"][0]["facts"] == {"elastic_mask.domains_left": 1}
    assert block["warnings"][0].startswith("Elastic mask has room for one more domain only.")


@pytest.mark.parametrize(
    ("options", "methods"),
    [
        ({"name": "none"}, []),
        ({"name": "ewc", "strength": 3.0}, ["ewc"]),
        ({"name": "chain", "replay": {"per_label": 20}, "ewc": {}}, ["replay", "ewc"]),
        ({"name": "chain", "methods": ["ewc", "drift"]}, ["ewc", "drift"]),
    ],
)
def test_methods_in_force(options, methods):
    start = {"event": "run_started", "time": 1.0, "config": {"continual": options}}
    block = summarise([start])["continual"]
    assert (block["methods"] if block else []) == methods
    # A chain that names no methods has those that the run says it has.
    start["methods"] = ["replay", "ewc"]
    assert summarise([start])["continual"]["methods"] == ["replay", "ewc"]


def test_no_round_at_all_is_no_fault_where_ends_are_summed():
    log = [e for e in make_log(rounds=0) if e.get("by") != "model"]
    report = summarise(log)
    assert report["missing"] == []
    assert report["own_head"] is None
    assert verdict(report).startswith("After 3 domains the model answers 80.0")
    assert '<dt>Clients counted</dt><dd class="value">2</dd>' in render(report)
    unmeasured = [e for e in log if e["event"] != "evaluated"]
    assert "how well the model answers was not measured" in verdict(summarise(unmeasured))
    text_of(render(summarise(unmeasured)))


def test_tuning_rounds_belong_to_the_domain():
    log = make_log(rounds=4, head=False)
    log[0]["config"]["round"]["rounds"] = 2
    log[0]["rounds"] = 4
    at = next(i for i, e in enumerate(log) if e["event"] == "evaluated" and e["domain"] == 1)
    early = {**log[at], "round": 2, "accuracy": {"bank": 0.0, "travel": 0.0}}
    cut = [*log[:at], early]
    assert summarise(cut)["learnt"] == 1
    assert summarise([*cut, log[at]])["learnt"] == 2


def resumed(log, domain, round_):
    mark = {"event": "run_resumed", "time": 999.0, "domain": domain, "round": round_}
    again = [
        e
        for e in log
        if e["event"] not in ("run_started", "baseline")
        and (
            e.get("domain", domain) > domain
            or (e.get("domain", domain) == domain and e.get("round", round_) >= round_)
        )
    ]
    return [*log, mark, *again]


@pytest.mark.parametrize(("domain", "round_"), [(0, 0), (1, 0), (1, 1), (1, 2), (2, 2), (3, 0)])
def test_events_repeated_after_a_resume_change_nothing(domain, round_):
    log = make_log()
    assert summarise(resumed(log, domain, round_)) == summarise(log)
    whole = resumed(log, domain, round_)
    assert settled(settled(whole)) == settled(whole)


def test_a_resume_voids_what_was_learnt_later():
    log = make_log()
    mark = {"event": "run_resumed", "time": 999.0, "domain": 1, "round": 1}
    report = summarise([*log, mark])
    assert report["learnt"] == 1
    assert [end["domain"] for end in report["continual"]["domains"]] == [0]
    # At the end of a domain's rounds its evaluations still hold, what was learnt does not.
    report = summarise([*log, {**mark, "round": 2}])
    assert report["answered_by"][:2] == ["head", "head"]
    assert [end["domain"] for end in report["continual"]["domains"]] == [0]


@pytest.mark.parametrize("name", ["learnt", "evaluated"])
def test_an_event_without_its_place_is_refused(name):
    with pytest.raises(RunError, match=f"'{name}' must have an integer 'domain'"):
        summarise([{"event": name, "by": "head", "time": 1.0, "domain": True, "round": 0}])


@pytest.mark.parametrize("cut", range(0, 36, 2))
def test_a_run_cut_anywhere_has_a_report_and_a_page(cut):
    report = summarise(make_log()[:cut])
    json.dumps(report, allow_nan=False)
    text_of(render(report))


@pytest.mark.parametrize("bad", [None, "x", [], 3, {"bank": "high"}, {"bank": None}])
def test_new_fields_of_another_shape_are_passed_over(bad):
    log = make_log()
    for event in log:
        for key in ("clients", "ahead", "facts"):
            if event["event"] != "run_started" and key in event:
                event[key] = bad
        if event["event"] == "baseline":
            event["accuracy"] = bad
    report = summarise(log)
    json.dumps(report, allow_nan=False)
    assert report["over_clients"] is None
    assert report["forward_transfer"] is None
    text_of(render(report))


def test_evil_names_and_many_clients_and_domains():
    names = tuple(f"{i} {EVIL} " + "långt 名前 \x00" * 8 for i in range(30))
    log = make_log(names, rounds=1, clients=tuple(range(10**18, 10**18 + 60)), facts={EVIL: EVIL})
    for event in log:
        if event.get("by") == "head":
            event["clients"] = {
                str(10**18 + i): {n: [i % 10, 10] for n in event["accuracy"]} for i in range(60)
            }
    report = summarise(log)
    page = render(report)
    text = text_of(page)
    assert "<script" not in page
    assert f"{60 - MOST_ROWS} better clients not drawn." in text
    for picture in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert "nan" not in picture.split()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ewc.strength", 3, "3"), ("x", 3.0, "3"), ("x", 0.1, "0.1"), ("x", 1234567, "1,234,567"),
        ("x", 1e-7, "1e-07"), ("x", "off", "off"), ("x", True, "True"), ("x", -2.5, "-2.5"),
        ("x", 12.3456789, "12.35"), ("adapters.bytes_per_domain", 4_800_000, "4.8 MB"),
        ("analytic_head.bytes of the sums", 4_942_992, "4.94 MB"),
        ("drift.alarm_share", 0.25, "25.0 %"), ("drift.alarm_share", "none", "none"),
    ],
)  # fmt: skip
def test_values_of_facts_for_people(name, value, words):
    assert said(name, value) == words
