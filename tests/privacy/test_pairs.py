import json
import os
import random
import stat
import threading
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.core.errors import ConfigError, RunError
from perennial.core.sums import Pact, Party
from perennial.privacy import vault
from perennial.privacy.cards import CARD_BYTES, NOTE_BYTES, Card, decode, encode, signed_text
from perennial.privacy.graph import neighbours_for
from perennial.privacy.keystream import mask
from perennial.privacy.pairs import Pairs

RUN = "talk/7f3a"
PRIME_48 = 2**48 - 59
MODULI = [PRIME_48, 2**50, 2**60 - 93]
PAIRS = Pairs(min_clients=3)


def pact_of(session=1, **changes):
    pact = Pact(RUN, 0, 0, 0, "m", f"{session:032x}", 10, 1.0, "k")
    return replace(pact, **changes)


def parties_in(folder, num, first=0):
    return {
        node: Party(node, folder / f"site-{node}")
        for node in (first + 7**i * (-1) ** i for i in range(num))
    }


def joined(pairs, parties, run=RUN):
    return {node: pairs.join(party, run) for node, party in parties.items()}


def paired(pairs, parties, pact):
    return pairs.pair(pact, joined(pairs, parties, pact.run))


def sealed(pairs, parties, pact, notes):
    return {n: pairs.seeds(pact, notes[n], party) for n, party in parties.items()}


def opened(pairs, parties, pact, counted, count, modulus, inputs):
    """The sum modulo `modulus` of the counted inputs, by way of masks and reveals."""
    notes = paired(pairs, parties, pact)
    bodies = {
        node: (inputs[node] + mask(seeds, count, modulus).astype(object)) % modulus
        for node, seeds in sealed(pairs, parties, pact, notes).items()
    }
    total = sum(bodies[node] for node in counted) % modulus
    asks = pairs.ask(pact, notes, counted)
    reveals = {node: pairs.reveal(pact, ask, parties[node]) for node, ask in asks.items()}
    left = mask(pairs.leftovers(pact, asks, reveals), count, modulus).astype(object)
    return (total - left) % modulus


def inputs_of(parties, count, modulus):
    rng = np.random.default_rng(0)
    return {n: rng.integers(0, modulus, count, np.uint64).astype(object) for n in parties}


@pytest.fixture
def five(tmp_path):
    """Five parties of one cohort in which all know all, their pact and their notes."""
    parties = parties_in(tmp_path, 5)
    pact = pact_of()
    return parties, pact, paired(PAIRS, parties, pact)


@pytest.fixture
def asked(five):
    """The five after the last dropped out: parties, pact, notes, and what the rest are asked."""
    parties, pact, notes = five
    sealed(PAIRS, parties, pact, notes)
    return parties, pact, notes, PAIRS.ask(pact, notes, list(parties)[:-1])


# The sum


@pytest.mark.parametrize("modulus", MODULI)
@pytest.mark.parametrize(("num", "neighbours"), [(3, 0), (4, 0), (9, 0), (9, 4), (10, 3), (40, 0)])
def test_the_masks_of_a_cohort_cancel(tmp_path, modulus, num, neighbours):
    pairs = Pairs(3, neighbours)
    parties = (
        parties_in(tmp_path, num)
        if num < 20
        else {i: Party(i, tmp_path / str(i)) for i in range(num)}
    )
    pact = pact_of()
    seeds = sealed(pairs, parties, pact, paired(pairs, parties, pact))
    wanted = min(neighbours + neighbours % 2 or neighbours_for(num, 1 / 3), num - 1)
    assert {len(own) for own in seeds.values()} == {wanted}
    masks = [mask(own, 50, modulus) for own in seeds.values()]
    assert all(shade.any() for shade in masks)
    assert not (sum(shade.astype(object) for shade in masks) % modulus).any()


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohorts")
    return {num: parties_in(folder / str(num), num) for num in (4, 8, 12)}


session_counter = iter(range(1, 10**6))


@settings(max_examples=25, deadline=None)
@given(
    num=st.sampled_from([4, 8, 12]),
    neighbours=st.sampled_from([0, 6]),
    modulus=st.sampled_from(MODULI),
    rng=st.randoms(use_true_random=False),
)
def test_after_drop_outs_the_leftovers_make_it_exact(cohorts, num, neighbours, modulus, rng):
    parties, pairs = cohorts[num], Pairs(3, neighbours)
    counted = rng.sample(list(parties), num - int(0.3 * num))
    inputs = inputs_of(parties, 20, modulus)
    pact = pact_of(next(session_counter))
    found = opened(pairs, parties, pact, counted, 20, modulus, inputs)
    assert found.tolist() == (sum(inputs[node] for node in counted) % modulus).tolist()


