from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest

from perennial.server.report import summarise
from perennial.server.report_page import render
from perennial.server.report_secrecy import EVERY, LATE, NOTHING, OTHERS, SUM, views
from perennial.server.report_sums import in_brief, saturation, share

EVIL = "<script>alert('x')</script> & \"co\""
KEY = "0123456789abcdef" * 2


def text_of(page):
    """All that stands on `page`, which must be well-formed but for its head."""
    main = page[page.index("<main>") : page.index("</main>") + len("</main>")]
    return " ".join(ET.fromstring(main).itertext())


def pictures_of(page, label):
    return [p for p in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if label in p]


def sealing(name="bfv", model="symmetric", masks=True, keyholder="service", **more):
    scheme = {"name": name, "model": model} if name else None
    return {"words": f"{name or 'masks alone'}; a line", "hidden": True, "masks": masks,
            "scheme": scheme, "key": KEY if name else "",
            "keyholder": keyholder if name else "", **more}  # fmt: skip


def hidden_log(sealing=None, rounds=2, given_up=(), cut=(3, 0), key=KEY):
    """Two clients of four values each round, the sums of which are opened or given up."""
    log = [
        {"event": "run_started", "run": "r", "version": "1", "clients": 3,
         "config": {"round": {"rounds": rounds}, "secure_sum": {"name": "bfv", "clip": 0.5}},
         "model": {}, "domains": [{"name": EVIL, "labels": []}],
         **({"sealing": sealing} if sealing else {})},
    ]  # fmt: skip
    for r in range(rounds):
        place = {"domain": 0, "round": r, "attempt": 0}
        reply = {"event": "reply", **place, "ok": True, "cause": "", "bytes_up": 10,
                 "records": None, "loss": None, "seconds": 1.0}  # fmt: skip
        log += [{"event": "round_started", **place, "asked": 3, "bytes_down": 40}]
        log += [{**reply, "node": 1}, {**reply, "node": 2}]
        log += [{**reply, "node": 3, "ok": False, "cause": "no reply", "bytes_up": 0}]
        if r in given_up:
            reason = "given up: at least one client sent garbage"
            log.append({"event": "round_failed", **place, "reason": reason})
            continue
        log += [
            {"event": "sum_opened", **place, "counted": 2, "dropped": 1, "revealed": r,
             "values": 8, "saturated": cut[r], "scale": 4.0 / (r + 1), "peak": 0.5, "key": key,
             "bytes_per_value": 2.5, "seal_seconds": 0.25 * (r + 1), "add_seconds": 0.5,
             "open_seconds": 0.125},
            {"event": "round_finished", **place, "accepted": 2, "rejected": {"no reply": 1},
             "bytes_up": 20, "bytes_down": 40, "seconds": 2.0, "loss": 1.5},
        ]  # fmt: skip
    log.append({"event": "run_finished", "adapter_hash": "abc", "seconds": 20.0})
    return [{**event, "time": 100.0 + i} for i, event in enumerate(log)]


def test_hidden_sums_by_hand():
    report = summarise(hidden_log(sealing()))
    json.dumps(report, allow_nan=False)
    block = report["sums"]
    assert block["totals"] == {
        "rounds": 2, "given_up": 0, "values": 16, "saturated": 3, "dropped": 2, "revealed": 1,
        "saturated_rate": 3 / 16, "bytes_per_value": 2.5, "ratio_to_float32": 0.625,
        "bytes_up": 40, "seal_seconds": 0.375, "add_seconds": 1.0, "open_seconds": 0.25,
    }  # fmt: skip
    assert block["rounds"][1] == {
        "domain": 0, "round": 1, "attempt": 0, "counted": 2, "dropped": 1, "revealed": 1,
        "values": 8, "saturated": 0, "saturated_rate": 0.0, "scale": 2.0, "peak": 0.5,
        "bytes_per_value": 2.5, "ratio_to_float32": 0.625, "bytes_up": 20,
        "seal_seconds": 0.5, "add_seconds": 0.5, "open_seconds": 0.125, "key": KEY,
    }  # fmt: skip
    head = {key: block[key] for key in block if key not in ("totals", "rounds")}
    assert head == {
        "hidden": True, "words": "bfv; a line", "masks": True, "scheme": "bfv",
        "key_model": "symmetric", "keys": [KEY], "keyholder": "service",
    }  # fmt: skip
    assert saturation(report) == "18.8 % of all values were cut; raise [secure_sum] clip (now 0.5)"
    assert [entry["loss"] for entry in report["rounds"]] == [1.5, 1.5]


def test_sealed_weights_are_unknown_and_not_zero():
    report = summarise(hidden_log(sealing()))
    assert [client["share"] for client in report["clients"]] == [None] * 3
    one, _, three = report["clients"]
    assert (one["records"], one["records_total"], one["rounds"]) == (None, None, 2)
    assert (three["records_total"], three["rejected"]) == (0.0, 2)
    wide, _ = pictures_of(render(report), "Rounds per client")
    assert "2 rounds" in wide
    assert "weight sealed" in wide
    assert "0.0 %" not in wide


def test_every_key_that_was_seen_is_named_once():
    later = "f" * 32
    block = summarise([*hidden_log(sealing(), key=later)])["sums"]
    assert block["keys"] == [KEY, later]
    assert f"<code>{later}</code>" in render(summarise(hidden_log(sealing(), key=later)))


