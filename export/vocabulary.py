"""A Hugging Face tokenizer as the fields that llama.cpp rebuilds it from.

Two kinds, as the Llama family has them: byte-level BPE (`gpt2` in GGUF), which merges by the rank
of a pair, and the BPE of SentencePiece (`llama`; Kudo and Richardson 2018, arXiv:1808.06226), which
merges by the score of the piece that comes out. llama.cpp knows how a text is split into words by
a name alone, so the tokenizer's own rules are compared with those that have a name; whatever else
would change its tokens is refused, because a model reads other tokens without complaint.

Not the same even so: a text that is written to look like a token of the vocabulary's padding, and,
with SentencePiece, runs of one repeated letter where two merges of one piece overlap.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import ModelError
from . import words

# GGUF's token types.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_NUM_BYTES = 256


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What GGUF holds of a tokenizer.

    Attributes:
        kind: `gpt2` (byte-level BPE) or `llama` (BPE of SentencePiece).
        pre: llama.cpp's name of how texts are split into words; `default` for `llama`.
        tokens: text of every id, as the tokenizer writes it; distinct, none empty.
        types: GGUF's type of every id.
        scores: of every id, the higher the earlier merged; empty for `gpt2`.
        merges: pairs with a space between, in the order of their rank; empty for `llama`.
        ids: ids of `bos`, `eos`, `unk`, `pad`, `eot`, `eom`, where there are such.
        adds: whether `bos` and `eos` are put around a text, and `space_prefix` before it.
        chat_template: in Jinja, one or several by name; empty when there is none.
    """

    kind: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...]
    merges: tuple[str, ...]
    ids: Mapping[str, int]
    adds: Mapping[str, bool]
    chat_template: str | Mapping[str, str]


def read(tokenizer: Any, size: int, ends: Sequence[int] = ()) -> Vocabulary:
    """The vocabulary of `tokenizer` for a model of `size` token ids.

    Args:
        tokenizer: of transformers, backed by the `tokenizers` library.
        size: rows of the model's embedding; ids that the tokenizer lacks become unused tokens.
        ends: ids that end a generation beside the tokenizer's own end token.

    Raises:
        ModelError: llama.cpp would read texts in another way than `tokenizer`, or cannot at all.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            "GGUF needs a tokenizer that the `tokenizers` library runs (tokenizer.json); got "
            f"{type(tokenizer).__name__}. Load it by transformers.AutoTokenizer, or save the fast "
            "tokenizer beside the model."
        )
    rules = json.loads(backend.to_str())
    _check_added(rules["added_tokens"])
    pairs = _merges(rules)
    tokens, types = _tokens(rules, size)
    if rules["model"].get("byte_fallback"):
        kind, pre, space_prefix = "llama", "default", words.space_prefix(rules)
        scores = _scores(tokens, types, pairs)
        merges: tuple[str, ...] = ()
    else:
        kind, pre, space_prefix = "gpt2", words.pre_tokenizer(rules), False
        scores = ()
        merges = tuple(f"{left} {right}" for left, right in pairs)
    adds = _added_around(tokenizer) | {"space_prefix": space_prefix}
    ids = _special_ids(tokenizer, size, ends)
    template = getattr(tokenizer, "chat_template", None) or ""
    return Vocabulary(kind, pre, tokens, types, scores, merges, ids, adds, template)


def _merges(rules: Mapping[str, Any]) -> list[tuple[str, str]]:
    model = rules["model"]
    if model["type"] != "BPE":
        raise ModelError(
            "GGUF of the Llama family takes byte-level BPE or the BPE of SentencePiece; this "
            f"tokenizer is {model['type']}. Train the model with a BPE tokenizer."
        )
    odd = [
        name
        for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        if model.get(name)
    ]
    if odd:
        raise ModelError(f"llama.cpp's BPE has no {odd[0]}; this tokenizer has one")
    # Older files write a pair as one string.
    split = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"])
    return [(left, right) for left, right in split]


def _check_added(added: Sequence[Mapping[str, Any]]) -> None:
    for token in added:
        odd = [flag for flag in ("lstrip", "rstrip", "single_word") if token.get(flag)]
        if odd:
            raise ModelError(
                f"GGUF cannot hold {odd[0]} of the added token {token['content']!r}: llama.cpp "
                "would read the text around it in another way. Train with a tokenizer without it."
            )


def _tokens(rules: Mapping[str, Any], size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Text and type of each id; ids that nobody uses get a name that no token has."""
    unknown = rules["model"].get("unk_token")
    found: dict[int, tuple[str, int]] = {}
    for text, index in rules["model"]["vocab"].items():
        kind = UNKNOWN if text == unknown else NORMAL
        if rules["model"].get("byte_fallback") and _BYTE_PIECE.fullmatch(text):
            kind = BYTE
        found[index] = (text, kind)
    for token in rules["added_tokens"]:
        text, index = token["content"], token["id"]
        kind = CONTROL if token["special"] else USER_DEFINED
        found[index] = (text, UNKNOWN if text == unknown else kind)
    most = max(found, default=-1)
    if most >= size:
        raise ModelError(
            f"the model's embedding must have a row for every token; it has {size}, and the "
            f"tokenizer's ids go to {most}. Give the tokenizer that belongs to the model."
        )
    taken = {text for text, _ in found.values()}
    if len(taken) < len(found) or "" in taken:
        raise ModelError("GGUF needs one text for each token id, none empty; two ids share one")
    rows = [found.get(i) or (_unused(i, taken), UNUSED) for i in range(size)]
    return tuple(text for text, _ in rows), tuple(kind for _, kind in rows)