def test_nothing_is_asked_when_nobody_dropped_out(five):
    parties, pact, notes = five
    sealed(PAIRS, parties, pact, notes)
    assert PAIRS.ask(pact, notes, list(parties)) == {}
    assert PAIRS.leftovers(pact, {}, {}) == []


def test_only_neighbours_of_those_who_dropped_out_are_asked(tmp_path):
    pairs = Pairs(3, neighbours=2)
    parties = {i: Party(i, tmp_path / str(i)) for i in range(12)}
    pact = pact_of()
    notes = paired(pairs, parties, pact)
    gone = 5
    nearby = {card["node"] for card in json.loads(notes[gone])["cards"]}
    with pytest.raises(RunError, match="too many neighbours"):
        pairs.ask(pact, notes, set(parties) - {gone})
    pairs = Pairs(3, neighbours=4)
    notes = paired(pairs, parties, pact_of(2))
    nearby = {card["node"] for card in json.loads(notes[gone])["cards"]}
    assert set(pairs.ask(pact_of(2), notes, set(parties) - {gone})) == nearby


def test_two_parties_share_a_seed_with_opposite_signs(five):
    parties, pact, notes = five
    found = sealed(PAIRS, parties, pact, notes)
    shares = [{seed: sign for sign, seed in own} for own in found.values()]
    assert len({seed for own in shares for seed in own}) == 10
    for i, one in enumerate(shares):
        for other in shares[:i]:
            (common,) = one.keys() & other.keys()
            assert one[common] == -other[common]


@pytest.mark.parametrize(
    "changes", [{"session": f"{9:032x}"}, {"round": 1}, {"size": 11}, {"key": "other"}]
)
def test_another_session_or_pact_gives_other_seeds(five, changes):
    parties, pact, notes = five
    first = sealed(PAIRS, parties, pact, notes)
    other = replace(pact, **{"session": f"{2:032x}", **changes})
    second = sealed(PAIRS, parties, other, paired(PAIRS, parties, other))
    seeds = [{seed for _, seed in own} for found in (first, second) for own in found.values()]
    assert len(set().union(*seeds)) == 20


def test_a_masked_vector_says_nothing_of_its_input(five):
    parties, pact, notes = five
    node = next(iter(parties))
    rng = np.random.default_rng(0)
    clear = rng.normal(2.0**47, 2.0**44, 100_000).astype(np.uint64)
    shade = mask(PAIRS.seeds(pact, notes[node], parties[node]), 100_000, PRIME_48)
    masked = (clear + shade) % PRIME_48
    assert abs(np.corrcoef(clear.astype(float), masked.astype(float))[0, 1]) < 0.016


def test_neighbours_are_drawn_anew_for_each_session(tmp_path):
    pairs = Pairs(3, neighbours=2)
    cards = joined(pairs, {i: Party(i, tmp_path / str(i)) for i in range(20)})
    drawn = [
        tuple(tuple(card["node"] for card in json.loads(note)["cards"]) for note in notes.values())
        for notes in (pairs.pair(pact_of(i), dict(sorted(cards.items()))) for i in range(3))
    ]
    assert len(set(drawn)) == 3


# Cards and identities


def test_a_card_stays_the_same_and_binds_the_run(tmp_path):
    party = Party(4, tmp_path)
    first = PAIRS.join(party, RUN)
    assert PAIRS.join(party, RUN) == first
    other = PAIRS.join(party, "another run")
    cards = [json.loads(data) for data in (first, other)]
    assert cards[0]["identity"] == cards[1]["identity"] == vault.identity(tmp_path)
    assert cards[0]["exchange"] != cards[1]["exchange"]
    assert len(first) < CARD_BYTES


@pytest.mark.parametrize("run", ["../../escape", "", "a" * 500, "\ud800", "ä\0b", "A", "a"])
def test_any_run_name_gets_a_file_of_its_own_inside_the_folder(tmp_path, run):
    PAIRS.join(Party(0, tmp_path / "site"), "a b")
    PAIRS.join(Party(0, tmp_path / "site"), run)
    keys = sorted(path.name for path in (tmp_path / "site" / "pairs").glob("*.key"))
    assert len({key.lower() for key in keys}) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_files_are_for_their_owner_only(asked):
    parties, pact, _, asks = asked
    node, ask = next(iter(asks.items()))
    PAIRS.reveal(pact, ask, parties[node])
    files = [path for path in parties[node].folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".key", ".json", ""}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert not [path for path in files if path.name.startswith(".") and path.name != ".lock"]


