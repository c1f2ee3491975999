"""Tiny causal models that learnt a few sentences, and their tokenizers: made here, not fetched."""

import tokenizers
import torch
import transformers
from tokenizers import decoders, normalizers, pre_tokenizers, processors

TEXTS = (
    "The bank opens at 9 and closes at 17, except on Sunday.",
    "My card was declined at the till; what can I do about it?",
    "A transfer of 250 euros arrived twice, on the 3rd and on the 4th.",
    "Grüße aus Zürich: der Zug fährt um 12.30 Uhr, à bientôt!",
    "They're late, we'll wait, and it's fine: don't worry.",
    "if x > 10:\n    return x * 2  # twice\n",
)
PROMPTS = ("The bank opens", "My card was", "A transfer of", "Grüße aus", "They're late", "if x >")
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
LLAMA3 = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)


def pre_tokenizer(name):
    """The rules by which each named kind splits words, as its models' tokenizer.json has them."""
    split = {"llama-bpe": LLAMA3, "qwen2": LLAMA3.replace("{1,3}", "")}.get(name)
    if split is not None:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(split), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    return byte_level


def byte_level(name="llama-bpe", texts=TEXTS, size=420):
    """A byte-level BPE tokenizer trained on `texts`, with a start token before every text."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=name == "llama-bpe"))
    core.pre_tokenizer = pre_tokenizer(name)
    core.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return finished(core, bos_token="<s>", eos_token="</s>")


def sentencepiece(texts=TEXTS, size=420, legacy=True):
    """A BPE tokenizer as SentencePiece makes them: every pair that makes a piece is a merge."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    pieces = [f"<0x{i:02X}>" for i in range(256)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<unk>", "<s>", "</s>", *pieces],
        show_progress=False,
        max_token_length=8,
    )
    core.train_from_iterator(texts, trainer)
    vocab = core.get_vocab()
    normal = {text: i for text, i in vocab.items() if i >= 259}
    merges = []
    for text in sorted(normal, key=normal.get):
        cuts = [(text[:i], text[i:]) for i in range(1, len(text))]
        merges += [cut for cut in cuts if cut[0] in normal and cut[1] in normal]
    model = tokenizers.models.BPE(
        vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    again = tokenizers.Tokenizer(model)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    again.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    if legacy:
        again.normalizer = core.normalizer
    else:
        again.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=False)
    return finished(again, **SPECIAL)


def finished(core, **special):
    start = core.token_to_id("<s>")
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", start)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special)


def llama(tokenizer, steps=70, **changed):
    """A two-layer Llama that was trained on `TEXTS` until it knows them."""
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(sizes | changed)))
    return trained(model, tokenizer, steps)


def trained(model, tokenizer, steps):
    rows = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in TEXTS]
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.eos_token_id] * (width - len(row)) for row in rows])
    labels = torch.where(
        torch.arange(width)[None] < torch.tensor([[len(r)] for r in rows]), ids, -100
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def greedy(model, ids, count):
    """Ids that `model` goes on with after `ids`, one by one, without a cache; up to the end."""
    ids = list(ids)
    end = model.config.eos_token_id
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + count and (len(ids) == start or ids[-1] != end):
            ids.append(
                int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            )
    return ids[start:]
