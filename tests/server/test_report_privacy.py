from __future__ import annotations

import json
import math
import os
import re
import xml.etree.ElementTree as ET

import pytest

from perennial.server.report import summarise, write_report
from perennial.server.report_outside import outside
from perennial.server.report_page import render
from perennial.server.report_privacy import breaches, doubts, epsilon, guess_rate, read_audit
from perennial.server.report_privacy_page import folds, odds
from perennial.server.report_secrecy import sealed, views

EVIL = "<script>alert('x')</script> & \"co\""

EXAMPLE = {"mechanism": "dp-sgd " + EVIL, "epsilon": 8.0, "delta": 1e-5, "clip": 1.0,
           "noise_multiplier": 1.31, "sample_rate": 0.1, "replay_rate": 0.05,
           "updates": 12}  # fmt: skip
USER = {"mechanism": "skellam", "where": "clients", "epsilon": 4.0, "delta": 1e-3, "clip": 0.5,
        "noise_multiplier": 2.5, "clients": 2, "updates": 0}  # fmt: skip
AUDIT = {
    "claimed": 1.0, "delta": 1e-5, "confidence": 0.95, "pass": True,
    "kinds": [{"kind": "wrong_label", "canaries": 500, "guesses": 50, "right": 26,
               "lower_bound": 0.25, "pass": True}],
    "drill": {"membership": {"without": 0.93, "with": [0.5, 0.52]}, "name": EVIL, "none": None},
}  # fmt: skip


def text_of(page):
    """All that stands on `page`, which must be well-formed but for its head."""
    main = page[page.index("<main>") : page.index("</main>") + len("</main>")]
    return " ".join(ET.fromstring(main).itertext())


def pictures_of(page, label):
    return [p for p in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if label in p]


def spent(node, number):
    """Epsilon of a client after so many rounds: node 2 spends twice as fast."""
    return {"example": 0.5 * node * number, "user": 0.25 * number}


def private_log(units=("example", "user"), names=(EVIL, "b"), rounds=2, silent=(), hidden=True):
    """Two clients, one of which spends twice as fast; places in `silent` have no reply."""
    terms = {"example": EXAMPLE, "user": USER}
    log = [
        {"event": "run_started", "run": "r", "version": "1", "clients": 2, "model": {"name": "m"},
         "config": {"round": {"rounds": rounds, "weight": "uniform"}, "train": {"lr": 0.5},
                    "secure_sum": {"name": "masks", "clip": 0.5},
                    "privacy": {"name": "dp_sgd"}, "user_privacy": {"name": "off"}},
         "domains": [{"name": name, "labels": ["x", "y"]} for name in names],
         "privacy": {unit: terms[unit] for unit in units},
         "sealing": {"words": "masks", "hidden": hidden, "masks": hidden, "scheme": None,
                     "key": "", "keyholder": ""}},
    ]  # fmt: skip
    number = 0

    def said(node):
        return {unit: spent(node, number)[unit] for unit in units}

    for d, name in enumerate(names):
        log.append({"event": "domain_started", "domain": d, "name": name, "labels": 2})
        for r in range(rounds):
            number += 1
            place = {"domain": d, "round": r, "attempt": 0}
            log.append({"event": "round_started", **place, "asked": 2, "bytes_down": 4})
            for node in (1, 2):
                gone = (d, r, node) in silent
                log.append({"event": "reply", **place, "node": node, "ok": not gone,
                            "cause": "no reply" if gone else "", "bytes_up": 10, "records": None,
                            "loss": None, "seconds": None,
                            "epsilon": {} if gone else said(node)})  # fmt: skip
            if "user" in units:
                log.append({"event": "noised", **place, "manifest": "x", "counted": 2 + d,
                            "sensitivity": 0.5, "multiplier": 2.75 - 0.5 * d})  # fmt: skip
            if hidden:
                log.append({"event": "sum_opened", **place, "counted": 2, "dropped": 0,
                            "revealed": 0, "values": 8, "saturated": 0, "scale": 0.5, "peak": 0.0,
                            "key": "", "bytes_per_value": 2.5, "seal_seconds": None,
                            "add_seconds": 0.5, "open_seconds": 0.1})  # fmt: skip
            log += [
                {"event": "round_finished", **place, "accepted": 2, "rejected": {},
                 "bytes_up": 20, "bytes_down": 4, "seconds": 2.0, "loss": None},
                {"event": "evaluated", "domain": d, "round": r + 1, "where": "server",
                 "accuracy": dict.fromkeys(names[: d + 1], 0.75)},
            ]  # fmt: skip
        log += [
            {"event": "statement", "domain": d, "node": node, "epsilon": said(node),
             "left": dict.fromkeys(units, 9.0 - 3.0 * d - node),
             "releases": dict.fromkeys(units, float(number))}
            for node in (1, 2) if (d, rounds, node) not in silent
        ]  # fmt: skip
        log.append({"event": "domain_finished", "domain": d, "name": name, "seconds": 9.0})
    log.append({"event": "run_finished", "adapter_hash": "abc", "seconds": 20.0})
    return [{**event, "time": 100.0 + i} for i, event in enumerate(log)]


