from __future__ import annotations

import io
import json
import threading
import time

import pytest
from rich.console import Console

from perennial.cli.display import Display, _page
from perennial.cli.follow import Progress, Tail
from perennial.cli.spent import Spent
from perennial.cli.tables import print_matrix
from perennial.server.report import summarise


def make_log(names=("banking", "[bold]travel"), rounds=2):
    log = [
        {"event": "run_started", "run": "weekly", "config": {"round": {"rounds": rounds}},
         "domains": [{"name": name, "labels": ["x", "y"]} for name in names]},
    ]  # fmt: skip
    for d, name in enumerate(names):
        log.append({"event": "domain_started", "domain": d, "name": name, "labels": 2 * d + 2})
        for r in range(rounds):
            place = {"domain": d, "round": r, "attempt": 0}
            log += [
                {"event": "round_started", **place, "asked": 2, "bytes_down": 20},
                {"event": "reply", **place, "node": 1, "ok": True, "records": 3.0, "bytes_up": 7},
                {"event": "reply", **place, "node": 2, "ok": False, "cause": "late"},
                {"event": "round_finished", **place, "accepted": 1, "rejected": {"late": 1},
                 "bytes_up": 7, "bytes_down": 20, "seconds": 1.5, "loss": 0.25},
                {"event": "evaluated", "domain": d, "round": r + 1, "accuracy":
                 dict.fromkeys(names[: d + 1], 0.5 + 0.1 * d)},
            ]  # fmt: skip
        log.append({"event": "domain_finished", "domain": d, "name": name, "seconds": 9.0})
    log.append({"event": "run_finished", "adapter_hash": "ab", "seconds": 20.0})
    return [{**event, "time": 100.0 + i} for i, event in enumerate(log)]


def hidden(log, values=100, cut=0, key="0123456789abcdef" * 2):
    """`log` as that of a run whose updates are hidden."""
    words = "BFV 8 bit [bold]; masks with all 3 others; sums of 3 to 64 clients, and more"
    log[0]["sealing"] = {"words": words, "hidden": True, "masks": True, "key": key,
                         "scheme": {"name": "bfv", "model": "symmetric"}}  # fmt: skip
    log[0]["config"]["secure_sum"] = {"name": "bfv", "clip": 0.25}
    out = []
    for event in log:
        if event["event"] == "round_finished":
            place = {name: event[name] for name in ("domain", "round", "attempt", "time")}
            out.append({"event": "sum_opened", **place, "counted": 1, "values": values,
                        "saturated": cut, "bytes_per_value": 2.213, "scale": 1.0, "peak": 0.5,
                        "key": key})  # fmt: skip
        out.append(event)
    return out


def write(path, log, mode="w"):
    with path.open(mode, encoding="utf-8") as file:
        file.writelines(json.dumps(event) + "\n" for event in log)


