"""The key holder as a gRPC service: what `perennial keyholder FILE` runs.

Both ends show a certificate of one authority. A peer's bytes reach the key only as whole
ciphertexts of the known scheme; whatever else it sends gets a status and one line, and no word of
what went on inside.
"""

from __future__ import annotations

import logging
import ssl
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from pydantic import Field, ValidationError

from ..core.config import Table, suggest, wording
from ..core.errors import ConfigError, DataError, Fault, RefusedError, RunError
from ..core.files import write_atomically
from .audit_log import AuditLog
from .holder import MIN_CLIENTS, Holder
from .keys import open_holder_key
from .service import FINGERPRINT, MIB, OPEN, SERVICE, is_loopback, unpack

_WORKERS, _CONCURRENT = 2, 8
# Longest wait of a request for its turn, also where the peer set no deadline.
_TURN_S = 60.0
_GRACE_S = 10.0
_REASON_LETTERS = 300
_OPTIONS = (
    # Two key holders on one port would each get half of the requests.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    # Else a peer that never ends its request could keep a worker for ever.
    ("grpc.max_connection_age_ms", 600_000),
    ("grpc.max_connection_age_grace_ms", 120_000),
)

_logger = logging.getLogger(__name__)


class Tls(Table):
    """`[tls]`: PEM files, and whom to serve."""

    ca: str
    certificate: str
    key: str
    allow: Annotated[tuple[str, ...], Field(strict=False)] = ()


class Settings(Table):
    """The config of a key holder; paths are relative to its file."""

    keys: Annotated[str, Field(min_length=1)]
    address: str = "127.0.0.1:0"
    audit: Annotated[str, Field(min_length=1)] = "audit.jsonl"
    min_clients: Annotated[int, Field(ge=MIN_CLIENTS)] = MIN_CLIENTS
    max_message_mib: Annotated[int, Field(ge=1, le=1024)] = 64
    tls: Tls | None = None
    insecure: bool = False
    ready: str = ""


def read(path: Path) -> Settings:
    """The settings in the TOML file at `path`, its paths made absolute.

    Raises:
        ConfigError: every fault of the file's shape, or, where that holds, of its values.
        DataError: there is no such file.
    """
    try:
        settings = Settings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"{path} must be a key holder's config: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([Fault("", f"the file is not valid TOML: {error}")]) from error
    except ValidationError as error:
        raise ConfigError([_fault(detail) for detail in error.errors()]) from error
    settings = _placed(settings, path.resolve().parent)
    if faults := list(_faults(settings)):
        raise ConfigError(faults)
    return settings


@contextmanager
def serving(settings: Settings, passphrase: str) -> Iterator[tuple[str, Holder]]:
    """Open the key, then answer until the context is left; gives the bound `host:port`, too.

    Raises:
        DataError: the key, the log or the certificates cannot be opened.
        RunError: the address cannot be bound, or another process has the log.
    """
    card, secret = open_holder_key(Path(settings.keys), passphrase)
    log = AuditLog(Path(settings.audit))
    try:
        _tell_ready(settings.ready, "")  # of a life before this one; the log is this life's now
        holder = Holder(card, secret, settings.min_clients, log)
        if settings.tls is not None and not settings.tls.allow:
            _logger.warning("tls.allow is empty: whoever has a certificate of the CA may ask")
        server, alive = _server(holder, settings)
        address = _bind(server, settings)
        server.start()
        try:
            _tell_ready(settings.ready, address)
            yield address, holder
        finally:
            alive.enter_graceful_shutdown()
            server.stop(_GRACE_S).wait()
            _tell_ready(settings.ready, "")
    finally:
        log.close()


def _tell_ready(path: str, address: str) -> None:
    """Write the address, or take the file away when there is none any more."""
    try:
        if path and address:
            write_atomically(Path(path), f"{address}\n")
        elif path:
            Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"ready = {path!r} must be a file that can be written: {error}") from error


class _Abort(Exception):
    """Ends a call with a status and one line."""

    def __init__(self, code: Any, why: str) -> None:
        super().__init__(why)
        self.code = code


