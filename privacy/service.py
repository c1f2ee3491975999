"""A key holder in another process, over gRPC: this end, and the form of what is asked.

A request to open is 4 bytes, big-endian, with the length of the header, the header, JSON with
`pact` and `nodes`, and the body. Both ends show a certificate of the same authority; without
certificates only this machine is talked to. Nothing here can decrypt.
"""

from __future__ import annotations

import json
import logging
import random
import re
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from ipaddress import ip_address
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import grpc
from pydantic import Field

from ..core.errors import ConfigError, Fault, RefusedError, RunError
from ..core.parts import KeyHolder
from ..core.sums import Pact

SERVICE, FINGERPRINT, OPEN = "perennial.KeyHolder", "Fingerprint", "Open"
"""Name of the service and of its methods."""

MIB = 1 << 20

# 30,000 node ids fit a header.
_HEADER_BYTES, _TEXT_LETTERS = MIB, 256
_HEX_32 = re.compile(rb"[0-9a-f]{32}")
# Seconds between two tries, growing; and between two log lines of one cause.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _SILENCE_S = 0.05, 1.0, 10.0
_KEEPALIVE = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # gRPC's own pause between two connections grows to two minutes; a restart takes seconds.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

_logger = logging.getLogger(__name__)


def build(
    *,
    address: str = "",
    ca: str = "",
    certificate: str = "",
    key: str = "",
    deadline_s: Annotated[float, Field(gt=0.0)] = 30.0,
    wait_s: Annotated[float, Field(ge=0.0)] = 600.0,
    max_message_mib: Annotated[int, Field(ge=1, le=1024)] = 64,
) -> KeyHolder:
    """The key holder at `address`, connected to when it is first asked.

    Args:
        address: `host:port`.
        ca: PEM file of the authority that signed both certificates.
        certificate: this end's, PEM.
        key: of that certificate, PEM.
        deadline_s: for one call.
        wait_s: how long a key holder that is away or silent is asked again.
        max_message_mib: largest request; at most the key holder's own `max_message_mib`.
    """
    return _Service(address, (ca, certificate, key), deadline_s, wait_s, max_message_mib * MIB)


def pack(pact: Pact, nodes: Collection[int], body: bytes) -> bytes:
    """A request to open."""
    header = json.dumps({"pact": pact.pack(), "nodes": sorted(nodes)}).encode()
    return b"".join([len(header).to_bytes(4, "big"), header, body])