def test_an_open_umask_does_not_open_files(tmp_path):
    before = os.umask(0)
    try:
        PAIRS.join(Party(0, tmp_path), RUN)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "pairs").stat().st_mode) == 0o700


def test_a_damaged_key_is_named(tmp_path):
    PAIRS.join(Party(0, tmp_path), RUN)
    (tmp_path / "identity.key").write_bytes(b"\xff\x00")
    with pytest.raises(RunError, match=r"identity\.key must hold"):
        PAIRS.join(Party(0, tmp_path), RUN)


def forged(kind, cards, parties):
    """The card of the first node, made by somebody else or for something else."""
    node, other = list(parties)[:2]
    card, mallory = json.loads(cards[node]), Ed25519PrivateKey.generate()
    if kind == "other identity":
        card["identity"] = mallory.public_key().public_bytes_raw().hex()
    elif kind == "other signer":
        text = signed_text(RUN, node, card["exchange"])
        card["signature"] = mallory.sign(text).hex()
    elif kind == "other run":
        return PAIRS.join(parties[node], "other run")
    elif kind == "other node":
        return cards[other]
    elif kind == "other exchange":
        card["exchange"] = json.loads(cards[other])["exchange"]
    else:
        # Signed as it should be, but unfit to agree on a secret with.
        exchange = {
            "zero": bytes(32),
            "one": bytes([1]) + bytes(31),
            "order 8": bytes.fromhex(
                "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"
            ),
            "p - 1": (2**255 - 20).to_bytes(32, "little"),
            "p + 9": (2**255 - 10).to_bytes(32, "little"),
            "high bit": (2**255 + 9).to_bytes(32, "little"),
        }[kind].hex()
        signature = mallory.sign(signed_text(RUN, node, exchange)).hex()
        identity = mallory.public_key().public_bytes_raw().hex()
        card = {"node": node, "exchange": exchange, "identity": identity, "signature": signature}
    return encode(card)


FORGERIES = ["other identity", "other signer", "other run", "other node", "other exchange"]
FORGERIES += ["zero", "one", "order 8", "p - 1", "p + 9", "high bit"]


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_card_is_left_out_by_the_server(tmp_path, kind):
    parties = parties_in(tmp_path, 5)
    cards = joined(PAIRS, parties)
    node = next(iter(parties))
    notes = PAIRS.pair(pact_of(), {**cards, node: forged(kind, cards, parties)})
    assert set(notes) == set(parties) - {node}
    named = {card["node"] for note in notes.values() for card in json.loads(note)["cards"]}
    assert named == set(notes)


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_card_is_refused_by_the_client(five, kind):
    parties, pact, notes = five
    node, *_, reader = parties
    bad = json.loads(forged(kind, joined(PAIRS, parties), parties))
    note = json.loads(notes[reader])
    note["cards"] = [bad if card["node"] == node else card for card in note["cards"]]
    with pytest.raises(RunError, match="cannot be paired"):
        PAIRS.seeds(pact, encode(note), parties[reader])
    assert not (parties[reader].folder / "pairs" / "session.json").exists()


def signed_card(node, exchange, identity):
    return encode(
        {
            "node": node,
            "exchange": exchange,
            "identity": identity.public_key().public_bytes_raw().hex(),
            "signature": identity.sign(signed_text(RUN, node, exchange)).hex(),
        }
    )


def fresh_exchange():
    return X25519PrivateKey.generate().public_key().public_bytes_raw().hex()


@pytest.mark.parametrize("shared", ["identity", "exchange"])
def test_keys_that_two_nodes_show_are_left_out_and_refused(five, shared):
    parties, pact, notes = five
    twin = Ed25519PrivateKey.generate()
    exchange = fresh_exchange()
    if shared == "identity":
        extra = {n: signed_card(n, fresh_exchange(), twin) for n in (901, 902)}
    else:
        extra = {n: signed_card(n, exchange, Ed25519PrivateKey.generate()) for n in (901, 902)}
    assert set(PAIRS.pair(pact, {**joined(PAIRS, parties), **extra})) == set(parties)

    reader = next(iter(parties))
    note = json.loads(notes[reader])
    note["cards"] += [json.loads(card) for card in extra.values()]
    with pytest.raises(RunError, match="same key"):
        PAIRS.seeds(pact, encode(note), parties[reader])


def test_too_few_sound_cards_end_the_sum(tmp_path):
    parties = parties_in(tmp_path, 3)
    cards = joined(PAIRS, parties)
    with pytest.raises(RunError, match="2 of 3 are"):
        PAIRS.pair(pact_of(), {**cards, next(iter(parties)): b"{}"})
    with pytest.raises(RunError, match="0 of 0 are"):
        PAIRS.pair(pact_of(), {})


