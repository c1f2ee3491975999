"""The domains of a run, in the order in which they arrive, and the records that belong to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

from ..core.config import Domains
from ..core.errors import DataError
from ..core.values import Domain, Records, Splits

JOINT = "all"
"""Name of the one domain of a joint run."""

_Rename: TypeAlias = Callable[[Records], Records]


@dataclass(frozen=True, slots=True)
class Stream:
    """Domains in the order of their updates, and their records.

    Laws: every record's domain is one of `domains`; unless the model is causal, its target is
    one of that domain's labels, and no label has two domains. The order of records is kept.

    Attributes:
        domains: each once; labels sorted, so that they do not depend on the order of rows.
        splits: the records of these domains, their `domains` column holding `Domain.name`.
    """

    domains: tuple[Domain, ...]
    splits: Splits


def stream(
    splits: Splits, table: Domains, *, causal: bool = False, partial: bool = False
) -> Stream:
    """The stream that `[domains]` makes of `splits`.

    Domains are the values of the `domains` column, or the keys of `table.groups`, whose labels
    overrule the column; records in no group and in no domain of `table.order` are left out.
    Without an order, domains come as the groups stand, else as they first appear in train.
    With `table.joint`, what is left is one domain named `all`.

    Args:
        splits: as a source reads them.
        table: `[domains]` of the config.
        causal: whether targets are completions: domains then have no labels.
        partial: whether these are one client's own records, which may lack domains and labels
            that other clients have: names in `order` and `groups` may then be unknown, and
            train need not have all that validation and test have.

    Raises:
        DataError: an unknown or repeated name in `order`; a group's label that is unknown or in
            two groups; a record without a domain; a label in two domains; a domain of validation
            or test that train never has, or a label that train never has in that domain.
    """
    rename = _by_groups(splits.train, table, causal, partial) if table.groups else _same
    renamed = _each(splits, rename)
    if not table.joint:
        _need_names(renamed, partial)
    order = _order(renamed, table, partial)
    kept = _each(renamed, lambda records: _only(records, order))
    if table.joint:
        kept, order = _each(kept, _joined), (JOINT,)
    if causal:
        return Stream(tuple(Domain(name) for name in order), kept)
    labels = _labels(kept.train)
    if not table.joint:
        _need_one_domain(labels)
    if not partial:
        _need_known(kept, labels)
    return Stream(tuple(Domain(name, tuple(sorted(labels[name]))) for name in order), kept)


def of_domain(records: Records, name: str) -> Records:
    """The records of the domain `name`, in order; none when it has none."""
    return records.where(lambda i: records.domains[i] == name)


def _each(splits: Splits, change: _Rename) -> Splits:
    return Splits(change(splits.train), change(splits.validation), change(splits.test))


def _same(records: Records) -> Records:
    return records


def _joined(records: Records) -> Records:
    return _with_domains(records, [JOINT] * len(records))


def _with_domains(records: Records, names: Iterable[str]) -> Records:
    return Records(records.ids, records.texts, records.targets, tuple(names), records.groups)


def _only(records: Records, names: Iterable[str]) -> Records:
    wanted = frozenset(names)
    return records.where(lambda i: records.domains[i] in wanted)


def _by_groups(train: Records, table: Domains, causal: bool, partial: bool) -> _Rename:
    if causal:
        raise DataError(
            "[domains.groups] gathers labels, and a causal model has none; "
            "use a domain column or one file per domain"
        )
    known = frozenset(chain.from_iterable(table.groups.values())) if partial else train.targets
    owner = _owners(table.groups, frozenset(known))

    def rename(records: Records) -> Records:
        kept = records.where(lambda i: records.targets[i] in owner)
        return _with_domains(kept, (owner[target] for target in kept.targets))

    return rename


def _owners(groups: Mapping[str, tuple[str, ...]], known: frozenset[str]) -> dict[str, str]:
    """Label -> the group that holds it."""
    owner: dict[str, str] = {}
    for group, labels in groups.items():
        if not group or not labels:
            raise DataError(f"[domains.groups] {group!r}: must have a name and a label or more")
        for label in labels:
            if label not in known:
                raise DataError(
                    f"[domains.groups] {group!r}: train must have the label {label!r}; "
                    f"it has {_listed(known)}"
                )
            if label in owner:
                raise DataError(
                    f"[domains.groups]: a label must be in one group, once; got {label!r} in "
                    f"{owner[label]!r} and {group!r}"
                )
            owner[label] = group
    return owner


def _order(splits: Splits, table: Domains, partial: bool) -> tuple[str, ...]:
    there = tuple(table.groups) or tuple(dict.fromkeys(splits.train.domains))
    if partial:
        parts = (splits.train, splits.validation, splits.test)
        columns = (part.domains for part in parts)
        there = tuple(dict.fromkeys(chain(table.order, there, *columns)))
    unknown = [name for name in table.order if name not in there]
    if unknown:
        raise DataError(f"[domains] order: no domain {unknown[0]!r}; there are {_listed(there)}")
    twice = [name for name in table.order if table.order.count(name) > 1]
    if twice:
        raise DataError(f"[domains] order: each domain must stand once; got {twice[0]!r} twice")
    return table.order or there


def _need_names(splits: Splits, partial: bool) -> None:
    known = frozenset(splits.train.domains)
    for records in (splits.train, splits.validation, splits.test):
        if "" in records.domains:
            place = _shown(records, records.domains.index(""))
            raise DataError(
                f"every record must have a domain; got none for {place}; add a domain column, "
                "give one file per domain, write [domains.groups], or [domains] joint = true"
            )
        strange = next((i for i, name in enumerate(records.domains) if name not in known), None)
        if strange is not None and not partial:
            raise DataError(
                f"every domain must have training records; got {records.domains[strange]!r} "
                f"({_shown(records, strange)}), which is none of {_listed(known)}; mend that "
                "record or add some to train"
            )


def _shown(records: Records, i: int) -> str:
    """What finds a record in its file."""
    return f"{records.ids[i]}, {records.texts[i]!r:.60}"


def _labels(train: Records) -> dict[str, set[str]]:
    labels: dict[str, set[str]] = defaultdict(set)
    for name, target in zip(train.domains, train.targets, strict=True):
        labels[name].add(target)
    return labels


def _need_one_domain(labels: Mapping[str, set[str]]) -> None:
    owner: dict[str, str] = {}
    for name, targets in labels.items():
        for label in sorted(targets):
            if label in owner:
                raise DataError(
                    f"a label must be in one domain; got {label!r} in {owner[label]!r} and "
                    f"{name!r}; rename one of the two labels, such as '{name}_{label}'"
                )
            owner[label] = name


def _need_known(splits: Splits, labels: Mapping[str, set[str]]) -> None:
    for part, records in (("validation", splits.validation), ("test", splits.test)):
        columns = zip(records.domains, records.targets, strict=True)
        for i, (name, label) in enumerate(columns):
            if label not in labels.get(name, ()):
                raise DataError(
                    f"{part} may only have labels of train; got {label!r} in domain {name!r} "
                    f"({_shown(records, i)}), which train never has there; mend that record or "
                    "add some to train"
                )


def _listed(names: Iterable[str]) -> str:
    some = sorted(names)
    return ", ".join(map(repr, some[:40])) + (f" and {len(some) - 40} more" if some[40:] else "")
