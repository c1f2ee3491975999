import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from perennial.core.errors import DataError
from perennial.core.files import write_atomically
from perennial.core.sums import Scheme
from perennial.privacy import keys
from perennial.privacy.ring import prime_below

WORDS = "correct horse battery"
Q, T = prime_below(58, 4096), prime_below(48, 4096)
SYMMETRIC = Scheme("bfv", 4096, (Q,), 0, T, 0.0, "symmetric")
PUBLIC = Scheme("bfv", 4096, (Q,), prime_below(20, 4096), T, 0.0, "public")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys") / "keys"
    keys.create(folder, SYMMETRIC, WORDS)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "keys")


def modes(folder):
    paths = [folder, *sorted(folder.rglob("*"))]
    return {str(p.relative_to(folder)): stat.S_IMODE(p.stat().st_mode) for p in paths}


def test_a_card_says_what_was_made(folder):
    card = keys.card(folder)
    assert card.scheme == SYMMETRIC
    assert card.generation == 1
    assert len(card.fingerprint) == 32
    assert card.created.endswith("+00:00")
    assert keys.Card.unpack(json.loads(json.dumps(card.pack()))) == card


def test_no_file_is_ever_open_to_others(tmp_path):
    before = os.umask(0)
    try:
        keys.create(tmp_path / "k", SYMMETRIC, WORDS)
    finally:
        os.umask(before)
    found = modes(tmp_path / "k")
    assert found.pop(".") == found.pop("0001") == 0o700
    files = {"current", "0001/card.json", "0001/holder.key", "0001/client.key"}
    assert found == dict.fromkeys(files, 0o600)


def test_holder_and_clients_have_the_same_secret_in_the_symmetric_model(folder):
    card, secret = keys.open_holder_key(folder, WORDS)
    assert (card, secret) == keys.read_client_key(keys.client_path(folder))
    assert card == keys.card(folder)


def test_clients_have_no_secret_in_the_public_model(tmp_path):
    keys.create(tmp_path, PUBLIC, WORDS)
    _, secret = keys.open_holder_key(tmp_path, WORDS)
    card, public = keys.read_client_key(keys.client_path(tmp_path))
    assert card.scheme == PUBLIC
    assert public
    assert secret not in public


def test_the_secret_is_not_readable_in_the_holder_key(tmp_path):
    keys.create(tmp_path, PUBLIC, WORDS)
    _, secret = keys.open_holder_key(tmp_path, WORDS)
    for path in tmp_path.rglob("*.*"):
        if path.is_file():
            assert keys._base64(secret)[:40].encode() not in path.read_bytes()


def test_two_keys_are_two(folder, tmp_path):
    other = keys.create(tmp_path / "other", SYMMETRIC, WORDS)
    assert other.fingerprint != keys.card(folder).fingerprint


def test_keys_are_never_overwritten(folder):
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(DataError, match=r"must not hold keys yet.*rotate"):
        keys.create(folder, SYMMETRIC, WORDS)
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_creation_that_was_cut_off_is_not_taken_for_none(folder):
    (folder / "current").unlink()
    with pytest.raises(DataError, match="must hold keys"):
        keys.card(folder)
    with pytest.raises(DataError, match="must not hold keys yet"):
        keys.create(folder, SYMMETRIC, WORDS)


def test_a_failed_creation_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(DataError, match="No space left"):
        keys.create(tmp_path / "k", SYMMETRIC, WORDS)
    assert list((tmp_path / "k").iterdir()) == []


@pytest.mark.parametrize("words", ["", "eleven char"])
def test_a_short_passphrase_is_refused(words, tmp_path):
    with pytest.raises(DataError, match="at least 12 characters"):
        keys.create(tmp_path, SYMMETRIC, words)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_passphrase_is_told_from_a_damaged_file(folder):
    with pytest.raises(DataError, match=r"the passphrase must be the one"):
        keys.open_holder_key(folder, WORDS + "!")
    path = folder / "0001" / "holder.key"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"secret": "', b'"secret": "AAAA', 1))
    with pytest.raises(DataError, match=r"holder.key is damaged: its checksum"):
        keys.open_holder_key(folder, WORDS)
    path.write_bytes(content[:-30])
    with pytest.raises(DataError, match=r"holder.key is damaged: it is not JSON"):
        keys.open_holder_key(folder, WORDS)