def test_what_was_spent_by_hand():
    report = summarise(private_log())
    json.dumps(report, allow_nan=False)
    one, two = report["privacy"]["units"]
    assert (one["unit"], one["epsilon"], one["target"], one["left"]) == ("example", 4.0, 8.0, 4)
    assert (two["unit"], two["epsilon"], two["target"], two["left"]) == ("user", 1.0, 4.0, 4)
    assert [(e["domain"], e["round"], e["epsilon"]) for e in one["rounds"]] == [
        (0, 0, 1.0), (0, 1, 2.0), (1, 0, 3.0), (1, 1, 4.0),
    ]  # fmt: skip
    assert one["domains"] == [
        {"domain": 0, "epsilon": 2.0, "left": 7, "releases": 2, "clients": 2},
        {"domain": 1, "epsilon": 4.0, "left": 4, "releases": 4, "clients": 2},
    ]
    assert one["clients"][0] == {
        "node": 1, "epsilon": 2.0, "left": 5, "releases": 4, "unheard": 0, "refused": 0,
        "less": False,
    }  # fmt: skip
    assert (one["sample_rate"], one["replay_rate"], one["shares"], one["updates"]) == (
        0.1, 0.05, None, 12,
    )  # fmt: skip
    assert one["guess"]["target"] == guess_rate(8.0, 1e-5)
    noise = report["privacy"]["noise"]
    assert {key: noise[key] for key in noise if key != "rounds"} == {
        "sums": 4, "least": 2.25, "fewest": 2, "most": 3, "sensitivity": 0.5, "bare": 0, "short": 0,
    }  # fmt: skip
    assert breaches(report["privacy"]) == []
    assert list(doubts(report["privacy"])) == []


@pytest.mark.parametrize(
    ("eps", "delta", "rate"),
    [
        (0.0, 0.0, 0.5),
        (math.log(3), 0.0, 0.75),
        (math.log(3), 0.2, 0.8),
        (1.0, 1e-5, (math.e + 1e-5) / (1 + math.e)),
        (5000.0, 1e-5, 1.0),
    ],
)
def test_the_bound_on_a_guess(eps, delta, rate):
    assert guess_rate(eps, delta) == pytest.approx(rate)


def test_no_guesser_of_randomised_response_beats_the_bound():
    # It is what (epsilon, 0) allows at worst: the truth with chance e^eps / (1 + e^eps).
    for eps in (0.1, 1.0, 3.0):
        assert guess_rate(eps, 0.0) == pytest.approx(math.exp(eps) / (1 + math.exp(eps)))


def test_the_page_says_what_is_promised_and_escapes_it():
    page = render(summarise(private_log()))
    text = text_of(page)
    assert "<script" not in page
    assert EVIL in text
    for words in (
        "What is promised for each record", "What is promised for each client",
        "What was spent for each record", "What is outside the guarantee", "ledger.jsonl",
        "54.6-fold", "1e-05, once in 100,000", "98.2 % of the time", "Taken alone that bound",
        "4 , the largest of 2 clients", "4, for the client with the fewest",
        "at least 2.25 times the sensitivity, in 4 sums of 2 to 3 clients; at least 2 are",
        "every client, its share inside its sealed update", "nobody",
        "4 and 1", "of 8 for each record, of 4 for each client", "Not audited",
    ):  # fmt: skip
        assert words in text, words
    assert len(pictures_of(page, "Epsilon spent by the client that spent most")) == 4
    assert "target 8" in page


def test_null_loss_and_seconds_leave_no_empty_places():
    report = summarise(private_log())
    assert [client["seconds"] for client in report["clients"]] == [None, None]
    page = render(report)
    text = text_of(page)
    assert "loss" not in text.replace("neither loss nor seconds", "").replace("without loss", "")
    assert "of training" not in text
    assert "all count alike" in text
    assert "<dt>Backward transfer</dt>" not in page
    assert "later domains: 0.0 points" in text
    assert "Sealing" not in text
    assert "How well the values fitted" not in text
    assert "Values cut not told" in " ".join(text.split())


