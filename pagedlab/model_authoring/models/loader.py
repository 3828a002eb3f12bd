"""load_model: a CausalLM with its weights, read tensor by tensor from safetensors, or drawn at random.

The checkpoint is checked against the config by its headers alone, before any weight is read. Then each tensor is
copied from the memory-mapped file straight into its place, and each matrix is packed before the next one comes: the
peak is the model plus one matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from pagedlab.errors import ConfigError
from pagedlab.model_authoring.models.checkpoint import Checkpoint
from pagedlab.model_authoring.models.config import ModelConfig
from pagedlab.model_authoring.models.layers import Linear
from pagedlab.model_authoring.models.transformer import CausalLM

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

DUMMY_STD = 0.02
"""Standard deviation of random matrices: the usual one at the start of training."""


class WeightSource(Protocol):
    def read_into(self, name: str, target: Tensor) -> None:
        """Fill `target` with the tensor that checkpoints call `name`, converted to target's number type."""
        ...


class RandomWeights:
    """Weights of load_format="dummy": normal matrices, norms of 1, biases of 0; a seed fixes them on one device."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)

    def read_into(self, name: str, target: Tensor) -> None:
        if name.endswith("norm.weight"):
            target.fill_(1)
        elif name.endswith("bias"):
            target.zero_()
        else:
            target.normal_(0, DUMMY_STD, generator=self.generator)


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    load_format: str = "auto",
    seed: int = 0,
) -> CausalLM:
    """The model of a Hugging Face directory, on `device`, ready for inference.

    Args:
        path: holds config.json and, unless the weights are dummies, one or more .safetensors files.
        dtype: of weights and activations, whatever the checkpoint's is.
        load_format: auto or safetensors reads the weights; dummy draws random ones of the config's shapes.
        seed: of the dummies.

    Raises:
        ModelError: the architecture is unknown, the files cannot be read, or weights and config do not fit together.
        ConfigError: load_format is unknown.
    """
    config = ModelConfig.from_directory(path)
    device = torch.device(device)
    source: WeightSource
    if load_format == "dummy":
        source = RandomWeights(seed, device)
    elif load_format in ("auto", "safetensors"):
        source = checkpoint = Checkpoint(path)
        config = replace(config, tie_word_embeddings=_heads_are_tied(config, checkpoint))
        checkpoint.check(dict(expected_tensors(CausalLM(config))), config.architecture)
    else:
        raise ConfigError(f"load_format must be auto, safetensors or dummy, got {load_format!r}.")
    model = CausalLM(config)
    with torch.no_grad():
        for prefix, module in model.named_modules():
            if module is not model.lm_head or not config.tie_word_embeddings:
                _fill(prefix, module, source, dtype, device)
        if config.tie_word_embeddings:
            # Packing makes a second copy, in the other order; the embedding keeps the plain one to look rows up in.
            model.lm_head.weight = model.model.embed_tokens.weight
            model.lm_head.pack()
    return model.to(device).eval()


def expected_tensors(model: CausalLM) -> Iterator[tuple[str, torch.Size]]:
    """Names and shapes that the model's checkpoint must hold."""
    for prefix, module in model.named_modules():
        if module is model.lm_head and model.config.tie_word_embeddings:
            continue
        for attribute, parameter in module.named_parameters(recurse=False):
            for name, rows in _parts(prefix, module, attribute, parameter):
                yield name, torch.Size((rows, *parameter.shape[1:]))


def _parts(prefix: str, module: nn.Module, attribute: str, parameter: Tensor) -> Iterator[tuple[str, int]]:
    """The checkpoint's tensors that make up one parameter, in order: name, and number of rows."""
    if not isinstance(module, Linear):
        yield f"{prefix}.{attribute}", parameter.shape[0]
        return
    parent = prefix.rpartition(".")[0]
    for part, rows in module.parts.items():
        yield f"{parent}.{part}.{attribute}".removeprefix("."), rows


def _fill(prefix: str, module: nn.Module, source: WeightSource, dtype: torch.dtype, device: torch.device) -> None:
    """Give one module (not its children) its weights."""
    for attribute, shape in list(module.named_parameters(recurse=False)):
        data = torch.empty(shape.shape, dtype=dtype, device=device)
        start = 0
        for name, rows in _parts(prefix, module, attribute, shape):
            source.read_into(name, data[start : start + rows])
            start += rows
        setattr(module, attribute, nn.Parameter(data, requires_grad=False))
    if isinstance(module, Linear):
        module.pack()


def _heads_are_tied(config: ModelConfig, checkpoint: Checkpoint) -> bool:
    """What config.json says, unless the checkpoint holds both matrices and they differ (as transformers decides)."""
    if not config.tie_word_embeddings or HEAD not in checkpoint:
        return config.tie_word_embeddings
    if EMBEDDING not in checkpoint:
        checkpoint.rename(HEAD, EMBEDDING)
        return True
    if not checkpoint.are_equal(HEAD, EMBEDDING):
        return False
    checkpoint.discard(HEAD)
    return True
