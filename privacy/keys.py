"""Key files: what the key holder keeps, encrypted at rest, and what clients are given.

A key folder holds generations, `0001/` and so on, and `current`, which names the one in force.
A generation has three files, each JSON with a checksum over the rest of it:

* `card.json` is public: fingerprint, scheme, when it was made;
* `holder.key` is the secret key under AES-256-GCM, whose key scrypt (RFC 7914) draws from a
  passphrase; the card is authenticated with it;
* `client.key` is what clients need: the secret key itself where the scheme's model is
  `symmetric`, else the public key. Hand the secret out over a channel that you trust, then delete
  it here: no passphrase guards it.

Every file is made with mode 0600 and every folder with 0700, so that no moment leaves one open.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import stat
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from ..core.errors import DataError
from ..core.files import sync_folder, write_atomically
from ..core.sums import Scheme

PASSPHRASE, PASSPHRASE_FILE = "PERENNIAL_KEY_PASSPHRASE", "PERENNIAL_KEY_PASSPHRASE_FILE"
"""Environment variables with the passphrase, and with the path of a file that holds it."""

CARD, HOLDER, CLIENT = "card.json", "holder.key", "client.key"
MIN_PASSPHRASE = 12  # characters
_CURRENT = "current"
_GENERATION = re.compile(r"[0-9]{4,}")
# 32 MiB and about 0.1 s a guess. Fixed by the file's form: a file cannot ask for less.
_SCRYPT = {"n": 2**15, "r": 8, "p": 1}
_FORM = "perennial key 1: "


@dataclass(frozen=True, slots=True)
class Card:
    """What everybody may know of a key.

    Attributes:
        fingerprint: 32 hex digits over scheme, secret and public key.
        scheme: with all its parameters.
        created: UTC, ISO 8601.
        generation: from 1.
    """

    fingerprint: str
    scheme: Scheme
    created: str
    generation: int

    def pack(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "scheme": self.scheme.pack()}

    @staticmethod
    def unpack(values: Mapping[str, Any]) -> Card:
        """The card in `values`.

        Raises:
            ValueError: a field is missing, unknown or of another type.
        """
        kinds = {"fingerprint": str, "scheme": dict, "created": str, "generation": int}
        if {name: type(value) for name, value in values.items()} != kinds:
            raise ValueError(f"a card must have the fields {sorted(kinds)}; got {values}")
        return Card(**{**values, "scheme": Scheme.unpack(values["scheme"])})


def create(folder: Path, scheme: Scheme, passphrase: str) -> Card:
    """The card of a new key, the first generation of `folder`, which is made if missing.

    Raises:
        DataError: the folder holds keys or cannot be written; a short passphrase; a bad scheme.
    """
    if len(passphrase) < MIN_PASSPHRASE:
        least = f"the passphrase must have at least {MIN_PASSPHRASE} characters"
        raise DataError(f"{least}; it has {len(passphrase)}. Five random words do.")
    if generations(folder) or (folder / _CURRENT).exists():
        remedy = f"Name another folder, or renew the keys: perennial keys rotate {folder}"
        raise DataError(f"{folder} must not hold keys yet; it does, and they are kept. {remedy}")
    return _make(folder, 1, scheme, passphrase)


def rotate(folder: Path, passphrase: str) -> Card:
    """The card of a new key of the same scheme, from now on the current one.

    Raises:
        DataError: `passphrase` does not open the current key, or the folder cannot be written.
    """
    current, _ = open_holder_key(folder, passphrase)
    return _make(folder, generations(folder)[-1] + 1, current.scheme, passphrase)


def generations(folder: Path) -> list[int]:
    """The generations in `folder`, ascending; empty when it does not exist."""
    return sorted(int(p.name) for p in folder.glob("*/") if _GENERATION.fullmatch(p.name))


def generation_folder(folder: Path, generation: int) -> Path:
    """Where the files of one generation lie."""
    return folder / f"{generation:04d}"


def card(folder: Path, generation: int = 0) -> Card:
    """The card of a generation; of the current one for 0.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = generation_folder(folder, generation or _current(folder)) / CARD
    return _card(path, _read(path))


def client_path(folder: Path) -> Path:
    """The current generation's file for clients; it is not looked at.

    Raises:
        DataError: `folder` holds no keys.
    """
    return generation_folder(folder, _current(folder)) / CLIENT


def open_holder_key(folder: Path, passphrase: str) -> tuple[Card, bytes]:
    """The current card and secret key; for the key holder alone.

    Raises:
        DataError: no keys, a damaged file, one that others may read, or a wrong passphrase.
    """
    path = generation_folder(folder, _current(folder)) / HOLDER
    fields = _read(path, HOLDER)
    owner = _card(path, fields)
    salt, nonce, secret = (_bytes(path, fields, name) for name in ("salt", "nonce", "secret"))
    try:
        opened = AESGCM(_stretched(passphrase, salt)).decrypt(
            nonce, secret, _canonical(owner.pack())
        )
    except (InvalidTag, ValueError) as error:
        # The checksum held, so what is written is what was written.
        wrong = f"the passphrase must be the one that {path} was made with; it does not open it"
        raise DataError(f"{wrong}. Look at {PASSPHRASE} and {PASSPHRASE_FILE}.") from error
    return owner, opened