def test_pins_keep_others_out_at_both_ends(tmp_path):
    parties = parties_in(tmp_path, 6)
    *inside, outsider = parties
    pins = frozenset(vault.identity(parties[node].folder) for node in inside)
    pairs, pact = Pairs(3, pins=pins), pact_of()
    open_notes = paired(PAIRS, parties, pact)
    assert set(pairs.pair(pact, joined(PAIRS, parties))) == set(inside)
    with pytest.raises(RunError, match="is not let in"):
        pairs.seeds(pact, open_notes[inside[0]], parties[inside[0]])
    with pytest.raises(RunError, match=vault.identity(parties[outsider].folder)):
        pairs.join(parties[outsider], RUN)
    notes = pairs.pair(pact, joined(PAIRS, parties))
    assert len(pairs.seeds(pact, notes[inside[0]], parties[inside[0]])) == 4


def replaced(parties, node, folder):
    """The parties with a newcomer in the place of `node`."""
    return {**parties, node: Party(node, folder)}


def test_trust_on_first_use_refuses_a_changed_identity(five, tmp_path):
    parties, pact, notes = five
    node, reader = list(parties)[:2]
    PAIRS.seeds(pact, notes[reader], parties[reader])
    later = pact_of(2)
    others = replaced(parties, node, tmp_path / "stranger")
    with pytest.raises(RunError, match="must keep its identity"):
        PAIRS.seeds(later, paired(PAIRS, others, later)[reader], parties[reader])
    # The refusal changed nothing, and another run starts without memories.
    same = pact_of(3)
    assert len(PAIRS.seeds(same, paired(PAIRS, parties, same)[reader], parties[reader])) == 4
    new_run = pact_of(4, run="new run")
    assert PAIRS.seeds(new_run, paired(PAIRS, others, new_run)[reader], parties[reader])


def test_pins_stand_in_for_memory(five, tmp_path):
    parties, pact, notes = five
    node, reader = list(parties)[:2]
    PAIRS.seeds(pact, notes[reader], parties[reader])
    others = replaced(parties, node, tmp_path / "reinstalled")
    pins = frozenset(vault.identity(party.folder) for party in others.values())
    later = pact_of(2)
    notes = paired(Pairs(3, pins=pins), others, later)
    assert len(Pairs(3, pins=pins).seeds(later, notes[reader], parties[reader])) == 4


# What a client refuses to seal


def changed(note, **fields):
    return encode({**json.loads(note), **fields})


def test_a_note_for_another_is_refused(five):
    parties, pact, notes = five
    one, two = list(parties)[:2]
    with pytest.raises(RunError, match="not of node"):
        PAIRS.seeds(pact, notes[two], parties[one])
    with pytest.raises(RunError, match="another session"):
        PAIRS.seeds(pact_of(2), notes[one], parties[one])
    own = json.loads(PAIRS.join(parties[one], RUN))
    cards = json.loads(notes[one])["cards"]
    for extra in (own, cards[0]):
        with pytest.raises(RunError, match="comes twice, or is this node"):
            PAIRS.seeds(pact, changed(notes[one], cards=[*cards, extra]), parties[one])


def test_a_card_of_an_earlier_life_is_noticed(five):
    parties, pact, notes = five
    node, party = next(iter(parties.items()))
    for key in (party.folder / "pairs").glob("*.key"):
        key.unlink()
    with pytest.raises(RunError, match="must join the run first"):
        PAIRS.seeds(pact, notes[node], party)
    PAIRS.join(party, RUN)
    with pytest.raises(RunError, match="must join again"):
        PAIRS.seeds(pact, notes[node], party)


@pytest.mark.parametrize(("pairs", "fewest"), [(Pairs(3), 2), (Pairs(5), 4), (Pairs(8, 4), 4)])
def test_too_few_neighbours_are_refused(tmp_path, pairs, fewest):
    parties = parties_in(tmp_path, 9)
    pact = pact_of()
    notes = paired(pairs, parties, pact)
    node = next(iter(parties))
    cards = json.loads(notes[node])["cards"]
    short, enough = (changed(notes[node], cards=cards[:n]) for n in (fewest - 1, fewest))
    with pytest.raises(RunError, match=f"at least {fewest} neighbours"):
        pairs.seeds(pact, short, parties[node])
    assert len(pairs.seeds(pact, enough, parties[node])) == fewest


def test_a_resend_gets_the_same_seeds_and_keeps_the_record(five):
    parties, pact, notes = five
    node = next(iter(parties))
    first = PAIRS.seeds(pact, notes[node], parties[node], b"hash")
    record = (parties[node].folder / "pairs" / "session.json").read_bytes()
    assert json.loads(record)["revealed"] is False
    assert PAIRS.seeds(pact, notes[node], parties[node], b"hash") == first
    assert (parties[node].folder / "pairs" / "session.json").read_bytes() == record


