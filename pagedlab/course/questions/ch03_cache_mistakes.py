"""What people get wrong in the code of chapter 03 (cache, grouped heads, generation), and what to say to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from pagedlab.course.comparison import matches
from pagedlab.course.display import plain_value
from pagedlab.course.drivers.ch03 import WIDTH, generated
from pagedlab.course.questions.mistakes import Mistake
from pagedlab.course.questions.model import Case

# ---- q3: a cache in place --------------------------------------------------------------------------------------------


def cache_explained(case: Case, got: Any) -> str:
    """By the first operation whose result is not right."""
    if isinstance(got, str):
        asked = "append must return two tensors"
        return f"{asked}: the keys and the values of all tokens of the layer." if asked in got else ""
    shape, script = case.arguments
    for number, (said, right) in enumerate(zip(got, case.expected, strict=False)):
        if said == right:
            continue
        operation = script[number][0]
        if right == "ValueError":
            return "A token that does not fit must raise ValueError, and nothing may be written."
        if said == "ValueError":
            full = "A full layer takes no more"
            return f"{full}, but there is room here: how many tokens does the layer hold? Does crop make room?"
        if not said.startswith(KINDS[operation]):  # an error of torch
            return ""
        if operation == "memory":
            return "The layer was copied: write behind what is there, and return a view of the same memory."
        if operation == "length":
            cropped = any(step[0] == "crop" for step in script[:number])
            forgets = ", without those that crop has made it forget" if cropped else ""
            return f"len() counts the tokens of layer 0{forgets}: {right} is right, {said} was said."
        return contents_explained(said, right, script, number, shape)
    return ""


KINDS = {"append": "keys of ", "crop": "cropped", "length": "length ", "memory": ""}
"""How a record of an operation begins, unless it failed."""


def contents_explained(
    said: str, right: str, script: Sequence[tuple[Any, ...]], number: int, shape: Sequence[int]
) -> str:
    """What may have happened if an append returned other tokens."""
    _, layer, new = script[number]
    found, wanted = (words.split(",")[0].removeprefix("keys of ").split() for words in (said, right))
    old, found = wanted[: -len(new)], [] if found == ["nothing"] else found
    earlier = script[:number]
    if said.startswith("keys of shape"):
        return f"Rows have the shape [kv_heads, head_dim] = {list(shape[2:])}."
    if said.endswith("do not belong to them") and found == wanted:
        return "The values are not those of these keys: two places are needed, one for keys and one for values."
    if found == [str(token) for token in new]:
        return "Only the new rows came back: attention needs those of all tokens so far."
    if len(found) == shape[1] > len(wanted):
        return "The empty places came back too: return only as many rows as are filled."
    if len(new) > 1 and found == wanted[: len(old) + 1]:
        return "Several tokens may come at once: the layer grows by as many rows as are appended."
    if len(found) == len(wanted) and found[: len(old)] != old:
        return "The right number of rows, but old ones were written over: new rows go behind what the layer holds."
    if len(found) == len(wanted):
        return "The right number of rows, and the old ones are right: the new ones are not those that were appended."
    if any(step[0] == "crop" for step in earlier):
        return "crop must make every layer forget the tokens behind `length`, and no others."
    if any(step[0] == "append" and step[1] != layer for step in earlier):
        return "Each layer has its own length: all layers get the same tokens, one after the other."
    return ""


# ---- q4: one step of grouped attention -------------------------------------------------------------------------------


def grouped(q: Tensor, k: Tensor, v: Tensor, how: str = "", scale: float | None = None) -> Tensor:
    """[heads, head_dim]: one query a head; `how` is one way to go wrong."""
    heads, kv_heads = q.shape[0], k.shape[1]
    group = heads // kv_heads
    index = torch.arange(heads)
    if how == "none":  # as if only k's first heads were used, one for each query head
        index = index.clamp_max(kv_heads - 1)
    else:
        index = {"tiled": index % kv_heads, "first": index * 0, "by group": index % group % kv_heads}.get(
            how, index // group
        )
    keys, values = k[:, index], v[:, index]
    if how == "values tiled":
        values = v[:, torch.arange(heads) % kv_heads]
    if how == "mean":
        keys, values = k.mean(1, keepdim=True).expand_as(keys), v.mean(1, keepdim=True).expand_as(values)
    scores = torch.einsum("hd,khd->hk", q, keys) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if how == "query group":
        scores = scores.view(kv_heads, group, -1).mean(1).repeat_interleave(group, 0)
    if how == "no last":
        scores[:, -1] = -math.inf
    if how == "causal":
        scores[:, 1:] = -math.inf
    weights = scores.softmax(0 if how == "over heads" else -1)
    return torch.einsum("hk,khd->hd", weights, values)


def grouped_mistake(says: str, how: str = "", scale: float | None = None) -> Mistake:
    return Mistake(says, lambda q, k, v: grouped(q, k, v, how, scale))


GROUPED_MISTAKES = (
    grouped_mistake("KV heads were dealt out in turn (0, 1, 0, 1): neighbours share one (0, 0, 1, 1).", "tiled"),
    grouped_mistake("All query heads got KV head 0: a group has its own.", "first"),
    grouped_mistake("Divide the head's number by the size of a group, do not take the remainder.", "by group"),
    grouped_mistake("The later KV head serves all later query heads: each serves one group.", "none"),
    grouped_mistake("Keys are grouped rightly, values are not: both use the same KV head.", "values tiled"),
    grouped_mistake("KV heads are chosen, not averaged.", "mean"),
    grouped_mistake(
        "A group shares keys and values; each of its query heads still has weights of its own.", "query group"
    ),
    grouped_mistake("The scores are not scaled by 1/√head_dim.", scale=1.0),
    grouped_mistake("The softmax runs over the keys: each head's weights sum to 1.", "over heads"),
    grouped_mistake("The last key is the new token's own: it sees itself too.", "no last"),
    grouped_mistake("The one query is the last token, not the first: it sees all keys, nothing is masked.", "causal"),
)


def grouped_explained(case: Case, got: Any) -> str:
    for mistake in GROUPED_MISTAKES:
        if matches(got, plain_value(mistake.do(*case.arguments)), 1e-4, True):
            return mistake.says
    if isinstance(got, list) and torch.tensor(got).shape != case.expected.shape:
        return f"The output has one row for each query head: {list(case.expected.shape)}."
    return ""


# ---- q6: a cached generation with four faults ------------------------------------------------------------------------

FAULTS = {
    "positions": "positions restart at 0 in every pass; they go on where the cache ends",
    "mask": "the mask is that of a prompt: row 0 of a pass is not the first token, it sees everything cached",
    "refed": "the whole text is fed again, so the cache grows by all of it; only the newest token is new",
    "count": "one pass too many, and the first token thrown away: the prefill yields a token",
}


def faulty_generate(
    project: Any, choose: Any, prompt: list[int], new_tokens: int, faults: Sequence[str] = (), other: str = ""
) -> tuple[list[int], list[int]]:
    """Greedy generation with a cache and some of the faults; `other` is a mistake that the given code does not have."""
    keys = values = torch.empty(0, WIDTH, dtype=torch.float64)
    output: list[int] = []
    lengths, fed = [], prompt
    for _ in range(new_tokens + ("count" in faults)):
        past = 0 if other == "forgets" else len(keys)
        start = 0 if "positions" in faults else past + (other == "late" and past > 0)
        q, k, v = project(fed, torch.arange(start, start + len(fed)))
        keys, values = torch.cat([keys[:past], k]), torch.cat([values[:past], v])
        if other == "queries":
            keys = torch.cat([keys[:past], q])
        seen = torch.ones(len(q), len(keys), dtype=torch.bool)
        seen = seen.tril(0 if "mask" in faults else past - (other == "no diagonal"))
        if other != "open":
            scores = (q @ keys.T * WIDTH**-0.5).masked_fill(~seen, -math.inf)
        else:
            scores = q @ keys.T * WIDTH**-0.5
        row = (scores.softmax(-1) @ values)[0 if other == "first row" else -1]
        lengths.append(len(keys))
        output.append(choose(row))
        fed = prompt + output if "refed" in faults else output[-1:]
    return (output[1:] if "count" in faults else output), lengths


OTHER_MISTAKES = (
    ("The cache is thrown away: the newest token sees nothing but itself.", "forgets"),
    ("Positions after the prompt are one too large.", "late"),
    ("Queries were cached in place of keys.", "queries"),
    ("The next token is chosen from the last row of the output, not from the first.", "first row"),
    ("A token does not see itself: the diagonal of the mask is missing.", "no diagonal"),
)


def generate_explained(case: Case, got: Any) -> str:
    """The fewest of the faults that give this result."""
    if not isinstance(got, dict):
        no_lists = isinstance(got, str) and ("unpack" in got or "not iterable" in got)
        return "Return two lists: the new tokens, and the lengths of the cache." if no_lists else ""

    def gives(faults: Sequence[str] = (), other: str = "") -> bool:
        faulty = partial(faulty_generate, faults=faults, other=other)
        return got == generated(faulty, *case.arguments)

    for count in range(1, len(FAULTS) + 1):
        for faults in combinations(FAULTS, count):
            if gives(faults):
                return f"Still in it: {'; '.join(FAULTS[fault] for fault in faults)}."
    for says, other in OTHER_MISTAKES:
        if gives(other=other):
            return says
    if got["tokens"] == case.expected["tokens"]:
        return "The tokens are right, the lengths are not: the number of cached keys after each pass."
    if len(got["tokens"]) != len(case.expected["tokens"]):
        return f"New tokens that are asked: {len(case.expected['tokens'])}; that came: {len(got['tokens'])}."
    return ""