def read_client_key(path: Path) -> tuple[Card, bytes]:
    """Card and key of a client's file: the secret key for `symmetric`, else the public one.

    Raises:
        DataError: no such file, a damaged one, or one that others may read.
    """
    fields = _read(path, CLIENT)
    return _card(path, fields), _bytes(path, fields, "key")


def passphrase_from(environment: Mapping[str, str]) -> str:
    """The passphrase that the environment names; empty where it names none.

    Raises:
        DataError: the file that it names cannot be read.
    """
    given, named = environment.get(PASSPHRASE, ""), environment.get(PASSPHRASE_FILE, "")
    if given or not named:
        return given
    try:
        return Path(named).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{PASSPHRASE_FILE} must name a readable text file: {error}") from error


def _make(folder: Path, generation: int, scheme: Scheme, passphrase: str) -> Card:
    from . import lattice

    try:
        secret, public = lattice.generate(scheme)
    except ValueError as error:
        raise DataError(f"keys must be for a scheme that is valid and secure: {error}") from error
    fingerprint = lattice.fingerprint(scheme, secret, public)
    made = Card(fingerprint, scheme, datetime.now(UTC).isoformat(timespec="seconds"), generation)
    given = secret if scheme.model == "symmetric" else public
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".new-") as place:
            fresh = Path(place, "generation")
            fresh.mkdir(mode=0o700)
            _write(fresh / CARD, {"card": made.pack()})
            _write(fresh / HOLDER, {"card": made.pack(), **_sealed(made, secret, passphrase)})
            _write(fresh / CLIENT, {"card": made.pack(), "key": _base64(given)})
            sync_folder(fresh)
            os.rename(fresh, generation_folder(folder, generation))
        sync_folder(folder)  # so that `current` never names what a power cut took away
        write_atomically(folder / _CURRENT, f"{generation:04d}\n", 0o600)
    except OSError as error:
        raise DataError(f"{folder} must be a folder that keys can be kept in: {error}") from error
    return made


def _current(folder: Path) -> int:
    try:
        text = (folder / _CURRENT).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        remedy = f"make keys: perennial keys init CONFIG {folder}"
        raise DataError(f"{folder} must hold keys; {error}; {remedy}") from error
    there = generations(folder)
    if not _GENERATION.fullmatch(text) or int(text) not in there:
        raise DataError(f"{folder / _CURRENT} must name one of {there}; it says {text[:40]!r}")
    return int(text)


def _sealed(owner: Card, secret: bytes, passphrase: str) -> dict[str, str]:
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    hidden = AESGCM(_stretched(passphrase, salt)).encrypt(nonce, secret, _canonical(owner.pack()))
    return {"salt": _base64(salt), "nonce": _base64(nonce), "secret": _base64(hidden)}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _stretched(passphrase: str, salt: bytes) -> bytes:
    # Two keyboards may write one letter in two ways; an environment may hold any bytes.
    typed = unicodedata.normalize("NFC", passphrase).encode(errors="surrogateescape")
    return Scrypt(salt=salt, length=32, **_SCRYPT).derive(typed)


def _write(path: Path, fields: Mapping[str, Any]) -> None:
    content = {"form": _FORM + path.name, **fields}
    packed = json.dumps({**content, "sha256": _checksum(content)}, indent=1)
    write_atomically(path, packed, 0o600)


def _read(path: Path, name: str = CARD) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if name != CARD and os.name == "posix" and mode & 0o077:
                found = f"{path} must be open to its owner alone; its mode is {mode:04o}"
                raise DataError(f"{found}. Mend it: chmod 600 {path}")
            fields = json.loads(file.read())
    except OSError as error:
        raise DataError(f"{path} must be a readable key file: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "it is not JSON") from error
    if not isinstance(fields, dict) or fields.get("form") != _FORM + name:
        raise DataError(f"{path} must be a {name} file of perennial; it is none")
    if fields.pop("sha256", None) != _checksum(fields):
        raise _damaged(path, "its checksum does not fit")
    return fields


def _canonical(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True).encode()


def _checksum(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(fields)).hexdigest()


def _card(path: Path, fields: Mapping[str, Any]) -> Card:
    try:
        return Card.unpack(fields["card"])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _damaged(path, f"its card cannot be read: {error}") from error


def _bytes(path: Path, fields: Mapping[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(fields[name], validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"its {name} cannot be read") from error


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged: {why}. Fetch it again, or take it from a backup.")
