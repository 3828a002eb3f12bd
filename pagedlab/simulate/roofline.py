"""Operations, bytes and the least time of training, prefill and decode, for a Hugging Face config on a device.

What is counted, everywhere in this module:

- FLOPs: matrix products only, 2 for each multiply-add, as PyTorch's FlopCounterMode counts. Norms, softmax, rotation
  and activation functions are left out: well under 1 % of a large model.
- Attention: 4 * heads * head_dim for every pair of a query and a key that it may see: `causal_pairs`, n(n + 1)/2 of a
  prompt of n, which is what a good kernel computes. `square_pairs` counts the whole n², as unfused code computes it
  and FlopCounterMode counts it.
- Bytes: the traffic that no fusion avoids. Weights once a step, however many rows share them; keys and values that lie
  in the cache, read; new ones, written. What one layer hands to the next is assumed to stay on the chip; training must
  keep it for the backward pass, so there it counts. The embedding table is looked up, not multiplied: its rows count.

So `Work.seconds` is a floor: real code takes longer, never less (on the same numbers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagedlab.basics.kv_size import kv_layout
from pagedlab.errors import ConfigError
from pagedlab.simulate.devices import Device

GATED = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Families with three MLP matrices and RMSNorm; the others here have two, LayerNorm, and a bias on every matrix."""
PLAIN = frozenset({"gpt2", "opt"})


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A dense decoder, as far as its cost goes. Names are Hugging Face's.

    Attributes:
        bias_and_norm_size: parameters that are vectors: biases and norm weights, all layers together.
        position_rows: rows of a learned position table; 0 for rotary positions.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    gated: bool
    bias_and_norm_size: int
    position_rows: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """The shape of a `config.json` as a mapping (`AutoConfig(...).to_dict()`, or one of `PUBLISHED`).

        Raises:
            ConfigError: an entry is missing, or the model is of a kind that is not counted here.
        """
        family = config.get("model_type", "llama")
        if family not in GATED | PLAIN or config.get("kv_lora_rank") or config.get("n_routed_experts"):
            known = ", ".join(sorted(GATED | PLAIN))
            raise ConfigError(f"Costs are counted for dense models of the types {known}, got {family!r}: choose one.")
        try:
            config = _common_names(config, family)
            heads, hidden = config["num_attention_heads"], config["hidden_size"]
            read = {name: config[name] for name in ("intermediate_size", "num_hidden_layers", "vocab_size")}
        except KeyError as missing:
            raise ConfigError(f"The config lacks {missing}: pass all of a Hugging Face config.json.") from None
        kv_heads = config.get("num_key_value_heads") or heads
        head_dim = config.get("head_dim") or hidden // heads
        vectors = _vectors(config, family, hidden, read["intermediate_size"], heads, kv_heads, head_dim)
        return cls(
            hidden_size=hidden,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            gated=family in GATED,
            bias_and_norm_size=vectors,
            position_rows=config.get("position_rows", 0),
            **read,
        )

    @property
    def layer_matrices(self) -> int:
        """Weights of one layer that a token's row is multiplied with: q, k, v, o, and the MLP's two or three."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (queries + 2 * keys) + queries * self.hidden_size
        return attention + (3 if self.gated else 2) * self.hidden_size * self.intermediate_size

    @property
    def head_matrix(self) -> int:
        """Weights that turn a row into one logit for each token of the vocabulary."""
        return self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All weights: matrices, vectors, and the tables of embeddings and positions."""
        embedding = 0 if self.tie_word_embeddings else self.head_matrix
        positions = self.position_rows * self.hidden_size
        layers = self.num_hidden_layers * self.layer_matrices
        return layers + self.head_matrix + embedding + positions + self.bias_and_norm_size

    def kv_bytes_per_token(self, bytes_per_element: int = 2) -> int:
        """Keys and values that one token leaves in the cache, all layers."""
        layout = kv_layout(self.num_hidden_layers, self.num_attention_heads, self.num_key_value_heads, self.head_dim)
        return layout.bytes_per_token(bytes_per_element)


