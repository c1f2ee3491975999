"""Our streams as benchmarks of Avalanche, and our model as a module that its strategies train.

Avalanche: Carta et al. 2023 (arXiv:2302.01766), the optional package `avalanche-lib`. An item is
the position of a record and its class, both integers: whatever Avalanche does to collate, subset
or replay items, it can do to those, and the module looks the record's tokens or activations up.
"""

from __future__ import annotations

from typing import Any

from ..core.errors import RunError
from ..core.values import Domain, Records
from ..data.stream import Stream, of_domain
from ..models.encoder_classifier import EncoderClassifier

try:
    from avalanche.benchmarks import CLScenario, benchmark_from_datasets, with_classes_timeline
    from avalanche.benchmarks.utils import DataAttribute
    from avalanche.benchmarks.utils.classification_dataset import ClassificationDataset
    from avalanche.models import DynamicModule
except ImportError as error:
    raise ImportError(
        f"the bridge to Avalanche needs the package avalanche-lib ({error}); in the project's "
        "folder, run pip install '.[avalanche]'",
        name=error.name,
    ) from error


def records(stream: Stream) -> Records:
    """All records that items point at: position -> record; training records first."""
    return stream.splits.train + stream.splits.test


def labels(stream: Stream) -> tuple[str, ...]:
    """Class -> label, in the order in which domains bring them.

    Raises:
        RunError: the domains have no labels.
    """
    found = tuple(label for domain in stream.domains for label in domain.labels)
    if not found:
        raise RunError("a benchmark of classes needs labels; these domains have none")
    return found


def benchmark(stream: Stream) -> CLScenario:
    """The class-incremental benchmark of `stream`: `train_stream` and `test_stream`.

    An experience per domain, in order; an item is (position in `records`, class), both `int`.
    There are no task labels.

    Raises:
        RunError: the domains have no labels.
    """
    classes = {label: number for number, label in enumerate(labels(stream))}
    place = {name: i for i, name in enumerate(records(stream).ids)}

    def dataset(part: Records, domain: Domain) -> ClassificationDataset:
        own = of_domain(part, domain.name)
        targets = [classes[target] for target in own.targets]
        items = [(place[i], target) for i, target in zip(own.ids, targets, strict=True)]
        return ClassificationDataset([items], data_attributes=[DataAttribute(targets, "targets")])

    made = benchmark_from_datasets(
        train=[dataset(stream.splits.train, domain) for domain in stream.domains],
        test=[dataset(stream.splits.test, domain) for domain in stream.domains],
    )
    return with_classes_timeline(made)


class IndexedModel(DynamicModule):  # type: ignore[misc]
    """Our model as a torch module: positions [b] in `records` -> logits [b, classes so far].

    Only what trains is registered as a parameter, so that a plug-in which keeps or goes through
    all parameters does not do so for the frozen base. The head grows with the experiences: rows
    of new classes are zero, as in our own runs; an optimizer is told by Avalanche.

    Args:
        model: without labels, or with those of the first domains of `stream`.
        stream: whose records it will be asked about; they are encoded here, once.
    """

    def __init__(self, model: EncoderClassifier, stream: Stream) -> None:
        super().__init__()
        self.model = model
        self._labels = labels(stream)
        begun, vector = model.labels, model.vector()
        model.fit_labels(self._labels)  # what is encoded has classes
        self._encoded = model.encode(records(stream))
        model.fit_labels(begun)
        model.load(vector)
        self._register()

    def adaptation(self, experience: Any) -> None:
        """Grow the head to the classes of `experience`, and of those before it."""
        count = max(experience.dataset.targets.uniques) + 1
        if count > len(self.model.labels):
            self.model.fit_labels(self._labels[:count])
            self._register()

    def forward(self, positions: Any) -> Any:
        """Logits float [b, classes so far] of the records at int64 `positions` [b]."""
        batch = self._encoded.batch(positions.cpu().numpy())
        return self.model.outputs(batch)  # with gradients, which `logits` has none of

    def _register(self) -> None:
        for name, parameter in self.model.parameters().items():
            self.register_parameter(name.replace(".", "/"), parameter)