def test_one_letter_typed_in_two_ways_is_one_passphrase(tmp_path):
    keys.create(tmp_path, SYMMETRIC, "Zw\u00f6lf Boxk\u00e4mpfer")
    assert keys.open_holder_key(tmp_path, "Zwo\u0308lf Boxka\u0308mpfer")


def test_a_card_exchanged_under_the_secret_is_found_out(folder):
    path = folder / "0001" / "holder.key"
    fields = json.loads(path.read_text())
    fields["card"]["fingerprint"] = "0" * 32
    fields["sha256"] = keys._checksum({k: v for k, v in fields.items() if k != "sha256"})
    path.write_text(json.dumps(fields))
    with pytest.raises(DataError, match="does not open it"):
        keys.open_holder_key(folder, WORDS)


def test_no_flipped_bit_of_a_client_key_goes_unseen(folder):
    path = keys.client_path(folder)
    content = path.read_bytes()
    sound = keys.read_client_key(path)
    for place in range(0, len(content), max(1, len(content) // 200)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        if content[place : place + 1].isspace():
            continue  # a blank between two fields may become another letter or not
        with pytest.raises(DataError, match=path.name):
            keys.read_client_key(path)
    path.write_bytes(content)
    assert keys.read_client_key(path) == sound


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
@pytest.mark.parametrize("name", ["client.key", "holder.key"])
def test_a_file_that_others_may_read_is_refused(name, mode, folder):
    path = folder / "0001" / name
    path.chmod(mode)
    with pytest.raises(DataError, match=rf"0{mode:o}\. Mend it: chmod 600 .*{name}"):
        keys.read_client_key(path) if name == "client.key" else keys.open_holder_key(folder, WORDS)


def test_a_file_of_another_kind_is_named(folder, tmp_path):
    with pytest.raises(DataError, match=r"must be a client.key file"):
        keys.read_client_key(folder / "0001" / "holder.key")
    with pytest.raises(DataError, match=r"nowhere must be a readable key file: No such file"):
        keys.read_client_key(tmp_path / "nowhere")
    write_atomically(tmp_path / "list", b"[1, 2]", 0o600)
    with pytest.raises(DataError, match=r"must be a client.key file"):
        keys.read_client_key(tmp_path / "list")


def test_rotation_makes_a_new_current_key_and_keeps_the_old(folder):
    old = keys.card(folder)
    new = keys.rotate(folder, WORDS)
    assert (new.generation, new.scheme) == (2, old.scheme)
    assert new.fingerprint != old.fingerprint
    assert keys.card(folder) == new
    assert keys.card(folder, 1) == old
    assert keys.generations(folder) == [1, 2]
    assert keys.open_holder_key(folder, WORDS)[0] == new
    assert keys.client_path(folder) == folder / "0002" / "client.key"
    assert set(modes(folder).values()) == {0o600, 0o700}


def test_rotation_needs_the_passphrase_and_changes_nothing_without(folder):
    with pytest.raises(DataError, match="passphrase"):
        keys.rotate(folder, "something else entirely")
    assert keys.generations(folder) == [1]


def test_a_rotation_cut_off_before_its_last_step_did_not_happen(folder, monkeypatch):
    old = keys.card(folder)
    replace = os.replace

    def fails(source, target):
        if Path(target).name == "current":
            raise OSError(5, "I/O error")
        replace(source, target)

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", fails)
        with pytest.raises(DataError, match="I/O error"):
            keys.rotate(folder, WORDS)
    assert keys.card(folder) == old
    assert keys.rotate(folder, WORDS).generation == 3


@pytest.mark.parametrize("text", ["", "0009\n", "../0001", "1", "\xff"])
def test_current_must_name_a_generation(text, folder):
    (folder / "current").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"must name one of \[1\]|must hold keys"):
        keys.card(folder)


def test_the_passphrase_comes_from_the_environment_or_a_file(tmp_path):
    path = tmp_path / "words"
    path.write_text("from a file it is\n")
    assert keys.passphrase_from({}) == ""
    assert keys.passphrase_from({keys.PASSPHRASE: WORDS}) == WORDS
    assert keys.passphrase_from({keys.PASSPHRASE_FILE: str(path)}) == "from a file it is"
    with pytest.raises(DataError, match=r"PERENNIAL_KEY_PASSPHRASE_FILE must name"):
        keys.passphrase_from({keys.PASSPHRASE_FILE: str(tmp_path / "no")})
