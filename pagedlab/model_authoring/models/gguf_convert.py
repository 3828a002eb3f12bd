"""Turn a Llama GGUF file into an ordinary Hugging Face directory: safetensors, config and tokenizer.

Why not let transformers read the GGUF: it needs accelerate, takes tens of seconds on every load, and splits digits in
another way than the original tokenizer. Converted once, the model loads like any other, in about a second.

Sources: the GGUF specification (ggml, docs/gguf.md) for the metadata keys; llama.cpp's convert_hf_to_gguf.py for the
tensor names and the order of the q and k rows, both of which are undone here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pagedlab.errors import ModelError

if TYPE_CHECKING:
    from gguf import GGUFReader

CONTROL = 3
"""GGUF's token type of special tokens such as <|im_end|>."""

OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(gguf_file: Path, directory: Path, *, progress: bool = True) -> None:
    """Write model.safetensors (float32), config, generation config and tokenizer into an existing, empty directory.

    Raises:
        ModelError: the file is not GGUF, not a Llama, or its tokenizer is not a byte-level BPE of the SmolLM kind.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf_file)
    except (ValueError, OSError) as error:
        raise ModelError(f"{gguf_file.name} is not a readable GGUF file ({error}): fetch it again.") from error
    metadata = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    config = llama_config({name: field.contents() for name, field in metadata.items() if name.startswith(LLAMA_KEYS)})
    config["tie_word_embeddings"] = all(tensor.name != "output.weight" for tensor in reader.tensors)
    tokenizer = {name: field.contents() for name, field in metadata.items() if name.startswith("tokenizer.")}
    config |= special_token_ids(tokenizer)
    write_tokenizer(tokenizer, directory, max_length=config["max_position_embeddings"])
    write_weights(reader, directory / "model.safetensors", config, progress=progress)
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", special_token_ids(tokenizer))


LLAMA_KEYS = ("llama.", "general.architecture")


def llama_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """The entries of config.json that follow from the GGUF metadata."""
    if metadata.get("general.architecture") != "llama":
        raise ModelError(
            f"Only Llama GGUF files can be converted, this one is {metadata.get('general.architecture')!r}: "
            "give a Hugging Face directory with safetensors."
        )
    heads = metadata["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": metadata["llama.vocab_size"],
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": metadata.get("llama.rope.dimension_count", metadata["llama.embedding_length"] // heads),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": shortest_float32(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": shortest_float32(metadata.get("llama.rope.freq_base", 10000.0)),
        "rope_scaling": None,
    }


def shortest_float32(value: float) -> float:
    """1e-05 for the float32 that prints as 9.999999747378752e-06 once widened: both are the same float32."""
    return float(str(np.float32(value)))


def special_token_ids(tokenizer: dict[str, Any]) -> dict[str, int | None]:
    return {
        "bos_token_id": tokenizer.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": tokenizer.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": tokenizer.get("tokenizer.ggml.padding_token_id"),
    }


def hf_name(gguf_name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    if gguf_name in OUTER_NAMES:
        return OUTER_NAMES[gguf_name]
    parts = gguf_name.split(".")
    if len(parts) != 4 or parts[0] != "blk" or parts[2] not in LAYER_NAMES:
        raise ModelError(
            f"The GGUF tensor {gguf_name!r} has no place in a Llama: give a Hugging Face directory instead."
        )
    return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.{parts[3]}"


def unpermute(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Undo llama.cpp's order of the q and k rows.

    Hugging Face's RoPE rotates dimension i with i + head_dim / 2 (halves); ggml's rotates 2i with 2i + 1 (pairs), so
    llama.cpp interleaves the two halves of each head's rows. rows: [num_heads * head_dim, hidden_size].
    """
    out, hidden = rows.shape
    pairs = rows.reshape(num_heads, out // num_heads // 2, 2, hidden)
    return pairs.swapaxes(1, 2).reshape(out, hidden)


def write_weights(reader: GGUFReader, path: Path, config: dict[str, Any], *, progress: bool) -> None:
    """Dequantise every tensor to float32: a Q4_1 value is scale * nibble + minimum, too fine for bfloat16."""
    from gguf.quants import dequantize
    from safetensors.numpy import save_file
    from tqdm.auto import tqdm

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights: dict[str, np.ndarray] = {}
    for tensor in tqdm(reader.tensors, desc="Converting the model", unit="tensor", disable=not progress):
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        kind = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        if kind in heads:
            values = unpermute(values, heads[kind])
        weights[hf_name(tensor.name)] = np.ascontiguousarray(values)
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it private; the cache may be shared


def write_tokenizer(metadata: dict[str, Any], directory: Path, *, max_length: int) -> None:
    """tokenizer.json and tokenizer_config.json (with the chat template).

    The pre-tokenizer named "smollm" cuts every digit off on its own, then splits as GPT-2 does; a GGUF file holds only
    its name, so it is spelled out here. Order matters: digits first, or "  7" would keep its last space with the 7.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if (model, pre) != ("gpt2", "smollm"):
        raise ModelError(
            f"Only SmolLM's byte-level BPE can be rebuilt from a GGUF file, this one holds {model!r} / {pre!r}: "
            "give a Hugging Face directory with a tokenizer.json."
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(directory / "tokenizer.json"))

    def named(role: str) -> str | None:
        index = metadata.get(f"tokenizer.ggml.{role}_token_id")
        return None if index is None else tokens[index]

    config = {
        # Not GPT2Tokenizer: transformers would rebuild GPT-2's pre-tokenizer and lose the digit rule.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": named("bos"),
        "eos_token": named("eos"),
        "unk_token": named("unknown"),
        "pad_token": named("padding"),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": metadata.get("tokenizer.chat_template"),
    }
    write_json(directory / "tokenizer_config.json", config)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
