"""Seeded faults in virtual time: what becomes of a client in an exchange, the same in every run."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, Message

from ..core.config import Faults
from ..core.seeds import generator
from ..core.wire import ARRAYS, BODY, SEALED
from . import compat

NONE, DROP, STRAGGLE, GARBAGE, NAN = "none", "drop", "straggle", "garbage", "nan"


def draw(table: Faults, seed: int, index: int, group: str) -> str:
    """What befalls client `index` in the exchange `group`: one of the five words above."""
    value = generator(seed, "fault", index, group).random()
    rates = {
        DROP: table.drop_rate,
        STRAGGLE: table.straggle_rate,
        GARBAGE: table.garbage_rate,
        NAN: table.nan_rate,
    }
    for fault, rate in rates.items():
        if value < rate:
            return fault
        value -= rate
    return NONE


def befall(fault: str, request: Message, reply: Message, seed: int, index: int) -> Message:
    """`reply` as it arrives under `fault`.

    A straggler has done its work, but in virtual time its answer comes after the deadline; the
    server waits no real time for it.
    """
    if fault == STRAGGLE:
        return compat.error_reply(request, compat.TOO_LATE, "late")
    if fault == NONE or not reply.has_content():
        return reply
    arrays = reply.content.get(ARRAYS)
    if not isinstance(arrays, ArrayRecord) or BODY not in arrays:
        return reply
    size = len(arrays[BODY].data)
    if fault == NAN:
        body = b"\x00\x00\xc0\x7f" * (size // 4)
    else:
        rng = generator(seed, "garbage", index, request.metadata.group_id)
        body = rng.bytes(int(rng.integers(0, size + 9)))
    arrays[BODY] = Array("uint8", (len(body),), SEALED, body)
    return reply
