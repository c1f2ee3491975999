"""Who could see what of one client's update, in plain words, from a run's actual settings.

What is said here is argued in `privacy.pairs` (masks, and what revealing them opens) and in
`privacy.holder` (what a key holder sees and cannot tell).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.private import EXAMPLE, USER
from .report_log import table
from .units import count

NOTHING, SUM, OTHERS = "nothing", "only the sum", "only the sum of the others"
EVERY, SEALED, NOBODY = "every update", "sealed uploads", "there is none"
LATE = "the sum, and late updates"

_TLS = "TLS is the deployment\N{RIGHT SINGLE QUOTATION MARK}s; in a simulation nothing leaves the "
_TLS += "machine."
_NEIGHBOUR = "A neighbour knows the one mask that it shares with the client, and no other."
_NO_SECRET = "The client holds no secret key: ciphertexts, and the sum less its own update."
_BOUNDED = {
    EXAMPLE: "one record (epsilon for each record)",
    USER: "one client (epsilon for each client)",
}
_JOINED = (
    "In this run the key holder was inside the server\N{RIGHT SINGLE QUOTATION MARK}s own process, "
    "as in a simulation: "
)


@dataclass(frozen=True, slots=True)
class View:
    """What one party, or several that put together what they have, could see.

    Attributes:
        who: the party.
        sees: in a few words, of one client's update.
        why: in a sentence or two.
    """

    who: str
    sees: str
    why: str

    @property
    def is_open(self) -> bool:
        """Whether single updates can be seen."""
        return self.sees in (EVERY, LATE)


@dataclass(frozen=True, slots=True)
class _Setting:
    masks: bool
    symmetric: bool
    joined: bool
    revealed: int


def views(block: Mapping[str, Any], units: Collection[str] = ()) -> list[View]:
    """One row per party and coalition; none where the log does not say how updates were hidden.

    Args:
        block: `sums` of a report.
        units: for which privacy is promised, `example` or `user`.
    """
    if not block["hidden"]:
        return _in_the_clear(units)
    if block["masks"] is None or not (block["scheme"] or block["masks"]):
        return []
    if not block["scheme"]:
        return _masks_alone()
    setting = _Setting(
        masks=block["masks"],
        symmetric=block["key_model"] != "public",
        joined=block["keyholder"] == "in_process",
        revealed=block["totals"]["revealed"],
    )
    return _masked(setting) if setting.masks else _unmasked(setting)


def sealed(block: Mapping[str, Any], config: Mapping[str, Any], units: Collection[str] = ()) -> str:
    """What travels inside the sum, and what stays in the clear.

    Args:
        block: `sums` of a report.
        config: of the run.
        units: for which privacy is promised.
    """
    if units:
        return _sealed_privately(block, units)
    if not block["hidden"]:
        return "Weight and mean loss of each update are in the clear with it."
    words = (
        "Sealed with each update, and known only added up: its weight, its mean loss, how many of "
        "its values were cut, and how large its largest is, in rough steps. In the clear: message "
        "sizes, timing, who answered, and the seconds that each said it took."
    )
    if table(config.get("evaluate")).get("where") == "clients":
        words += " Each client\N{RIGHT SINGLE QUOTATION MARK}s test scores are in the clear too."
    return (
        f"{words} The sum and the model tell something of everyone in them; to bound that is the "
        "part of [privacy]."
    )


def _sealed_privately(block: Mapping[str, Any], units: Collection[str]) -> str:
    clear = "what its ledger says of epsilon. It tells neither loss nor seconds"
    if not block["hidden"]:
        words = f"In the clear with each update: its weight, alike for all, and {clear}."
    else:
        # In sums that are private to users these are constants.
        rough = ""
        if USER not in units:
            rough = (
                ", how many of its values were cut, and how large its largest is, in rough steps: "
                "of an update whose noise is in it already"
            )
        words = (
            f"Sealed with each update: its weight, alike for all{rough}. In the clear: message "
            f"sizes, timing, who answered, and with each answer {clear}."
        )
    bounded = [name for unit, name in _BOUNDED.items() if unit in units]
    return f"{words} What the sum and the model tell of {' and of '.join(bounded)} is bounded."


def undefended(block: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What all of this does not help against."""
    if not block["hidden"]:
        return "Not defended: whoever runs the server, or breaks into it, reads every update."
    lies = "a server that actively lies about whose uploads are in a sum"
    if block["masks"]:
        pinned = bool(table(config.get("secure_sum")).get("identities"))
        said = "as they were" if pinned else "which they were not"
        lies = (
            "a server that actively lies about who the clients are, unless identities are pinned "
            f"([secure_sum] identities), {said} in this run"
        )
    then = "given up" if block["scheme"] else "asked again"
    return (
        f"Not defended: {lies}; and one client\N{RIGHT SINGLE QUOTATION MARK}s garbage, which "
        f"spoils a round: it is noticed, and the round is {then}."
    )


def _late(revealed: int) -> str:
    """On the one exception to the masks: who dropped out, and was late."""
    what = (
        "When a client drops out its masks are revealed; they could then read that one update if "
        "it still arrived late."
    )
    if not revealed:
        return f"{what} In no round that was opened were masks revealed."
    return f"{what} Masks were revealed {count(revealed, 'time')} in this run."


