"""Questions to a site as the server asks them, for the tests of this folder."""

from dataclasses import replace

import numpy as np

from perennial.client.parties import Sealing
from perennial.client.site import open_client
from perennial.core.sums import Pact, Party
from perennial.core.values import Ticket
from perennial.core.wire import Task, summary_name

NOTHING = np.zeros(0, np.float32)


def task_of(site, domain=0, round=0, rounds=3, attempt=0, run="run"):
    domains = site.stream.domains[: domain + 1]
    labels = tuple(label for d in domains for label in d.labels)
    site.model.fit_labels(labels)
    travels = site.strategy.trainable(site.model.manifest, round)
    ticket = Ticket(run, domain, round, attempt, site.model.manifest.only(travels).hash)
    names = tuple(d.name for d in domains)
    base = site.model.identity()
    return Task(ticket, rounds, labels, domains[-1], names, site.model.manifest.hash, base)


def start(site, task, seed=0):
    site.model.fit_labels(task.labels)
    draw = np.random.default_rng(seed)
    return draw.normal(scale=0.05, size=site.model.manifest.size).astype(np.float32)


def client(site, tmp_path, index=0):
    return open_client(site, index, tmp_path / f"{index}")


def pact_of(site, task, kind="train"):
    site.model.fit_labels(task.labels)
    names = site.strategy.trainable(site.model.manifest, task.ticket.round)
    size = site.model.manifest.only(names).size if kind == "train" else 0
    t = task.ticket
    return Pact(t.run, t.domain, t.round, t.attempt, t.manifest, "0" * 32, size, 0.0, "")


def sealing_of(site, client, task, kind="train"):
    return Sealing(pact_of(site, task, kind), b"", Party(client.index, client.store.folder))


def answered(site, client, task, params, summary, kind="train"):
    if kind != "train":
        task = ending(site, task)
    sealing = sealing_of(site, client, task, kind)
    return getattr(site, kind)(client, task, params, summary, sealing)


def ending(site, task):
    """The task as it stands at the end of a domain."""
    site.model.fit_labels(task.labels)
    name = summary_name(site.continual.size(site.model.manifest))
    return replace(task, ticket=replace(task.ticket, manifest=name))


def delta(site, body, task):
    return site.secure_sum.single(body, pact_of(site, task))