def unpack(request: bytes) -> tuple[Pact, list[int], bytes]:
    """Pact, nodes and body of a peer's request to open.

    Raises:
        ValueError: it is malformed.
    """
    length = int.from_bytes(request[:4], "big")
    if not 0 < length <= min(_HEADER_BYTES, len(request) - 4):
        raise ValueError(
            f"the header's length must be 1..{_HEADER_BYTES} and within the request; got {length} "
            f"in {len(request)} bytes"
        )
    try:
        text = request[4 : 4 + length].decode("utf-8")
        header = json.loads(text, object_pairs_hook=_distinct, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the header must be strict JSON: {error}") from error
    if not isinstance(header, dict) or set(header) != {"pact", "nodes"}:
        raise ValueError("the header must be an object with pact and nodes")
    return _pact(header["pact"]), _nodes(header["nodes"]), request[4 + length :]


def _pact(values: Any) -> Pact:
    if not isinstance(values, dict):
        raise ValueError("the pact must be an object")
    try:
        pact = Pact.unpack(values)
    except (RunError, OverflowError) as error:
        raise ValueError(str(error)) from error
    if max(pact.domain, pact.round, pact.attempt, pact.size) >= 2**63:
        raise ValueError("the pact's counts must be below 2**63")
    if max(map(len, (pact.run, pact.manifest, pact.key))) > _TEXT_LETTERS:
        raise ValueError(f"the pact's texts must have at most {_TEXT_LETTERS} letters")
    return pact


def _nodes(values: Any) -> list[int]:
    if not isinstance(values, list) or not all(type(node) is int for node in values):
        raise ValueError("nodes must be an array of whole numbers")
    if not all(-(2**63) <= node < 2**64 for node in values):
        raise ValueError("nodes must fit 64 bits")
    return values


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number")


def is_loopback(host: str) -> bool:
    """Whether `host` can be no other machine than this one."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class _Service:
    def __init__(
        self,
        address: str,
        files: tuple[str, str, str],
        deadline_s: float,
        wait_s: float,
        max_bytes: int,
    ) -> None:
        self._address, self._files = address, files
        self._deadline_s, self._wait_s, self._max_bytes = deadline_s, wait_s, max_bytes
        self._channel: Any = None
        self._known = ""
        self._lock = Lock()

    def fingerprint(self) -> str:
        """Of the key in force; asked again after each new connection.

        Raises:
            ConfigError: the address or the certificates cannot be used.
            RunError: the key holder cannot be reached, or refuses.
        """
        known = self._known
        if not known:
            answer = self._call(FINGERPRINT, b"")
            if not _HEX_32.fullmatch(answer):
                raise RunError(
                    f"the key holder at {self._address} must answer with 32 hex digits; it "
                    f"answered {answer[:40]!r}. Look whether the address is its own."
                )
            known = self._known = answer.decode()
        return known

    def open(self, pact: Pact, nodes: Collection[int], body: bytes) -> bytes:
        """As `Holder.open`, in another process.

        Raises:
            ConfigError: the address or the certificates cannot be used.
            RunError: the key holder refuses, in its words, or cannot be reached.
        """
        request = pack(pact, nodes, body)
        if len(request) > self._max_bytes:
            raise RunError(
                f"a request to the key holder must be at most {self._max_bytes // MIB} MiB; this "
                f"one is {len(request) / MIB:.1f}. Raise max_message_mib here and there."
            )
        return self._call(OPEN, request)

    def close(self) -> None:
        """Close the connection; the next call makes another."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            self._channel, self._known = None, ""

    def _call(self, method: str, request: bytes) -> bytes:
        """The answer to `request`, tried again while the key holder is away."""
        end, pause, said = time.monotonic() + self._wait_s, _FIRST_PAUSE_S, _Silence()
        call = self._connected().unary_unary(f"/{SERVICE}/{method}")
        while True:
            try:
                return bytes(call(request, timeout=self._deadline_s))
            except grpc.RpcError as error:
                self._known = ""
                words = f"{error.code().name}: {error.details() or 'no reason given'}"
                if not _may_pass(error):
                    refused = error.code() is grpc.StatusCode.FAILED_PRECONDITION
                    kind = RefusedError if refused else RunError
                    raise kind(f"the key holder at {self._address} says {words}") from error
                if time.monotonic() + pause > end:
                    raise RunError(
                        f"the key holder at {self._address} must answer within wait_s = "
                        f"{self._wait_s:g} s; it does not. Last: {words}. Look whether it runs: "
                        "perennial keyholder FILE"
                    ) from error
                said.tell(f"waiting for the key holder at {self._address}: {words}", words)
            # Servers that wait together should not all come back together.
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _connected(self) -> Any:
        with self._lock:
            if self._channel is None:
                self._channel = self._connect()
                self._channel.subscribe(_forgetting(weakref.ref(self)))
                weakref.finalize(self, self._channel.close)
            return self._channel

    def _connect(self) -> Any:
        host, _, port = self._address.rpartition(":")
        if not host or not port.isdecimal():
            problem = f"must be host:port; got {self._address!r}"
            raise ConfigError(
                [Fault("keyholder.address", problem, "`perennial keyholder` says it")]
            )
        limits = [
            ("grpc.max_send_message_length", self._max_bytes),
            ("grpc.max_receive_message_length", self._max_bytes),
            ("grpc.enable_http_proxy", int(not is_loopback(host))),
        ]
        options = [*_KEEPALIVE, *limits]
        if any(self._files):
            return grpc.secure_channel(self._address, self._credentials(), options)
        if not is_loopback(host):
            problem = f"must be given for a key holder on another machine, {self._address}"
            remedy = "write ca, certificate and key"
            raise ConfigError([Fault("keyholder.certificate", problem, remedy)])
        return grpc.insecure_channel(self._address, options)

    def _credentials(self) -> Any:
        parts, faults = [], []
        for name, path in zip(("ca", "certificate", "key"), self._files, strict=True):
            try:
                parts.append(Path(path).read_bytes())
            except OSError as error:
                problem = f"must be a PEM file that can be read; got {path!r}: {error.strerror}"
                faults.append(Fault(f"keyholder.{name}", problem))
        if faults:
            raise ConfigError(faults)
        ca, certificate, key = parts
        return grpc.ssl_channel_credentials(ca, key, certificate)


def _may_pass(error: Any) -> bool:
    """Whether the same call may succeed later."""
    code = error.code()
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:  # too many at once, or too long
        return "oncurrent" in (error.details() or "")
    passing = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")
    return code.name in passing


def _forgetting(service: weakref.ref[_Service]) -> Callable[[Any], None]:
    """What forgets the fingerprint when the connection is lost; it keeps nothing alive."""

    def changed(state: Any) -> None:
        there = service()
        if there is not None and state is not grpc.ChannelConnectivity.READY:
            there._known = ""

    return changed


class _Silence:
    """Says a cause in the log when it is new, and again every 10 s."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def tell(self, line: str, cause: str) -> None:
        now = time.monotonic()
        if now - self._said.get(cause, -_SILENCE_S) >= _SILENCE_S:
            self._said[cause] = now
            _logger.warning(line)
