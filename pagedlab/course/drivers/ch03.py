"""Chapter 03: a script of plain operations is replayed on a cache; an answer generates with a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WIDTH = 8
"""Of the tiny model's queries, keys and values."""


def replay(answer: Any, shape: Sequence[int], script: Sequence[tuple[Any, ...]]) -> list[str]:
    """What a cache says to each operation, in words.

    Args:
        answer: a class, made as answer(layers, capacity, kv_heads, head_dim).
        shape: these four numbers.
        script: ("append", layer, tokens): a key full of t and a value full of -t for each number t in tokens;
            ("crop", length); ("length",); ("memory", layer): did all appends of this layer return the same memory?
    """
    cache = answer(*shape)
    seen: dict[int, list[Tensor]] = {}
    record = []
    for name, *details in script:
        try:
            if name == "append":
                layer, tokens = details
                keys, values = two_tensors(cache.append(layer, rows(tokens, shape), -rows(tokens, shape)))
                seen.setdefault(layer, []).extend([keys, values])  # kept, so that no memory is used again meanwhile
                record.append(contents(keys, values, shape))
            elif name == "crop":
                cache.crop(*details)
                record.append("cropped")
            elif name == "length":
                record.append(f"length {len(cache)}")
            else:
                record.append(memory_in_words(seen[details[0]]))
        except ValueError:
            record.append("ValueError")
        except (RuntimeError, IndexError) as error:  # torch's own
            if isinstance(error, NotImplementedError):
                raise
            record.append(f"{type(error).__name__}: {error}".splitlines()[0])
    return record


def two_tensors(returned: Any) -> tuple[Tensor, Tensor]:
    """Refuses what is not keys and values, not as a ValueError, which would look like a full cache."""
    found = tuple(returned) if isinstance(returned, (tuple, list, Tensor)) else ()
    if len(found) != 2 or not all(isinstance(part, Tensor) and part.dim() > 0 for part in found):
        raise TypeError("append must return two tensors")
    return found[0], found[1]


def rows(tokens: Sequence[int], shape: Sequence[int]) -> Tensor:
    """[tokens, kv_heads, head_dim], each row full of its token's number."""
    return torch.tensor(tokens, dtype=torch.float32)[:, None, None].repeat(1, *shape[2:])


def contents(keys: Tensor, values: Tensor, shape: Sequence[int]) -> str:
    """The tokens whose keys came back, and the first thing that is odd about them."""
    if tuple(keys.shape[1:]) != tuple(shape[2:]):
        return f"keys of shape {list(keys.shape)}"
    numbers = [float(row.flatten()[0]) for row in keys]
    words = "keys of " + (" ".join(f"{number:g}" for number in numbers) or "nothing")
    if values.shape != keys.shape or not torch.equal(values, -keys):
        return words + ", values do not belong to them"
    return words


def memory_in_words(tensors: Sequence[Tensor]) -> str:
    places = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    return "in place" if len(places) <= 2 else f"{len(places) // 2} copies"


# ---- a tiny model ----------------------------------------------------------------------------------------------------

Project = Callable[[Sequence[int], Any], tuple[Tensor, Tensor, Tensor]]
Choose = Callable[[Tensor], int]


def tiny_model(seed: int) -> tuple[Project, Choose]:
    """One attention layer over 50 tokens with learned positions, random weights: project and choose."""
    generator = torch.Generator().manual_seed(seed)
    tokens, places = (torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64) for rows in (50, 1000))
    matrices = torch.randn(3, WIDTH, WIDTH, generator=generator, dtype=torch.float64) * 0.7
    readout = torch.randn(WIDTH, 50, generator=generator, dtype=torch.float64)

    def project(ids: Sequence[int], positions: Any) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, each [len(ids), WIDTH]."""
        index = torch.as_tensor(positions, dtype=torch.long)
        x = tokens[torch.as_tensor(ids, dtype=torch.long)] + places[index]
        q, k, v = x @ matrices
        return q, k, v

    return project, lambda row: int((row @ readout).argmax())


def generated(answer: Any, seed: int, prompt: Sequence[int], new_tokens: int) -> dict[str, list[int]]:
    """What the answer generates with a tiny model, and how long its cache was after each pass."""
    project, choose = tiny_model(seed)
    tokens, lengths = answer(project, choose, list(prompt), new_tokens)
    return {"tokens": [int(token) for token in tokens], "lengths": [int(length) for length in lengths]}
