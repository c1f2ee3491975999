"""The report as one HTML page that needs nothing from outside: no script, font, style or image."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from . import bar_charts, round_charts
from .chart_frame import thinning
from .page_style import style_sheet
from .report_accuracy_page import accuracy_figures
from .report_continual_page import continual_figures
from .report_log import table
from .report_parts import after, figure
from .report_privacy import breaches, epsilon, noun
from .report_privacy_page import privacy_figures
from .report_sums_page import sums_figures
from .svg import escape
from .units import DASH, count, digits, duration, percent, points, size

Report: TypeAlias = Mapping[str, Any]


def render(report: Report) -> str:
    """The page for a report as `report.summarise` gives it; every name in it is escaped."""
    name = escape(report["run"] or "unnamed run")
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{name} \N{MIDDLE DOT} Perennial report</title>",
            f"<style>\n{style_sheet()}</style>\n</head>\n<body>\n<main>",
            *_header(report),
            *_figures(report),
            _details("Model and hashes", _model(report)),
            _details("Domains and labels", _domains(report)),
            _details("Config", _flat(report["config"])),
            f"<footer>{escape(_footer(report))}</footer>",
            "</main>\n</body>\n</html>\n",
        ]
    )


def verdict(report: Report) -> str:
    """What came of the run in one or two plain sentences."""
    learnt, total = report["learnt"], len(report["domains"])
    if not learnt:
        return _unmeasured(report, total)
    if report["finished"]:
        start = f"After {count(learnt, 'domain')}"
    else:
        start = f"So far, after {learnt} of {count(total, 'domain')},"
    if report["final_accuracy"] is None:
        return f"{start} the model is trained; how well it answers was not measured."
    return f"{start} the model {_answers(report)}{_forgets(report)}."


def _unmeasured(report: Report, total: int) -> str:
    ends = report["continual"]["domains"] if report["continual"] else []
    if not report["rounds"]:
        if not ends:
            return "Nothing was trained in this run yet."
        return (
            f"{len(ends)} of {count(total, 'domain')} ended; how well the model answers was not "
            "measured."
        )
    done, last = count(len(report["rounds"]), "round"), report["rounds"][-1]["domain"]
    trained = sum(domain["finished"] for domain in report["domains"])
    if not trained:
        name = report["domains"][last]["name"]
        return f"{done} of training so far, in domain {last + 1} of {total} ({name})."
    return (
        f"The model was trained on {trained} of {count(total, 'domain')}, in {done}; "
        "how well it answers was not measured."
    )


def _answers(report: Report) -> str:
    if report["weighted_accuracy"] is not None:
        return (
            f"answers {_tight(percent(report['weighted_accuracy']))} of all test requests correctly"
        )
    mean = _tight(percent(report["final_accuracy"]))
    return f"answers {mean} of the test requests correctly, as the mean over domains"


def _forgets(report: Report) -> str:
    lost = report["forgetting"][report["learnt"] - 1]
    if report["learnt"] == 1 or lost is None:
        return ""
    if lost < 0.0005:
        return "; it has forgotten nothing of what it once knew"
    return f"; it has forgotten {digits(round(100 * lost, 1))} points of what it once knew"


def _header(report: Report) -> Iterator[str]:
    state = "finished" if report["finished"] else "not finished"
    said = [f"<b>{escape(report['run'] or 'unnamed run')}</b>"]
    said += [escape(word) for word in _setting(report)]
    mark = "state" if report["finished"] else "state open"
    said.append(f'<span class="{mark}">{state}</span>')
    line = " \N{MIDDLE DOT} ".join(said)
    yield f'<header>\n<p class="run">{line}</p>'
    yield f"<h1>{escape(verdict(report))}</h1>"
    warned = report["continual"]["warnings"] if report["continual"] else []
    notes = [*report["missing"], *breaches(report["privacy"]), *warned]
    if notes:
        items = "".join(f"<li>{escape(line)}</li>" for line in notes)
        yield f'<ul class="notes">{items}</ul>'
    tiles = (
        f'<div class="tile"><dt>{escape(label)}</dt><dd class="value">{escape(value)}</dd>'
        f"<dd>{escape(note)}</dd></div>"
        for label, value, note in _tiles(report)
    )
    yield f'<dl class="tiles">{"".join(tiles)}</dl>\n</header>'


def _setting(report: Report) -> Iterator[str]:
    config = report["config"]
    for part in ("strategy", "continual", "privacy", "user_privacy", "secure_sum"):
        name = table(config.get(part)).get("name")
        if part == "continual" and report["continual"]:
            name = " + ".join(report["continual"]["methods"])
        if name and name not in ("none", "off", "plain"):
            yield str(name)
    yield count(len(report["domains"]), "domain")
    if isinstance(report["num_clients"], int):
        yield count(report["num_clients"], "client")


def _tiles(report: Report) -> Iterator[tuple[str, str, str]]:
    totals, learnt, rounds = report["totals"], report["learnt"], report["rounds"]
    weighted, mean = report["weighted_accuracy"], report["final_accuracy"]
    best = weighted if weighted is not None else mean
    lost = report["forgetting"][learnt - 1] if learnt > 1 else None
    yield "Test accuracy", percent(best), f"domain mean {_tight(percent(mean))}"
    yield "Forgetting", points(lost), "below each domain\N{RIGHT SINGLE QUOTATION MARK}s best"
    later = points(report["backward_transfer"])
    note = f"later domains: {later}" if report["privacy"] else "right after each domain"
    yield "Learning accuracy", percent(report["learning_accuracy"]), note
    if report["privacy"]:
        yield _epsilon_tile(report["privacy"]["units"])
    else:
        forward = report["forward_transfer"]
        ahead = "of later to earlier domains" if forward is None else f"forward: {points(forward)}"
        yield "Backward transfer", later, ahead
    again = len(report["failed_attempts"])
    yield (
        "Rounds",
        f"{totals['rounds']:,}",
        f"{count(again, 'failed attempt')}" if again else "none failed",
    )
    yield _clients_tile(report)
    both = totals["bytes_up"] + totals["bytes_down"]
    ways = f"{size(totals['bytes_up'])} up, {size(totals['bytes_down'])} down"
    if totals["bytes_up_at_ends"]:
        ways += f"; {size(totals['bytes_up_at_ends'])} of it at ends of domains"
    yield "Traffic", size(both), ways
    each = duration(sum(r["seconds"] for r in rounds) / len(rounds)) if rounds else DASH
    yield "Time", duration(totals["seconds"]), f"{each} a round" if rounds else "without rounds"


def _clients_tile(report: Report) -> tuple[str, str, str]:
    ends = report["continual"]["domains"] if report["continual"] else []
    if not report["clients"] and ends:
        most = max(end["clients"] for end in ends)
        return "Clients counted", f"{most:,}", "at the ends of domains"
    rejected = sum(report["rejected"].values())
    kept = f"{report['totals']['replies']:,} replies, {rejected:,} rejected"
    return "Clients that replied", f"{len(report['clients']):,}", kept


def _epsilon_tile(units: list[dict[str, Any]]) -> tuple[str, str, str]:
    spent = " and ".join(epsilon(unit["epsilon"]) for unit in units)
    of = ", ".join(
        f"of {DASH if unit['target'] is None else format(unit['target'], 'g')} for each "
        f"{noun(unit)}"
        for unit in units
    )
    return "Epsilon spent", spent, of


def _figures(report: Report) -> Iterator[str]:
    names = [domain["name"] for domain in report["domains"]]
    rounds, clients = report["rounds"], report["clients"]
    if report["learnt"]:
        yield from accuracy_figures(report)
    yield from continual_figures(report)
    if rounds:
        yield from _round_figures(report, names)
    if clients:
        yield _contributions(report)
    if report["rejected"]:
        yield figure(
            "Why replies were rejected",
            "Each bar counts the replies that were left out of the model for one cause.",
            lambda width: bar_charts.causes(report["rejected"], width),
        )
    yield from privacy_figures(report)
    yield from sums_figures(report)


def _contributions(report: Report) -> str:
    clients = report["clients"]
    what = "of the records behind the model are that client\N{RIGHT SINGLE QUOTATION MARK}s"
    if table(report["config"].get("round")).get("weight") == "uniform":
        what = "rounds counted that client; all count alike, however many records they have"
        clients = [{**client, "share": None} for client in clients]
    elif bar_charts.weights_sealed(clients):
        what = "rounds counted that client; how many records it has is sealed with its updates"
    return figure(
        "Who contributed",
        f"The longer a bar, the more {what}. Replies that were refused are named in red.",
        lambda width: bar_charts.contributions(clients, width),
        after(bar_charts.others(clients)),
    )


def _round_figures(report: Report, names: list[str]) -> Iterator[str]:
    rounds = report["rounds"]
    own = ", by the adapter\N{RIGHT SINGLE QUOTATION MARK}s own head" if report["own_head"] else ""
    step = thinning(rounds)
    thin = f" Up to {step} neighbouring rounds are drawn as their mean." if step > 1 else ""
    told = any(entry["loss"] is not None for entry in rounds)
    falls = "Within a domain the loss should fall and level off. " if told else ""
    yield figure(
        "Round by round",
        f"{falls}A dashed line marks where the next domain begins; accuracy is the mean over the "
        f"domains seen so far{own}.{thin}",
        lambda width: round_charts.learning(rounds, names, width),
    )
    yield figure(
        "What each round cost",
        "Bars above the line are bytes sent by all clients, bars below are bytes sent to them; "
        f"the lower chart is the time from asking to the new model.{thin}",
        lambda width: round_charts.costs(rounds, names, width),
    )


def _details(heading: str, rows: Iterator[tuple[str, str]]) -> str:
    lines = "".join(
        f"<tr><th><code>{escape(key)}</code></th><td>{escape(value)}</td></tr>"
        for key, value in rows
    )
    body = f"<table>{lines}</table>" if lines else '<p class="after">Not in the log.</p>'
    return (
        f'<details><summary>{escape(heading)}</summary><div class="scroll">{body}</div></details>'
    )


def _model(report: Report) -> Iterator[tuple[str, str]]:
    yield from _flat(report["model"])
    yield "adapter_hash", str(report["adapter_hash"] or f"{DASH} (the run is not finished)")


def _domains(report: Report) -> Iterator[tuple[str, str]]:
    for i, domain in enumerate(report["domains"], start=1):
        labels = domain["labels"]
        words = ", ".join(str(label) for label in labels) if labels else "no labels"
        yield f"{i} {domain['name']}", f"{len(labels)}: {words}" if labels else words


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        place = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{place}.")
        else:
            yield place, json.dumps(value, ensure_ascii=False)


def _footer(report: Report) -> str:
    who = f"Perennial {report['version']}" if report["version"] else "Perennial"
    return (
        f"{who}; rebuilt from events.jsonl. Sizes are decimal (1 MB = 1,000,000 bytes); "
        "a point is one percentage point."
    )


def _tight(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")