def test_the_same_session_for_anything_else_is_refused(five):
    parties, pact, notes = five
    node = next(iter(parties))
    PAIRS.seeds(pact, notes[node], parties[node], b"one")
    with pytest.raises(RunError, match="another pact"):
        PAIRS.seeds(replace(pact, round=1), notes[node], parties[node], b"one")
    fewer = changed(notes[node], cards=json.loads(notes[node])["cards"][:-1])
    with pytest.raises(RunError, match="another note"):
        PAIRS.seeds(pact, fewer, parties[node], b"one")
    with pytest.raises(RunError, match="another content"):
        PAIRS.seeds(pact, notes[node], parties[node], b"two")
    with pytest.raises(RunError, match="another content"):
        PAIRS.seeds(pact, notes[node], parties[node])


def test_an_earlier_session_never_comes_back(five):
    parties, pact, notes = five
    node = next(iter(parties))
    PAIRS.seeds(pact, notes[node], parties[node])
    for i in (2, 3):
        later = pact_of(i)
        PAIRS.seeds(later, paired(PAIRS, parties, later)[node], parties[node])
    with pytest.raises(RunError, match="sealed before"):
        PAIRS.seeds(pact, notes[node], parties[node])
    with pytest.raises(RunError, match="not the latest"):
        PAIRS.reveal(pact, PAIRS.ask(pact, notes, list(parties)[:-1])[node], parties[node])


def test_a_revealed_session_is_not_sealed_again(asked):
    parties, pact, notes, asks = asked
    node, ask = next(iter(asks.items()))
    PAIRS.reveal(pact, ask, parties[node])
    with pytest.raises(RunError, match="were revealed"):
        PAIRS.seeds(pact, notes[node], parties[node])


# What a client refuses to reveal


def test_only_the_dropped_neighbours_seed_is_revealed(asked):
    parties, pact, notes, asks = asked
    gone = list(parties)[-1]
    shared = {seed: sign for sign, seed in PAIRS.seeds(pact, notes[gone], parties[gone])}
    reveals = {node: PAIRS.reveal(pact, ask, parties[node]) for node, ask in asks.items()}
    left = PAIRS.leftovers(pact, asks, reveals)
    assert len(left) == len(asks) == 4
    assert {seed: -sign for sign, seed in left} == shared


def test_the_same_request_gets_the_same_answer_and_another_gets_none(asked):
    parties, pact, notes, asks = asked
    node = next(iter(parties))
    first = PAIRS.reveal(pact, asks[node], parties[node])
    again = Party(node, parties[node].folder)
    assert Pairs(min_clients=3).reveal(pact, asks[node], again) == first
    other = another_request(parties, pact, notes, node)
    with pytest.raises(RunError, match="revealed already"):
        PAIRS.reveal(pact, other, again)
    assert PAIRS.reveal(pact, asks[node], again) == first


def another_request(parties, pact, notes, node):
    """Sound by itself, but with another neighbour gone."""
    *most, _, last = parties
    return PAIRS.ask(pact, notes, [*most, last])[node]


def refusals(parties, pact, asks):
    """(what is wrong, pact, request, part of the message)."""
    one, two, three, four, gone = parties
    ask = asks[one]
    yield "unsealed session", pact_of(5), changed(ask, session=f"{5:032x}"), "not the latest"
    yield "session in note", pact, changed(ask, session=f"{5:032x}"), "another session"
    yield "pact", replace(pact, size=3), ask, "another pact"
    yield "node", pact, asks[two], "not of node"
    both = changed(ask, counted=sorted(parties))
    yield "counted and dropped", pact, both, "both counted and dropped"
    stranger = changed(ask, dropped=sorted([gone, 77]))
    yield "a stranger", pact, stranger, "must be neighbours"
    yield "itself dropped", pact, changed(ask, dropped=sorted([gone, one])), "both counted"
    nobody = changed(ask, counted=sorted(parties), dropped=[])
    yield "nobody dropped", pact, nobody, "must be neighbours"
    absent = changed(ask, counted=sorted([two, three, four]))
    yield "itself not counted", pact, absent, "itself was not counted"
    few = changed(ask, counted=sorted([one, two]), dropped=sorted([three, four, gone]))
    yield "too few", pact, few, "2 clients were counted"
    all_gone = changed(ask, counted=sorted([one, 77, 78]), dropped=sorted([two, three, four, gone]))
    yield "all gone", pact, all_gone, "0 neighbours of this node"
    last = changed(ask, counted=sorted([one, two, 78]), dropped=sorted([three, four, gone]))
    yield "one left", pact, last, "1 neighbours of this node"
    silent = changed(ask, counted=sorted([one, two, three]), dropped=[gone])
    yield "one passed over", pact, silent, "neither counted nor dropped"
    yield "order", pact, changed(ask, counted=sorted(parties, reverse=True)), "ascend"
    yield "twice", pact, changed(ask, dropped=[gone, gone]), "ascend"