def test_a_run_without_a_promise_says_so_in_one_sentence():
    log = private_log(())
    for old in (log, [{k: v for k, v in event.items() if k != "privacy"} for event in log]):
        report = summarise(old)
        assert report["privacy"] is None
        text = text_of(render(report))
        assert "This run promises no privacy for single records, nor for clients" in text
        assert "What is promised" not in text
        assert "Not audited" not in text
        assert "Backward transfer" in text


def test_a_ledger_above_its_target_is_said_at_the_top():
    log = private_log(("example",))
    log[0]["privacy"]["example"] = {**EXAMPLE, "epsilon": 3.5}
    report = summarise(log)
    (unit,) = report["privacy"]["units"]
    assert unit["exceeded"]
    (line,) = breaches(report["privacy"])
    assert "4, above its target of 3.5" in line
    page = render(report)
    assert line in text_of(page)[: text_of(page).index("Test accuracy")]
    assert '<span class="state open">4</span>' in page


def test_a_ledger_that_shrank_is_said_and_its_largest_counts():
    log = private_log(("example",))
    for event in log:
        if event["event"] in ("reply", "statement") and event["domain"] == 1 and event["node"] == 2:
            event["epsilon"] = {"example": 0.25}
    report = summarise(log)
    assert report["privacy"]["units"][0]["epsilon"] == 2.0
    (line,) = breaches(report["privacy"])
    assert "nodes 2." in line


def test_who_did_not_answer_may_have_spent_more():
    report = summarise(private_log(("example",), silent={(1, 1, 2), (1, 2, 2)}))
    (unit,) = report["privacy"]["units"]
    assert [client["unheard"] for client in unit["clients"]] == [0, 1]
    assert unit["epsilon"] == 3.0
    (line,) = doubts(report["privacy"])
    assert line.startswith("1 of 2 clients did not answer when last asked")
    assert line in text_of(render(report))
    # Who says it at the domain's end has said it all.
    later = summarise(private_log(("example",), silent={(1, 1, 2)}))
    assert list(doubts(later["privacy"])) == []
    assert later["privacy"]["units"][0]["epsilon"] == 4.0


def test_what_failed_attempts_spent_counts_and_refusals_are_told():
    place = {"domain": 1, "round": 1, "attempt": 1}
    log = private_log(("example",))
    log += [
        {"event": "reply", "time": 200.0, **place, "node": 1, "ok": True,
         "epsilon": {"example": 6.0}},
        {"event": "reply", "time": 200.0, **place, "node": 2, "ok": False,
         "cause": "train: BudgetError"},
        {"event": "round_failed", "time": 201.0, **place, "reason": "too few"},
    ]  # fmt: skip
    report = summarise(log)
    (unit,) = report["privacy"]["units"]
    assert unit["epsilon"] == 6.0
    assert [client["refused"] for client in unit["clients"]] == [0, 1]
    assert "1 time" in text_of(render(report))


@pytest.mark.parametrize("bad", [None, 3, "x", [], {"example": "high"}, {"example": -1.0}])
def test_what_is_no_number_was_not_said(bad):
    log = private_log(("example",))
    for event in log:
        if event["event"] in ("reply", "statement"):
            event |= {"epsilon": bad, "left": bad, "releases": bad}
    report = summarise(log)
    (unit,) = report["privacy"]["units"]
    assert (unit["epsilon"], unit["left"], unit["exceeded"]) == (None, None, False)
    assert "No client said what it spent for each record" in text_of(render(report))
    assert "no client said what it spent" in render(report)


def test_a_client_that_says_nonsense_stops_no_report():
    log = private_log(("example",))
    log[3]["epsilon"] = {"example": 1e300, "zeal": 3.0}
    log[3]["left"] = {"example": 1e300}
    report = summarise(log)
    json.dumps(report, allow_nan=False)
    assert report["privacy"]["units"][0]["exceeded"]
    assert "10^4.343e+299-fold" in text_of(render(report))


def test_terms_that_are_missing_and_a_log_that_lost_its_start():
    log = private_log()
    log[0]["privacy"] = {"example": {}, "user": None}
    assert "does not hold both" in text_of(render(summarise(log)))
    report = summarise(private_log()[1:])
    assert [unit["unit"] for unit in report["privacy"]["units"]] == ["example", "user"]
    assert report["privacy"]["units"][0]["target"] is None
    text_of(render(report))


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_private_run_cut_anywhere_has_a_page(cut):
    report = summarise(private_log()[:cut])
    json.dumps(report, allow_nan=False)
    assert len(report["privacy"]["units"]) == 2
    text_of(render(report))