def _unused(index: int, taken: set[str]) -> str:
    name = f"[unused{index}]"
    while name in taken:
        name = f"[{name}]"
    taken.add(name)
    return name


def _scores(
    tokens: Sequence[str], types: Sequence[int], pairs: Sequence[tuple[str, str]]
) -> tuple[float, ...]:
    """Minus the place of each piece in the order of merges.

    llama.cpp knows no pairs: any two neighbours whose text is a piece merge, the highest score
    first. That is the same only where every pair that makes a piece is a merge, and the merges of
    one piece stand together, as they do in what SentencePiece trains.
    """
    if sum(kind == BYTE for kind in types) != _NUM_BYTES:
        raise ModelError(
            "a SentencePiece tokenizer must have all 256 byte pieces, <0x00> to <0xFF>: llama.cpp "
            "writes what has no piece in bytes"
        )
    order: dict[str, int] = {}
    last = ""
    for left, right in pairs:
        piece = left + right
        if piece != last and piece in order:
            raise _not_sentencepiece(f"the merges that make {piece!r} do not stand together")
        order.setdefault(piece, len(order))
        last = piece
    normal = {text for text, kind in zip(tokens, types, strict=True) if kind == NORMAL}
    known = set(pairs)
    for piece in normal:
        for cut in range(1, len(piece)):
            pair = (piece[:cut], piece[cut:])
            if pair[0] in normal and pair[1] in normal and pair not in known:
                raise _not_sentencepiece(f"{pair[0]!r} and {pair[1]!r} do not merge in it")
    return tuple(
        -float(order.get(text, len(order))) if kind == NORMAL else 0.0
        for text, kind in zip(tokens, types, strict=True)
    )


def _not_sentencepiece(problem: str) -> ModelError:
    return ModelError(
        "llama.cpp merges two pieces wherever their text is a piece, as SentencePiece does; in "
        f"this tokenizer {problem}, so that its tokens would differ. Train it with SentencePiece, "
        "or as byte-level BPE."
    )


def _added_around(tokenizer: Any) -> dict[str, bool]:
    """Whether the start and the end token are put around a text; tried on one."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for bos in (False, True):
        for eos in (False, True):
            start = [tokenizer.bos_token_id] * bos
            end = [tokenizer.eos_token_id] * eos
            if full == [*start, *bare, *end]:
                return {"bos": bos, "eos": eos}
    raise ModelError(
        "GGUF can put one start token before a text and one end token after it; this tokenizer "
        f"makes {full} of {bare}. Change its post-processor."
    )


def _special_ids(tokenizer: Any, size: int, ends: Sequence[int]) -> dict[str, int]:
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ModelError(
            "the tokenizer must name its end token (eos_token): without one llama.cpp takes token "
            "2 or 11 for it. Set it before the export."
        )
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "unk", "pad")}
    # Where no start token is named llama.cpp takes token 1 or 11; the end starts a text as well.
    ids["bos"] = eos if ids["bos"] is None else ids["bos"]
    others = [index for index in dict.fromkeys(ends) if index != eos]
    wrong = [index for index in others if not 0 <= index < size]
    if wrong or len(others) > 2:
        raise ModelError(
            "GGUF holds at most three tokens that end a generation, each in the vocabulary; got "
            f"{[eos, *others]} (generation_config.eos_token_id, and the tokenizer's eos_token)"
        )
    ids |= {"eos": eos} | dict(zip(("eot", "eom"), others, strict=False))
    return {name: int(index) for name, index in ids.items() if index is not None}
