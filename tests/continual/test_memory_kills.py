"""Processes that are killed while they write a memory: kill -9, at every step and at any moment.

Each trial is a process of its own, forked from one that has loaded torch and FAISS, so that
hundreds of them take seconds.
"""

import json
import subprocess
import sys

import pytest

KILLED = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import numpy as np
from perennial.continual import index, memory, replay
from perennial.core.parts import Phase
from perennial.core.values import Domain, Records
from perennial.models import tiny

POLICIES = ("auto", "reservoir")
CALLS = {"open", "write", "flush", "fsync", "replace", "unlink", "close", "flock"}
model = tiny.build()
model.fit_labels(("x", "y", "u", "v"))


def records(name, labels):
    rows = [(f"{label}{i}", f"{label} says {i % 7} and {i}", label) for label in labels
            for i in range(25)]
    ids, texts, targets = zip(*rows)
    return Records(ids, texts, targets, (name,) * len(ids), ("",) * len(ids))


OLD, NEW = records("old", "xy"), records("new", "uv")
for shard in (OLD, NEW):
    model.features(shard, 1)  # remembered by the model: a trial spends its time on the disk


def phase(folder, index, gone=()):
    domain = (Domain("old", ("x", "y")), Domain("new", ("u", "v")))[index]
    return Phase(domain, index, folder, 3, np.zeros(0, np.float32), base="b", gone=frozenset(gone))


METHODS = {name: replay.build(policy=name, per_class=8, capacity=20) for name in POLICIES}


def end(method, folder, index):
    here = phase(folder, index)
    method.finish(method.start(here), (OLD, NEW)[index], model, here)


WORK = {
    "finish": lambda method, folder, victims: end(method, folder, 1),
    "forget": lambda method, folder, victims: memory.forget(folder, victims),
    "withdrawn": lambda method, folder, victims: method.start(phase(folder, 1, victims)),
    "everything": lambda method, folder, victims: memory.forget(folder, (), everything=True),
}


def seen(folder):
    store = memory.read(folder, "b")
    return None if store is None else (store.records.ids, store.classes)


def check(folder, before, after):
    '''Which of the two is there; anything else is an error.'''
    found = memory.read(folder, "b")
    state = seen(folder)
    assert state in (before, after), state
    if (folder / memory.INDEX).exists() and found is not None:
        data, own = (folder / memory.INDEX).read_bytes(), memory.packed(found)
        try:  # what an index of other records holds may never be more than the store does
            index.unpacked(data, memory._digest(own))
        except ValueError as error:
            raise AssertionError(f"the index is whole or away; {error}")
    if found is None:
        assert not (folder / memory.INDEX).exists()
        return "new"
    with memory.alone_in(folder):
        held = memory.open_index(folder, found)
    assert len(held) == len(found)
    vectors = found.embeddings.astype(np.float32)
    assert np.allclose(held.nearest(vectors, 1)[0], 0.0)
    names = {path.name for path in folder.iterdir()}
    assert names <= {memory.STORE, memory.INDEX, ".memory.lock"}, names
    return "old" if state == before and before != after else "new"


def forked(work):
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)


def stepping(work, step):
    '''`work`, killed before or after its step-th call that touches a file.'''
    count = 0

    def watch(frame, event, call):
        nonlocal count
        if event in ("c_call", "c_return") and call.__name__ in CALLS:
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(watch)
    work()
    sys.setprofile(None)


def drill(root, kind, policy, moments):
    method = METHODS[policy]
    sample = root / "sample"
    sample.mkdir(parents=True)
    end(method, sample, 0)
    before, times = seen(sample), []
    victims = before[0][::2]
    told = {"old": 0, "new": 0, "killed": 0, "steps": 0}

    def fresh(name):
        shutil.copytree(sample, root / name)
        return root / name

    def work(folder):
        WORK[kind](method, folder, victims)

    for name in ("first", "second"):  # the first one warms up
        folder = fresh(name)
        began = time.perf_counter()
        work(folder)
        times.append(time.perf_counter() - began)
        after = seen(folder)
        assert before != after

    def trial(name, run, wait=None):
        folder = fresh(name)
        child = forked(lambda: run(folder))
        if wait is not None:
            time.sleep(wait)
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told["killed"] += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL), code
        told[check(folder, before, after)] += 1
        if kind != "everything":
            work(folder)  # and what was cut off can be done again
            assert seen(folder) == after
        return code

    while trial(f"step {told['steps']}", lambda f: stepping(lambda: work(f), told["steps"] + 1)):
        told["steps"] += 1
    for number in range(moments):
        trial(f"moment {number}", work, rng.random() * 1.5 * min(times))
    return told


rng, root = random.Random(0), Path(sys.argv[1])
print(json.dumps([
    drill(root / f"{kind}-{policy}", kind, policy, int(sys.argv[2]))
    for kind in WORK for policy in POLICIES if policy == "auto" or kind == "finish"
]))
"""


@pytest.mark.integration
def test_a_killed_process_leaves_the_old_memory_or_the_new(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert len(told) == 5
    for numbers in told:
        assert numbers["steps"] >= 4
        assert numbers["killed"] >= numbers["steps"]
        assert numbers["old"] >= 3
        assert numbers["new"] >= 1
