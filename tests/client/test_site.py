"""What a client does with one round, on the embedded sample and the tiny base."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from asking import NOTHING, answered, client, delta, start, task_of

from perennial.client.site import Site, forget_site, open_site
from perennial.core.errors import PerennialError, RunError

TEXT = """
[data]
name = "sample"
[model]
name = "tiny"
[shards]
num_clients = 3
split = "dirichlet"
[continual]
name = "none"
[train]
batch_size = 16
"""


def made(text=TEXT):
    torch.manual_seed(5)
    return Site(text, {})


@pytest.fixture(scope="module")
def site():
    return made()


def test_a_round_gives_local_minus_global(site, tmp_path):
    task = task_of(site)
    params = start(site, task)
    body, metrics = answered(site, client(site, tmp_path), task, params, NOTHING)
    found = delta(site, body, task)
    assert np.array_equal(found, site.model.vector() - params)
    assert found.any()
    shard = site.shards.of(0, task.domain.name, "train")
    assert metrics["weight"] == len(shard) > 0
    assert metrics["loss"] > 0


def test_the_same_round_gives_the_same_bits_in_another_process(site, tmp_path):
    task = task_of(site)
    params = start(site, task)
    first, _ = answered(site, client(site, tmp_path / "a"), task, params, NOTHING)
    other = made()
    second, _ = answered(other, client(other, tmp_path / "b"), task, params, NOTHING)
    assert first == second


def test_a_resend_is_the_same_bytes_and_trains_nothing(site, tmp_path):
    task = task_of(site)
    params = start(site, task)
    mine = client(site, tmp_path)
    body, metrics = answered(site, mine, task, params, NOTHING)
    site.model.load(np.zeros_like(params))
    again = replace(task, ticket=replace(task.ticket, attempt=1))
    assert answered(site, mine, again, params, NOTHING) == (body, metrics)
    assert not site.model.vector().any()


def test_other_parameters_are_another_question(site, tmp_path):
    task = task_of(site)
    mine = client(site, tmp_path)
    first, _ = answered(site, mine, task, start(site, task), NOTHING)
    second, _ = answered(site, mine, task, start(site, task, 1), NOTHING)
    third, _ = answered(site, mine, task, start(site, task), np.ones(2, np.float32))
    assert first != second
    assert first == third  # asked anew, since the summary differs, and nothing uses it here


def test_a_run_begun_anew_with_another_config_is_another_question(site, tmp_path):
    task = task_of(site)
    params = start(site, task)
    first, _ = answered(site, client(site, tmp_path), task, params, NOTHING)
    other = made(TEXT + "lr = 0.05\n")
    second, _ = answered(other, client(other, tmp_path), task, params, NOTHING)
    assert first != second


def test_a_torn_answer_is_computed_again(site, tmp_path):
    task = task_of(site)
    params = start(site, task)
    mine = client(site, tmp_path)
    body, _ = answered(site, mine, task, params, NOTHING)
    path = mine.store.folder / "answer.bin"
    path.write_bytes(path.read_bytes()[:-7])
    assert answered(site, mine, task, params, NOTHING)[0] == body


def test_rounds_domains_and_clients_draw_different_batches(site, tmp_path, monkeypatch):
    drawn = []

    def batches(strata, batch_size, epochs, rng):
        drawn.append(int(rng.integers(2**62)))
        return iter(())

    example = replace(site.promise.example, batches=batches)
    monkeypatch.setattr(site, "promise", replace(site.promise, example=example))
    asked = ((0, 0, 0), (0, 0, 1), (1, 0, 0), (0, 1, 0))
    for index, domain, round_ in asked:
        task = task_of(site, domain, round_)
        answered(site, client(site, tmp_path, index), task, start(site, task), NOTHING)
    assert len(set(drawn)) == len(asked)


def test_only_what_trains_travels(tmp_path):
    site = made(TEXT + '[strategy]\nname = "ffa"\n')
    task = task_of(site)
    params = start(site, task)
    body, _ = answered(site, client(site, tmp_path), task, params, NOTHING)
    before = site.model.manifest.unpack(params)
    after = site.model.manifest.unpack(site.model.vector())
    names = [name for name in before if not name.endswith("lora_A")]
    wanted = np.concatenate([(after[n] - before[n]).reshape(-1) for n in names])
    assert np.array_equal(delta(site, body, task), wanted)
    for name in set(before) - set(names):
        assert np.array_equal(after[name], before[name])


def test_a_strong_proximal_pull_holds_the_client_near(tmp_path):
    sgd = '[train]\noptimizer = "sgd"\nmomentum = 0.0\nlr = 0.02\nepochs = 4\n'
    text = TEXT.replace("[train]\n", sgd)
    moved = []
    for mu in (0.0, 20.0):
        site = made(text + f'[strategy]\nname = "fedprox"\nmu = {mu}\n')
        task = task_of(site)
        body, _ = answered(site, client(site, tmp_path / str(mu)), task, start(site, task), NOTHING)
        moved.append(np.linalg.norm(delta(site, body, task)))
    assert moved[1] < 0.7 * moved[0]


@pytest.mark.parametrize("weight", ["records", "uniform"])
def test_an_empty_shard_trains_nothing_and_weighs_nothing(tmp_path, weight):
    table = f'[round]\nweight = "{weight}"\n'
    site = made(TEXT.replace("num_clients = 3", "num_clients = 900") + table)
    task = task_of(site)
    params = start(site, task)
    for index in range(900):
        if not len(site.shards.of(index, task.domain.name, "train")):
            break
    body, metrics = answered(site, client(site, tmp_path, index), task, params, NOTHING)
    assert metrics["weight"] == 0.0
    assert metrics["loss"] == 0.0
    assert not delta(site, body, task).any()


def test_uniform_weights(tmp_path):
    site = made(TEXT + '[round]\nweight = "uniform"\n')
    task = task_of(site)
    _, metrics = answered(site, client(site, tmp_path), task, start(site, task), NOTHING)
    assert metrics["weight"] == 1.0


@pytest.mark.parametrize(
    ("over", "method", "other_rows_move"),
    [
        ("domain", "none", False),
        ("seen", "none", True),
        ("auto", "none", False),
        ("auto", "replay", True),  # old and new records must learn to tell each other apart
    ],
)
def test_which_rows_of_the_head_learn(tmp_path, over, method, other_rows_move):
    text = TEXT.replace('[continual]\nname = "none"', f'[continual]\nname = "{method}"')
    site = made(text + f'loss_over = "{over}"\n')
    task = task_of(site, domain=1)
    params = start(site, task)
    body, _ = answered(site, client(site, tmp_path), task, params, NOTHING)
    change = site.model.manifest.unpack(delta(site, body, task))["head.bias"]
    old = len(task.labels) - len(task.domain.labels)
    assert change[old:].any()
    assert bool(change[:old].any()) == other_rows_move


def test_scores_of_all_clients_are_those_of_the_whole_test_set(site, tmp_path):
    from perennial.data.stream import of_domain

    task = task_of(site, domain=1)
    params = start(site, task)
    sums = {}
    for index in range(3):
        for key, value in site.evaluate(
            client(site, tmp_path, index), task, params, NOTHING
        ).items():
            sums[key] = sums.get(key, 0.0) + value
    for index, name in enumerate(task.seen):
        records = of_domain(site.stream.splits.test, name)
        whole = site.model.score(site.model.encode(records), 64)
        assert sums[f"total.{index}"] == whole.total == len(records)
        assert sums[f"correct.{index}"] == whole.correct
        assert sums[f"loss.{index}"] == pytest.approx(whole.loss, rel=1e-4)


def test_labels_that_come_in_another_order_are_not_confused(site, tmp_path):
    # One process may serve one run after another: what was encoded under other labels is dropped.
    first = task_of(site, domain=1)
    mine = client(site, tmp_path)
    params = start(site, first)
    before = site.evaluate(mine, first, params, NOTHING)
    other = made().model  # what the server's own model does with the labels
    other.fit_labels(first.labels)
    other.load(params)
    other.fit_labels(first.labels[::-1])
    turned = replace(first, labels=first.labels[::-1], manifest=other.manifest.hash)
    found = site.evaluate(mine, turned, other.vector(), NOTHING)
    assert found.keys() == before.keys()
    for key in before:
        assert found[key] == pytest.approx(before[key], rel=1e-5)


def test_the_end_of_a_domain_is_sealed_and_weighs_one(site, tmp_path):
    task = task_of(site)
    mine, params = client(site, tmp_path), start(site, task)
    body, metrics = answered(site, mine, task, params, NOTHING, kind="finish")
    assert body == b""
    assert set(metrics) == {"weight", "seconds"}
    assert metrics["weight"] == 1.0


def test_another_manifest_is_refused(site, tmp_path):
    task = replace(task_of(site), manifest="0" * 16)
    with pytest.raises(RunError, match=f"manifest must be {site.model.manifest.hash}; got 0000"):
        answered(site, client(site, tmp_path), task, start(site, task), NOTHING)


def test_parameters_of_another_length_are_refused(site, tmp_path):
    task = task_of(site)
    with pytest.raises(ValueError, match="length"):
        answered(site, client(site, tmp_path), task, start(site, task)[1:], NOTHING)


def test_a_folder_serves_one_base_only(site, tmp_path):
    client(site, tmp_path)
    other = made(TEXT.replace('name = "tiny"', 'name = "tiny"\nwidth = 16'))
    with pytest.raises(RunError, match="must be the folder of"):
        client(other, tmp_path)


def test_a_config_with_faults_opens_no_site():
    with pytest.raises(PerennialError, match=r"\[train.lrr\] unknown key"):
        made(TEXT + "lrr = 1\n")


def test_another_base_is_refused_though_the_shapes_agree(site, tmp_path):
    task = replace(task_of(site), base="0123456789abcdef")
    with pytest.raises(RunError, match=r"base must be the server's, 0123456789abcdef; this client"):
        answered(site, client(site, tmp_path), task, start(site, task), NOTHING)


def test_a_domain_of_one_label_is_told_apart_from_the_labels_before(site, tmp_path):
    task = task_of(site, domain=1)
    lone = replace(task, domain=replace(task.domain, labels=task.domain.labels[:1]))
    mine = client(site, tmp_path)
    assert len(site.asked(mine, task, "").answers()) == len(task.domain.labels)
    # All labels: a loss over one answer would be 0.
    assert site.asked(mine, lone, "").answers() == ()


def test_a_client_with_its_own_file_may_lack_a_domain(tmp_path):
    rows = "".join(f'{{"text": "w{i}", "label": "fee", "domain": "bank"}}\n' for i in range(8))
    (tmp_path / "mine.jsonl").write_text(rows)
    text = """
[data]
name = "jsonl"
train = "the-server-s.jsonl"
[domains]
order = ["shop", "bank"]
[shards]
split = "local"
[model]
name = "tiny"
"""
    own = Site(text, {"train": str(tmp_path / "mine.jsonl")})
    one = client(own, tmp_path)
    assert len(own.shards.of(one.index, "shop", "train")) == 0
    assert len(own.shards.of(one.index, "bank", "train")) > 0


def test_records_that_changed_on_the_disk_are_read_again(tmp_path):
    path = tmp_path / "own.csv"
    rows = ["text,label,domain", *(f"request {i},{'ab'[i % 2]},one" for i in range(20))]
    path.write_text("\n".join(rows))
    text = TEXT.replace('"sample"', f'"csv"\ntrain = "{path}"').replace('"dirichlet"', '"iid"')
    text = text.replace("num_clients = 3", "num_clients = 1")
    forget_site()
    first = open_site(text)
    assert open_site(text) is first
    path.write_text("\n".join([*rows, *(f"more {i},{'ab'[i % 2]},one" for i in range(20))]))
    second = open_site(text)
    assert len(second.stream.splits.train) > len(first.stream.splits.train)
    assert open_site(text) is second
    forget_site()
