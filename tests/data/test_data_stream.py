"""The stream of domains: what each key of `[domains]` does, and what is refused."""

import pytest

from perennial.core.config import Domains
from perennial.core.errors import DataError
from perennial.core.values import Domain, Records, Splits
from perennial.data.stream import of_domain, stream

TRAIN = ["clinic/move", "bank/lost", "clinic/book", "bank/fee", "home/lamp"]


def records(pairs: list[str], part: str = "train") -> Records:
    domains, targets = zip(*(pair.split("/") for pair in pairs), strict=True)
    ids = tuple(f"{part}:f:{i}" for i in range(1, len(pairs) + 1))
    return Records(ids, ids, targets, domains, ("",) * len(pairs))


def splits(train: list[str] = TRAIN, test: list[str] = TRAIN) -> Splits:
    return Splits(records(train), Records(), records(test, "test"))


def test_domains_as_they_first_appear_with_sorted_labels() -> None:
    found = stream(splits(), Domains())
    assert found.domains == (
        Domain("clinic", ("book", "move")),
        Domain("bank", ("fee", "lost")),
        Domain("home", ("lamp",)),
    )
    assert found.splits == splits()


def test_order_picks_and_leaves_out() -> None:
    found = stream(splits(), Domains(order=("home", "clinic")))
    assert [domain.name for domain in found.domains] == ["home", "clinic"]
    assert found.splits.train.targets == ("move", "book", "lamp")
    assert found.splits.test.targets == ("move", "book", "lamp")


def test_groups_overrule_the_column_and_leave_labels_out() -> None:
    groups = {"second": ("lamp", "fee"), "first": ("move",)}
    found = stream(splits(), Domains(groups=groups))
    assert found.domains == (Domain("second", ("fee", "lamp")), Domain("first", ("move",)))
    assert found.splits.train.domains == ("first", "second", "second")
    ordered = stream(splits(), Domains(groups=groups, order=("first",)))
    assert ordered.domains == (Domain("first", ("move",)),)
    assert ordered.splits.train.targets == ("move",)


def test_joint_is_one_domain_of_all_labels_even_without_a_column() -> None:
    bare = ["/" + pair.partition("/")[2] for pair in TRAIN]
    found = stream(splits(bare, bare), Domains(joint=True))
    assert found.domains == (Domain("all", ("book", "fee", "lamp", "lost", "move")),)
    assert set(found.splits.train.domains) == {"all"}
    few = stream(splits(), Domains(joint=True, groups={"g": ("fee",), "h": ("lamp",)}))
    assert few.domains == (Domain("all", ("fee", "lamp")),)


def test_a_causal_stream_has_no_labels_and_does_not_compare_completions() -> None:
    found = stream(splits(test=["bank/other", "home/lamp"]), Domains(), causal=True)
    assert found.domains == (Domain("clinic"), Domain("bank"), Domain("home"))
    assert len(found.splits.test) == 2


def test_groups_need_no_column() -> None:
    bare = splits(["/fee", "/lamp"], ["/lamp"])
    found = stream(bare, Domains(groups={"a": ("fee",), "b": ("lamp",)}))
    assert found.splits.test.domains == ("b",)


def test_of_domain_keeps_order() -> None:
    assert of_domain(records(TRAIN), "clinic").targets == ("move", "book")
    assert len(of_domain(records(TRAIN), "nowhere")) == 0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"order": ("bank", "shop")}, "no domain 'shop'; there are 'bank', 'clinic', 'home'"),
        ({"order": ("bank", "bank")}, "each domain must stand once; got 'bank' twice"),
        ({"groups": {"g": ("fee",)}, "order": ("bank",)}, "no domain 'bank'; there are 'g'"),
        ({"groups": {"g": ("fee", "tea")}}, "'g': train must have the label 'tea'; it has 'book'"),
        ({"groups": {"g": ("fee",), "h": ("fee",)}}, "got 'fee' in 'g' and 'h'"),
        ({"groups": {"g": ()}}, "'g': must have a name and a label or more"),
    ],
)
def test_faulty_tables(table: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        stream(splits(), Domains.model_validate(table))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["a/x", "b/x"], ["a/x"], "got 'x' in 'a' and 'b'; rename one"),
        (
            ["a/x"],
            ["a/x", "a/y"],
            r"got 'y' in domain 'a' \(test:f:2, '.*'\), which train never has",
        ),
        (["a/x"], ["b/x"], r"must have training records; got 'b' \(test:f:1, '.*'\)"),
        (["a/x", "b/y"], ["b/x"], "got 'x' in domain 'b'"),
        (["/x"], ["/x"], "every record must have a domain; got none for train:f:1"),
        (["a/x"], ["/x"], "every record must have a domain; got none for test:f:1"),
    ],
)
def test_faulty_records(train: list[str], test: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        stream(splits(train, test), Domains())


def test_a_label_in_two_domains_is_no_fault_where_one_is_left_out_or_they_are_joined() -> None:
    both = splits(["a/x", "b/x", "b/y"], ["a/x"])
    assert stream(both, Domains(order=("a",))).domains == (Domain("a", ("x",)),)
    assert stream(both, Domains(joint=True)).domains == (Domain("all", ("x", "y")),)


def test_groups_of_labels_are_refused_for_a_causal_model() -> None:
    with pytest.raises(DataError, match="a causal model has none"):
        stream(splits(), Domains(groups={"g": ("fee",)}), causal=True)


def test_one_client_s_own_records_may_lack_domains_and_labels() -> None:
    own = splits(["bank/fee", "bank/lost"], ["home/lamp", "bank/new"])
    ordered = Domains(order=("clinic", "bank", "home"))
    found = stream(own, ordered, partial=True)
    assert len(of_domain(found.splits.train, "bank")) == 2
    assert len(of_domain(found.splits.test, "home")) == 1
    assert len(of_domain(found.splits.train, "clinic")) == 0
    with pytest.raises(DataError):
        stream(own, ordered)
    grouped = Domains(groups={"money": ("fee", "card"), "light": ("lamp",)})
    found = stream(own, grouped, partial=True)
    assert found.splits.train.domains == ("money",)
    assert found.splits.test.domains == ("light",)
