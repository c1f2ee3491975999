"""One thread for torch, and small things that many tests need."""

import contextlib
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from perennial.core.values import Records

WORDS = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(29))]


@pytest.fixture
def full_disk(monkeypatch):
    """`with full_disk(size)`: no file of this process grows beyond `size` bytes."""
    import resource  # not on Windows

    @contextlib.contextmanager
    def limited(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Python would keep cut bytecode of a module that is imported meanwhile.
        with monkeypatch.context() as patch:
            patch.setattr(sys, "dont_write_bytecode", True)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def requests_():
    """Seven records of three labels, of different lengths."""
    texts = ("hello", "good morning to you", "hi there", "bye", "see you soon then", "thanks", "ta")
    labels = ("greet", "greet", "greet", "part", "part", "thank", "thank")
    ids = tuple(f"r{i}" for i in range(7))
    return Records(ids, texts, labels, ("talk",) * 7, ("",) * 7)


@pytest.fixture
def pairs():
    """Four prompts with completions for a causal model, of different lengths."""
    prompts = ("w1 w2 w3", "w4", "w5 w6 w7 w8 w9", "w1 w9")
    completions = ("w10 w11", "w12 w13 w14 w15", "w16", "w2 w3")
    return Records(("p0", "p1", "p2", "p3"), prompts, completions, ("talk",) * 4, ("",) * 4)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    """A random two-layer Llama and a word-level tokenizer, as a Hugging Face folder."""
    import tokenizers
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("llama")
    words = tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>")
    core = tokenizers.Tokenizer(words)
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        attention_dropout=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def key_files(tmp_path_factory):
    """(scheme) -> fingerprint, the clients' key file and a key holder; made once per scheme."""
    from perennial.core import plugins
    from perennial.core.parts import KeyHolder
    from perennial.privacy import keys

    made = {}

    def files(scheme):
        if scheme not in made:
            folder = tmp_path_factory.mktemp("keyholder")
            words = "a passphrase for tests"
            card = keys.create(folder / "keys", scheme, words)
            made[scheme] = (card.fingerprint, keys.client_path(folder / "keys"), folder, words)
        fingerprint, client, folder, words = made[scheme]
        audit = tmp_path_factory.mktemp("audit") / "audit.jsonl"
        (folder / "passphrase").write_text(words)
        words_in = str(folder / "passphrase")
        options = {"keys": str(folder / "keys"), "audit": str(audit), "passphrase_file": words_in}
        return fingerprint, client, plugins.load("privacy", "in_process", options, KeyHolder)

    return files