def _common_names(config: Mapping[str, Any], family: str) -> Mapping[str, Any]:
    """A config of GPT-2 or OPT, which have names of their own, under the names of the others."""
    if family == "gpt2" and "n_embd" in config:
        hidden = config["n_embd"]
        own = {"hidden_size": hidden, "num_hidden_layers": config["n_layer"], "num_attention_heads": config["n_head"]}
        own |= {"intermediate_size": config.get("n_inner") or 4 * hidden, "position_rows": config["n_positions"]}
    elif family == "opt" and "ffn_dim" in config:
        own = {"intermediate_size": config["ffn_dim"], "position_rows": config["max_position_embeddings"] + 2}
        narrow = config.get("word_embed_proj_dim") not in (None, config["hidden_size"])
        if narrow or not config.get("do_layer_norm_before", True):
            raise ConfigError("OPT with a narrow embedding or norms at the end (350m) is not counted: choose another.")
    else:
        return config
    return {"tie_word_embeddings": True} | dict(config) | own


def _vectors(
    config: Mapping[str, Any], family: str, hidden: int, intermediate: int, heads: int, kv_heads: int, head_dim: int
) -> int:
    """Parameters in biases and norm weights."""
    qkv_bias = (heads + 2 * kv_heads) * head_dim
    if family in PLAIN:  # two LayerNorms (weight and bias) and four biased matrices a layer, one LayerNorm at the end
        return config["num_hidden_layers"] * (4 * hidden + qkv_bias + hidden + intermediate + hidden) + 2 * hidden
    a_layer = 2 * hidden + (2 * head_dim if family == "qwen3" else 0) + (qkv_bias if family == "qwen2" else 0)
    if config.get("attention_bias") and family in ("llama", "qwen3"):
        a_layer += qkv_bias + hidden
    if config.get("mlp_bias") and family == "llama":
        a_layer += 2 * intermediate + hidden
    return config["num_hidden_layers"] * a_layer + hidden


# ---- what a step does --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one sequence brings to a step: `new` tokens to compute, behind `past` tokens whose keys and values exist."""

    new: int
    past: int = 0

    def __post_init__(self) -> None:
        if self.new < 1 or self.past < 0:
            raise ConfigError(f"A chunk computes 1 token or more behind 0 or more, got {self.new} behind {self.past}.")


def causal_pairs(chunk: Chunk) -> int:
    """Pairs of a query and a key that the causal mask lets through: the past, and each new token's own prefix."""
    return chunk.new * chunk.past + chunk.new * (chunk.new + 1) // 2


def square_pairs(chunk: Chunk) -> int:
    """Every pair, masked or not."""
    return chunk.new * (chunk.past + chunk.new)


@dataclass(frozen=True, slots=True)
class Work:
    """Operations and bytes of one step, by what they are for.

    Attributes:
        tokens: rows that the step computes
        linear_flops: products with weights
        attention_flops: queries with keys, and weights with values
        weight_bytes: weights read (training: and their gradients and optimizer state, read and written)
        cache_bytes: keys and values read from the cache and written to it
        activation_bytes: what training writes for the backward pass and reads there
    """

    name: str
    tokens: int
    linear_flops: int
    attention_flops: int
    weight_bytes: int
    cache_bytes: int = 0
    activation_bytes: int = 0

    @property
    def flops(self) -> int:
        return self.linear_flops + self.attention_flops

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes + self.activation_bytes

    @property
    def intensity(self) -> float:
        """FLOP for each byte moved: compare with `Device.ridge`."""
        return self.flops / self.bytes

    def seconds(self, device: Device) -> float:
        """The least time on a device."""
        return device.seconds(self.flops, self.bytes)

    def bound_by(self, device: Device) -> str:
        """Which roof the step is under: "memory" or "compute"."""
        return "memory" if self.intensity < device.ridge else "compute"


def forward(
    shape: ModelShape,
    chunks: Sequence[Chunk],
    *,
    bytes_per_element: int = 2,
    logit_rows: int | None = None,
    pairs: Callable[[Chunk], int] = causal_pairs,
    name: str = "step",
) -> Work:
    """One pass over any mix of sequences: a prompt is a chunk with no past, a decode is a chunk of one.

    Args:
        bytes_per_element: of weights and cache; 2 is float16 or bfloat16.
        logit_rows: rows that go on to the vocabulary; one a sequence unless given, since only the last is sampled from.
        pairs: how attention is counted, `causal_pairs` or `square_pairs`.
    """
    if not chunks:
        raise ConfigError("A step needs at least one chunk: pass [Chunk(new, past), ...].")
    tokens = sum(chunk.new for chunk in chunks)
    rows = len(chunks) if logit_rows is None else logit_rows
    layers = shape.num_hidden_layers
    looked_up = tokens * shape.hidden_size * ((not shape.tie_word_embeddings) + bool(shape.position_rows))
    read = layers * shape.layer_matrices + shape.head_matrix + shape.bias_and_norm_size + looked_up
    cached = sum(chunk.past + chunk.new for chunk in chunks)
    return Work(
        name=name,
        tokens=tokens,
        linear_flops=2 * (tokens * layers * shape.layer_matrices + rows * shape.head_matrix),
        attention_flops=4 * layers * shape.num_attention_heads * shape.head_dim * sum(map(pairs, chunks)),
        weight_bytes=bytes_per_element * read,
        cache_bytes=cached * shape.kv_bytes_per_token(bytes_per_element),
    )