def test_the_page_of_a_hidden_run_escapes_all_it_names():
    evil = sealing(words=EVIL, keyholder=EVIL, key=EVIL, scheme={"name": EVIL, "model": EVIL})
    page = render(summarise(hidden_log(evil, key=EVIL)))
    text = text_of(page)
    assert "<script" not in page
    assert EVIL in text
    for words in ("How updates were hidden", "How well the values fitted", "Who could see what"):
        assert words in text
    assert len(pictures_of(page, "scale and largest value")) == 2
    assert "3 of 16, 18.8 %" in text
    assert "2.5, 0.62 times the 4 of float32" in text
    assert "Not defended" in text


def test_a_log_that_lost_its_start_says_what_it_can():
    report = summarise(hidden_log(sealing())[1:])
    block = report["sums"]
    assert (block["hidden"], block["words"], block["masks"], block["keys"]) == (
        True, None, None, [KEY],
    )  # fmt: skip
    assert "does not say enough" in text_of(render(report))


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_hidden_run_cut_anywhere_has_a_page(cut):
    report = summarise(hidden_log(sealing())[:cut])
    json.dumps(report, allow_nan=False)
    text_of(render(report))


def test_zero_rounds_and_all_rounds_given_up():
    none = summarise(hidden_log(sealing(), rounds=0))
    assert none["sums"]["totals"]["saturated_rate"] is None
    text_of(render(none))
    gone = summarise(hidden_log(sealing(), given_up=(0, 1)))
    totals = gone["sums"]["totals"]
    assert (totals["rounds"], totals["given_up"], totals["bytes_per_value"]) == (0, 2, None)
    assert gone["totals"]["bytes_up"] == 40
    assert [client["rounds"] for client in gone["clients"]] == [0, 0, 0]
    assert "0, 2 rounds given up" in text_of(render(gone))
    assert saturation(gone) == ""


def test_a_round_in_which_nothing_travels_has_no_rate():
    log = hidden_log(sealing())
    for event in log:
        if event["event"] == "sum_opened":
            event |= {"values": 0, "saturated": 0, "scale": 0.0, "bytes_per_value": 0.0, "peak": 0}
    report = summarise(log)
    entry = report["sums"]["rounds"][0]
    assert (entry["saturated_rate"], entry["scale"], entry["bytes_per_value"]) == (None,) * 3
    assert report["sums"]["totals"]["bytes_per_value"] is None
    assert in_brief(log[5]) == ""
    text_of(render(report))


def test_hidden_rounds_by_the_thousand_and_scales_of_all_sizes():
    log = hidden_log(sealing(), rounds=600, cut=(0,) * 600)
    for i, event in enumerate(e for e in log if e["event"] == "sum_opened"):
        event |= {"scale": 10.0 ** (i % 40 - 20), "peak": 0.0 if i % 3 else 1e-9}
    text_of(render(summarise(log)))


def test_a_small_share_is_not_called_nothing():
    assert [share(rate) for rate in (0.0, 1e-6, 0.0025, 0.031, 1.0, None)] == [
        "0 %", "< 0.01 %", "0.25 %", "3.1 %", "100 %", "\N{EM DASH}",
    ]  # fmt: skip


def seen(revealed=0, **changes):
    log = hidden_log(sealing(**changes), rounds=2 if revealed else 1)
    return {view.who: view.sees for view in views(summarise(log)["sums"])}


INSIDER, BOTH = "Server + one client, with its key", "Server + key holder"
ALL = "Server + key holder + some clients"


@pytest.mark.parametrize(
    ("settings", "server", "holder", "insider", "both", "everyone"),
    [
        ({}, SUM, SUM, OTHERS, SUM, OTHERS),
        ({"model": "public"}, SUM, SUM, OTHERS, SUM, OTHERS),
        ({"revealed": 1}, SUM, SUM, LATE, LATE, LATE),
        ({"revealed": 1, "model": "public"}, SUM, SUM, OTHERS, LATE, LATE),
        ({"revealed": 1, "keyholder": "in_process"}, LATE, SUM, LATE, LATE, LATE),
        ({"masks": False}, SUM, SUM, EVERY, EVERY, EVERY),
        ({"masks": False, "model": "public"}, SUM, SUM, OTHERS, EVERY, EVERY),
        ({"masks": False, "name": "ckks", "keyholder": "in_process"}, *(EVERY,) * 5),
        (
            {"masks": False, "name": "ckks", "keyholder": "in_process", "model": "public"},
            *(EVERY,) * 5,
        ),
    ],
)
def test_who_could_see_what_with_a_key(settings, server, holder, insider, both, everyone):
    found = seen(**settings)
    assert found["Other clients"] == NOTHING
    assert [found[who] for who in ("The server", "The key holder", INSIDER, BOTH, ALL)] == [
        server, holder, insider, both, everyone,
    ]  # fmt: skip


def test_who_could_see_what_without_a_key():
    alone = seen(name=None)
    assert alone["The server"] == SUM
    assert alone["Server + some clients"] == OTHERS
    assert BOTH not in alone
    assert seen(hidden=False)["The server"] == EVERY
    assert seen(name=None, masks=False) == {}


@pytest.mark.parametrize(("pins", "words"), [("", "which they were not"), ("a", "as they were")])
def test_what_is_not_defended_depends_on_the_config(pins, words):
    log = hidden_log(sealing())
    log[0]["config"] |= {"evaluate": {"where": "clients"}}
    log[0]["config"]["secure_sum"] |= {"identities": pins}
    text = text_of(render(summarise(log)))
    assert words in text
    assert "test scores are in the clear too" in text
