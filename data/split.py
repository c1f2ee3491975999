"""A seeded split of records into train, validation and test, stratum by stratum."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from ..core.errors import ConfigError, DataError, Fault
from ..core.seeds import generator
from ..core.values import Records, Splits

_PARTS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Rates:
    """How much of the training records is held out, when there is no file of test records.

    Attributes:
        test: share of a stratum for test, 0..1.
        validation: share of a stratum for validation, 0..1; both add up to less than 1.
        seed: seed of the split.
    """

    test: float = 0.2
    validation: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.test < 0.0 or self.validation < 0.0 or not self.test + self.validation < 1.0:
            got = f"test_rate {self.test:g} and validation_rate {self.validation:g}"
            problem = f"rates must be at least 0 and add up to less than 1; got {got}"
            raise ConfigError([Fault("data.test_rate", problem, "lower one of the two")])


def split(records: Records, rates: Rates, *, by_target: bool = True) -> Splits:
    """`records` in three parts, stratified by domain and target; order and ids are kept.

    Laws: the parts are a partition; the part of a record depends on `rates` and on the records
    of its own stratum alone. A stratum of n records gives round(n * rate) to a part, and at
    least one if the rate is above 0, but keeps one for train first, then one for test.

    Args:
        records: what to split.
        rates: shares and seed.
        by_target: False for completions, which are strata of one; then by domain only.

    Raises:
        DataError: `rates.test` is above 0 but no stratum has two records.
    """
    strata: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, (domain, target) in enumerate(zip(records.domains, records.targets, strict=True)):
        strata[domain, target if by_target else ""].append(i)
    parts: dict[str, list[int]] = {name: [] for name in _PARTS}
    for stratum, members in strata.items():
        order = generator(rates.seed, "split", *stratum).permutation(len(members))
        shuffled = [members[i] for i in order]
        num_test = _count(len(members), rates.test, spare=len(members) - 1)
        num_validation = _count(len(members), rates.validation, len(members) - 1 - num_test)
        held_out = num_test + num_validation
        parts["test"] += shuffled[:num_test]
        parts["validation"] += shuffled[num_test:held_out]
        parts["train"] += shuffled[held_out:]
    if rates.test > 0.0 and not parts["test"]:
        raise DataError(
            f"a label must have two records or more to be split into train and test; got "
            f"{len(records)} labels with one each; give a test file or write test_rate = 0"
        )
    return Splits(*(records.take(sorted(parts[name])) for name in _PARTS))


def _count(size: int, rate: float, spare: int) -> int:
    wanted = max(1, round(size * rate)) if rate > 0.0 else 0
    return min(wanted, spare)
