"""Pieces of the report page that its sections share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .svg import escape

WIDE, NARROW = 760.0, 344.0
"""Widths of each chart in px: for a desk or paper, and for a phone; the page shows one."""


def figure(
    heading: str,
    caption: str,
    chart: Callable[[float], str] | None = None,
    after: str = "",
    room: str = "fit",
) -> str:
    """A section of the page: heading, caption, a chart in both widths, and what follows it.

    Args:
        heading: plain text.
        caption: plain text.
        chart: the picture of a given width; None for a section without one.
        after: markup.
        room: `fit` to shrink the chart on small screens, else `scroll`.
    """
    pictures = "".join(
        f'<div class="{room} {style}">{chart(width)}</div>\n'
        for style, width in (("wide", WIDE), ("narrow", NARROW))
        if chart is not None
    )
    return (
        f"<figure>\n<figcaption><h2>{escape(heading)}</h2><p>{escape(caption)}</p></figcaption>\n"
        f"{pictures}{after}</figure>"
    )


def after(text: str) -> str:
    """A small line below a chart; nothing for no text."""
    return f'<p class="after">{escape(text)}</p>' if text else ""


def rows_table(label: str, heads: Sequence[str], rows: Iterable[tuple[str, str]]) -> str:
    """A table whose rows have a name, plain text, and a value, markup; `label` is read out."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{value}</td></tr>' for name, value in rows
    )
    top = f"<thead><tr>{head}</tr></thead>" if heads else ""
    return (
        f'<div class="scroll"><table aria-label="{escape(label)}">{top}'
        f"<tbody>{lines}</tbody></table></div>"
    )


def columns_table(
    label: str, heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = ""
) -> str:
    """A table of plain texts whose rows have a name first; empty without rows.

    Args:
        label: is read out.
        heads: of the columns.
        rows: of as many texts as there are columns.
        kind: `words` where cells may wrap, `dense` where they hold numbers alone; else numbers,
            and perhaps words in the last column.
    """
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    lines = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(text)}</td>" for text in rest)
        + "</tr>"
        for first, *rest in rows
    )
    if not lines:
        return ""
    style = f"columns {kind}".strip()
    return (
        f'<div class="scroll"><table class="{style}" aria-label="{escape(label)}">'
        f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def fold(heading: str, body: str) -> str:
    """Markup that is shown when its heading is opened; nothing for no markup."""
    return f"<details><summary>{escape(heading)}</summary>{body}</details>" if body else ""
