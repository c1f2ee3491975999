"""The sections of the report page on what the model knows, domain by domain, client by client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import charts, client_charts
from .bar_charts import short
from .report_continual import answered
from .report_parts import after, columns_table, figure, fold
from .svg import escape
from .units import DASH, count, percent, points

Report = Mapping[str, Any]


def accuracy_figures(report: Report) -> Iterator[str]:
    """The sections, as markup, for a report in which a domain was learnt."""
    learnt = report["learnt"]
    names = [domain["name"] for domain in report["domains"]][:learnt]
    matrix = [row[:learnt] for row in report["accuracy_matrix"][:learnt]]
    average, lost = report["average_accuracy"][:learnt], report["forgetting"][:learnt]
    own = report["own_head"]
    yield figure(
        "What the model knows after each domain",
        "Read a column downwards: its top is the accuracy right after learning that domain, in "
        "percent; what lies below shows how well it is kept while others are learnt.",
        lambda width: charts.heat_map(names, matrix, average, width),
        after(answered(report)) + fold("The same as a table", _matrix(names, matrix)),
        room="scroll",
    )
    if learnt > 1:
        line = own["average_accuracy"][:learnt] if own else []
        dashed = (
            " The dashed line is what the adapter\N{RIGHT SINGLE QUOTATION MARK}s own head "
            "would answer."
            if own
            else ""
        )
        yield figure(
            "Keeping old domains while learning new ones",
            "A flat average line means that new domains come without loss; the forgetting line is "
            f"how far old domains have fallen below their best.{dashed}",
            lambda width: charts.over_domains(names, average, lost, width, line),
            columns_table("Figures of the run", ("figure", "value", "meaning"), _summary(report)),
        )
    if report["over_clients"]:
        yield _over_clients(report["over_clients"], names)


def _summary(report: Report) -> Iterator[tuple[str, str, str]]:
    lost = report["forgetting"][report["learnt"] - 1]
    yield "Average accuracy", percent(report["final_accuracy"]), "each domain counts alike"
    yield (
        "Weighted accuracy",
        percent(report["weighted_accuracy"]),
        "each test request counts alike",
    )
    yield "Learning accuracy", percent(report["learning_accuracy"]), "right after each domain"
    yield "Forgetting", points(lost), "since each old domain\N{RIGHT SINGLE QUOTATION MARK}s best"
    yield "Backward transfer", points(report["backward_transfer"]), "since each was learnt"
    forward = report["forward_transfer"]
    why = "of domains to come, over an untrained adapter"
    if forward is None:
        why = "not measured: needs labels that are known before their domain comes"
    yield "Forward transfer", points(forward), why


def _over_clients(over: Mapping[str, Any], names: Sequence[str]) -> str:
    clients = over["clients"]
    ranked = client_charts.ranked(clients)
    heads = ("figure", "mean", "weighted", "spread", "worst client")
    worst = over["average_accuracy"]["worst_node"]
    named = f" Worst off is node {worst}." if worst is not None else ""
    rest = len(ranked) - client_charts.MOST_ROWS
    more = f"{count(rest, 'better client')} not drawn." if rest > 0 else ""
    return figure(
        "How the clients fare",
        "Each row is a client\N{RIGHT SINGLE QUOTATION MARK}s own test records at the end, the "
        f"worst first, in percent; a dash is where it has none.{named}",
        lambda width: client_charts.fares(ranked, names, width),
        after(more)
        + columns_table("Figures over the clients", heads, _over_rows(over))
        + fold("Client by client", _by_client(ranked)),
        room="scroll",
    )


def _over_rows(over: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    kinds = (
        ("average_accuracy", "Average accuracy", percent),
        ("forgetting", "Forgetting", points),
    )
    for key, name, say in kinds:
        found = over[key]
        if found:
            spread = found["spread"]
            yield (
                name,
                say(found["mean"]),
                say(found["weighted"]),
                points(spread),
                DASH if found["worst_node"] is None else _worst(found, say(found["worst"])),
            )


def _worst(found: Mapping[str, Any], words: str) -> str:
    return f"{words}, node {short(found['worst_node'])}"


def _by_client(clients: Sequence[Mapping[str, Any]]) -> str:
    heads = ("client", "test records", "domain mean", "all records", "forgetting")
    rows = (
        (
            f"node {client['node']}",
            f"{client['answers']:,}",
            percent(client["average_accuracy"]),
            percent(client["weighted_accuracy"]),
            points(client["forgetting"]),
        )
        for client in clients
    )
    return columns_table("Each client's figures", heads, rows)


def _matrix(names: Sequence[str], matrix: Sequence[Sequence[float | None]]) -> str:
    heads = "".join(f"<th>{i + 1}</th>" for i in range(len(names)))
    rows = "".join(
        f"<tr><th>{i + 1} {escape(name)}</th>"
        + "".join(f"<td>{_cell(v)}</td>" for v in matrix[i][: i + 1])
        + "</tr>"
        for i, name in enumerate(names)
    )
    return (
        f'<div class="scroll"><table class="matrix"><tr><th></th>{heads}</tr>{rows}</table></div>'
    )


def _cell(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.1f}"
