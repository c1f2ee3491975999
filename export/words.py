"""How a tokenizer splits a text before it merges, in llama.cpp's words.

llama.cpp knows the rules of byte-level BPE by a name alone, so a tokenizer's own rules are compared
with those that have a name; SentencePiece only writes its spaces in another way.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from ..core.errors import ModelError

logger = logging.getLogger(__name__)

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
_REST = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"


def _byte_level(add_prefix_space: bool, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "use_regex": use_regex}


def _split(pattern: str) -> dict[str, Any]:
    rule = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [rule, _byte_level(False, False)]}


# How words are split, and whether a word of the vocabulary is taken whole before any merge:
# llama.cpp's name for it. It has more names; these are the ones whose rules it follows exactly.
_PRE_TOKENIZERS: tuple[tuple[str, dict[str, Any], bool], ...] = (
    ("gpt-2", _byte_level(False, True), False),
    ("llama-bpe", _split(f"{_CONTRACTIONS}\\p{{N}}{{1,3}}{_REST}"), True),
    ("qwen2", _split(f"{_CONTRACTIONS}\\p{{N}}{_REST}"), False),
    (
        "smollm",
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                _byte_level(False, True),
            ],
        },
        False,
    ),
)


def pre_tokenizer(rules: Mapping[str, Any]) -> str:
    """llama.cpp's name of how the byte-level tokenizer of `rules` splits a text into words.

    Args:
        rules: tokenizer.json.

    Raises:
        ModelError: llama.cpp has no name for it.
    """
    if rules["normalizer"] is not None:
        raise ModelError(
            "llama.cpp normalizes no text before byte-level BPE; this tokenizer does, by "
            f"{rules['normalizer']['type']}, and its tokens would differ. Train with a tokenizer "
            "without a normalizer."
        )
    splits = _plain(rules["pre_tokenizer"])
    whole = bool(rules["model"].get("ignore_merges"))
    for name, known, known_whole in _PRE_TOKENIZERS:
        if (splits, whole) == (known, known_whole):
            return name
    names = ", ".join(name for name, _, _ in _PRE_TOKENIZERS)
    raise ModelError(
        "llama.cpp must split texts into words as this tokenizer does, and has no name for "
        f"{json.dumps(splits)} with ignore_merges {whole}. Known are the rules of {names}."
    )


def _plain(rule: Any) -> Any:
    """A pre-tokenizer's rule without what changes no token, and a sequence of one as that one."""
    if not isinstance(rule, dict):
        return rule
    parts = [_plain(part) for part in rule.get("pretokenizers", ())]
    if len(parts) == 1:
        return parts[0]
    plain = {key: value for key, value in rule.items() if key != "trim_offsets"}
    return plain | ({"pretokenizers": parts} if parts else {})


def space_prefix(rules: Mapping[str, Any]) -> bool:
    """Whether the SentencePiece tokenizer of `rules` puts a space before a text.

    Args:
        rules: tokenizer.json, which has two ways of saying so.

    Raises:
        ModelError: llama.cpp writes spaces in another way.
    """
    normalizer, splits = rules["normalizer"], rules["pre_tokenizer"]
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    prepend = {"type": "Prepend", "prepend": _SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if splits is None and steps in ([prepend, replace], [replace]):
        return bool(steps[0] == prepend)
    if not steps and isinstance(splits, dict) and splits["type"] == "Metaspace":
        scheme = splits.get("prepend_scheme", "always")
        if splits["replacement"] == _SPACE and not splits.get("split", True):
            if scheme == "first":
                logger.warning(
                    "after a special token inside a text llama.cpp puts a space where this "
                    "tokenizer (prepend_scheme 'first') puts none"
                )
            return bool(scheme != "never")
    raise ModelError(
        "llama.cpp must write spaces as this tokenizer does: a SentencePiece tokenizer that only "
        f"replaces them by {_SPACE!r} and does not split at them; got normalizer "
        f"{json.dumps(normalizer)} and pre-tokenizer {json.dumps(splits)}."
    )