def _in_the_clear(units: Collection[str]) -> list[View]:
    server = "With its weight and its mean loss, in every round."
    if EXAMPLE in units:
        server = "In every round, each with noise that bounds what it tells of one record."
    elif USER in units:
        server = "In every round, cut to the clip; the noise comes to their sum alone."
    tls = f"All that travels, unless TLS stands between. {_TLS}"
    return [
        View("Other clients", NOTHING, "They get the new model after each round."),
        View("The server", EVERY, server),
        View("The key holder", NOBODY, "Nothing is encrypted."),
        View("Server + one client", EVERY, "The server alone does."),
        View("Someone on the network", EVERY, tls),
    ]


def _masks_alone() -> list[View]:
    server = (
        "Masked words, which look like chance; the masks cancel in the sum of all. Where a client "
        "is lost nothing is revealed, and the others are asked again; should its words still "
        "arrive after that, the difference of the two sums is its update."
    )
    together = (
        "The sum, less the updates of those clients, as long as the honest ones stay connected "
        "through their masks; the line of words above says to how many neighbours."
    )
    return [
        View("Other clients", NOTHING, f"They get the new model after each round. {_NEIGHBOUR}"),
        View("The server", SUM, server),
        View("The key holder", NOBODY, "Masks need no key that opens a sum."),
        View("Server + some clients", OTHERS, together),
        View("Someone on the network", SEALED, f"Masked words, and the new model. {_TLS}"),
    ]


def _masked(setting: _Setting) -> list[View]:
    clients = f"They get the new model after each round, and no uploads. {_NEIGHBOUR}"
    holder = (
        "The sum it opens, still masked where clients were missing. A single upload, should the "
        "server hand it one, is masked."
    )
    both = (
        "Uploads are masked under the encryption: nothing finer, as long as the client shares a "
        f"mask with an honest one that was not revealed. {_late(setting.revealed)}"
    )
    some = (
        "The sum, less the updates of those clients, as long as the honest ones stay connected "
        "through masks that were not revealed; the line of words above says to how many "
        "neighbours. Late updates as in the row above."
    )
    late = LATE if setting.revealed else ""
    return [
        View("Other clients", NOTHING, clients),
        _masked_server(setting),
        View("The key holder", SUM, holder),
        _masked_insider(setting),
        View("Server + key holder", late or SUM, both),
        View("Server + key holder + some clients", late or OTHERS, some),
        View("Someone on the network", SEALED, f"Ciphertexts, and the new model. {_TLS}"),
    ]


def _masked_server(setting: _Setting) -> View:
    why = "Ciphertexts, then the sum that the key holder opened."
    if not setting.joined:
        return View("The server", SUM, why)
    late = LATE if setting.revealed else SUM
    return View("The server", late, f"{why} {_JOINED}what both together could see, it could.")


def _masked_insider(setting: _Setting) -> View:
    who = "Server + one client, with its key"
    if setting.symmetric:
        why = (
            "The client\N{RIGHT SINGLE QUOTATION MARK}s key opens uploads, and what it opens is "
            "masked: nothing but the sum, less that client\N{RIGHT SINGLE QUOTATION MARK}s own. "
            f"{_late(setting.revealed)}"
        )
        return View(who, LATE if setting.revealed else OTHERS, why)
    if setting.joined and setting.revealed:
        return View(who, LATE, f"{_NO_SECRET} Late updates as by the server alone.")
    return View(who, OTHERS, _NO_SECRET)


def _unmasked(setting: _Setting) -> list[View]:
    key = "hold the secret key, and get no uploads" if setting.symmetric else "hold no secret key"
    both = "The one has the uploads, the other the secret key, and no mask stands behind it."
    network = f"Ciphertexts, and the new model. {_TLS}"
    if setting.symmetric:
        network = (
            f"Ciphertexts, and the new model; with the key of any client, every update. {_TLS}"
        )
    return [
        View("Other clients", NOTHING, f"They get the new model after each round; they {key}."),
        *_unmasked_singles(setting),
        _unmasked_insider(setting),
        View("Server + key holder", EVERY, both),
        View("Server + key holder + some clients", EVERY, "Server and key holder alone do."),
        View("Someone on the network", SEALED, network),
    ]


def _unmasked_singles(setting: _Setting) -> tuple[View, View]:
    """Server and key holder, each by itself; in one process there is no such thing."""
    if setting.joined:
        return (
            View("The server", EVERY, f"{_JOINED}together they open any upload."),
            View("The key holder", EVERY, "It was inside the server, which has the uploads."),
        )
    server = (
        "Ciphertexts, then the sum that the key holder opened. A server that lies can hand in one "
        "upload of a round as if it were the sum, and have it opened."
    )
    holder = (
        "The sum it opens. It cannot tell a single upload from a sum: should the server hand it "
        "one, it reads that update."
    )
    return View("The server", SUM, server), View("The key holder", SUM, holder)


def _unmasked_insider(setting: _Setting) -> View:
    who = "Server + one client, with its key"
    if setting.symmetric:
        why = "Every client holds the secret key, and no mask stands behind it."
        return View(who, EVERY, why)
    if setting.joined:
        return View(who, EVERY, "The server alone does.")
    return View(who, OTHERS, _NO_SECRET)
