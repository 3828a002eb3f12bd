"""Plain values as JSON text and back: numbers, truths, texts, None, lists, tuples, sets, dictionaries, tensors, arrays.

It decides by exact type. An object that claims to equal everything, or an int with an `__eq__` of its own, is no plain
value: nothing of a reader's that runs when it is touched gets to where results are compared. Never a pickle.
"""

from __future__ import annotations

import base64
import json
import math
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pagedlab.errors import CourseError

MAX_DEPTH = 50
MAX_CHARACTERS = 8_000_000
"""Of one value, written as JSON."""
MAX_ITEMS = 1_000_000
"""Of one list."""
MAX_PARTS = MAX_ITEMS + 10_000
"""Of one value in all, counted by its commas: each is an object of Python's where values are compared."""
MAX_BITS = 12_000
"""Of a whole number: Python writes no number of more than 4,300 digits."""

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    )
}
LISTS: tuple[type, ...] = (list, deque, range, torch.Size, type({}.keys()), type({}.values()), type({}.items()))
DICTIONARIES = (dict, Counter, defaultdict, OrderedDict)
SETS = (set, frozenset)
TENSORS = (torch.Tensor, torch.nn.Parameter)
SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class CodecError(CourseError):
    """Something is no plain value, or too large for one."""


def dumps(value: Any) -> str:
    """A value as JSON text.

    Raises:
        CodecError: it holds something that is not plain, or too much.
    """
    text = json.dumps(encoded(value), separators=(",", ":"), allow_nan=False)
    if text.count(",") > MAX_PARTS:
        raise CodecError("returned more than a million items in all: that is too many.")
    if len(text) > MAX_CHARACTERS:
        raise CodecError(f"returned {len(text) / 1e6:.0f} MB: at most {MAX_CHARACTERS / 1e6:.0f} MB are compared.")
    return text


def loads(text: str) -> Any:
    """The value that `dumps` wrote, with its types: 1 is an int, 1.0 a float, and a tuple no list.

    Raises:
        CodecError: it is no such text.
    """
    if len(text) > MAX_CHARACTERS or text.count(",") > MAX_PARTS:
        raise CodecError("the text of a value is too long.")
    try:
        return decoded(json.loads(text, parse_constant=no_constant))
    except CodecError:
        raise
    except Exception as error:  # it may have been written by hand, in any way at all
        raise CodecError(f"the text of a value is damaged: {type(error).__name__}.") from None


def no_constant(name: str) -> Any:
    raise CodecError(f"{name} is not written like this.")


def encoded(value: Any, depth: int = 0) -> Any:
    """A value as what JSON knows: lists, texts, numbers; everything else as {"its type": ...}."""
    kind = type(value)
    if kind is int:
        if value.bit_length() > MAX_BITS:
            raise CodecError(f"returned a whole number of {value.bit_length():,} bits: that is too large.")
        return value
    if value is None or kind is bool or kind is str:
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if depth == MAX_DEPTH:
        raise CodecError(f"returned lists in lists, more than {MAX_DEPTH} deep (does one hold itself?).")
    if kind in (*LISTS, tuple, *SETS, *DICTIONARIES) and len(value) > MAX_ITEMS:
        raise CodecError(f"returned {len(value):,} items: that is too many.")
    if kind in LISTS:
        return [encoded(item, depth + 1) for item in value]
    if kind is tuple:
        return {"tuple": [encoded(item, depth + 1) for item in value]}
    if kind in SETS:
        return {kind.__name__: [encoded(item, depth + 1) for item in value]}
    if kind in DICTIONARIES:
        return {"dict": [[encoded(key, depth + 1), encoded(item, depth + 1)] for key, item in value.items()]}
    if kind in TENSORS:
        return {"tensor": encoded_tensor(value)}
    if kind is np.ndarray or (isinstance(value, np.generic) and kind.__module__ == "numpy"):
        return encoded_array(value)
    raise CodecError(
        f"returned an object of type {kind.__name__}: return numbers, texts, lists, tuples, dictionaries or tensors."
    )


def encoded_tensor(value: torch.Tensor) -> list[Any]:
    name = str(value.dtype).removeprefix("torch.")
    if name not in DTYPES or value.layout != torch.strided or value.device.type != "cpu":
        raise CodecError(
            f"returned a tensor of {name}, {value.layout}, on {value.device}: return a plain one on the CPU."
        )
    check_shape(value.shape)
    if value.numel() * value.element_size() > MAX_CHARACTERS:
        raise CodecError(f"returned a tensor of {value.numel():,} numbers: that is too large.")
    flat = torch.empty(value.numel(), dtype=value.dtype).copy_(value.detach().reshape(-1))  # with a stride of 1
    raw = flat.view(torch.uint8).numpy().tobytes()
    return [name, list(value.shape), base64.b64encode(raw).decode()]


def encoded_array(value: Any) -> Any:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise CodecError(f"returned an array of {array.dtype}: return one of numbers or truths.")
    check_shape(array.shape)
    if array.nbytes > MAX_CHARACTERS:
        raise CodecError(f"returned an array of {array.size:,} numbers: that is too large.")
    if not array.shape:
        return encoded(array.item())
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
    return {"array": [little.dtype.str, list(array.shape), base64.b64encode(little.tobytes()).decode()]}


def check_shape(shape: Sequence[int]) -> None:
    """Without numbers is not small: as lists, shape [1000000000, 0] would be a billion of them."""
    if len(shape) > MAX_DEPTH or math.prod(max(size, 1) for size in shape) > MAX_CHARACTERS:
        raise CodecError(f"returned shape {list(shape)[:9]}: that is too large.")


def decoded(value: Any, depth: int = 0) -> Any:
    if depth > 3 * MAX_DEPTH + 3:  # a dictionary is written as three levels
        raise CodecError("the text of a value is too deep.")
    if isinstance(value, list):
        return [decoded(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "float":
        return SPECIAL[content]
    if kind == "tuple":
        return tuple(decoded(item, depth + 2) for item in content)
    if kind in ("set", "frozenset"):
        items = [decoded(item, depth + 2) for item in content]
        return set(items) if kind == "set" else frozenset(items)
    if kind == "dict":
        return {decoded(key, depth + 3): decoded(item, depth + 3) for key, item in content}
    if kind in ("tensor", "array"):
        check_shape(content[1])
    if kind == "tensor":
        name, shape, text = content
        raw = bytearray(base64.b64decode(text, validate=True))
        empty = torch.empty(0, dtype=DTYPES[name])
        return (torch.frombuffer(raw, dtype=DTYPES[name]) if raw else empty).reshape(shape)
    if kind == "array":
        name, shape, text = content
        dtype = np.dtype(name)
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            raise CodecError(f"an array of {name} is not allowed.")
        array = np.frombuffer(base64.b64decode(text, validate=True), dtype=dtype).reshape(shape)
        return array.astype(dtype.newbyteorder("=" if sys.byteorder == "little" else ">"))
    raise CodecError(f"there is no type {kind!r}.")


def through(value: Any) -> Any:
    """A copy made of plain values only, as a grader receives it."""
    return loads(dumps(value))
