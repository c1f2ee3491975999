"""The tensors and sizes of a Llama-family model, by the names that llama.cpp gives them.

Touvron et al. 2023 (arXiv:2302.13971). llama.cpp turns neighbours of a head by the rotary embedding
(Su et al. 2021, arXiv:2104.09864), transformers the two halves of it, so the rows of queries and
keys change places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..core.errors import ModelError

ARCHITECTURE = "llama"

# What llama.cpp computes under that name: the same layers and no others.
_FAMILY = ("llama", "mistral")
# How positions may be scaled: by one factor a frequency, which is all that the file holds.
_ROPES = ("default", "linear", "llama3")

# Module of a layer -> its name in GGUF and its shape. E: hidden size, Q and K: widths of all query
# and of all key heads, F: width of the feed-forward layer.
_LAYER = {
    "input_layernorm": ("attn_norm", "E"),
    "self_attn.q_proj": ("attn_q", "QE"),
    "self_attn.k_proj": ("attn_k", "KE"),
    "self_attn.v_proj": ("attn_v", "KE"),
    "self_attn.o_proj": ("attn_output", "EQ"),
    "post_attention_layernorm": ("ffn_norm", "E"),
    "mlp.gate_proj": ("ffn_gate", "FE"),
    "mlp.up_proj": ("ffn_up", "FE"),
    "mlp.down_proj": ("ffn_down", "EF"),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor on its way into the file.

    Attributes:
        source: float32, as the model has it.
        heads: number of heads whose halves become neighbours; 0 leaves the rows as they are.
    """

    source: torch.Tensor
    heads: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """As in `source`."""
        return tuple(self.source.shape)

    def values(self) -> npt.NDArray[np.float32]:
        """The values in llama.cpp's order, of shape `shape`."""
        values: npt.NDArray[np.float32] = self.source.detach().cpu().numpy()
        if not self.heads:
            return np.ascontiguousarray(values)
        halves = values.reshape(self.heads, 2, -1, *values.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def tensors(model: Any) -> dict[str, Tensor]:
    """Every tensor of `model` by its name in GGUF; the output head only where it is its own.

    Raises:
        ModelError: another architecture, a model that is not merged or not float32, or tensors
            that are missing, too many or of another shape than the config says.
    """
    _check_family(model)
    state = model.state_dict()
    _check_merged(model, state)
    found = {}
    expected = _expected(model)
    for name, source in state.items():
        module, _, part = name.rpartition(".")
        if module not in expected or part not in ("weight", "bias"):
            raise ModelError(f"llama.cpp's llama has no tensor for {name} of this model")
        new, shape, heads = expected[module]
        wanted = shape if part == "weight" else shape[:1]
        if tuple(source.shape) != wanted:
            raise ModelError(
                f"{name} must be {list(wanted)} by the model's config; got {list(source.shape)}. "
                "Save the model with the config of its own sizes."
            )
        found[f"{new}.{part}"] = Tensor(source, heads)
    lacking = [name for name in expected if f"{expected[name][0]}.weight" not in found]
    if lacking:
        raise ModelError(f"the model must have every tensor of a llama; it lacks {lacking[0]}")
    _untie(model, found)
    factors = _rope_factors(model)
    if factors is not None:
        found["rope_freqs.weight"] = Tensor(factors)
    return found


def _check_family(model: Any) -> None:
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    if kind not in _FAMILY or not hasattr(model, "lm_head"):
        raise ModelError(
            f"GGUF is written for causal models of {' and '.join(_FAMILY)}; got {kind} "
            f"({type(model).__name__}). Export this model as ONNX instead."
        )
    if config.hidden_act not in ("silu", "swish"):
        raise ModelError(f"llama.cpp's llama computes silu; this model has {config.hidden_act}")
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        raise ModelError(
            f"llama.cpp's llama attends to the whole context; this model to {window} tokens of "
            f"{config.max_position_embeddings}. Set max_position_embeddings to the window first."
        )
    rope = _rope(config)
    if rope["rope_type"] not in _ROPES or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(
            f"positions must be scaled by one of {', '.join(_ROPES)}, over whole heads; this "
            f"model's are {rope['rope_type']}. Export it as ONNX instead."
        )


def _check_merged(model: Any, state: Mapping[str, torch.Tensor]) -> None:
    if hasattr(model, "peft_config") or any("lora_" in name for name in state):
        raise ModelError("a GGUF file holds one model: merge the adapter into its base first")
    odd = [name for name, t in state.items() if t.dtype != torch.float32 or t.is_meta]
    if odd:
        raise ModelError(
            f"weights must be float32 and loaded, to be packed once; {odd[0]} is "
            f"{'not loaded' if state[odd[0]].is_meta else state[odd[0]].dtype}. Load the base with "
            "dtype=torch.float32, without a quantisation of its own, and merge again."
        )


def _expected(model: Any) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Module -> name in GGUF, shape of its weight, heads whose halves become neighbours."""
    config = model.config
    heads, keys, width = _heads(config)
    sizes = {
        "E": config.hidden_size,
        "Q": heads * width,
        "K": keys * width,
        "F": config.intermediate_size,
    }
    turned = {"attn_q": heads, "attn_k": keys}
    table = (num_tokens(model), config.hidden_size)
    found: dict[str, tuple[str, tuple[int, ...], int]] = {
        "model.embed_tokens": ("token_embd", table, 0),
        "model.norm": ("output_norm", (config.hidden_size,), 0),
        "lm_head": ("output", table, 0),
    }
    for i in range(config.num_hidden_layers):
        for module, (new, letters) in _LAYER.items():
            shape = tuple(sizes[letter] for letter in letters)
            found[f"model.layers.{i}.{module}"] = (f"blk.{i}.{new}", shape, turned.get(new, 0))
    return found


def _heads(config: Any) -> tuple[int, int, int]:
    """Query heads, key heads, width of a head."""
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    if width % 2:
        raise ModelError(f"a head must be of even width, for its halves to turn; got {width}")
    return heads, keys, width


def _untie(model: Any, found: dict[str, Tensor]) -> None:
    """Take the head out where it is the embedding, which llama.cpp then uses twice."""
    same = torch.equal(found["output.weight"].source, found["token_embd.weight"].source)
    if model.config.tie_word_embeddings and not same:
        raise ModelError(
            "config.tie_word_embeddings says that head and embedding are one, and they differ: "
            "loading this model again would drop one of them. Set it to False, or tie them."
        )
    if same and "output.bias" not in found:
        del found["output.weight"]


def _rope(config: Any) -> dict[str, Any]:
    return {"rope_type": "default"} | dict(config.rope_parameters)


def _rope_factors(model: Any) -> torch.Tensor | None:
    """What divides each frequency, float32 [width / 2]; `None` where nothing does."""
    width = _heads(model.config)[2]
    exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
    plain = float(_rope(model.config)["rope_theta"]) ** -exponents
    used = model.model.rotary_emb.inv_freq.detach().cpu().double()
    if used.shape != plain.shape:
        raise ModelError(f"a frequency for each pair of {width} was expected; got {len(used)}")
    factors = plain / used
    return None if torch.allclose(factors, torch.ones_like(factors)) else factors.float()


def num_tokens(model: Any) -> int:
    """Rows of the embedding."""
    return int(model.get_input_embeddings().weight.shape[0])


def ends(model: Any) -> tuple[int, ...]:
    """Ids that end a generation, by the model's own generation config."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return () if named is None else tuple(named) if isinstance(named, list) else (int(named),)


def fields(model: Any) -> dict[str, Any]:
    """Sizes of `model` under their names in GGUF."""
    config = model.config
    heads, keys, width = _heads(config)
    named: dict[str, Any] = {
        "vocab_size": num_tokens(model),
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": width,
        "rope.freq_base": float(_rope(config)["rope_theta"]),
        "attention.head_count": heads,
        "attention.head_count_kv": keys,
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
    }
    return {f"{ARCHITECTURE}.{name}": value for name, value in named.items()}
