"""What the framework adds: a simulated run against the same local steps in a bare loop.

Both sides load the model, cache activations, train the same batches with the same optimizer,
average the same way and score the test records once per domain; the simulation also speaks
Flower's messages, judges replies, checkpoints, logs, plots and writes adapters. Interleaved in
one process; CPU time of the process, medians.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from table import Row, median, progress, run

from perennial.client.site import forget_site
from perennial.core import check
from perennial.core.config import Config
from perennial.core.parts import Encoded, Model
from perennial.core.seeds import derive, generator
from perennial.data import shards
from perennial.data.stream import of_domain, stream
from perennial.server.run import adapter_hash
from perennial.simulations.simulate import simulate

TEXT = """
[run]
seed = 3
[data]
name = "sample"
[domains]
order = {order}
[shards]
split = "dirichlet"
num_clients = 4
[model]
name = "encoder_classifier"
layers = 1
[train]
epochs = {epochs}
batch_size = 16
lr = 5e-3
[round]
rounds = {rounds}
[evaluate]
every = 0
"""


def simulated(text: str) -> str:
    """One simulated run; the hash of its adapter."""
    forget_site()
    with tempfile.TemporaryDirectory() as folder:
        simulate(text, Path(folder) / "run")
        events = (Path(folder) / "run" / "events.jsonl").read_text().splitlines()
    return next(e for e in events if "run_finished" in e).split('"adapter_hash":"')[1][:16]


def bare(text: str) -> str:
    """The same steps with nothing around them; the hash of the adapter, to prove it."""
    config = check.read(text)
    torch.manual_seed(derive(config.run.seed, "adapter"))
    model = check.build(config, "model")
    records = stream(check.build(config, "data").read(), config.domains)
    clients = range(config.shards.num_clients)
    labels, params, tests = (), None, []
    for index, domain in enumerate(records.domains):
        labels += domain.labels
        model.fit_labels(labels)
        params = model.vector()
        answers = [labels.index(label) for label in domain.labels]
        train = of_domain(records.splits.train, domain.name)
        seed = derive(config.run.seed, "shards", domain.name)
        parts = [shards.shard(train, config.shards, i, seed) for i in clients]
        encoded = [model.encode(part) for part in parts]
        tests.append(model.encode(of_domain(records.splits.test, domain.name)))
        for round_ in range(config.round.rounds):
            total, weight = np.zeros(params.size), 0
            for client in clients:
                model.load(params)
                delta = (
                    local(model, encoded[client], config, answers, index, round_, client) - params
                )
                total += np.rint(delta.astype(np.float64) * 2.0**32) * len(parts[client])
                weight += len(parts[client])
            params = params + (total / 2.0**32 / weight).astype(np.float32)
        model.load(params)
        for test in tests:
            model.score(test, config.evaluate.batch_size)
    return adapter_hash(params)


def local(
    model: Model,
    encoded: Encoded,
    config: Config,
    answers: list[int],
    domain: int,
    round_: int,
    client: int,
) -> np.ndarray:
    """The parameters after one client's round."""
    table, rounds = config.train, config.round.rounds
    values = list(model.parameters().values())
    optimizer = torch.optim.AdamW(values, lr=table.lr, weight_decay=0.0, fused=True)
    rng = generator(derive(config.run.seed, "client", client, "domain", domain), "batches", round_)
    batches, count = [], len(encoded)
    for _ in range(table.epochs if count else 0):
        order = rng.permutation(count)
        batches += np.array_split(order, -(-count // table.batch_size))
    for step, batch in enumerate(batches):
        done = (round_ + (step + 0.5) / len(batches)) / rounds
        warm = table.warmup_rate
        factor = done / warm if done < warm else (1.0 - done) / (1.0 - warm)
        for group in optimizer.param_groups:
            group["lr"] = table.lr * factor
        optimizer.zero_grad(set_to_none=True)
        losses = model.losses(encoded.batch(batch), answers)
        (losses.sum() / len(batch)).backward()
        optimizer.step()
    return model.vector()


def measure(quick: bool) -> list[Row]:
    """Ratios of the pairs, and the figures themselves."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    order = '["bank"]' if quick else '["bank", "clinic", "telecom"]'
    text = TEXT.format(order=order, epochs=2 if quick else 3, rounds=3 if quick else 5)
    ours: list[float] = []
    theirs: list[float] = []
    simulated(text)  # imports, allocator and page cache
    for pair in range(2 if quick else 5):
        for side, function in ((ours, simulated), (theirs, bare)):
            start = time.process_time()
            found = function(text)
            side.append(time.process_time() - start)
            progress(f"pair {pair + 1} {function.__name__}: {side[-1]:.2f} CPU-s, {found}")
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return [
        Row("simulated run / bare loop, CPU time", median(ratios), "x", 1.05),
        Row("simulated run", median(ours), "CPU-s"),
        Row("bare PyTorch loop, same steps", median(theirs), "CPU-s"),
    ]


if __name__ == "__main__":
    run("Overhead of the framework", measure)