class _Methods:
    """The two calls, each within the border: the answer, or a status and one line."""

    def __init__(self, holder: Holder, allow: Sequence[str]) -> None:
        self._holder, self._allow = holder, frozenset(allow)
        self._turn = Lock()

    def fingerprint(self, request: bytes, context: Any) -> bytes:
        return self._answer(context, lambda: self._holder.fingerprint().encode())

    def open(self, request: bytes, context: Any) -> bytes:
        return self._answer(context, lambda: self._open(request, context))

    def _open(self, request: bytes, context: Any) -> bytes:
        try:
            asked = unpack(request)
        except ValueError as error:
            _logger.warning(
                "a malformed request from %s: %s", context.peer(), _one_line(str(error))
            )
            raise _Abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        # Where the peer set no deadline, gRPC says that many years remain.
        if not self._turn.acquire(timeout=min(context.time_remaining(), _TURN_S)):
            raise _Abort(grpc.StatusCode.DEADLINE_EXCEEDED, "other sums are being opened")
        try:
            if not context.is_active():
                raise _Abort(grpc.StatusCode.CANCELLED, "nobody waits for the answer")
            return self._holder.open(*asked)
        finally:
            self._turn.release()

    def _answer(self, context: Any, work: Callable[[], bytes]) -> bytes:
        try:
            self._need_allowed(context)
            return work()
        except _Abort as error:
            code, why = error.code, str(error)
        except RefusedError as error:
            code, why = grpc.StatusCode.FAILED_PRECONDITION, str(error)
        except RunError as error:  # a disk that is full may be mended while the server waits
            _logger.error("%s", error)
            code, why = grpc.StatusCode.UNAVAILABLE, "the key holder cannot write its audit log"
        # An entry point, as the server's and the client's: no peer is shown what went on inside.
        except Exception:
            _logger.exception("a request from %s failed inside the key holder", context.peer())
            code, why = grpc.StatusCode.INTERNAL, "the key holder failed; its log says why"
        context.abort(code, _one_line(why))
        raise AssertionError("abort always raises")

    def _need_allowed(self, context: Any) -> None:
        names = context.auth_context().get("x509_common_name", ())
        if self._allow and not self._allow & {name.decode("utf-8", "replace") for name in names}:
            _logger.warning("%s is not in tls.allow: %s", context.peer(), names)
            raise _Abort(grpc.StatusCode.PERMISSION_DENIED, "this certificate is not allowed")


def _server(holder: Holder, settings: Settings) -> tuple[Any, Any]:
    """The server, not started, and what tells its health."""
    limit = settings.max_message_mib * MIB
    options = [
        *_OPTIONS,
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
    ]
    server = grpc.server(
        ThreadPoolExecutor(_WORKERS, "keyholder"),
        options=options,
        maximum_concurrent_rpcs=_CONCURRENT,
    )
    methods = _Methods(holder, settings.tls.allow if settings.tls else ())
    calls = {
        FINGERPRINT: grpc.unary_unary_rpc_method_handler(methods.fingerprint),
        OPEN: grpc.unary_unary_rpc_method_handler(methods.open),
    }
    alive = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(alive, server)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, calls)])
    for name in ("", SERVICE):
        alive.set(name, health_pb2.HealthCheckResponse.SERVING)
    return server, alive


def _bind(server: Any, settings: Settings) -> str:
    """The address as bound: port 0 asks for any free one."""
    tls = settings.tls
    try:
        if tls is None:
            port = server.add_insecure_port(settings.address)
        else:
            key, certificate, ca = (
                Path(p).read_bytes() for p in (tls.key, tls.certificate, tls.ca)
            )
            credentials = grpc.ssl_server_credentials(
                [(key, certificate)], root_certificates=ca, require_client_auth=True
            )
            port = server.add_secure_port(settings.address, credentials)
    except (RuntimeError, OSError) as error:
        raise RunError(
            f"the address {settings.address} must be free and of this machine; it cannot be bound: "
            f"{error}"
        ) from error
    return f"{settings.address.rpartition(':')[0]}:{port}"


def _fault(detail: Any) -> Fault:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        table = Tls if len(detail["loc"]) > 1 else Settings
        return Fault(
            place, "unknown key", suggest(str(detail["loc"][-1]), list(table.model_fields))
        )
    if detail["type"] == "missing":
        return Fault(place, "must be given")
    return Fault(place, f"{wording(detail)}; got {detail['input']!r}")


def _placed(settings: Settings, folder: Path) -> Settings:
    """With paths that mean the same from everywhere."""

    def whole(table: Table, *names: str) -> dict[str, str]:
        given = {name: getattr(table, name) for name in names}
        return {name: str(folder / path) for name, path in given.items() if path}

    changed: dict[str, Any] = dict(whole(settings, "keys", "audit", "ready"))
    if settings.tls:
        paths = whole(settings.tls, "ca", "certificate", "key")
        changed["tls"] = settings.tls.model_copy(update=paths)
    return settings.model_copy(update=changed)


def _faults(settings: Settings) -> Iterator[Fault]:
    host, _, port = settings.address.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or int(port) >= 2**16:
        yield Fault("address", f"must be host:port; got {settings.address!r}")
    elif settings.insecure and not is_loopback(host):
        remedy = "drop insecure and write a [tls] table"
        yield Fault("insecure", f"is for loopback addresses only; got {host!r}", remedy)
    if settings.insecure and settings.tls:
        yield Fault("insecure", "has no meaning with a [tls] table", "drop one of the two")
    if not settings.insecure and not settings.tls:
        yield Fault("tls", "must be given", "write ca, certificate and key of a [tls] table")
    if settings.tls:
        yield from _tls_faults(settings.tls)


def _tls_faults(tls: Tls) -> Iterator[Fault]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password function OpenSSL would ask the terminal for one.
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: "")
    except (OSError, ValueError) as error:
        yield Fault("tls.certificate", f"must be a PEM file that fits tls.key; it is not: {error}")
    try:
        context.load_verify_locations(tls.ca)
    except (OSError, ValueError) as error:
        yield Fault("tls.ca", f"must be a PEM file of certificates; it is not: {error}")


def _one_line(text: str) -> str:
    plain = " ".join(text.split()).encode("ascii", "backslashreplace").decode()
    return plain if len(plain) <= _REASON_LETTERS else plain[: _REASON_LETTERS - 3] + "..."
