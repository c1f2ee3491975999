import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.core.values import Manifest, Records, gather, scatter

ABC = Manifest(("a", "b", "c"), ((2, 3), (), (4,)))

names = st.lists(st.text(min_size=1, max_size=5), max_size=5, unique=True)
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@st.composite
def manifests(draw):
    chosen = draw(names)
    return Manifest(tuple(chosen), tuple(draw(shapes) for _ in chosen))


def numbers(n):
    return np.arange(1, n + 1, dtype=np.float32)


def test_pack_by_hand():
    arrays = {"c": np.array([7.0, 8, 9, 10]), "a": np.array([[1, 2, 3], [4, 5, 6]]), "b": 6.5}
    vector = ABC.pack({name: np.asarray(value) for name, value in arrays.items()})
    assert vector.dtype == np.float32
    assert vector.tolist() == [1, 2, 3, 4, 5, 6, 6.5, 7, 8, 9, 10]
    assert ABC.size == 11
    assert ABC.offsets == (0, 6, 7, 11)


def test_unpack_by_hand():
    arrays = ABC.unpack(numbers(11))
    assert arrays["a"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert arrays["b"].shape == ()
    assert arrays["b"] == 7
    assert arrays["c"].tolist() == [8, 9, 10, 11]


@given(manifests())
def test_pack_and_unpack_are_inverse(manifest):
    vector = numbers(manifest.size)
    assert manifest.pack(manifest.unpack(vector)).tolist() == vector.tolist()


@given(manifests(), st.data())
def test_scatter_is_the_inverse_of_gather(manifest, data):
    chosen = data.draw(st.sets(st.sampled_from(manifest.names))) if manifest.names else set()
    slices, vector = manifest.slices(chosen), numbers(manifest.size)
    part = gather(vector, slices)
    assert part.tolist() == manifest.only(chosen).pack(manifest.unpack(vector)).tolist()
    blank = scatter(np.zeros_like(vector), slices, part)
    assert gather(blank, slices).tolist() == part.tolist()
    assert scatter(vector, slices, part).tolist() == vector.tolist()
    assert blank.sum() == part.sum()  # nothing was written elsewhere


def test_gather_and_scatter_copy():
    vector = numbers(11)
    slices = ABC.slices({"a", "c"})
    gather(vector, slices)[:] = 0
    scatter(vector, slices, np.zeros(10, np.float32))
    assert vector.tolist() == numbers(11).tolist()


def test_neighbours_become_one_slice():
    assert ABC.slices({"a", "b"}) == [slice(0, 7)]
    assert ABC.slices({"a", "c"}) == [slice(0, 6), slice(7, 11)]
    assert ABC.slices(()) == []
    assert gather(numbers(11), []).shape == (0,)


def test_only_keeps_the_order_of_the_manifest():
    assert ABC.only(["c", "a"]).names == ("a", "c")


@pytest.mark.parametrize(
    "other",
    [
        Manifest(("a", "b", "d"), ((2, 3), (), (4,))),
        Manifest(("a", "b", "c"), ((3, 2), (), (4,))),
        Manifest(("b", "a", "c"), ((), (2, 3), (4,))),
        Manifest(("a", "b"), ((2, 3), ())),
    ],
)
def test_the_hash_tells_names_shapes_and_order_apart(other):
    assert other.hash != ABC.hash
    assert Manifest(ABC.names, ABC.shapes).hash == ABC.hash


def test_what_does_not_fit_a_manifest_is_refused():
    arrays = ABC.unpack(numbers(11))
    with pytest.raises(ValueError, match=r"'c' must have shape \(4,\); got \(2, 2\)"):
        ABC.pack({**arrays, "c": np.zeros((2, 2))})
    with pytest.raises(ValueError, match=r"'a' must have shape .* got nothing"):
        ABC.pack({"b": arrays["b"], "c": arrays["c"]})
    with pytest.raises(ValueError, match="length 11"):
        ABC.unpack(numbers(12))
    with pytest.raises(ValueError, match="length 11"):
        ABC.unpack(numbers(11)[:, None])
    with pytest.raises(ValueError, match="one shape per name"):
        Manifest(("a", "a"), ((1,), (1,)))
    with pytest.raises(ValueError, match="one shape per name"):
        Manifest(("a",), ())


def test_records_take_where_and_add(requests_):
    assert requests_.take([6, 0]).ids == ("r6", "r0")
    assert requests_.take(np.array([2])).texts == ("hi there",)
    parting = requests_.where(lambda i: requests_.targets[i] == "part")
    assert parting.ids == ("r3", "r4")
    both = parting + requests_.take([0])
    assert both.ids == ("r3", "r4", "r0")
    assert both.targets == ("part", "part", "greet")
    assert len(Records() + Records()) == 0
    assert (Records() + parting) == parting


def test_records_of_unequal_columns_are_refused():
    with pytest.raises(ValueError, match="equal length"):
        Records(("a",), ("x",), ("y",), ("d",), ())
