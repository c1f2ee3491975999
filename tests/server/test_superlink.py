"""What this package replaces in Flower's SuperLink is still there, and does what it is for."""

import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy

from perennial.server.superlink import Turns, opened, seldom

pytestmark = pytest.mark.integration  # databases that wait

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
pragmas = ("cache_size", "mmap_size", "busy_timeout")
print([store.query(f"PRAGMA {name}") for name in pragmas], flush=True)
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
    with ThreadPoolExecutor(2) as pool:
        stock = pool.submit(written, tmp_path / "stock.db", "stock", 7.0)
        ours = pool.submit(written, tmp_path / "ours.db", "patient", 7.0)
    said, error = stock.result()
    assert "5000" in said
    assert "database is locked" in error
    said, error = ours.result()
    assert "60000" in said
    assert "'cache_size': -2000" in said
    assert "'mmap_size': 0" in said
    assert said.endswith("written\n"), error


def stored(path, queue):
    """An engine of a database that lets nobody wait."""
    url = f"sqlite:///{path}"
    make = opened if queue else sqlalchemy.create_engine
    engine = make(url, connect_args={"check_same_thread": False, "timeout": 0.0})
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE mine (number INTEGER UNIQUE)"))
    return engine


def write_in(engine, number, pause_s=0.005):
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(f"INSERT INTO mine VALUES ({number})"))
        time.sleep(pause_s)
        connection.execute(
            sqlalchemy.text(f"UPDATE mine SET number = number WHERE number = {number}")
        )


def test_writers_queue_up_and_readers_do_not(tmp_path):
    stock, ours = stored(tmp_path / "stock.db", False), stored(tmp_path / "ours.db", True)
    with ThreadPoolExecutor(16) as pool:
        with pytest.raises(sqlalchemy.exc.OperationalError, match="locked"):
            list(pool.map(lambda number: write_in(stock, number), range(64)))
        list(pool.map(lambda number: write_in(ours, number), range(64)))
        count = sqlalchemy.text("SELECT count(*) FROM mine")
        begun = threading.Event()

        def slow():
            with ours.begin() as connection:
                connection.execute(sqlalchemy.text("DELETE FROM mine WHERE number = 0"))
                begun.set()
                time.sleep(1.0)

        slow_one = pool.submit(slow)
        begun.wait()
        start = time.monotonic()
        with ours.connect() as connection:
            assert connection.execute(count).scalar() == 64
        assert time.monotonic() - start < 0.9
        slow_one.result()


def test_a_write_that_fails_gives_its_turn_back(tmp_path):
    engine = stored(tmp_path / "ours.db", True)
    write_in(engine, 1)
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            with pytest.raises(sqlalchemy.exc.IntegrityError):
                pool.submit(write_in, engine, 1).result(20)
    connection = engine.connect()
    connection.execute(sqlalchemy.text("INSERT INTO mine VALUES (7)"))
    connection.invalidate()
    connection.close()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(write_in, engine, 2).result(20)


def test_a_thread_that_writes_twice_at_once_does_not_wait_for_itself(tmp_path):
    engine = stored(tmp_path / "ours.db", True)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("INSERT INTO mine VALUES (1)"))
        start = time.monotonic()
        with pytest.raises(sqlalchemy.exc.OperationalError, match="locked"):
            write_in(engine, 2)
        assert time.monotonic() - start < 20
    write_in(engine, 3)


def test_all_engines_of_a_database_share_their_turns(tmp_path):
    one, two = Turns.of("sqlite:///a"), Turns.of("sqlite:///a")
    assert one is two
    assert one is not Turns.of("sqlite:///b")
    assert opened("sqlite://", poolclass=sqlalchemy.pool.StaticPool).pool.status()


def test_overdue_tasks_are_looked_for_now_and_then_by_whoever_comes():
    looked = []
    act = seldom(looked.append, 0.3)
    for store in "abc":
        act(store)
    assert looked == ["a"]
    time.sleep(0.35)
    act("d")
    assert looked == ["a", "d"]
