"""Whether a server can be reached over TLS, and in plain words why not."""

from __future__ import annotations

import logging
import socket
import ssl
from dataclasses import dataclass

from .processes import DOWN, UP

logger = logging.getLogger(__name__)

_PATIENCE_S = 3.0


@dataclass(slots=True)
class Reach:
    """A server as this machine finds it; what changes is logged.

    Attributes:
        address: host:port.
        ca: file of the authority that must have signed its certificate.
        state: `up` or `down`, as of the last look.
        fault: why it is down; empty while it is up.
    """

    address: str
    ca: str
    state: str = DOWN
    fault: str = ""

    def look(self) -> None:
        """Shake hands with the server once."""
        fault = _fault(self.address, self.ca)
        if fault and fault != self.fault:
            logger.warning("the server at %s is not reached: %s", self.address, fault)
        elif not fault and self.state == DOWN:
            logger.info("the server at %s is reached", self.address)
        self.fault, self.state = fault, DOWN if fault else UP


def _fault(address: str, ca: str) -> str:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        context = ssl.create_default_context(cafile=ca)
        plain = socket.create_connection((host, int(port)), timeout=_PATIENCE_S)
        with plain, context.wrap_socket(plain, server_hostname=host):
            return ""
    except ssl.SSLCertVerificationError as error:
        return (
            f"its certificate does not hold: {error.verify_message}. Either this is another "
            f"server, or {ca} is not the authority's, or the certificate ran out"
        )
    except OSError as error:
        return str(error.strerror or error)
