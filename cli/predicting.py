"""`perennial predict`: texts in, labels out, line by line. Loads no torch."""

from __future__ import annotations

import io
import json
import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..core.errors import DataError, RunError
from ..server import releases
from . import exports
from .releasing import trust
from .runs import find

if TYPE_CHECKING:
    from ..export.predictor import Prediction, Predictor
    from ..server.release_proofs import Trust

MOST_BYTES = 65_536
"""Longest line that is read; longer ones are an error, and never held whole."""

_BATCH = 32
_CARD = "export.json"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input.

    Attributes:
        number: from 1.
        text: to be answered; empty where there is an error.
        error: why it is not.
    """

    number: int
    text: str
    error: str = ""


def predict(
    target: str,
    file: Path | None,
    profile: str,
    home: Path,
    folder: Path,
    *,
    top: int,
    jsonl: bool,
    threads: int,
    as_json: bool,
) -> bool:
    """Answer the lines of a file or a pipe; whether all were answered.

    Args:
        target: a release's number or folder, a run, or the folder of an export.
        file: of the input; None for the standard input.
        profile: which export.
        home: of releases.
        folder: of runs.
        top: how many labels of each text.
        jsonl: lines are JSON objects with a key `text`.
        threads: that the model may take.
        as_json: a JSON object a line instead of columns.

    Raises:
        PerennialError: there is no such export, it was changed, or the file cannot be read.
    """
    if sys.stdout is None:  # closed by the caller
        raise RunError("the answers need a standard output, and there is none; give one")
    _speak_utf8()
    place, trusted, digest = _place(target, profile, home, folder)
    try:
        from ..export import artefact
        from ..export.predictor import open_artefact
    except ImportError as error:
        raise RunError(
            f"predicting needs onnxruntime: {error}. Install perennial-fl[export]."
        ) from error
    found = artefact.read(place, trusted)
    if digest is not None and found.card.get("digest") != digest:
        raise DataError(
            f"{place} was not made of this release; export the release again, and find out who "
            "put it there"
        )
    if found.card.get("kind") == "causal":
        raise DataError(
            f"{place} generates text and answers no labels: run {found.model.name} under "
            "llama.cpp, or an onnx-cache export by perennial.export.generate"
        )
    predictor = open_artefact(found, threads)
    whole = True
    try:
        for lines in _together(_lines_of(_opened(file), jsonl=jsonl)):
            whole &= _answer(predictor, lines, top, as_json=as_json)
    except BrokenPipeError:  # whoever read the answers has had enough
        sys.stderr.close()
    return whole


def _lines_of(stream: BinaryIO, *, jsonl: bool) -> Iterator[Line]:
    """The lines of `stream`, which is closed by the thread that reads it and by no other.

    While one thread waits for a line, another that closes the stream would wait for ever.
    """
    with stream:
        yield from read_lines(stream, jsonl=jsonl)


def read_lines(stream: BinaryIO, *, jsonl: bool) -> Iterator[Line]:
    """The lines of `stream`, each with its text or with what is wrong with it."""
    number = 0
    while raw := stream.readline(MOST_BYTES + 1):
        number += 1
        if len(raw) > MOST_BYTES and not raw.endswith(b"\n"):
            length = len(raw)
            while (more := stream.readline(MOST_BYTES)) and not more.endswith(b"\n"):
                length += len(more)
            length += len(more)
            yield Line(number, "", f"must be at most {MOST_BYTES:,} bytes; got {length:,}")
            continue
        yield _line(number, raw, jsonl=jsonl)


def _line(number: int, raw: bytes, *, jsonl: bool) -> Line:
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        at = f"byte {error.start + 1} is 0x{raw[error.start]:02x}"
        return Line(number, "", f"must be UTF-8; {at}, which is not")
    if jsonl and text.strip():
        try:
            found = json.loads(text)
        except ValueError as error:
            return Line(number, "", f"must be JSON; {error}")
        except RecursionError:
            return Line(number, "", "must be a JSON object; it is nested too deeply")
        given = found.get("text") if isinstance(found, dict) else None
        if not isinstance(given, str):
            return Line(number, "", 'must be a JSON object with a string "text"')
        text = given
        try:
            text.encode()
        except UnicodeEncodeError:
            return Line(number, "", "must be text; it holds half a surrogate pair")
    if not text.strip():
        return Line(number, "", "must hold a text; it is empty")
    return Line(number, text)


def _together(lines: Iterator[Line]) -> Iterator[list[Line]]:
    """Lines in batches: as many as have come, at most 32, so that a slow pipe waits for nobody."""
    waiting: queue.Queue[Line | Exception | None] = queue.Queue(4 * _BATCH)

    def pump() -> None:
        try:
            for line in lines:
                waiting.put(line)
            waiting.put(None)
        except Exception as error:  # to be raised where it is seen
            waiting.put(error)

    threading.Thread(target=pump, daemon=True).start()
    over = False
    while not over:
        batch, item = list[Line](), waiting.get()
        while True:
            if isinstance(item, Exception):
                raise DataError(f"the input cannot be read: {item}") from item
            if item is None:
                over = True
                break
            batch.append(item)
            if len(batch) == _BATCH:
                break
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                break
        if batch:
            yield batch


def _answer(predictor: Predictor, lines: list[Line], top: int, *, as_json: bool) -> bool:
    asked = [line for line in lines if not line.error]
    answers = iter(predictor.answer([line.text for line in asked], top) if asked else ())
    for line in lines:
        if line.error:
            _tell_error(line, as_json=as_json)
        else:
            _tell(line, next(answers), as_json=as_json)
    sys.stdout.flush()
    return len(asked) == len(lines)


def _tell(line: Line, found: Prediction, *, as_json: bool) -> None:
    if as_json:
        said: dict[str, Any] = {
            "line": line.number,
            "label": found.labels[0],
            "score": round(found.scores[0], 6),
            "out_of_scope": round(found.out_of_scope, 6),
            "outside": found.outside,
        }
        if len(found.labels) > 1:
            pairs = zip(found.labels, found.scores, strict=True)
            said["top"] = [[label, round(score, 6)] for label, score in pairs]
        if found.cut:
            said["cut"] = True
        sys.stdout.write(json.dumps(said, ensure_ascii=False) + "\n")
        return
    pairs = zip(found.labels, found.scores, strict=True)
    columns = [part for label, score in pairs for part in (_cell(label), f"{score:.4f}")]
    scope = f"{found.out_of_scope:.4f}{' outside' if found.outside else ''}"
    sys.stdout.write("\t".join([str(line.number), *columns, scope]) + "\n")


def _cell(label: str) -> str:
    """A label as one column: tabs and ends of lines become spaces."""
    return " ".join(label.split()) if any(c in label for c in "\t\r\n") else label


def _speak_utf8() -> None:
    """Answers are UTF-8, as the input is, whatever the terminal would have them be."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def _tell_error(line: Line, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"line": line.number, "error": line.error}) + "\n")
    else:
        sys.stderr.write(f"line {line.number}: {line.error}\n")


