"""A server that is there, away, or not the one that was meant: found over real TLS."""

import contextlib
import socket
import ssl
import threading

import pytest

from perennial.core.flower import free_port
from perennial.core.processes import DOWN, UP
from perennial.core.reach import Reach
from perennial.privacy.tls import make_certificates


@pytest.fixture
def served(tmp_path):
    """Starts TLS servers: (folder of its certificate) -> address."""
    open_ = []

    def serve(folder):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        listening = socket.create_server(("127.0.0.1", 0))
        open_.append(listening)

        def answer():
            while True:
                try:
                    plain, _ = listening.accept()
                except OSError:
                    return
                with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True):
                    pass

        threading.Thread(target=answer, daemon=True).start()
        return f"127.0.0.1:{listening.getsockname()[1]}"

    yield serve
    for listening in open_:
        listening.close()


def made(folder, days=1):
    make_certificates(folder, ["server"], days=days)
    return folder


def test_a_server_under_its_authority_is_up_and_one_that_went_is_down(tmp_path, served, caplog):
    caplog.set_level("INFO")
    folder = made(tmp_path / "tls")
    reach = Reach(served(folder), str(folder / "ca.pem"))
    assert reach.state == DOWN  # nobody looked yet
    reach.look()
    reach.look()
    assert (reach.state, reach.fault) == (UP, "")
    assert caplog.text.count("is reached") == 1
    reach.address = f"127.0.0.1:{free_port()}"
    reach.look()
    assert reach.state == DOWN
    assert "refused" in reach.fault
    assert "not reached: Connection refused" in caplog.text


def test_a_certificate_that_does_not_hold_is_named(tmp_path, served):
    good, old = made(tmp_path / "good"), made(tmp_path / "old", days=0)
    late = Reach(served(old), str(old / "ca.pem"))
    late.look()
    assert late.state == DOWN
    assert "expired" in late.fault
    other = Reach(served(good), str(old / "ca.pem"))
    other.look()
    assert other.state == DOWN
    assert "its certificate does not hold" in other.fault
    none = Reach(served(good), str(tmp_path / "none.pem"))
    none.look()
    assert "No such file" in none.fault
