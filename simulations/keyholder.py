"""The key holder of a simulation: keys below the run folder, in process or as a real service.

A resumed run has the keys it was started with: a sum that was closed before the stop is opened
with the key it was sealed for.
"""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from ..core import check
from ..core.config import Config
from ..core.errors import RunError
from ..core.files import write_atomically
from ..core.parts import SecureSum
from ..privacy import keys, tls

logger = logging.getLogger(__name__)

_START_S = 60.0
_LIMIT_MIB = 64


@dataclass(frozen=True, slots=True)
class KeyParty:
    """What a simulation's server and clients need of its key holder.

    Attributes:
        options: for the server's `[keyholder]`.
        key_file: the clients' half of the key; None where there is none to give.
    """

    options: Mapping[str, Any]
    key_file: Path | None


@contextmanager
def key_party(config: Config, folder: Path) -> Iterator[KeyParty]:
    """The key holder of the run in `folder`, for as long as the run goes on.

    Args:
        config: of the run.
        folder: of the run; keys lie below `folder / "keyholder"`.

    Raises:
        RunError: the service did not start.
    """
    secure_sum: SecureSum = check.build(config, "secure_sum")
    if secure_sum.scheme is None or config.keyholder.options.get("address"):
        own = os.environ.get("PERENNIAL_KEY_FILE")  # of the user's own key holder
        yield KeyParty({}, Path(own) if own and secure_sum.scheme else None)
        return
    home = folder / "keyholder"
    passphrase = _keys(home, secure_sum)
    key_file = keys.client_path(home / "keys")
    if config.keyholder.name != "service":
        options = {
            "keys": str(home / "keys"),
            "audit": str(home / "audit.jsonl"),
            "min_clients": secure_sum.min_clients,
            "passphrase_file": str(passphrase),
        }
        yield KeyParty(options, key_file)
        return
    limit = config.keyholder.options.get("max_message_mib", _LIMIT_MIB)
    with _service(home, secure_sum.min_clients, limit, passphrase) as options:
        yield KeyParty(options, key_file)


def _keys(home: Path, secure_sum: SecureSum) -> Path:
    assert secure_sum.scheme is not None
    home.mkdir(parents=True, exist_ok=True)
    passphrase = home / "passphrase"
    if not passphrase.exists():
        write_atomically(passphrase, secrets.token_hex(16), 0o600)
    if not (home / "keys" / "current").exists():
        keys.create(home / "keys", secure_sum.scheme, passphrase.read_text(encoding="utf-8"))
    return passphrase


@contextmanager
def _service(
    home: Path, min_clients: int, limit_mib: int, passphrase: Path
) -> Iterator[dict[str, Any]]:
    certificates = home / "tls"
    # Anew at each start: they are for this process and its child, and do not last.
    tls.make_certificates(certificates, ["keyholder", "server"])
    policy = {"min_clients": min_clients, "max_message_mib": limit_mib}
    service = _Service(home, policy, passphrase)
    try:
        address = service.start()
        logger.info("key holder: process %d at %s", service.pid, address)
        yield {
            "address": address,
            "ca": str(certificates / "ca.pem"),
            "certificate": str(certificates / "server.pem"),
            "key": str(certificates / "server.key"),
        }
    finally:
        service.stop()


class _Service:
    """The real key holder as a child process, started again should it die."""

    def __init__(self, home: Path, policy: Mapping[str, int], passphrase: Path) -> None:
        self._home = home.resolve()
        self._policy = policy
        self._passphrase = passphrase.resolve()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._watch = threading.Thread(target=self._restart, name="keyholder", daemon=True)

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def start(self) -> str:
        """Start it; the address it is bound to, which restarts keep."""
        address = self._spawn("127.0.0.1:0")
        self._address = address
        self._watch.start()
        return address

    def stop(self) -> None:
        """End it and wait for that."""
        self._stopping.set()
        if self._watch.is_alive():
            self._watch.join()
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _spawn(self, address: str) -> str:
        ready = self._home / "ready"
        ready.unlink(missing_ok=True)
        config = self._home / "keyholder.toml"
        write_atomically(config, tomli_w.dumps(self._config(address)))
        # A passphrase of the user's own keys would win over the file.
        environment = {k: v for k, v in os.environ.items() if k != keys.PASSPHRASE}
        environment[keys.PASSPHRASE_FILE] = str(self._passphrase)
        with (self._home / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "perennial",
                    "keyholder",
                    str(self._home / "keyholder.toml"),
                    "--with-parent",
                ],
                stdin=subprocess.PIPE,  # never written: it ends when this process does
                stdout=log,
                stderr=log,
                env=environment,
                # Ctrl-C is for the simulation: it ends the service when it is done with it.
                start_new_session=True,
            )
        end = time.monotonic() + _START_S
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RunError(f"the key holder did not start; see {self._home / 'log.txt'}")
            time.sleep(0.02)
        return ready.read_text(encoding="utf-8").strip()

    def _config(self, address: str) -> dict[str, Any]:
        return {
            "address": address,
            "keys": "keys",
            "audit": "audit.jsonl",
            **self._policy,
            "ready": "ready",
            "tls": {
                "ca": "tls/ca.pem",
                "certificate": "tls/keyholder.pem",
                "key": "tls/keyholder.key",
                "allow": ["server"],
            },
        }

    def _restart(self) -> None:
        while not self._stopping.wait(0.2):
            if self._process is not None and self._process.poll() is not None:
                logger.warning("the key holder ended with %s; again", self._process.returncode)
                try:
                    self._spawn(self._address)
                except RunError as error:
                    logger.error("%s", error)
                    return
