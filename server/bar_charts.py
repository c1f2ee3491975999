"""Charts of who took part: shares of the records, and why replies were rejected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import svg
from .units import count, digits, duration, percent, size

MOST_BARS = 40
"""Bars shown one by one; the rest is summed up in words by `others`."""


class Bar(NamedTuple):
    """One bar: its name, its length, the length in words, a warning and what pointing tells."""

    name: str
    value: float
    words: str
    warning: str
    hint: str


def contributions(clients: Sequence[Mapping[str, Any]], width: float) -> str:
    """Each client's share of all weights, largest first; clients with rejected replies marked.

    Where the weights are sealed: in how many rounds each client's update was counted.
    """
    rows = [
        Bar(
            f"node {short(client['node'])}",
            _part(client),
            count(client["rounds"], "round") if weights_sealed(clients) else percent(_part(client)),
            f"{client['rejected']:,} rejected" if client["rejected"] else "",
            _words(client),
        )
        for client in _by_part(clients)[:MOST_BARS]
    ]
    what = "Rounds" if weights_sealed(clients) else "Share of the training records"
    return _bars(rows, width, f"{what} per client", "bar one")


def weights_sealed(clients: Sequence[Mapping[str, Any]]) -> bool:
    """Whether nobody can tell how many records stand behind each client's updates."""
    return any(client["share"] is None for client in clients)


def others(clients: Sequence[Mapping[str, Any]]) -> str:
    """What the clients beyond the shown ones hold together; empty when all are shown."""
    rest = _by_part(clients)[MOST_BARS:]
    if not rest:
        return ""
    share = percent(sum(_part(client) for client in rest))
    held = "took part too" if weights_sealed(clients) else f"hold {share} together"
    rejected = sum(client["rejected"] for client in rest)
    marked = f", with {rejected:,} of their replies rejected" if rejected else ""
    return f"{count(len(rest), 'more client')} {held}{marked}."


def causes(rejected: Mapping[str, int], width: float) -> str:
    """Rejected replies by cause, most frequent first."""
    pairs = sorted(rejected.items(), key=lambda pair: (-pair[1], pair[0]))
    rows = [
        Bar(cause or "no cause given", number, f"{number:,}", "", f"{cause}: {number:,}")
        for cause, number in pairs[:MOST_BARS]
    ]
    return _bars(rows, width, "Rejected replies by cause", "bar bad")


def _by_part(clients: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(clients, key=lambda client: (-_part(client), client["node"]))


def _part(client: Mapping[str, Any]) -> float:
    """The client's share of all weights; where weights are sealed, its rounds."""
    return float(client["rounds"] if client["share"] is None else client["share"])


def short(node: int) -> str:
    """A node's id; of Flower's, of up to 19 digits, enough of both ends to tell them apart."""
    text = str(node)
    return text if len(text) <= 10 else f"{text[:4]}\N{HORIZONTAL ELLIPSIS}{text[-4:]}"


def _words(client: Mapping[str, Any]) -> str:
    loss, weight = client["mean_loss"], client["records_total"]
    said = [
        f"node {client['node']}",
        count(client["rounds"], "round"),
        "weight sealed" if weight is None else f"weight {digits(weight)} in all",
        f"{size(client['bytes_up'])} up",
    ]
    if client["seconds"] is not None:
        said.append(f"{duration(client['seconds'])} of training")
    if loss is not None:
        said.append(f"mean loss {loss:.3f}")
    return ", ".join(said)


def _bars(rows: Sequence[Bar], width: float, label: str, style: str) -> str:
    tail = max(svg.text_width(f"{row.words}   {row.warning}") for row in rows) + 16
    left = min(0.42 * width, max(svg.text_width(row.name) for row in rows) + 14)
    most = max(row.value for row in rows) or 1.0
    parts = []
    for i, row in enumerate(rows):
        y, long = 25.0 * i, max(1.0, (width - left - tail) * row.value / most)
        warning = svg.element("tspan", svg.escape(row.warning), dx=8, class_="warn")
        box = svg.element("rect", x=left, y=y + 4, width=long, height=17, rx=2, class_=style)
        words = svg.element(
            "text",
            svg.escape(row.words),
            warning if row.warning else "",
            x=left + long + 8,
            y=y + 17,
        )
        name = svg.write(left - 10, y + 17, svg.shorten(row.name, left - 12), "", "end")
        parts.append(svg.element("g", svg.title(row.hint), name, box, words))
    return svg.picture(width, 25.0 * len(rows) + 4, label, *parts)
