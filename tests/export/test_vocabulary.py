import json
import logging

import parrots
import pytest
import tokenizers
import transformers

from perennial.core.errors import ModelError
from perennial.export import vocabulary


@pytest.fixture(scope="module")
def byte_level():
    return parrots.byte_level()


@pytest.fixture(scope="module")
def sentencepiece():
    return parrots.sentencepiece()


def changed(tokenizer, change, **special):
    """`tokenizer` after `change` of its rules (tokenizer.json as a dict)."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    change(rules)
    core = tokenizers.Tokenizer.from_str(json.dumps(rules))
    names = {"bos_token": "<s>", "eos_token": "</s>"} | special
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names)


def read(tokenizer, size=420, ends=()):
    return vocabulary.read(tokenizer, size, ends)


def test_a_byte_level_vocabulary_by_hand(byte_level):
    words = read(byte_level)
    assert (words.kind, words.pre) == ("gpt2", "llama-bpe")
    assert words.tokens[:2] == ("<s>", "</s>")
    assert words.types[:2] == (vocabulary.CONTROL, vocabulary.CONTROL)
    assert words.types[2] == vocabulary.NORMAL
    assert words.scores == ()
    left, right = words.merges[0].split(" ")
    assert left + right in words.tokens
    assert words.ids == {"bos": 0, "eos": 1}
    assert words.adds == {"bos": True, "eos": False, "space_prefix": False}
    assert words.chat_template == ""


def test_ids_that_no_token_has_are_unused(byte_level):
    size = len(byte_level)
    words = read(byte_level, size + 3)
    assert len(words.tokens) == len(set(words.tokens)) == size + 3
    assert words.types[size:] == (vocabulary.UNUSED,) * 3
    assert read(byte_level, size).tokens == words.tokens[:size]
    with pytest.raises(ModelError, match=f"it has {size - 1}"):
        read(byte_level, size - 1)


def test_a_sentencepiece_vocabulary_by_hand(sentencepiece):
    words = read(sentencepiece)
    assert (words.kind, words.pre, words.merges) == ("llama", "default", ())
    assert words.types[:4] == (
        vocabulary.UNKNOWN,
        vocabulary.CONTROL,
        vocabulary.CONTROL,
        vocabulary.BYTE,
    )
    assert words.tokens[3:259] == tuple(f"<0x{i:02X}>" for i in range(256))
    merged = [s for s, text in zip(words.scores, words.tokens, strict=True) if len(text) == 2]
    assert max(merged) == 0.0  # the first merge makes two letters one piece
    assert words.ids == {"bos": 1, "eos": 2, "unk": 0}
    assert words.adds == {"bos": True, "eos": False, "space_prefix": True}


def test_both_ways_of_writing_spaces_are_one(sentencepiece, caplog):
    assert read(parrots.sentencepiece(legacy=False)) == read(sentencepiece)

    def never(rules):
        rules["normalizer"]["normalizers"] = rules["normalizer"]["normalizers"][1:]

    assert not read(changed(sentencepiece, never)).adds["space_prefix"]

    def first(rules):
        rules["pre_tokenizer"]["prepend_scheme"] = "first"

    with caplog.at_level(logging.WARNING):
        assert read(changed(parrots.sentencepiece(legacy=False), first)).adds["space_prefix"]
    assert "after a special token" in caplog.text


def test_added_tokens_have_their_kind(byte_level):
    tokenizer = changed(byte_level, lambda rules: None)
    tokenizer.add_tokens(["<mine>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"], "pad_token": "<pad>"})
    words = read(tokenizer)
    kinds = dict(zip(words.tokens, words.types, strict=True))
    assert kinds["<mine>"] == vocabulary.USER_DEFINED
    assert kinds["<|user|>"] == kinds["<pad>"] == vocabulary.CONTROL
    assert words.tokens[words.ids["pad"]] == "<pad>"


def test_what_stands_around_a_text_is_found_out(byte_level):
    def around(single, *names):
        def change(rules):
            ids = {"<s>": 0, "</s>": 1}
            special = [(name, ids[name]) for name in names]
            made = tokenizers.Tokenizer(tokenizers.models.BPE())
            made.post_processor = tokenizers.processors.TemplateProcessing(
                single=single, special_tokens=special
            )
            rules["post_processor"] = json.loads(made.to_str())["post_processor"]

        return changed(byte_level, change)

    both = read(around("<s> $A </s>", "<s>", "</s>"))
    assert (both.adds["bos"], both.adds["eos"]) == (True, True)
    none = read(around("$A"))
    assert (none.adds["bos"], none.adds["eos"]) == (False, False)
    with pytest.raises(ModelError, match="post-processor"):
        read(around("<s> <s> $A", "<s>"))


def test_ends_of_the_model_join_the_tokenizers(byte_level):
    assert read(byte_level, ends=(1, 7)).ids == {"bos": 0, "eos": 1, "eot": 7}
    for ends in ((5, 6, 7), (420,)):
        with pytest.raises(ModelError, match="at most three"):
            read(byte_level, ends=ends)


def test_without_a_start_token_the_end_starts_and_without_an_end_nothing_does(byte_level):
    def bare(rules):
        rules["post_processor"] = None

    assert read(changed(byte_level, bare, bos_token=None)).ids == {"bos": 1, "eos": 1}
    with pytest.raises(ModelError, match="end token"):
        read(changed(byte_level, bare, eos_token=None))


def put(place, value):
    def change(rules):
        part = rules
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = value

    return change


LOWER = {"type": "Lowercase"}
WHITE = {"type": "Whitespace"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(["normalizer"], LOWER), "Lowercase"),
        (put(["normalizer"], {"type": "NFC"}), "NFC"),
        (put(["pre_tokenizer"], WHITE), "Whitespace"),
        (put(["pre_tokenizer"], None), "no name for null"),
        (put(["model", "ignore_merges"], False), "ignore_merges False"),
        (put(["pre_tokenizer", "pretokenizers", 0, "pattern"], {"Regex": "\\p{L}+"}), "no name"),
        (put(["pre_tokenizer", "pretokenizers", 1, "add_prefix_space"], True), "no name"),
        (put(["model", "dropout"], 0.5), "dropout"),
        (put(["added_tokens", 1, "lstrip"], True), "lstrip of the added token '</s>'"),
        (
            put(["model"], {"type": "WordLevel", "vocab": {"a": 2}, "unk_token": "a"}),
            "this tokenizer is WordLevel",
        ),
    ],
)
def test_byte_level_rules_that_llama_cpp_lacks_are_named(byte_level, change, words):
    with pytest.raises(ModelError, match=words):
        read(changed(byte_level, change))


def drop_a_merge(rules):
    """One pair of many that make a piece: only SentencePiece would merge it."""
    merges = [tuple(pair) for pair in rules["model"]["merges"]]
    made = [left + right for left, right in merges]
    twice = next(i for i, piece in enumerate(made) if made.count(piece) > 1)
    rules["model"]["merges"].pop(twice)


def part_merges(rules):
    made = ["".join(pair) for pair in rules["model"]["merges"]]
    twice = next(i for i, piece in enumerate(made) if made.count(piece) > 1)
    rules["model"]["merges"].append(rules["model"]["merges"].pop(twice))


def lose_a_byte(rules):
    vocab = rules["model"]["vocab"]
    vocab["<lost>"] = vocab.pop("<0x41>")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_a_merge, "do not merge in it"),
        (part_merges, "do not stand together"),
        (lose_a_byte, "256 byte pieces"),
        (put(["normalizer"], LOWER), "Lowercase"),
        (put(["pre_tokenizer"], WHITE), "Whitespace"),
    ],
)
def test_sentencepiece_rules_that_llama_cpp_lacks_are_named(sentencepiece, change, words):
    with pytest.raises(ModelError, match=words):
        read(changed(sentencepiece, change, unk_token="<unk>"))


def test_a_tokenizer_without_rules_is_named():
    with pytest.raises(ModelError, match="got object"):
        read(object())
