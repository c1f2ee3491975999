"""Health, readiness and figures of a service over HTTP, for probes, monitors and people."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .errors import RunError

_PATIENCE_S = 5.0  # with a caller that sends its question letter by letter


@contextmanager
def showing(
    address: str,
    states: Callable[[], Mapping[str, str]],
    up: str,
    metrics: Callable[[], bytes] = bytes,
) -> Iterator[str]:
    """Answer at `address` while open; gives the address in use, whose port the system may choose.

    `/healthz` answers 200 while the process lives; `/readyz` 200 when all states are `up`, else
    503, with the states as JSON either way; `/metrics` what `metrics` gives.

    Args:
        address: host:port; port 0 for a free one.
        states: part -> its state.
        up: the state of a part that serves.
        metrics: () -> figures in Prometheus's text format; asked by one caller at a time.

    Raises:
        RunError: the address cannot be had.
    """
    host, _, port = address.rpartition(":")
    one = threading.Lock()

    class Answer(BaseHTTPRequestHandler):
        timeout = _PATIENCE_S

        def do_GET(self) -> None:
            found = dict(states())
            ready = bool(found) and all(state == up for state in found.values())
            if self.path == "/healthz":
                self._say(200, {"status": "alive"})
            elif self.path == "/readyz":
                self._say(200 if ready else 503, {"ready": ready, "parts": found})
            elif self.path == "/metrics":
                with one:
                    text = metrics()
                self._send(200, text, "text/plain; version=0.0.4; charset=utf-8")
            else:
                self._say(404, {"error": "ask for /healthz, /readyz or /metrics"})

        def _say(self, code: int, body: Mapping[str, Any]) -> None:
            self._send(code, json.dumps(body).encode() + b"\n", "application/json")

        def _send(self, code: int, text: bytes, kind: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: probes ask every few seconds."""

    try:
        server = ThreadingHTTPServer((host.strip("[]"), int(port)), Answer)
    except (OSError, OverflowError) as error:
        raise RunError(
            f"status = {address!r} must be an address that is free: {error}. Write another."
        ) from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="status", daemon=True)
    thread.start()
    try:
        yield f"{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