def _opened(file: Path | None) -> BinaryIO:
    if file is None:
        if sys.stdin is None:  # closed by the caller
            raise DataError("there is no standard input; name a FILE, or give a pipe")
        # A stream of our own: at its end the interpreter takes back its own one, which a thread
        # that still waits for a line would hold.
        return open(sys.stdin.fileno(), "rb", closefd=False)
    try:
        return file.open("rb")
    except OSError as error:
        raise DataError(f"{file} must be a file of texts: {error}") from error


def _place(
    target: str, profile: str, home: Path, folder: Path
) -> tuple[Path, Trust | None, str | None]:
    """The folder of an export, whose mark it must bear, and the digest of its release."""
    if (Path(target) / _CARD).is_file():
        place = Path(target).resolve()
        if len(place.parents) < 3 or place.parents[1].name != exports.FOLDER:
            return place, None, None
        keys = place.parents[2] / f"{releases.KEY}.pub"  # in a home all bear a mark
        return place, trust(keys) if keys.is_file() else None, None
    release = exports.release_of(target, home)
    if release is None:
        return _need_there(exports.of_run(find(target, folder), profile)), None, None
    keys = exports.home_of(release) / f"{releases.KEY}.pub"
    place = _need_there(exports.of_release(release, profile))
    return place, trust(keys) if keys.is_file() else None, release.digest


def _need_there(place: Path) -> Path:
    """`place`, or an error that names the exports that there are."""
    if not place.is_dir():
        there = sorted(path.parent.name for path in place.parent.glob(f"[!.]*/{_CARD}"))
        raise DataError(
            f"{place} must hold an exported model; there is none. "
            + (f"Take one with --profile: {', '.join(there)}" if there else "Make it with:")
            + ("." if there else " perennial export")
        )
    return place