def test_events_repeated_after_a_resume_change_nothing():
    log = private_log(rounds=3)
    begin = next(i for i, e in enumerate(log) if e.get("domain") == 1)
    mark = {"event": "run_resumed", "time": 300.0, "domain": 1, "round": 0}
    again = summarise([*log[:-1], mark, *log[begin:]])
    assert again["privacy"] == summarise(log)["privacy"]


def test_noise_that_is_missing_or_short_is_said():
    log = private_log(("user",))
    noised = [event for event in log if event["event"] == "noised"]
    noised[0]["counted"] = 1
    log.remove(noised[1])
    lines = breaches(summarise(log)["privacy"])
    assert any("does not say what noise was in 1 opened" in line for line in lines)
    assert any("1 sums had fewer shares" in line for line in lines)


def limits(**changes):
    log = private_log(**{key: changes.pop(key) for key in ("units", "hidden") if key in changes})
    if "where" in changes:
        log[0]["privacy"]["user"] = {**USER, "where": changes["where"]}
    if "scheme" in changes:
        log[0]["sealing"] |= {"scheme": {"name": "bfv", "model": "public"}, "key": "k"}
    return {limit.what: limit.why for limit in outside(summarise(log))}


def test_what_is_outside_depends_on_the_settings():
    both = limits()
    assert "sqrt((2 - k) / 2)" in both["Clients that collude with the server, or are made up by it"]
    assert "difference of the two sums" in both["An update that comes late"]
    assert "all of them together" in both["Several records of one person"]
    assert "4 labels and 2 domains" in both["Names of labels and domains"]
    assert "(here lr 0.5, 2 rounds a domain)" in both["Settings chosen by looking at the records"]
    assert "base model 'm'" in both["The frozen base"]
    assert "sample rate of 0.1" in both["That a client has enough records"]
    example = limits(units=("example",))
    assert "[user_privacy] would bound" in example["Several records of one person"]
    assert "One person at two clients" not in example
    user = limits(units=("user",))
    assert "That a client has enough records" not in user
    assert any("[privacy] would put it into training" in why for why in user.values())
    server = limits(units=("user",), where="server", scheme=True)
    assert "both see it without" in server["The server and the key holder"]
    assert server["An update that comes late"].endswith("without noise.")
    plain = limits(units=("user",), where="server", hidden=False)
    assert "cut to the clip and without noise" in plain["The server"]
    assert "An update that comes late" not in plain


def test_what_is_in_the_clear_in_a_private_run():
    report = summarise(private_log(("example",)))
    words = sealed(report["sums"], report["config"], ["example"])
    assert "how many of its values were cut" in words
    assert "neither loss nor seconds" in words
    assert words.endswith("tell of one record (epsilon for each record) is bounded.")
    assert "values were cut" not in sealed(report["sums"], report["config"], ["example", "user"])
    clear = summarise(private_log(("user",), hidden=False))
    assert "cut to the clip" in views(clear["sums"], ["user"])[1].why
    assert "bounds what it tells of one record" in views(clear["sums"], ["example"])[1].why
    assert "mean loss" in views(clear["sums"])[1].why
    assert "mean loss" not in text_of(render(clear))


def written(folder, log, audit):
    lines = (json.dumps(event) + "\n" for event in log)
    (folder / "events.jsonl").write_text("".join(lines))
    (folder / "audit.json").write_text(audit)
    report = write_report(folder)
    assert json.loads((folder / "report.json").read_text()) == report
    return report, text_of((folder / "report.html").read_text(encoding="utf-8"))


def test_an_audit_in_the_folder_is_shown(tmp_path):
    report, text = written(tmp_path, private_log(), json.dumps(AUDIT))
    assert report["audit"] == AUDIT
    for words in ("at a claimed epsilon of 1", "passed: no attack", "Confidence 95 %", "0.25",
                  "wrong label", "membership, without", "0.5, 0.52", EVIL):  # fmt: skip
        assert words in text, words
    assert "Not audited" not in text
    failed = {**AUDIT, "pass": False, "kinds": [{**AUDIT["kinds"][0], "pass": False}]}
    assert "FAILED" in written(tmp_path, private_log(), json.dumps(failed))[1]


