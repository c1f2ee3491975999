"""Our streams as benchmarks of Avalanche, our model in its strategies, its metrics and ours."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from perennial.core import metrics, plugins
from perennial.core.config import Domains
from perennial.core.errors import RunError
from perennial.core.parts import Model
from perennial.core.values import Domain, Splits
from perennial.data import sample
from perennial.data.stream import Stream, of_domain, stream

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("avalanche", reason="pip install 'perennial-fl[avalanche]'")
    from avalanche.benchmarks.utils.data_loader import SingleDatasetDataLoader
    from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics, forgetting_metrics
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import EWC, Naive, Replay

    from perennial.simulations import avalanche_streams
    from perennial.simulations.avalanche_streams import IndexedModel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:avalanche.*")

ORDER = ("bank", "city", "shop")


@pytest.fixture(scope="module")
def small() -> Stream:
    """Three domains of the sample, a third of their training sentences."""
    splits = sample.build().read()

    def every(records: Any, step: int) -> Any:
        return records.where(lambda i: i % step == 0)

    thin = Splits(every(splits.train, 3), splits.validation, every(splits.test, 4))
    return stream(thin, Domains(order=ORDER))


def tiny(**options: Any) -> Any:
    torch.manual_seed(0)
    return plugins.load("models", "tiny", {"width": 64, **options}, Model)


def test_an_item_is_a_position_and_a_class(small: Stream) -> None:
    made, pointed = avalanche_streams.benchmark(small), avalanche_streams.records(small)
    classes = avalanche_streams.labels(small)
    assert len(made.train_stream) == len(made.test_stream) == len(ORDER)
    for part, experiences in (
        (small.splits.train, made.train_stream),
        (small.splits.test, made.test_stream),
    ):
        for domain, experience in zip(small.domains, experiences, strict=True):
            found = pointed.take([position for position, _ in experience.dataset])
            assert found == of_domain(part, domain.name)
            targets = [classes[target] for _, target in experience.dataset]
            assert targets == list(found.targets)
            assert {classes[c] for c in experience.dataset.targets.uniques} == set(domain.labels)
            assert experience.classes_in_this_experience == experience.dataset.targets.uniques
    positions, targets = next(iter(SingleDatasetDataLoader(made.train_stream[1].dataset, 4)))
    assert positions.dtype == targets.dtype == torch.int64
    assert positions.shape == targets.shape == (4,)


def test_domains_without_labels_are_refused(small: Stream) -> None:
    with pytest.raises(RunError, match="needs labels"):
        avalanche_streams.benchmark(Stream((Domain("talk"),), small.splits))


@pytest.mark.parametrize("layers", [0, 1])
def test_the_module_answers_as_the_model_does(small: Stream, layers: int) -> None:
    model = tiny(layers=layers)
    module = IndexedModel(model, small)
    assert model.labels == ()
    model.fit_labels(avalanche_streams.labels(small))
    rng = np.random.default_rng(0)
    model.load(rng.normal(0.0, 0.1, model.manifest.size).astype(np.float32))
    pointed = avalanche_streams.records(small)
    places = rng.permutation(len(pointed))[:32]
    wanted = model.logits(model.encode(pointed), 64)[places]
    found = module(torch.from_numpy(places))
    assert found.requires_grad
    np.testing.assert_allclose(found.detach().numpy(), wanted, atol=1e-5)


def test_the_head_grows_with_the_experiences_and_only_what_trains_is_registered(
    small: Stream,
) -> None:
    model = tiny()
    module, made = IndexedModel(model, small), avalanche_streams.benchmark(small)
    for domain, experience in enumerate(made.train_stream, start=1):
        module.adaptation(experience)
        assert model.labels == avalanche_streams.labels(small)[: 6 * domain]
        registered = dict(module.named_parameters())
        assert list(registered) == [name.replace(".", "/") for name in model.parameters()]
        assert all(
            a is b for a, b in zip(registered.values(), model.parameters().values(), strict=True)
        )
    size = len(model.labels)
    module.adaptation(made.test_stream[0])
    assert len(model.labels) == size


class Rows:
    """A row of accuracies after each experience, and Avalanche's own figures at the end."""

    def __init__(self, strategy: Any, made: Any) -> None:
        count = len(made.train_stream)
        self.matrix = np.full((count, count), np.nan)
        for i, experience in enumerate(made.train_stream):
            strategy.train(experience)
            self.told = strategy.eval(made.test_stream[: i + 1])
            for j in range(i + 1):
                name = f"Top1_Acc_Exp/eval_phase/test_stream/Exp{j:03d}"
                self.matrix[i, j] = self.told[name]

    def stream(self, name: str) -> float:
        return float(self.told[f"{name}/eval_phase/test_stream"])