def test_every_request_that_asks_too_much_is_refused_and_spends_nothing(asked):
    parties, pact, _, asks = asked
    node = next(iter(parties))
    record = parties[node].folder / "pairs" / "session.json"
    before = record.read_bytes()
    for what, agreed, request, message in refusals(parties, pact, asks):
        with pytest.raises(RunError) as raised:
            PAIRS.reveal(agreed, request, parties[node])
        assert message in str(raised.value), what
    assert record.read_bytes() == before
    assert PAIRS.reveal(pact, asks[node], parties[node])


def test_a_client_that_never_sealed_reveals_nothing(five):
    parties, pact, notes = five
    node = next(iter(parties))
    ask = PAIRS.ask(pact, notes, list(parties)[:-1])[node]
    with pytest.raises(RunError, match="not the latest"):
        PAIRS.reveal(pact, ask, parties[node])


def test_min_clients_counts(tmp_path):
    pairs, parties = Pairs(5), parties_in(tmp_path, 6)
    pact = pact_of()
    notes = paired(pairs, parties, pact)
    sealed(pairs, parties, pact, notes)
    with pytest.raises(RunError, match="at least 5"):
        pairs.ask(pact, notes, list(parties)[:4])
    lenient = PAIRS.ask(pact, notes, list(parties)[:4])
    node = next(iter(parties))
    with pytest.raises(RunError, match="at least 5"):
        pairs.reveal(pact, lenient[node], parties[node])


def test_the_server_does_not_ask_for_what_it_cannot_get(five):
    parties, pact, notes = five
    with pytest.raises(ValueError, match="must be paired first"):
        PAIRS.ask(pact, notes, [*parties, 12345])
    with pytest.raises(RunError, match="at least 3"):
        PAIRS.ask(pact, notes, list(parties)[:2])


# What a kill leaves behind


class KilledError(BaseException):
    pass


def test_a_kill_before_the_mark_reveals_nothing_and_loses_nothing(asked, monkeypatch):
    parties, pact, _, asks = asked
    node = next(iter(parties))

    def killed(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KilledError):
            PAIRS.reveal(pact, asks[node], parties[node])
    record = json.loads((parties[node].folder / "pairs" / "session.json").read_bytes())
    assert record["revealed"] is False
    assert PAIRS.reveal(pact, asks[node], parties[node])


def test_a_kill_after_the_mark_leaves_the_session_revealed(asked, monkeypatch):
    parties, pact, notes, asks = asked
    node = next(iter(parties))

    def killed(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(vault, "seeds", killed)
        with pytest.raises(KilledError):
            PAIRS.reveal(pact, asks[node], parties[node])
    record = json.loads((parties[node].folder / "pairs" / "session.json").read_bytes())
    assert record["revealed"] is True
    with pytest.raises(RunError, match="were revealed"):
        PAIRS.seeds(pact, notes[node], parties[node])
    other = another_request(parties, pact, notes, node)
    with pytest.raises(RunError, match="revealed already"):
        PAIRS.reveal(pact, other, parties[node])
    assert PAIRS.reveal(pact, asks[node], parties[node])


def test_a_kill_while_sealing_gives_no_seeds_away(five, monkeypatch):
    parties, pact, notes = five
    node = next(iter(parties))

    def killed(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("perennial.privacy.sessions.write_atomically", killed)
        with pytest.raises(KilledError):
            PAIRS.seeds(pact, notes[node], parties[node])
    assert PAIRS.seeds(pact, notes[node], parties[node])


def test_of_two_requests_at_once_one_is_answered(asked):
    parties, pact, notes, asks = asked
    node = next(iter(parties))
    other = another_request(parties, pact, notes, node)
    answers, start = [], threading.Barrier(8)

    def ask(request):
        start.wait()
        with suppress(RunError):
            answers.append((request, PAIRS.reveal(pact, request, parties[node])))

    threads = [threading.Thread(target=ask, args=(r,)) for r in (asks[node], other) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert len(set(answers)) == 1


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"[" * 99_999, b'{"session":"x"}', b"\xff", b"null"]
)
def test_a_damaged_record_stops_the_client(asked, content):
    parties, pact, notes, asks = asked
    node = next(iter(parties))
    (parties[node].folder / "pairs" / "session.json").write_bytes(content)
    with pytest.raises(RunError, match="which masks are spent"):
        PAIRS.reveal(pact, asks[node], parties[node])
    with pytest.raises(RunError, match="which masks are spent"):
        PAIRS.seeds(pact, notes[node], parties[node])


@pytest.mark.parametrize("field", ["neighbours", "past", "revealed"])
@pytest.mark.parametrize("value", [None, 3, "x", {"a": 1}, {"1": "x"}])
def test_a_record_with_a_damaged_field_stops_the_client(asked, field, value):
    parties, pact, _, asks = asked
    node = next(iter(parties))
    path = parties[node].folder / "pairs" / "session.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), field: value}))
    with pytest.raises(RunError, match="which masks are spent"):
        PAIRS.reveal(pact, asks[node], parties[node])


@pytest.mark.parametrize("content", [b"", b"[]", b'{"1":2}', b"\xff"])
def test_damaged_memories_stop_the_client(five, content):
    parties, pact, notes = five
    node = next(iter(parties))
    PAIRS.seeds(pact, notes[node], parties[node])
    for path in (parties[node].folder / "pairs").glob("*.peers.json"):
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"peers\.json must be as"):
        PAIRS.seeds(pact, notes[node], parties[node])


