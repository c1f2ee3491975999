"""What was exported, as it lies on disk: a folder, its card with the hash of each file, its mark.

A folder is whole or not there: it is filled beside its place and renamed. Loads no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.files import claim, sync_folder, write_atomically
from ..server.release_proofs import Trust
from ..server.releases import Signer, sync

CARD, MARK = "export.json", "export.sig"
_LOCK = ".lock"  # in the folder above: one export at a time is put in place there
TOKENIZER, LABELS = "tokenizer.json", "labels.json"

_SCHEMA = 1
_NEEDED = {"schema", "profile", "model", "files", "threshold", "max_length"}


@dataclass(frozen=True, slots=True)
class Artefact:
    """An exported model whose files are the ones that were written.

    Attributes:
        folder: of its files.
        card: what `export.json` says.
    """

    folder: Path
    card: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """The file that the runtime opens."""
        return self.folder / str(self.card["model"])


def place(
    target: Path, fill: Callable[[Path], Mapping[str, Any]], signer: Signer | None
) -> Artefact:
    """The artefact in `target`, in the place of the one that was there.

    Args:
        target: its parents are made.
        fill: writes all files into the folder that it is given, and returns the card's other lines.
        signer: signs the card; None leaves it without a mark.

    Raises:
        OSError: the disk is full; what was there is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent):
        _tidy(target)
        _put(target, fill, signer)
    return read(target)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        claim(handle, wait=True)
        yield
    finally:
        os.close(handle)


def _tidy(target: Path) -> None:
    """Take away what a process left that was killed, and put back what it had moved aside."""
    for old in target.parent.glob(f".{target.name}.old-*"):
        if not target.exists():
            os.rename(old, target)
    for left in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(left, ignore_errors=True)


def _put(target: Path, fill: Callable[[Path], Mapping[str, Any]], signer: Signer | None) -> None:
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        fresh.mkdir()
        said = fill(fresh)
        card = {**said, "schema": _SCHEMA, "files": _files(fresh)}
        text = json.dumps(card, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
        write_atomically(fresh / CARD, text)
        if signer is not None:
            mark = {"signer": signer.public, "signature": signer.sign(text)}
            write_atomically(fresh / MARK, json.dumps(mark) + "\n")
        sync(fresh)
        if target.exists():
            old = target.with_name(f".{target.name}.old-{secrets.token_hex(4)}")
            os.rename(target, old)
            try:
                os.rename(fresh, target)
            except BaseException:
                os.rename(old, target)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(fresh, target)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    sync_folder(target.parent)


def read(folder: Path, trust: Trust | None = None) -> Artefact:
    """The artefact in `folder`, every file held against its hash.

    Args:
        folder: of the artefact.
        trust: whose mark it must bear; None asks for none.

    Raises:
        DataError: there is none, a file is missing or changed, or its mark is not to be trusted.
    """
    try:
        text = (folder / CARD).read_bytes()
        card = json.loads(text)
        sound = _has_shape(card)
    except OSError as error:
        raise DataError(
            f"{folder} must hold an exported model; there is none. Make it with: perennial export"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{folder / CARD} is damaged: {error}; export the release again") from error
    if not sound:
        raise DataError(
            f"{folder / CARD} must be of schema {_SCHEMA}; it is not. Export the release again "
            "with this version."
        )
    for name, told in card["files"].items():
        path = folder / name
        if not path.is_file() or _hash(path) != told["sha256"]:
            raise DataError(
                f"{path} is not the file that was exported; export the release again, or restore "
                "the folder"
            )
    if trust is not None:
        _need_mark(folder, text, trust)
    return Artefact(folder, card)


def _has_shape(card: Any) -> bool:
    """Whether a card says all that is needed, of files inside its folder that have a hash."""
    if not isinstance(card, dict) or not set(card) >= _NEEDED or card["schema"] != _SCHEMA:
        return False
    files, causal = card["files"], card.get("kind") == "causal"
    if not isinstance(files, dict) or not all(
        isinstance(told, dict) and isinstance(told.get("sha256"), str) for told in files.values()
    ):
        return False
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in files):
        return False
    read = [card["model"]] if causal else [card["model"], TOKENIZER, LABELS]
    number = isinstance(card["threshold"], int | float)
    return all(isinstance(name, str) and name in files for name in read) and (number or causal)


def _need_mark(folder: Path, text: bytes, trust: Trust) -> None:
    try:
        mark = json.loads((folder / MARK).read_bytes())
        signer, signature = str(mark["signer"]), str(mark["signature"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / MARK} cannot be read; export the release again") from error
    if not trust.signed(signer, signature, text) or signer not in trust.keys:
        raise DataError(
            f"{folder / CARD} does not bear the signature of a key that is trusted; do not use it "
            "before you know who made it"
        )


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below `folder`, 64 hex digits."""
    return {name: str(told["sha256"]) for name, told in _files(folder).items()}


def _files(folder: Path) -> dict[str, Any]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): {"sha256": _hash(path), "bytes": path.stat().st_size}
        for path in paths
    }


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
