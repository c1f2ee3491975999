"""What this package replaces in Flower's SuperLink is still there, and does what it is for."""

import sqlite3
import subprocess
import sys
import threading

# In a process of its own: what is replaced stays replaced.
CODE = """
import sys
from flwr.supercore import sql_mixin
from perennial.server.superlink import patient
if sys.argv[2] == "patient":
    patient()
class Store(sql_mixin.SqlMixin):
    pass
store = Store(sys.argv[1])
store.initialize()
print(store.query("PRAGMA busy_timeout"), flush=True)
sys.stdin.readline()
store.query("CREATE TABLE mine (number INTEGER)")
print("written", flush=True)
"""


def written(path, how, seconds):
    """What a store says that writes while another connection holds the lock for some seconds."""
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(path), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = process.stdout.readline()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    freed = threading.Timer(seconds, other.execute, ("COMMIT",))
    freed.start()
    out, error = process.communicate("\n")
    freed.join()
    other.close()
    return first + out, error


def test_a_write_waits_for_its_turn_longer_than_stock_flower_does(tmp_path):
    said, error = written(tmp_path / "stock.db", "stock", 7.0)
    assert "5000" in said
    assert "database is locked" in error
    said, error = written(tmp_path / "ours.db", "patient", 7.0)
    assert "60000" in said
    assert said.endswith("written\n"), error