def test_an_audit_is_shown_where_nothing_is_promised(tmp_path):
    nothing = json.dumps({**AUDIT, "claimed": None})
    assert "with nothing claimed" in written(tmp_path, private_log(()), nothing)[1]


def test_attacks_that_are_listed_stand_in_tables(tmp_path):
    view = {"view": {"key": "dp", "name": EVIL}, "area": 0.52, "found": 0.01, "curve": [[0, 1]]}
    drill = {"membership": [view, {}], "odd": [[]], "none": [], "only": [{"curve": []}]}
    _, text = written(tmp_path, private_log(), json.dumps({**AUDIT, "drill": drill}))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<th scope="col">area</th><th scope="col">found</th></tr>' in page
    assert EVIL in text
    assert "0.52" in text


@pytest.mark.parametrize("drill", [3, [], {}, "x", None, {"a": {"b": [{"c": 1}]}}])
def test_a_drill_of_another_shape_stops_no_report(tmp_path, drill):
    written(tmp_path, private_log(), json.dumps({**AUDIT, "drill": drill}))


@pytest.mark.parametrize("bad", ["", "[]", "{}", '{"kinds": [3]}', '{"kinds": 3}', "[" * 9999])
def test_a_file_that_is_no_audit_stops_no_report(tmp_path, bad):
    report, text = written(tmp_path, private_log(), bad)
    assert report["audit"].keys() == {"broken"}
    assert "cannot be read" in text


def test_an_audit_with_numbers_that_json_cannot_say(tmp_path):
    text = json.dumps({**AUDIT, "confidence": math.nan}).replace("0.25", "1e999")
    report, _ = written(tmp_path, private_log(), text)
    assert report["audit"]["confidence"] is None
    assert report["audit"]["kinds"][0]["lower_bound"] is None
    assert read_audit(tmp_path / "nowhere") is None


def test_numbers_in_words():
    said = {None: "\N{EM DASH}", 0.0: "0", 0.8251: "0.826", 0.3: "0.3", 8.0: "8", 8.0001: "8.01",
            34.77: "34.8", 999.5: "1,000", 12345.1: "12,346", 1e12: "1e+12"}  # fmt: skip
    assert {value: epsilon(value) for value in said} == said
    assert [folds(value) for value in (0.0, math.log(3), 30.0)] == [
        "1-fold", "3-fold", "10^14-fold",
    ]  # fmt: skip
    assert [odds(rate) for rate in (0.5, 0.9997, 0.99999996, 1.0)] == [
        "50.0 %", "99.97 %", "99.999996 %", "100 %",
    ]  # fmt: skip


def test_hundreds_of_rounds_and_clients():
    log = private_log(("example",), rounds=300)
    page = render(summarise(log))
    assert "neighbouring rounds are drawn as their mean" in text_of(page)


def test_the_newest_audit_of_that_name_beside_the_run_is_shown(tmp_path):
    log = private_log()
    run = tmp_path / "weekly-1"
    run.mkdir()
    (run / "events.jsonl").write_text("\n".join(json.dumps(event) for event in log))
    start = next(event for event in log if event["event"] == "run_started")
    name = start["config"].setdefault("run", {}).setdefault("name", "weekly")
    (run / "events.jsonl").write_text("\n".join(json.dumps(event) for event in log))
    for age, claimed in ((2, 0.5), (1, 1.0)):
        folder = tmp_path / f"audit-{name}-{age}"
        folder.mkdir()
        (folder / "audit.json").write_text(json.dumps({**AUDIT, "claimed": claimed}))
        os.utime(folder / "audit.json", (100 - age, 100 - age))
    (tmp_path / "audit-other-9").mkdir()
    (tmp_path / "audit-other-9" / "audit.json").write_text("{}")
    assert write_report(run)["audit"]["claimed"] == 1.0


@pytest.mark.parametrize(
    ("counts", "rewound"),
    [((1, 2, 3, 4), False), ((5, 6, 9, 10), False), ((1, 2, 2, 3), True), ((7, 8, 3, 4), True)],
)
def test_a_ledger_that_was_put_back_is_noticed_by_its_charges(counts, rewound):
    log, left = private_log(("example",)), iter(counts)
    for event in log:
        if event["event"] == "reply" and event["node"] == 1:
            event["releases"] = {"example": next(left)}
            # The same epsilon as before the copy, so that charges alone tell.
            event["epsilon"] = {"example": 1.0}
    lines = breaches(summarise(log)["privacy"])
    assert any("An older copy may have been put back" in line for line in lines) == rewound