def trained(small: Stream, strategy: Any, **options: Any) -> tuple[Rows, Any]:
    torch.manual_seed(0)
    model = plugins.load("models", "encoder_classifier", {}, Model)
    module, made = IndexedModel(model, small), avalanche_streams.benchmark(small)
    shown = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True),
        forgetting_metrics(experience=True, stream=True),
        bwt_metrics(experience=True, stream=True),
    )
    built = strategy(
        model=module,
        optimizer=torch.optim.AdamW(module.parameters(), lr=5e-3),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=16,
        train_epochs=4,
        eval_mb_size=64,
        evaluator=shown,
        **options,
    )
    return Rows(built, made), model


@pytest.fixture(scope="module")
def naive(small: Stream) -> tuple[Rows, Any]:
    return trained(small, Naive)


@pytest.fixture(scope="module")
def replay(small: Stream) -> tuple[Rows, Any]:
    return trained(small, Replay, mem_size=90)


@pytest.mark.integration
def test_its_naive_replay_and_ewc_train_our_model(
    small: Stream, naive: tuple[Rows, Any], replay: tuple[Rows, Any]
) -> None:
    (plain, model), (replayed, _) = naive, replay
    ewc, _ = trained(small, EWC, ewc_lambda=1e3, mode="online", decay_factor=1.0)
    assert len(model.labels) == 18
    # A new domain of six intents is learnt well above chance, and replay keeps the old ones.
    assert plain.matrix[0, 0] > 0.5
    assert plain.matrix[2, 0] < 0.1
    assert replayed.matrix[2, :2].mean() > plain.matrix[2, :2].mean() + 0.2
    assert ewc.matrix[2, 0] >= plain.matrix[2, 0]
    assert not np.array_equal(np.nan_to_num(ewc.matrix), np.nan_to_num(plain.matrix))
    # What it trained is our model, saved and scored as always.
    part = of_domain(small.splits.test, "shop")
    score = model.score(model.encode(part), 64)
    assert math.isclose(score.accuracy, float(plain.matrix[2, 2]), abs_tol=1e-6)


@pytest.mark.integration
@pytest.mark.parametrize("run", ["naive", "replay"])
def test_its_metrics_and_ours_agree_on_the_same_run(
    small: Stream, run: str, request: pytest.FixtureRequest
) -> None:
    rows, _ = request.getfixturevalue(run)
    matrix, last = rows.matrix, len(rows.matrix) - 1
    # Its stream accuracy counts requests; these domains have the same number of them.
    sizes = [len(of_domain(small.splits.test, name)) for name in ORDER]
    assert len(set(sizes)) == 1
    assert metrics.average_accuracy(matrix)[-1] == pytest.approx(rows.stream("Top1_Acc_Stream"))
    assert metrics.backward_transfer(matrix) == pytest.approx(rows.stream("StreamBWT"))
    # Its forgetting is the loss since a domain was learnt; ours since its best (Chaudhry et al.),
    # so ours is at least as large, and the same where no domain got better after it was learnt.
    learnt = np.diagonal(matrix)[:last]
    best = np.array([np.nanmax(matrix[j:last, j]) for j in range(last)])
    assert metrics.forgetting(matrix)[-1] == pytest.approx(
        rows.stream("StreamForgetting") + float((best - learnt).mean())
    )
    for j in range(last):
        lost = rows.told[f"ExperienceForgetting/eval_phase/test_stream/Exp{j:03d}"]
        assert matrix[j, j] - matrix[last, j] == pytest.approx(lost)