# What the server refuses


def answers_to(asked):
    parties, pact, _, asks = asked
    return pact, asks, {node: PAIRS.reveal(pact, ask, parties[node]) for node, ask in asks.items()}


def test_reveals_that_were_not_asked_for_are_refused(asked):
    pact, asks, reveals = answers_to(asked)
    one, two, *_ = asks
    gone = list(asked[0])[-1]
    seeds = json.loads(reveals[one])["seeds"]
    wrong = {
        "another session": changed(reveals[one], session=f"{2:032x}"),
        "not of node": reveals[two],
        "and no others": changed(reveals[one], seeds={**seeds, "77": "0" * 64}),
        "must reveal the seeds": changed(reveals[one], seeds={}),
        "64 hex digits": changed(reveals[one], seeds={str(gone): "0" * 62}),
        "a message must be JSON": b"\xff",
        "canonical": b"[]",
    }
    for message, reveal in wrong.items():
        with pytest.raises(ValueError, match=message):
            PAIRS.leftovers(pact, asks, {**reveals, one: reveal})
    with pytest.raises(ValueError, match="must answer"):
        PAIRS.leftovers(pact, asks, {n: r for n, r in reveals.items() if n != one})
    with pytest.raises(ValueError, match="must answer"):
        PAIRS.leftovers(pact, asks, {**reveals, gone: reveals[one]})
    with pytest.raises(ValueError, match="another session"):
        PAIRS.leftovers(pact_of(2), asks, reveals)


# Hostile bytes

VALUES = [None, True, False, 0, -1, 1.5, 10**30, -(10**30), 2**64, "", "x" * 9000, "\ud800"]
VALUES += [float("nan"), float("inf"), -0.0, [], {}, [[]], [{}], {"": {}}, "0" * 64, "0" * 128]
VALUES += [[1, [2, [3, [4]]]], [True, False], ["1", "2"], [1.0, 2.0], "é" * 32]

RAW = [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000]
RAW += [b'{"node":' + b"1" * 5000 + b"}", b'{"node":NaN}', b'"\\ud800"', b" " * (NOTE_BYTES + 1)]


def mutate(rng, good):
    """One hostile neighbour of the bytes `good`, which hold a JSON object."""
    kind = rng.randrange(8)
    if kind == 0:
        return bytes(flipped(rng, bytearray(good)))
    if kind == 1:
        return good[: rng.randrange(len(good))]
    if kind == 2:
        return good + rng.choice([b" ", b"\n", b"\0", b"}", good])
    if kind == 3:
        return rng.choice([*RAW, good.decode().encode(rng.choice(["utf-16", "utf-8-sig"]))])
    if kind == 4:  # the same key twice
        return b"{" + good[1 : good.index(b",")] + b"," + good[1:]
    values = json.loads(good)
    holder = values
    while True:
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.3:
            break
        holder = inner
    if kind == 5 and isinstance(holder, dict):
        holder[rng.choice(["extra", "", "\ud800", "node", "-1"])] = rng.choice(VALUES)
    elif kind == 6:
        del holder[key]
    else:
        holder[key] = rng.choice(VALUES)
    return rng.choice([encode(values), json.dumps(values).encode()])


