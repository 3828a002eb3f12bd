"""Checkpoint: the safetensors files of one directory, as one table of named tensors read on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pagedlab.errors import ModelError
from pagedlab.model_authoring.models.config import read_json

INDEX = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
IGNORED = ("rotary_emb.inv_freq",)
"""Endings of tensors that old checkpoints hold and that follow from the config."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file, known from the file's header."""

    file: Any
    name: str
    shape: torch.Size
    dtype: str

    def read(self) -> Tensor:
        """Its values, mapped into memory: pages are read from disk when they are touched."""
        return self.file.get_tensor(self.name)


class Checkpoint:
    """The tensors of a directory's safetensors files, one shard or many.

    Raises:
        ModelError: there are none, a shard is missing, or a file is damaged.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.tensors: dict[str, StoredTensor] = {}
        for path in self._files():
            try:
                file = safe_open(path, framework="pt")
                for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    header = file.get_slice(name)
                    shape = torch.Size(header.get_shape())
                    self.tensors[name] = StoredTensor(file, name, shape, header.get_dtype())
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{path} is missing or damaged ({error}): download it again.") from error

    def _files(self) -> list[Path]:
        # A whole file goes before an index, which an earlier, sharded save may have left behind (as in transformers).
        if (self.directory / "model.safetensors").is_file():
            return [self.directory / "model.safetensors"]
        if (self.directory / INDEX).is_file():
            return [self.directory / name for name in shard_names(self.directory / INDEX)]
        # consolidated*: the same weights a second time, under Mistral's own names.
        files = sorted(path for path in self.directory.glob("*.safetensors") if "consolidated" not in path.name)
        if not files:
            raise ModelError(
                f"{self.directory} holds no .safetensors file, the only format that is read: convert the weights with "
                'transformers\' save_pretrained, or set load_format="dummy" for random ones.'
            )
        return files

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def rename(self, name: str, new_name: str) -> None:
        self.tensors[new_name] = self.tensors.pop(name)

    def discard(self, name: str) -> None:
        del self.tensors[name]

    def are_equal(self, first: str, second: str) -> bool:
        return torch.equal(self.tensors[first].read(), self.tensors[second].read())

    def check(self, expected: Mapping[str, Sequence[int]], architecture: str) -> None:
        """Compare with the names and shapes that a model needs; reads headers only.

        Raises:
            ModelError: tensors are missing, too many, of another shape, or not floating-point numbers.
        """
        fits = "check that config.json and the weights are of the same model"
        if missing := [name for name in expected if name not in self.tensors]:
            raise ModelError(f"{self.directory} lacks {_some(missing)}: {fits}, and that no shard is missing.")
        extra = [name for name in self.tensors if name not in expected and not name.endswith(IGNORED)]
        if extra:
            raise ModelError(f"{self.directory} holds {_some(extra)}, which {architecture} does not have: {fits}.")
        for name, shape in expected.items():
            stored = self.tensors[name]
            if stored.shape != tuple(shape):
                raise ModelError(
                    f"{name} has the shape {list(stored.shape)} where config.json asks for {list(shape)}: {fits}."
                )
            if stored.dtype not in FLOATS:
                raise ModelError(
                    f"{name} is stored as {stored.dtype}: choose a checkpoint in one of {', '.join(FLOATS)}."
                )

    def read_into(self, name: str, target: Tensor) -> None:
        """Copy a tensor into `target`, converting its number type and moving it to target's device."""
        target.copy_(self.tensors[name].read())


def shard_names(index: Path) -> list[str]:
    """The files that a checkpoint's index names, which lie beside it.

    Raises:
        ModelError: it has no weight_map from tensors to files.
    """
    weight_map = read_json(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ModelError(f"{index} has no weight_map that gives each tensor's file beside it: download it again.")
    return sorted(set(names))


def _some(names: list[str]) -> str:
    """The first few names, and how many there are."""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown})"
