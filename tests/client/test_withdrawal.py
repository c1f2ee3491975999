"""A person withdraws: the client's records, training and continual method forget the record."""

from dataclasses import replace

import numpy as np
from asking import NOTHING, answered, client, sealing_of, start, task_of

from perennial.client import withdrawn
from perennial.client.parties import Own
from perennial.client.site import Site
from perennial.core.parts import added
from perennial.core.values import Records

TEXT = """
[data]
name = "sample"
[model]
name = "tiny"
[shards]
num_clients = 2
[train]
epochs = 1
[continual]
name = "none"
"""


def ids_seen(site, monkeypatch):
    seen = []
    real = site.model.encode

    def encode(records):
        seen.append(records.ids)
        return real(records)

    monkeypatch.setattr(site.model, "encode", encode)
    return seen


def test_a_withdrawn_record_is_never_trained_on_again(tmp_path, monkeypatch):
    site = Site(TEXT, {}, Own())
    task, mine = task_of(site), client(site, tmp_path)
    shard = site.holdings.mine(mine, task.domain.name)
    withdrawn.write(mine.store.folder, shard.ids[:3])
    seen = ids_seen(site, monkeypatch)
    answered(site, mine, task, start(site, task), NOTHING)
    assert set(seen[0]) == set(shard.ids[3:])
    phase = site.asked(mine, task, "a run").phase(NOTHING, added)
    assert phase.gone == set(shard.ids[:3])
    assert set(phase.withdrawn().ids) == set(shard.ids[:3])
    assert set(phase.held().ids) == set(shard.ids[3:])


def test_other_clients_keep_what_they_hold(tmp_path):
    site = Site(TEXT, {}, Own())
    task, mine, other = task_of(site), client(site, tmp_path), client(site, tmp_path, 1)
    withdrawn.write(mine.store.folder, [], everything=True)
    assert len(site.holdings.mine(mine, task.domain.name)) == 0
    assert len(site.holdings.mine(other, task.domain.name)) > 0


def test_a_client_that_withdrew_changes_nothing_and_weighs_nothing(tmp_path):
    site = Site(TEXT, {}, Own())
    task, mine = task_of(site), client(site, tmp_path)
    withdrawn.write(mine.store.folder, [], everything=True)
    body, metrics = answered(site, mine, task, start(site, task), NOTHING)
    assert metrics["weight"] == 0.0
    assert not np.frombuffer(body, "<f4").any()


def test_asked_again_after_somebody_withdrew_a_client_answers_without_that_record(tmp_path):
    """A server that died before it kept an answer asks again: the old one may not come back."""
    text = TEXT.replace('name = "none"', 'name = "analytic_head"\nlayers = 2')
    site = Site(text, {}, Own())
    task, mine = task_of(site), client(site, tmp_path)
    params = start(site, task)
    size = site.continual.size(site.model.manifest)
    ended = replace(task, ticket=replace(task.ticket, round=3, manifest=f"summary-{size}"))

    def finished():
        sealing = sealing_of(site, mine, ended)
        sealing = replace(sealing, pact=replace(sealing.pact, size=size))
        return site.finish(mine, ended, params, NOTHING, sealing)[0]

    first = finished()
    assert finished() == first
    gone = site.holdings.mine(mine, task.domain.name).ids[:2]
    withdrawn.write(mine.store.folder, gone)
    again = np.frombuffer(finished(), "<f4")
    before = np.frombuffer(first, "<f4")
    counts = len(task.labels)
    unit = before[:counts].sum() / (len(site.holdings.mine(mine, task.domain.name)) + 2)
    assert before[:counts].sum() - again[:counts].sum() == 2 * unit


def test_a_whole_client_leaves_though_the_rows_of_its_data_left_before(tmp_path, monkeypatch):
    site = Site(TEXT.replace('name = "none"', 'name = "analytic_head"\nlayers = 2'), {}, Own())
    task, mine = task_of(site, domain=1), client(site, tmp_path)
    params, count = start(site, task), len(task.labels)
    size = site.continual.size(site.model.manifest)

    def counts(index, *counted):
        ticket = replace(task.ticket, domain=index, round=3 + index, manifest=f"summary-{size}")
        ended = replace(task, ticket=ticket, counted=counted)
        sealing = sealing_of(site, mine, ended)
        sealing = replace(sealing, pact=replace(sealing.pact, size=size))
        body, metrics = site.finish(mine, ended, params, NOTHING, sealing)
        assert metrics["weight"] == 1.0
        return np.frombuffer(body, "<f4")[:count]

    added = counts(0)
    assert added.sum() > 0
    monkeypatch.setattr(type(site.shards), "of", lambda *_: Records())  # this week's file is empty
    withdrawn.write(mine.store.folder, [], everything=True)
    assert np.array_equal(counts(1, 0), -added)


def test_asked_again_after_the_whole_client_withdrew_nothing_old_comes_back(tmp_path, monkeypatch):
    site = Site(TEXT, {}, Own())
    task, mine = task_of(site), client(site, tmp_path)
    params = start(site, task)
    shards = type(site.shards)
    first, _ = answered(site, mine, task, params, NOTHING)
    assert np.frombuffer(first, "<f4").any()
    monkeypatch.setattr(shards, "of", lambda *_: Records())
    withdrawn.write(mine.store.folder, [], everything=True)
    again, _ = answered(site, mine, task, params, NOTHING)
    assert not np.frombuffer(again, "<f4").any()


def test_a_memory_may_know_labels_that_a_later_run_does_not(tmp_path):
    text = TEXT.replace('name = "none"', 'name = "replay"')
    site = Site(text, {}, Own())
    last, mine = task_of(site, domain=1), client(site, tmp_path)
    ended = replace(last, ticket=replace(last.ticket, round=3))
    answered(site, mine, ended, start(site, last), NOTHING, "finish")
    first = task_of(site, run="another")
    body, _ = answered(site, mine, first, start(site, first), NOTHING)
    assert np.frombuffer(body, "<f4").any()
