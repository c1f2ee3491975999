import json

import pytest

from perennial.core.errors import RunError
from perennial.core.values import Domain, Ticket
from perennial.core.wire import Task

TASK = Task(
    ticket=Ticket("demo", 1, 2, 0, "abc"),
    rounds=5,
    labels=("x", "y", "z"),
    domain=Domain("travel", ("y", "z")),
    seen=("home", "travel"),
    manifest="def",
    base="123",
)


def test_a_task_comes_back_as_it_went():
    assert Task.unpack(TASK.pack()) == TASK
    assert Task.unpack(json.loads(json.dumps(TASK.pack()))) == TASK


def test_a_task_of_a_causal_model_has_no_labels():
    bare = Task(TASK.ticket, 1, (), Domain("all"), ("all",), "def", "123")
    assert Task.unpack(bare.pack()) == bare


@pytest.mark.parametrize("key", sorted(TASK.pack()))
def test_a_task_that_lacks_a_key_says_which(key):
    values = TASK.pack()
    del values[key]
    with pytest.raises(RunError, match=f"must hold '{key}'.*same version"):
        Task.unpack(values)
