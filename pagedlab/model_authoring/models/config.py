"""ModelConfig: the shape of a model, read from a Hugging Face directory's config.json and generation_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pagedlab.errors import ModelError
from pagedlab.model_authoring.models.ops import ACTIVATIONS
from pagedlab.model_authoring.models.registry import Architecture, Window, find_architecture
from pagedlab.model_authoring.models.rope import checked_rope_parameters

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MOST = (1 << 31) - 1
"""Of any size: token ids and row numbers are kept in 32 bits."""
MOST_PARAMETERS = 1 << 48
"""A petabyte in float32. Sizes beyond it come from damaged files."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that the decoder needs to know, with the family's rules already applied. Names follow Hugging Face.

    Attributes:
        architecture: as config.json names it.
        num_attention_heads, num_key_value_heads: query heads, and the K/V heads that groups of them share.
        head_dim: width of one head; heads * head_dim need not be hidden_size.
        rope_parameters: rope_type, rope_theta and what that type needs (see rope.py).
        max_position_embeddings: positions that the model knows: the longest prompt plus output.
        attention_bias: bias of q, k and v; attention_output_bias: of the projection after attention.
        qk_norm: RMSNorm over each head of q and k.
        tie_word_embeddings: the output head is the embedding matrix.
        sliding_windows: for each layer its window in tokens, None for full attention.
        eos_token_ids: every id that ends a text; none if neither file names one. (LlamaConfig and MistralConfig have a
            default of 2, which transformers' generate does not use either.)
        dtype: of the checkpoint; float32 if config.json does not say.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    rms_norm_eps: float
    rope_parameters: Mapping[str, Any]
    max_position_embeddings: int
    attention_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_word_embeddings: bool
    sliding_windows: tuple[int | None, ...]
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def from_directory(cls, path: str | Path) -> ModelConfig:
        """Read config.json, and generation_config.json if there is one.

        Raises:
            ModelError: a file is missing or unreadable, or describes a model that pagedlab cannot run.
        """
        directory = Path(path)
        generation_file = directory / "generation_config.json"
        generation = read_json(generation_file) if generation_file.is_file() else {}
        return cls.from_dict(read_json(directory / "config.json"), generation)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
        """The model that config.json's (and generation_config.json's) contents describe.

        Raises:
            ModelError: a field is missing or makes no sense, or the model needs what pagedlab does not have.
        """
        name, architecture = find_architecture(_names(fields.get("architectures") or []))
        if fields.get("quantization_config"):
            raise ModelError("The checkpoint is quantized (quantization_config): choose one in float32 or 16 bits.")
        # A default stands in for a field that is left out, not for one that is null: sliding_window null is no window.
        read = {key: value for key, value in {**architecture.defaults, **fields}.items() if value is not None}
        heads = _positive(read, "num_attention_heads", most=MOST)
        kv_heads = _positive(read, "num_key_value_heads", heads, most=MOST)
        if heads % kv_heads:
            raise ModelError(f"config.json: {heads} attention heads cannot share {kv_heads} K/V heads evenly.")
        hidden_size = _positive(read, "hidden_size", most=MOST)
        head_dim = _positive(read, "head_dim", hidden_size // heads, most=1 << 16)
        num_layers = _positive(read, "num_hidden_layers", most=1 << 16)
        hidden_act = str(read.get("hidden_act", "silu"))
        if hidden_act not in ACTIVATIONS:
            raise ModelError(
                f"hidden_act {hidden_act!r} is unknown: choose a model with one of {', '.join(ACTIVATIONS)}."
            )
        max_positions = _positive(read, "max_position_embeddings")
        config = cls(
            architecture=name,
            vocab_size=_positive(read, "vocab_size", most=MOST),
            hidden_size=hidden_size,
            intermediate_size=_positive(read, "intermediate_size", most=MOST),
            num_hidden_layers=num_layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            hidden_act=hidden_act,
            rms_norm_eps=_epsilon(read),
            rope_parameters=checked_rope_parameters(read, head_dim, max_positions),
            max_position_embeddings=max_positions,
            attention_bias=_decide(architecture.qkv_bias, read),
            attention_output_bias=_decide(architecture.attention_output_bias, read),
            mlp_bias=_decide(architecture.mlp_bias, read),
            qk_norm=architecture.qk_norm,
            tie_word_embeddings=bool(read.get("tie_word_embeddings", False)),
            sliding_windows=_sliding_windows(architecture, read, num_layers),
            eos_token_ids=_token_ids(
                config=fields.get("eos_token_id"), generation_config=(generation or {}).get("eos_token_id")
            ),
            dtype=_dtype(read.get("dtype", read.get("torch_dtype", "float32"))),
        )
        if config.num_parameters > MOST_PARAMETERS:
            raise ModelError(
                f"config.json describes a model of {config.num_parameters} parameters, which no machine can hold: "
                "download it again."
            )
        return config

    @property
    def attention_scale(self) -> float:
        """What scores are multiplied by: 1 / sqrt(head_dim) (Vaswani et al., arXiv 1706.03762, section 3.2.1)."""
        return self.head_dim**-0.5

    @property
    def num_parameters(self) -> int:
        """Trained numbers; a tied head counts once."""
        hidden, queries = self.hidden_size, self.num_attention_heads * self.head_dim
        keys_values = 2 * self.num_key_value_heads * self.head_dim
        attention = hidden * (2 * queries + keys_values) + 2 * self.head_dim * self.qk_norm
        attention += (queries + keys_values) * self.attention_bias + hidden * self.attention_output_bias
        mlp = 3 * hidden * self.intermediate_size + (2 * self.intermediate_size + hidden) * self.mlp_bias
        embeddings = self.vocab_size * hidden * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * (attention + mlp + 2 * hidden) + hidden

    def kv_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes that one token takes in the KV cache, all layers together."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * dtype.itemsize


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelError: it is missing, not JSON, or not an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"{file} cannot be read ({error.strerror}): give the directory of a Hugging Face model."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not valid JSON ({error}): download it again.") from None
    if not isinstance(content, dict):
        raise ModelError(f"{file} must hold a JSON object, got a {type(content).__name__}: download it again.")
    return content


def _positive(fields: Mapping[str, Any], name: str, default: int | None = None, most: int | None = None) -> int:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"config.json must give {name} as an integer of at least 1, got {value!r}.")
    if most is not None and value > most:
        raise ModelError(f"config.json must give {name} as an integer of at most {most}: download it again.")
    return value


def _epsilon(fields: Mapping[str, Any]) -> float:
    value = fields.get("rms_norm_eps", 1e-6)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e38:
        raise ModelError(f"config.json must give rms_norm_eps as a number of at least 0, got {value!r}.")
    return float(value)


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ModelError(f"config.json must give architectures as a list of names, got {value!r}.")
    return value


def _decide(rule: bool | str, fields: Mapping[str, Any]) -> bool:
    return bool(fields.get(rule, False)) if isinstance(rule, str) else rule


def _sliding_windows(architecture: Architecture, fields: Mapping[str, Any], num_layers: int) -> tuple[int | None, ...]:
    """Each layer's window, by the family's rule."""
    in_use = architecture.window is Window.ALL or (
        architecture.window is Window.BY_LAYER and fields.get("use_sliding_window", False)
    )
    window = _positive(fields, "sliding_window") if in_use and "sliding_window" in fields else None
    if architecture.window is not Window.BY_LAYER:
        return (window,) * num_layers
    types = fields.get("layer_types")
    if types is None:
        first = fields.get("max_window_layers", 28)
        if not isinstance(first, int):
            raise ModelError(f"config.json must give max_window_layers as a number of layers, got {first!r}.")
        types = ["sliding_attention" if window and layer >= first else "full_attention" for layer in range(num_layers)]
    kinds = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != num_layers or not all(kind in kinds for kind in types):
        raise ModelError(
            f"config.json: layer_types must say full_attention or sliding_attention for each of {num_layers} layers."
        )
    if "sliding_attention" in types and window is None:
        raise ModelError(
            "config.json: layer_types asks for sliding_attention: set use_sliding_window and sliding_window too."
        )
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _token_ids(**files: Any) -> tuple[int, ...]:
    """The union, in order of appearance: instruction-tuned models list some ids in one file and some in the other."""
    found: dict[int, None] = {}
    for file, value in files.items():
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if any(isinstance(token, bool) or not isinstance(token, int) for token in ids):
            raise ModelError(f"{file}.json must give eos_token_id as a token id or a list of them, got {value!r}.")
        found.update(dict.fromkeys(ids))
    return tuple(found)


def _dtype(name: Any) -> torch.dtype:
    dtype = DTYPES.get(str(name).removeprefix("torch."))
    if dtype is None:
        raise ModelError(f"The checkpoint's dtype {name!r} is unknown: choose a model in one of {', '.join(DTYPES)}.")
    return dtype