def prefill(shape: ModelShape, num_tokens: int, batch: int = 1, **options: Any) -> Work:
    """`batch` prompts of `num_tokens`, none of it cached. Options as in `forward`."""
    options = {"name": f"prefill of {num_tokens:,}" + (f" × {batch}" if batch > 1 else "")} | options
    return forward(shape, [Chunk(num_tokens)] * batch, **options)


def decode(shape: ModelShape, context: int, batch: int = 1, **options: Any) -> Work:
    """One more token for each of `batch` sequences that have `context` tokens in the cache. Options as in `forward`."""
    return forward(shape, [Chunk(1, context)] * batch, **({"name": f"decode, batch {batch}"} | options))


# ---- training ----------------------------------------------------------------------------------------------------

TRAINING_TRAFFIC = 2 + 2 + 2 + 2 + 12 + 12 + 2
"""Bytes that a mixed-precision AdamW step moves for each parameter: the 16-bit weight read forward and backward, its
gradient written and read, the float32 weight and two moments read and written, the new 16-bit weight written."""


def training_step(
    shape: ModelShape, sequence_length: int, batch: int = 1, pairs: Callable[[Chunk], int] = causal_pairs
) -> Work:
    """Forward, backward and AdamW on `batch` sequences, 16-bit weights and activations, float32 optimizer state.

    The backward pass has two products for each of the forward's (gradient of the input, gradient of the weight), so a
    step has 3 times the forward's FLOPs: the rule of 6 for each weight and token (Kaplan et al. 2020, section 2.1).
    Nothing is recomputed. Logits are needed for every token.
    """
    chunks = [Chunk(sequence_length)] * batch
    tokens = sequence_length * batch
    once = forward(shape, chunks, logit_rows=tokens, pairs=pairs)
    return Work(
        name=f"training step, {tokens:,} tokens",
        tokens=tokens,
        linear_flops=3 * once.linear_flops,
        attention_flops=3 * once.attention_flops,
        weight_bytes=TRAINING_TRAFFIC * shape.num_parameters,
        activation_bytes=2 * tokens * activation_bytes_per_token(shape),
    )


def activation_bytes_per_token(shape: ModelShape, bytes_per_element: int = 2) -> int:
    """What the backward pass needs of one token: the input of every norm, matrix and activation function, kept once.

    A layer keeps the two norms' inputs and outputs, q, k, v and attention's output, and in the MLP (gated) the gate,
    its activation, the other factor and their product; the head keeps its norm's input and output and the logits.
    Fused attention (FlashAttention) recomputes scores, so nothing here grows with n². Compare the 34 bytes for each
    hidden unit and token of a GPT layer in Korthikanti et al. 2022, section 4.1.
    """
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    mlp = (4 if shape.gated else 2) * shape.intermediate_size
    a_layer = 4 * shape.hidden_size + 2 * queries + 2 * keys + mlp
    return bytes_per_element * (shape.num_hidden_layers * a_layer + 2 * shape.hidden_size + shape.vocab_size)


def training_memory(shape: ModelShape, sequence_length: int, batch: int = 1) -> dict[str, int]:
    """Bytes that training holds: 16 a parameter (Rajbhandari et al. 2020, "ZeRO", section 3.1), and activations."""
    size = shape.num_parameters
    activations = sequence_length * batch * activation_bytes_per_token(shape)
    return {"weights": 2 * size, "gradients": 2 * size, "optimizer": 12 * size, "activations": activations}


def inference_memory(shape: ModelShape, context: int, batch: int = 1, bytes_per_element: int = 2) -> dict[str, int]:
    """Bytes that serving holds: the weights, and the keys and values of `batch` sequences of `context` tokens."""
    return {
        "weights": bytes_per_element * shape.num_parameters,
        "KV cache": batch * context * shape.kv_bytes_per_token(bytes_per_element),
    }
