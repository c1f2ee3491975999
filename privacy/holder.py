"""The key holder: it has the secret key and opens sums, one for each round, and tells in its log.

It sees sums only, and it sees that a body is a ciphertext under its key; how many clients are in
one it cannot see, it is told. That a body is no single client's is what the pairwise masks are
for: without the masks of all counted clients nothing but noise opens. So a server that lies about
`nodes` learns nothing from a masked sum, and everything from an unmasked one.

A round is opened once: two sums of one round that differ by a client would give that client's
update away. Which rounds were opened is read from the audit log at the start, so the log belongs
to the keys: a holder with an empty log has opened nothing.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection
from threading import Lock
from typing import Any

import numpy as np

from ..core.errors import ConfigError, Fault, RefusedError
from ..core.sums import Pact
from .audit_log import AuditLog
from .keys import Card
from .lattice import Opener
from .limits import on_grid
from .ring import Form, pack_bits

MIN_CLIENTS = 3
"""Fewest clients of a sum: of two, each could subtract its own update and read the other's."""

# No packing of ours puts more values into a coefficient than a word has bits.
_VALUES_PER_COEFFICIENT = 64

_logger = logging.getLogger(__name__)


class Holder:
    """A `core.parts.KeyHolder` with the key itself; safe for several threads.

    Args:
        card: of the key.
        secret: the secret key.
        min_clients: fewest clients of a sum, >= 3.
        log: gets a line for each opening and each refusal, before the answer is given.

    Raises:
        ConfigError: `min_clients` is below 3.
        ValueError: `secret` is no key of the card's scheme.
    """

    def __init__(self, card: Card, secret: bytes, min_clients: int, log: AuditLog) -> None:
        if min_clients < MIN_CLIENTS:
            problem = f"must be {MIN_CLIENTS} or more; got {min_clients}"
            remedy = "of two clients, each could read the other's update in the sum"
            raise ConfigError([Fault("keyholder.min_clients", problem, remedy)])
        self.card, self.min_clients = card, min_clients
        self._opener = Opener(card.scheme, secret)
        self._form = Form(card.scheme, seeded=False)
        self._log, self._lock = log, Lock()
        self._opened = {
            (entry["run"], entry["domain"], entry["round"]): str(entry["request"])
            for entry in log.entries()
            if entry["event"] == "opened"
        }
        log.append("started", key=card.fingerprint, min_clients=min_clients)

    def fingerprint(self) -> str:
        """Of the key, 32 hex digits."""
        return self.card.fingerprint

    def open(self, pact: Pact, nodes: Collection[int], body: bytes) -> bytes:
        """The slots of a sum: for bfv packed bits of the modulus' width, for ckks float64.

        The same request gets the same answer again; another sum of the same round gets none.

        Args:
            pact: of this sum.
            nodes: whose bodies were added; distinct.
            body: whole ciphertexts, both polynomials.

        Raises:
            RefusedError: and why; the refusal is in the log.
            RunError: the log cannot be written; nothing was opened.
        """
        with self._lock:
            try:
                self._need_key(pact)
                self._need_clients(nodes)
                request = _digest(pact, nodes, body)
                again = self._need_first(pact, request)
                answer = self._decrypt(pact, body)
            except RefusedError as refusal:
                self._log.append("refused", **_about(pact), clients=len(nodes), why=str(refusal))
                _logger.warning("refused a sum of round %s: %s", pact.round, refusal)
                raise
            self._log.append(
                "repeated" if again else "opened",
                **_about(pact),
                nodes=sorted(nodes),
                size=pact.size,
                request=request,
            )
            self._opened[_place(pact)] = request
            return answer

    def close(self) -> None:
        """Close the log; nothing is opened any more."""
        self._log.close()

    def _need_key(self, pact: Pact) -> None:
        if pact.key != self.card.fingerprint:
            raise RefusedError(
                f"the sum must be under the key in force, {self.card.fingerprint}; it is under "
                f"{pact.key[:40]!r}. Give every client the client.key of that key."
            )

    def _need_clients(self, nodes: Collection[int]) -> None:
        if not all(type(node) is int for node in nodes) or len(set(nodes)) != len(nodes):
            raise RefusedError("the nodes of a sum must be distinct whole numbers; they are not")
        if len(nodes) < self.min_clients:
            raise RefusedError(
                f"a sum must be over at least {self.min_clients} clients; this one is over "
                f"{len(nodes)}. Ask more clients in a round."
            )

    def _need_first(self, pact: Pact, request: str) -> bool:
        """Whether the same request was answered before."""
        before = self._opened.get(_place(pact))
        if before not in (None, request):
            raise RefusedError(
                f"a round is opened once; round {pact.round} of domain {pact.domain} of run "
                f"{pact.run[:80]!r} was opened with another sum. Start a new run."
            )
        return before is not None

    def _decrypt(self, pact: Pact, body: bytes) -> bytes:
        scheme = self.card.scheme
        try:
            count = self._form.count(len(body))
            if count < 1:
                raise ValueError("it is empty")
            if count * scheme.degree * _VALUES_PER_COEFFICIENT < pact.size:
                raise ValueError(f"{count} of them cannot hold {str(pact.size)[:20]} values")
            slots = self._opener.decrypt(*self._form.read(body, count))
            if scheme.name == "ckks":
                # With its noise a sum gives the key away: see `ckks`.
                slots = on_grid(scheme, slots)
        except ValueError as error:
            raise RefusedError(
                f"the body must be whole ciphertexts of {scheme.name} with degree "
                f"{scheme.degree}: {error}"
            ) from error
        if scheme.name == "bfv":
            return pack_bits(slots.reshape(-1), scheme.modulus.bit_length())
        return np.ascontiguousarray(slots, "<f8").tobytes()


def _place(pact: Pact) -> tuple[str, int, int]:
    return pact.run, pact.domain, pact.round


def _about(pact: Pact) -> dict[str, Any]:
    run, domain, round_ = _place(pact)
    return {"run": run, "domain": domain, "round": round_, "attempt": pact.attempt}


def _digest(pact: Pact, nodes: Collection[int], body: bytes) -> str:
    return pact.digest("open", *sorted(nodes), hashlib.sha256(body).hexdigest()).hex()