def flipped(rng, data):
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def test_hostile_cards_leave_only_their_node_out(tmp_path):
    rng, pact = random.Random(0), pact_of()
    cards = joined(PAIRS, parties_in(tmp_path, 4))
    node = list(cards)[2]
    for _ in range(500):
        bad = mutate(rng, cards[node])
        notes = PAIRS.pair(pact, {**cards, node: bad})
        assert (node in notes) == (bad == cards[node])
        assert notes.keys() | {node} == cards.keys()


def test_hostile_notes_are_refused(five):
    parties, pact, notes = five
    node = next(iter(parties))
    record = parties[node].folder / "pairs" / "session.json"
    rng, passed = random.Random(1), 0
    for _ in range(500):
        bad = mutate(rng, notes[node])
        try:
            PAIRS.seeds(pact, bad, parties[node])
        except RunError:
            continue
        # A note with a card less is a sound note; nothing else is.
        cards = json.loads(bad)["cards"]
        assert bad == notes[node] or len(cards) == 3
        assert [card for card in json.loads(notes[node])["cards"] if card in cards] == cards
        record.unlink()
        passed += 1
    assert passed < 25


def test_every_flipped_bit_of_a_note_is_noticed(five):
    parties, pact, notes = five
    node = next(iter(parties))
    rng = random.Random(2)
    for _ in range(300):
        with pytest.raises(RunError):
            PAIRS.seeds(pact, bytes(flipped(rng, bytearray(notes[node]))), parties[node])


def test_hostile_requests_are_refused_or_ask_for_no_more(asked):
    parties, pact, _, asks = asked
    node, gone = next(iter(parties)), list(parties)[-1]
    record = parties[node].folder / "pairs" / "session.json"
    before, rng = record.read_bytes(), random.Random(3)
    honest = json.loads(PAIRS.reveal(pact, asks[node], parties[node]))
    for _ in range(600):
        record.write_bytes(before)
        try:
            answer = PAIRS.reveal(pact, mutate(rng, asks[node]), parties[node])
        except RunError:
            assert record.read_bytes() == before
        else:
            assert json.loads(answer) == honest
            assert list(honest["seeds"]) == [str(gone)]


def test_hostile_reveals_are_refused_or_give_a_seed(asked):
    pact, asks, reveals = answers_to(asked)
    node, rng = list(asks)[1], random.Random(4)
    for _ in range(600):
        bad = mutate(rng, reveals[node])
        try:
            left = PAIRS.leftovers(pact, asks, {**reveals, node: bad})
        except ValueError:
            continue
        assert len(left) == 4
        assert all(sign in (-1, 1) and len(seed) == 32 for sign, seed in left)


def test_a_card_that_is_too_long_is_not_parsed():
    with pytest.raises(ValueError, match="at most 1024 bytes"):
        decode(b" " * (CARD_BYTES + 1), ["node"], CARD_BYTES)


def test_a_card_is_of_four_fields():
    for values in (None, [], "card", {"node": 1}, {1: 2}):
        with pytest.raises(ValueError, match="a card must have"):
            Card.unpack(values, RUN)


# Options


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"min_clients": 2}, "min_clients"),
        ({"min_clients": 3, "neighbours": 1}, "neighbours"),
        ({"min_clients": 3, "neighbours": -2}, "neighbours"),
        ({"min_clients": 3, "collusion": 1.0}, "collusion"),
        ({"min_clients": 3, "collusion": 0.0}, "collusion"),
        ({"min_clients": 3, "collusion": float("nan")}, "collusion"),
        ({"min_clients": 3, "pins": frozenset({"A" * 64})}, "identities"),
    ],
)
def test_options_out_of_range_are_refused(options, place):
    with pytest.raises(ConfigError, match=rf"\[secure_sum\.{place}\]"):
        Pairs(**options)


@pytest.mark.parametrize(
    ("pairs", "cohort", "wanted"),
    [
        (Pairs(3), 2, "masks between clients, of whom there must be at least 3"),
        (Pairs(3), 10, "masks with all 9 others"),
        (
            Pairs(3),
            64,
            "masks with 34 of 63 neighbours each (up to 33% of 64 clients colluding or gone, "
            "chance of a cut at most 2^-42)",
        ),
        (
            Pairs(3, 11, 0.2),
            64,
            "masks with 12 of 63 neighbours each (up to 20% of 64 clients colluding or gone, "
            "chance of a cut at most 2^-16)",
        ),
        (
            Pairs(3, 2, 0.5),
            64,
            "masks with 2 of 63 neighbours each (up to 50% of 64 clients colluding or gone, "
            "chance of a cut not bounded)",
        ),
    ],
)
def test_it_says_what_it_does(pairs, cohort, wanted):
    assert pairs.describe(cohort) == wanted
