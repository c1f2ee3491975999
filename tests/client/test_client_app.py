"""The border of the Flower ClientApp: what an answer holds, and what an error may say."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict

from perennial.client import app
from perennial.client.site import Sealing, open_client, open_site
from perennial.core import wire
from perennial.core.sums import Pact, Party
from perennial.core.values import Domain, Ticket
from perennial.simulations.compat import instruction

TEXT = """
[data]
name = "sample"
[model]
name = "tiny"
[shards]
num_clients = 2
[continual]
name = "none"
"""


def context(tmp_path, text=TEXT):
    return Context(
        run_id=1,
        node_id=11,
        node_config={"partition-id": 1, "state-folder": str(tmp_path / "state")},
        state=RecordDict(),
        run_config={wire.CONFIG_KEY: text},
    )


def array(values, stype=wire.FLOAT32):
    data = np.asarray(values, "<f4").tobytes()
    return Array("float32", (len(values),), stype, data)


@pytest.fixture
def task():
    site = open_site(TEXT, ())
    domain = site.stream.domains[0]
    site.model.fit_labels(domain.labels)
    hash_ = site.model.manifest.hash
    ticket = Ticket("run", 0, 0, 0, hash_)
    return wire.Task(
        ticket,
        1,
        domain.labels,
        Domain(domain.name, domain.labels),
        (domain.name,),
        hash_,
        site.model.identity(),
    )


def pact_of(task, kind="train"):
    t, size = task.ticket, open_site(TEXT, ()).model.manifest.size if kind == "train" else 0
    return Pact(t.run, t.domain, t.round, t.attempt, t.manifest, "0" * 32, size, 0.0, "")


def message(task, stype=wire.FLOAT32, kind="train"):
    params = np.full(open_site(TEXT, ()).model.manifest.size, 0.01, np.float32)
    arrays = ArrayRecord(
        {wire.PARAMS: array(params, stype), wire.SUMMARY: array([]), wire.HEAD: array([])}
    )
    content = RecordDict({wire.ARRAYS: arrays, wire.TASK: ConfigRecord(task.pack())})
    content[wire.PACT] = ConfigRecord(pact_of(task, kind).pack())
    return instruction(1, content, kind, node=11, group="", ttl=60.0)


def test_training_answers_with_a_sealed_body_the_ticket_and_numbers(task, tmp_path):
    reply = app.train(message(task), context(tmp_path))
    assert not reply.has_error()
    sealed = reply.content[wire.ARRAYS][wire.BODY]
    assert sealed.stype == wire.SEALED
    assert len(sealed.data) == 4 * open_site(TEXT, ()).model.manifest.size
    assert dict(reply.content[wire.TASK]) == {
        "run": "run",
        "domain": 0,
        "round": 0,
        "attempt": 0,
        "manifest": task.ticket.manifest,
    }
    assert isinstance(reply.content[wire.METRICS], MetricRecord)
    assert set(reply.content[wire.METRICS]) == {"loss", "weight", "seconds"}
    site = open_site(TEXT, ())
    params = np.full(site.model.manifest.size, 0.01, np.float32)
    fresh = open_client(site, 1, tmp_path / "fresh")
    sealing = Sealing(pact_of(task), b"", Party(1, tmp_path))
    body, _ = site.train(fresh, task, params, np.zeros(0, np.float32), sealing)
    assert sealed.data == body


def test_evaluation_answers_with_numbers_only(task, tmp_path):
    reply = app.evaluate(message(task, kind="evaluate"), context(tmp_path))
    assert not reply.has_error()
    assert set(reply.content[wire.METRICS]) == {"loss.0", "correct.0", "total.0"}
    assert wire.ARRAYS not in reply.content


def test_the_end_of_a_domain_answers_too(task, tmp_path):
    task = replace(task, ticket=replace(task.ticket, manifest="summary-0"))
    reply = app.finish(message(task, kind="train.finish"), context(tmp_path))
    assert not reply.has_error()
    assert reply.content[wire.METRICS]["weight"] == 1.0


def test_an_error_says_its_kind_and_quotes_nothing(task, tmp_path, monkeypatch):
    def broken(self, *_):
        raise ValueError("patient 17 has a cold")

    monkeypatch.setattr("perennial.client.site.Site.train", broken)
    reply = app.train(message(task), context(tmp_path))
    assert reply.has_error()
    assert reply.error.reason == "train: ValueError"


def test_arrays_of_another_kind_are_refused(task, tmp_path):
    reply = app.train(message(task, stype="numpy.ndarray"), context(tmp_path))
    assert reply.has_error()
    assert reply.error.reason == "train: RunError"


def test_a_run_without_config_is_an_error(task, tmp_path):
    reply = app.train(message(task), context(tmp_path, text=""))
    assert reply.has_error()
    assert reply.error.reason == "train: RunError"


def test_a_fleet_of_another_size_than_the_config_is_refused(task, tmp_path, caplog):
    there = context(tmp_path)
    there.node_config["num-partitions"] = 7
    reply = app.train(message(task), there)
    assert reply.error.reason == "train: RunError"
    assert "must be the number of nodes; this node is one of 7" in caplog.text


def test_a_client_with_a_key_sends_nothing_in_the_clear(task, tmp_path):
    there = context(tmp_path)
    there.node_config["key-file"] = str(tmp_path / "client.key")
    reply = app.train(message(task), there)
    assert reply.has_error()
    assert reply.error.reason == "train: RunError"


def test_a_client_with_pins_takes_no_part_in_sums_without_masks(task, tmp_path):
    (tmp_path / "pins").write_text("\n".join(f"{i:064x}" for i in range(3)))
    there = context(tmp_path)
    there.node_config["identities"] = str(tmp_path / "pins")
    reply = app.train(message(task), there)
    assert reply.has_error()
    assert reply.error.reason == "train: ConfigError"