def shown(progress, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(_page(progress))
    return console.file.getvalue()


def test_a_tail_gives_each_whole_line_once(tmp_path):
    path, log = tmp_path / "e", make_log()
    tail = Tail(path)
    assert tail.new() == []
    write(path, log[:2])
    with path.open("a") as file:
        file.write('{"event": "half", ')
    assert tail.new() == log[:2]
    assert tail.new() == []
    with path.open("a") as file:
        file.write('"time": 1}\nnot json\n')
    assert tail.new() == [{"event": "half", "time": 1}]


def test_plain_prints_a_line_per_step_and_the_matrix(tmp_path, capsys):
    path = tmp_path / "events.jsonl"
    with Display(path, mode="plain"):
        write(path, make_log())
    out = capsys.readouterr().out
    assert "run weekly: 2 domains, 2 rounds each" in out
    assert "domain 1/2 banking, round 1/2: loss 0.2500, up 7 B, down 20 B, 1.5 s, rejected 1" in out
    assert "domain 2/2 [bold]travel: accuracy 60.0 % (banking 60.0 %, [bold]travel 60.0 %)" in out
    assert "run finished in 20 s" in out
    assert out.count("round 2/2") == 2
    assert "2 [bold]travel" in out
    assert "average accuracy  60.0 %" in out
    assert "forgetting        \N{MINUS SIGN}10.0 points" in out


def test_lines_come_while_the_run_goes_on(tmp_path, capsys):
    path, log = tmp_path / "events.jsonl", make_log()
    with Display(path, mode="plain"):
        write(path, log[:7])
        out, until = "", time.monotonic() + 10
        while "round 1/2" not in out and time.monotonic() < until:
            time.sleep(0.02)
            out += capsys.readouterr().out
        assert "round 1/2" in out


def test_json_echoes_the_events_and_nothing_else(tmp_path, capsys):
    path = tmp_path / "events.jsonl"
    write(path, make_log())
    with Display(path, mode="json"):
        pass
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == make_log()


def test_quiet_says_nothing(tmp_path, capsys):
    before = threading.active_count()
    write(tmp_path / "e", make_log())
    with Display(tmp_path / "e", mode="quiet"):
        assert threading.active_count() == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("mode", ["live", "plain", "json", "quiet"])
def test_a_run_that_never_writes(tmp_path, capsys, mode):
    with Display(tmp_path / "nothing", mode=mode):
        pass
    assert "Traceback" not in capsys.readouterr().err


def test_live_draws_and_ends_with_the_matrix(tmp_path, capsys):
    path = tmp_path / "events.jsonl"
    with Display(path, mode="live"):
        write(path, make_log())
    out = capsys.readouterr().out
    assert "accuracy, percent" in out
    assert "average accuracy  60.0 %" in out


def test_an_error_of_the_run_passes_through(tmp_path, capsys):
    write(tmp_path / "e", make_log()[:5])
    with pytest.raises(RuntimeError, match="boom"), Display(tmp_path / "e", mode="plain"):
        raise RuntimeError("boom")
    assert "The run is not finished" in capsys.readouterr().out


def test_a_broken_log_is_said_not_raised(tmp_path, capsys):
    path = tmp_path / "events.jsonl"
    path.write_text("broken\n" + json.dumps(make_log()[0]) + "\n")
    with Display(path, mode="plain"):
        pass
    assert "no summary" in capsys.readouterr().out


def test_skip_old_prints_only_what_is_new(tmp_path, capsys):
    path, log = tmp_path / "events.jsonl", make_log()
    write(path, log[:7])
    with Display(path, mode="plain", skip_old=True):
        write(path, log[7:], "a")
    out = capsys.readouterr().out
    assert "domain 1/2 banking, round 1/2" not in out
    assert "domain 1/2 banking, round 2/2" in out


def test_the_live_page_of_a_round_under_way():
    progress = Progress()
    assert "waiting for the run to start" in shown(progress)
    log = make_log()
    for event in log[:10]:
        progress.see(event)
    page = shown(progress)
    assert "weekly  domain 1/2 banking  1/2 rounds done" in page
    assert "1/4" in page
    assert "2/2" in page
    assert "about 15 s left" in page.replace("\n", " ")
    assert "50.0 %" in page
    for event in log[10:]:
        progress.see(event)
    page = shown(progress)
    assert "finished" in page
    assert "[bold]travel" in page


def test_progress_goes_back_on_a_resume():
    progress = Progress()
    for event in make_log():
        progress.see(event)
    assert progress.done == progress.total == 4
    progress.see({"event": "run_resumed", "time": 1e6, "domain": 0, "round": 1})
    assert (progress.done, progress.finished, len(progress.table)) == (1, False, 1)
    assert progress.remaining_s() is None


def test_the_table_holds_the_last_eight_rounds():
    progress = Progress()
    for event in make_log(rounds=20):
        progress.see(event)
    assert [event["round"] for event in progress.table] == list(range(12, 20))


@pytest.mark.parametrize(("width", "words"), [(120, "1 banking"), (60, "average"), (40, "learnt")])
def test_the_matrix_fits_its_terminal(width, words):
    names = ("banking", "[red]credit cards", "travel", "a domain with a very long name indeed")
    report = summarise(make_log(names))
    console = Console(file=io.StringIO(), width=width)
    print_matrix(report, console)
    out = console.file.getvalue()
    assert words in out
    assert "[red]credit" in out
    assert "80.0" in out
    assert max(map(len, out.splitlines())) <= width


def test_fifty_domains_and_none():
    for names in (tuple(f"domain {i}" for i in range(50)), ()):
        report = summarise(make_log(names, rounds=1))
        console = Console(file=io.StringIO(), width=100)
        print_matrix(report, console)
        assert "average accuracy" in console.file.getvalue()
        progress = Progress()
        for event in make_log(names, rounds=1):
            progress.see(event)
        shown(progress)


def test_a_hidden_round_says_what_it_cost(tmp_path, capsys):
    path = tmp_path / "events.jsonl"
    with Display(path, mode="plain"):
        write(path, hidden(make_log(), cut=3))
    out = capsys.readouterr().out
    assert "round 1/2: loss 0.2500, up 7 B, down 20 B, 1.5 s, rejected 1, 2.21 B/value, " in out
    assert out.count("2.21 B/value, saturated 3 %") == 4
    assert "\nupdates: BFV 8 bit [bold]; masks with all 3 others; sums of 3 to " in out
    assert "64 clients, and more; key 0123456789abcdef\n" in out
    assert "hint: 3 % of all values were cut; raise [secure_sum] clip (now 0.25)" in out


def test_one_cut_value_in_a_hundred_needs_no_hint(tmp_path, capsys):
    path = tmp_path / "events.jsonl"
    write(path, hidden(make_log(), cut=1))
    with Display(path, mode="plain", skip_old=True):
        pass
    out = capsys.readouterr().out
    assert "updates: BFV" in out
    assert "hint:" not in out
    assert "B/value" not in out


def test_a_plain_run_says_so_and_an_old_log_says_nothing(tmp_path, capsys):
    log = make_log()
    write(tmp_path / "old", log)
    with Display(tmp_path / "old", mode="plain"):
        pass
    assert "updates:" not in capsys.readouterr().out
    log[0]["sealing"] = {"words": "in the clear", "hidden": False, "scheme": None, "key": ""}
    write(tmp_path / "new", log)
    with Display(tmp_path / "new", mode="plain"):
        pass
    out = capsys.readouterr().out
    assert "\nupdates: in the clear\n" in out
    assert "B/value" not in out


def test_a_sum_of_another_round_is_not_this_one(tmp_path, capsys):
    path, log = tmp_path / "events.jsonl", hidden(make_log())
    later = [e for e in log if e["event"] != "sum_opened" or (e["domain"], e["round"]) == (0, 0)]
    write(path, later)
    with Display(path, mode="plain"):
        pass
    lines = capsys.readouterr().out.splitlines()
    assert [("B/value" in line) for line in lines if "loss" in line] == [True, False, False, False]


def test_the_live_page_shows_the_last_sum():
    progress, log = Progress(), hidden(make_log())
    for event in log:
        progress.see(event)
    (*_, last) = (event for event in log if event["event"] == "sum_opened")
    console = Console(file=io.StringIO(), width=100)
    console.print(_page(progress, last))
    assert "last sum: 2.21 B/value, saturated 0 %" in console.file.getvalue()


def private(log, units=("example", "user")):
    """`log` as that of a run that promises epsilon 8 and 4, where node 2 never answers."""
    targets = {"example": 8.0, "user": 4.0}
    log[0]["privacy"] = {unit: {"epsilon": targets[unit], "delta": 1e-5} for unit in units}
    out, number = [], 0
    for event in log:
        if event["event"] == "reply":
            number += event["ok"]
            spent = {"example": 0.5 * number, "user": 0.25 * number}
            event["epsilon"] = {unit: spent[unit] for unit in units} if event["ok"] else {}
        elif event["event"] == "round_finished":
            event["loss"] = None
            place = {name: event[name] for name in ("domain", "round", "attempt", "time")}
            out.append({"event": "noised", **place, "counted": 1, "multiplier": 2.0})
        elif event["event"] == "domain_finished":
            said = {"epsilon": {unit: spent[unit] for unit in units},
                    "left": dict.fromkeys(units, 3.0 - event["domain"]),
                    "releases": dict.fromkeys(units, float(number))}  # fmt: skip
            out.append({"event": "statement", "time": event["time"], "domain": event["domain"],
                        "node": 1, **said})  # fmt: skip
        out.append(event)
    return out


def test_a_private_round_says_what_was_spent_in_place_of_the_loss(tmp_path, capsys):
    path = tmp_path / "events.jsonl"
    with Display(path, mode="plain"):
        write(path, private(make_log()))
    out = capsys.readouterr().out
    first = "round 1/2: epsilon 0.5 of 8 per record; epsilon 0.25 of 4 per client, up 7 B, down"
    assert first in out
    assert "round 2/2: epsilon 2 of 8 per record; epsilon 1 of 4 per client, up 7 B" in out
    room = "room for {} more updates on the same records"
    assert f"finished in 9 s; epsilon 1 of 8 per record, {room.format(3)}; epsilon 0.5" in out
    assert "loss" not in out
    last = "privacy: epsilon 2 of 8 for each record at delta 1e-05, by the worst client; "
    assert f"\n{last}{room.format(2)}\n" in out
    assert "note: 1 of 2 clients did not answer when last asked" in out
    assert "warning" not in out


@pytest.mark.parametrize(("unit", "words"), [("example", ", saturated 3 %"), ("user", "")])
def test_sums_that_are_private_to_users_tell_of_no_cuts(tmp_path, capsys, unit, words):
    path, log = tmp_path / "events.jsonl", hidden(private(make_log(), (unit,)), cut=3)
    with Display(path, mode="plain"):
        write(path, log)
    assert f"rejected 1, 2.21 B/value{words}\n" in capsys.readouterr().out


def test_a_broken_promise_is_a_warning(tmp_path, capsys):
    log = private(make_log(), ("example",))
    log[0]["privacy"]["example"]["epsilon"] = 1.5
    write(tmp_path / "e", log)
    with Display(tmp_path / "e", mode="plain", skip_old=True):
        pass
    assert "warning: Epsilon for each record is 2, above its target of 1.5" in (
        capsys.readouterr().out
    )


def test_the_live_page_shows_epsilon_round_by_round():
    progress, spent = Progress(), Spent()
    for event in private(make_log()):
        progress.see(event)
        spent.see(event)
    console = Console(file=io.StringIO(), width=100)
    console.print(_page(progress, None, spent))
    out = console.file.getvalue()
    assert "loss" not in out
    assert [words in out for words in ("0.5 / 0.25", "1 / 0.5", "1.5 / 0.75", "2 / 1")] == [
        True
    ] * 4
    room = "room for 2 more updates on the same records"
    assert f"epsilon 2 of 8 per record, {room}; epsilon 1 of 4 per client" in out


def test_a_private_run_in_every_mode_and_cut_anywhere(tmp_path, capsys):
    log = private(make_log())
    for mode in ("live", "plain", "quiet", "json"):
        write(tmp_path / mode, log)
        with Display(tmp_path / mode, mode=mode):
            pass
    assert "Traceback" not in capsys.readouterr().err
    for cut in range(len(log)):
        progress, spent = Progress(), Spent()
        for event in log[:cut]:
            progress.see(event)
            spent.see(event)
        console = Console(file=io.StringIO(), width=100)
        console.print(_page(progress, None, spent))


def remembering(log):
    """`log` as that of a run with an analytic head and a tuning round in each domain."""
    log[0]["config"]["continual"] = {"name": "chain", "methods": [{"name": "analytic_head"}]}
    out = [log[0], {"event": "baseline", "time": 100.5, "accuracy": {"banking": 0.1}}]
    for event in log[1:]:
        if event["event"] == "domain_finished":
            d, now = event["domain"], event["time"]
            names = [domain["name"] for domain in log[0]["domains"]][: d + 1]
            out += [
                {"event": "learnt", "time": now, "domain": d, "values": 1234, "clients": 2,
                 "bytes_up": 9000, "seconds": 3.0, "facts": {"elastic_mask.domains_left": 1 - d}},
                {"event": "evaluated", "time": now, "domain": d, "round": 2, "by": "head",
                 "accuracy": dict.fromkeys(names, 0.9), "totals": dict.fromkeys(names, 10),
                 "clients": {"7": {n: [9 - d, 10] for n in names}}},
            ]  # fmt: skip
        out.append(event)
    return out


def test_the_end_of_a_domain_says_what_was_summed_and_who_answers(tmp_path, capsys):
    path = tmp_path / "events.jsonl"
    with Display(path, mode="plain"):
        write(path, remembering(make_log()))
    out = capsys.readouterr().out
    first = "domain 1/2 banking"
    assert "before training: accuracy 10.0 %\n" in out
    assert f"{first}: domain ended: 1,234 values summed over 2 clients, up 9 kB, 3 s\n" in out
    assert f"{first}: warning: Elastic mask has room for one more domain only." in out
    assert f"{first}: accuracy 90.0 % by the analytic head (banking 90.0 %)\n" in out
    assert f"{first}: accuracy 50.0 % (banking 50.0 %)\n" in out
    # The matrix holds what the head answers, and says what the adapter's own would.
    rows = out[out.index("accuracy, percent") :]
    assert rows.count("90.0") >= 4
    assert "Answered by the analytic head; the adapter" in rows
    assert "own head: 60.0 %, forgetting" in rows
    assert "average accuracy  90.0 %, 90.0 % of all requests" in rows
    assert "worst client      80.0 %, node 7; forgetting up to 10.0 points" in rows
    assert "up (18 kB of it at ends of domains)" in rows
    assert "warning: Elastic mask has no room for another domain." in rows


def test_the_end_of_a_domain_says_who_was_missing(tmp_path, capsys):
    path, log = tmp_path / "events.jsonl", remembering(make_log())
    for event in log:
        if event["event"] == "learnt" and event["domain"] == 0:
            event |= {"missing": 1, "rejected": {"late": 1}}
    with Display(path, mode="plain"):
        write(path, log)
    out = capsys.readouterr().out
    line = (
        "ended without 1 of 3 clients (1 late). Nothing of those clients' records of this domain "
        "is in the statistics until they answer at a later domain's end. Sums that are taken anew "
        "(encoder = 'refresh' or 'both') lack their earlier records, too."
    )
    assert f"domain 1/2 banking: warning: {line}\n" in out
    assert f"warning: Domain 1 (banking) {line}" in " ".join(out.split())  # wrapped
    assert out.count("ended without") == 2


def test_the_live_page_marks_who_answered():
    progress, log = Progress(), remembering(make_log())
    for event in log:
        progress.see(event)
        if event["event"] == "domain_finished" and event["domain"] == 0:
            assert "accuracy  90.0 %  by the analytic head" in shown(progress)
    page = shown(progress)
    assert "at the ends of domains: 1 90.0 %  2 90.0 %" in page
    # The rounds are the adapter's own.
    assert progress.means[1, 2] == pytest.approx(0.6)
    progress.see({"event": "run_resumed", "time": 1e6, "domain": 1, "round": 0})
    assert list(progress.ends) == [0]
    own = {"event": "evaluated", "time": 1e6, "domain": 1, "round": 2, "accuracy": {"banking": 0.5}}
    progress.see(own)
    assert "1 90.0 %  2 50.0 % (own head)" in shown(progress)


def test_rounds_that_the_continual_layer_adds_are_counted():
    progress, log = Progress(), make_log(rounds=4)
    log[0]["config"]["round"]["rounds"] = 3
    progress.see({**log[0], "rounds": 4})
    assert (progress.rounds, progress.total) == (4, 8)
    progress.see(log[0])
    assert progress.total == 6


def test_a_domain_without_sums_and_a_run_that_remembers_in_every_mode(tmp_path, capsys):
    log = remembering(make_log())
    for event in log:
        if event["event"] == "learnt":
            event |= {"values": 0, "bytes_up": 0, "facts": {}}
    for mode in ("live", "plain", "quiet", "json"):
        write(tmp_path / mode, log)
        with Display(tmp_path / mode, mode=mode):
            pass
    captured = capsys.readouterr()
    assert "domain ended" not in captured.out
    assert "warning" not in captured.out
    assert "Traceback" not in captured.err
    for cut in range(len(log)):
        progress = Progress()
        for event in log[:cut]:
            progress.see(event)
        shown(progress)
