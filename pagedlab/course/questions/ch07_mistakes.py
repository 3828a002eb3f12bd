"""Chapter 07: what people get who misread a block table, forget to rescale, share too much or copy too late."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pagedlab.course.drivers.ch07 import merge_all, replay_prefixes, sharing
from pagedlab.course.questions.mistakes import Mistake, named
from pagedlab.course.questions.model import Case

# ---- q1: where a step writes -----------------------------------------------------------------------------------------

Lists = Sequence[Sequence[int]]


def slots_by(
    tables: Lists, computed: Sequence[int], new: Sequence[int], size: int, find: Any, ends: bool = False, shift: int = 0
) -> list[list[int]]:
    return [
        [find(table, position + shift, size) for position in range(start, n if ends else start + n)]
        for table, start, n in zip(tables, computed, new, strict=True)
    ]


def rule(table: Sequence[int], position: int, size: int) -> int:
    return table[position // size] * size + position % size


def flat(rows: list[list[int]]) -> list[int]:
    return [slot for row in rows for slot in row]


def slot_mistake(says: str, find: Any = rule, **options: Any) -> Mistake:
    return Mistake(
        says, lambda tables, computed, new, size: flat(slots_by(tables, computed, new, size, find, **options))
    )


SLOT_MISTAKES = (
    slot_mistake(
        "The blocks of a sequence lie in no order: ask the table which physical block a logical block is.",
        lambda table, position, size: position,
    ),
    slot_mistake(
        "A sorted table is another table: its order says which block comes first.",
        lambda t, p, s: rule(sorted(t), p, s),
    ),
    slot_mistake(
        "Tokens of the next block are not behind this one: look up every block, not only the first.",
        lambda table, position, size: table[0] * size + position,
    ),
    slot_mistake("A physical block begins at slot block × block_size.", lambda t, p, s: t[p // s] + p % s),
    slot_mistake("That is the slot within the block. Where in the pool is the block?", lambda t, p, s: p % s),
    slot_mistake("That is the block's first slot. Where in the block is the token?", lambda t, p, s: t[p // s] * s),
    slot_mistake(
        "That overwrites the token that was computed last: the first new one has position `computed`.", shift=-1
    ),
    slot_mistake("Positions count from 0: the first new token has position `computed`.", shift=1),
    slot_mistake("`new` is how many tokens come, not the position where they end.", ends=True),
    Mistake(
        "That overwrites the start of the request: new tokens come after those that are computed.",
        lambda tables, computed, new, size: flat(slots_by(tables, [0] * len(new), new, size, rule)),
    ),
    Mistake(
        "Each request has a block table of its own.",
        lambda tables, computed, new, size: flat(slots_by([tables[0]] * len(new), computed, new, size, rule)),
    ),
    Mistake(
        "One flat list is asked, not a list for each request.",
        lambda tables, computed, new, size: slots_by(tables, computed, new, size, rule),
    ),
)

# ---- q2: the softmax that forgets ------------------------------------------------------------------------------------

Blocks = list[tuple[Tensor, Tensor]]
HIDDEN = -math.inf


def whole_softmax(blocks: Blocks) -> Tensor:
    scores, values = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return scores.softmax(0) @ values


def online(blocks: Blocks, sum_factor: Any = math.exp, output_factor: Any = math.exp, skip_low: bool = False) -> Tensor:
    """The online softmax; the factors are functions of (old maximum - new maximum)."""
    maximum, total, output = HIDDEN, torch.tensor(0.0), torch.zeros(blocks[0][1].shape[1], dtype=torch.float64)
    for scores, values in blocks:
        new = max(maximum, scores.max().item())
        if new == HIDDEN or (skip_low and scores.max().item() < maximum):
            continue
        weights = (scores - new).exp()
        change = maximum - new if maximum > HIDDEN else 0.0
        total = total * sum_factor(change) + weights.sum()
        output = output * output_factor(change) + weights @ values
        maximum = new
    return output / total


def forget(change: float) -> float:
    return 1.0


def turned(change: float) -> float:
    return math.exp(-change)


def mean_of_blocks(blocks: Blocks) -> Tensor:
    return torch.stack([whole_softmax([block]) for block in blocks if block[0].max() > HIDDEN]).mean(0)


SOFTMAX_MISTAKES = named(
    Mistake(
        "The output is never rescaled: what was summed so far is still relative to the old maximum.",
        lambda blocks: online(blocks, output_factor=forget),
    ),
    Mistake(
        "The sum is never rescaled: what was summed so far is still relative to the old maximum.",
        lambda blocks: online(blocks, sum_factor=forget),
    ),
    Mistake(
        "Nothing is rescaled: sum and output are still relative to the old maximum when a new one comes.",
        lambda blocks: online(blocks, forget, forget),
    ),
    Mistake(
        "The factor is upside down: a rising maximum makes what was summed so far smaller, by exp(old - new).",
        lambda blocks: online(blocks, turned, turned),
    ),
    Mistake(
        (
            "A mean of the blocks' results is an approximation: a block counts by its weights. Nothing is "
            "approximated here."
        ),
        mean_of_blocks,
    ),
    Mistake("That is the last block alone.", lambda blocks: whole_softmax(blocks[-1:])),
    Mistake(
        "Blocks with low scores may not be skipped: that is an approximation. Nothing is approximated here.",
        lambda blocks: online(blocks, skip_low=True),
    ),
    Mistake(
        "That is a sum for all blocks of separate softmaxes. Divide once, at the end, by the sum over all blocks.",
        lambda blocks: torch.stack([whole_softmax([block]) for block in blocks]).sum(0),
    ),
    absolute=True,
)


def softmax_explained(case: Case, got: Any) -> str:
    scores = torch.cat([block[0] for block in case.arguments[0]])
    if isinstance(got, list) and not all(isinstance(x, float) and math.isfinite(x) for x in got):
        if (scores == HIDDEN).any():
            return "NaN: in a block that is hidden completely, the maximum is -inf, and -inf - -inf is NaN."
        if scores.max() > 700:
            return "exp of a large score overflows: subtract the maximum so far before exp."
        return "All weights became 0, and 0 / 0 is NaN: the maximum must start at -inf, not at 0."
    return SOFTMAX_MISTAKES(case, got)


# ---- q3: merge -------------------------------------------------------------------------------------------------------

State = tuple[Tensor, Tensor, Tensor]
"""Maximum [heads], sum [heads], output [heads, dim]."""


def merged(
    left: State, right: State, factors: Any = None, on: tuple[bool, bool] = (True, True), divide: bool = False
) -> State:
    maximum = torch.maximum(left[0], right[0])
    mine, theirs = (factors or own_factors)(left[0], right[0], maximum)
    total = left[1] * (mine if on[0] else 1) + right[1] * (theirs if on[0] else 1)
    output = (
        left[2] * (mine if on[1] else torch.ones(1))[:, None] + right[2] * (theirs if on[1] else torch.ones(1))[:, None]
    )
    return maximum, total, output / total[:, None] if divide else output


def own_factors(left: Tensor, right: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor]:
    return (left - maximum).exp(), (right - maximum).exp()


def merge_mistake(says: str, **options: Any) -> Mistake:
    return Mistake(says, lambda parts: merge_all(lambda left, right: merged(left, right, **options), parts))


def averaged(left: State, right: State) -> State:
    maximum, total, _ = merged(left, right)
    return maximum, total, (left[2] / left[1][:, None] + right[2] / right[1][:, None]) / 2


MERGE_MISTAKES = (
    merge_mistake(
        "Added as they are: each half is relative to its own maximum. Rescale both to the common one.",
        on=(False, False),
    ),
    merge_mistake("The sum is rescaled, the output is not.", on=(True, False)),
    merge_mistake("The output is rescaled, the sum is not.", on=(False, True)),
    merge_mistake(
        "The factor is upside down: rescaling to a larger maximum makes a half smaller.",
        factors=lambda left, right, maximum: ((maximum - left).exp(), (maximum - right).exp()),
    ),
    merge_mistake(
        "Only the left half is rescaled: in other heads it is the right half that has the smaller maximum.",
        factors=lambda left, right, maximum: ((left - right).exp(), torch.ones_like(left)),
    ),
    merge_mistake(
        "Only one half is rescaled: either can have the smaller maximum.",
        factors=lambda left, right, maximum: ((left - maximum).exp(), torch.ones_like(left)),
    ),
    merge_mistake(
        "Only one half is rescaled: either can have the smaller maximum.",
        factors=lambda left, right, maximum: (torch.ones_like(left), (right - maximum).exp()),
    ),
    merge_mistake(
        "The factors are swapped: each half is rescaled from its own maximum.",
        factors=lambda left, right, maximum: ((right - maximum).exp(), (left - maximum).exp()),
    ),
    merge_mistake("Do not divide yet: a third part may follow, and must be added to undivided sums.", divide=True),
    Mistake(
        "A mean of the two results is an approximation: each half counts by its sum of weights.",
        lambda parts: merge_all(averaged, parts),
    ),
)


def merge_explained(case: Case, got: Any) -> str:
    if isinstance(got, str):
        return "`maximum` and `total` are [heads], `output` is [heads, dim]: give the factor a last dimension." * (
            "size" in got or "shape" in got or "broadcast" in got
        )
    known = named(*MERGE_MISTAKES)(case, got)
    if known:
        return known
    if "nan" in str(got):
        return "NaN: where a half saw nothing, its maximum is -inf. Subtract the common maximum, which is finite."
    one = case.expected["maximum"].tolist()
    return "The maximum of the whole is the larger of the two, head by head." if got["maximum"] != one else ""


# ---- q4: a cache of prefixes -----------------------------------------------------------------------------------------


class LooseCache:
    """A prefix cache whose options are the ways to go wrong."""

    chained, whole, rounds_up, covers_last, only_latest, learns, units = True, False, False, False, False, False, False
    cap, by_place, to_the_token, stops = "right", False, False, True

    def __init__(self, block_size: int) -> None:
        self.size, self.keys, self.prompts = block_size, set[Any](), list[list[int]]()

    def blocks(self, tokens: list[int]) -> list[Any]:
        ends = range(self.size, len(tokens) + (self.size if self.rounds_up else 1), self.size)
        parts = [tuple(tokens[end - self.size : end]) for end in ends]
        if self.by_place:
            return list(enumerate(parts))
        return [tuple(parts[: i + 1]) for i in range(len(parts))] if self.chained else parts

    def remember(self, tokens: list[int]) -> None:
        if self.only_latest:
            self.keys.clear()
        self.keys.update(self.blocks(tokens))
        self.prompts.append(tokens)

    def find(self, tokens: list[int]) -> int:
        if self.to_the_token:
            return min(len(tokens) - 1, max((common(tokens, known) for known in self.prompts), default=0))
        if self.whole:
            return (len(tokens) - 1) // self.size * self.size if tokens in self.prompts else 0
        keys = self.blocks(tokens if self.cap != "right" or self.rounds_up else tokens[:-1])
        known = [key in self.keys for key in keys]
        count = known.index(False) if self.stops and False in known else sum(known)
        if self.cap == "always":
            count = max(0, count - 1)
        if self.learns:
            self.remember(tokens)
        found = min(count * self.size, len(tokens))
        if self.cap == "token":
            found = min(found, len(tokens) - 1)
        return count if self.units else found


def common(first: list[int], second: list[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def prefix_mistake(says: str, **options: Any) -> Mistake:
    kind = type("Mistaken", (LooseCache,), options)
    return Mistake(says, lambda size, script: replay_prefixes(kind, size, script))


PREFIX_MISTAKES = (
    prefix_mistake(
        "A hit covered the last token: its output predicts the next one, so it must be computed.", cap="none"
    ),
    prefix_mistake(
        "Equal tokens in a block are not enough: its keys depend on everything before it. Chain the blocks.",
        chained=False,
    ),
    prefix_mistake(
        "Equal tokens at an equal place are not enough: everything before the block must be equal.", by_place=True
    ),
    prefix_mistake(
        "It went on after a block that was not known: only what leads up to the first gap can be used.",
        by_place=True,
        stops=False,
    ),
    prefix_mistake(
        "It went on after a block that was not known: only what leads up to the first gap can be used.",
        chained=False,
        stops=False,
    ),
    prefix_mistake("Only whole blocks are shared: round down to the block size.", to_the_token=True),
    prefix_mistake("A hit ends at a whole block: without the last token, its block is not taken at all.", cap="token"),
    prefix_mistake("One block too few: only a hit that would cover the last token is cut.", cap="always"),
    prefix_mistake("Tokens are asked, not blocks.", units=True),
    prefix_mistake("Only a prompt that is equal as a whole was found: sharing is by leading blocks.", whole=True),
    prefix_mistake("Only the prompt remembered last is known: nothing is forgotten.", only_latest=True),
    prefix_mistake("Finding a prompt does not compute it: only `remember` adds blocks.", learns=True),
    prefix_mistake("A partly filled block cannot be found: only full ones are remembered.", rounds_up=True),
)

# ---- q5: copy before the write ---------------------------------------------------------------------------------------


def tables_explained(case: Case, got: Any) -> str:
    right = case.expected
    if isinstance(got, str):
        if "IndexError" in got:
            return "No block was free: blocks that nobody holds any more must go back to `free_blocks`."
        return "A block got into a table without a count: get new blocks with take()." if "KeyError" in got else ""
    if not isinstance(got, dict):
        return ""
    texts = [word for text in got["read back"].values() for word in text]
    if got["read back"] != right["read back"]:
        if "empty" in texts:
            return "A slot is empty: the numbers were not copied. `append` must return (old block, new block)."
        if got["copies"] < right["copies"]:
            return "A shared block was written: a sequence has its sibling's words. Copy it first."
        if got["free"] > right["free"]:
            return "A block was freed while others still held it, and a stranger wrote into it."
        return "A sequence reads words that are not its own: after a copy its table must name the new block."
    if got["copies"] < right["copies"]:
        return "The copy was not reported: return (old block, new block)."
    if got["copies"] > right["copies"]:
        return (
            "Too many copies: a block that a sequence holds alone is written in place, so the last holder copies "
            "nothing."
        )
    if got["free"] > right["free"]:
        return "A block was freed while others still held it."
    return "Blocks are lost: nobody holds them, and they are not free. Lower the count of a block that you leave."


# ---- q6: what sharing saves ------------------------------------------------------------------------------------------


def up(tokens: int, size: int) -> int:
    return -(-tokens // size)


def sharing_mistake(says: str, held: Any = None, answer: Any = None) -> Mistake:
    """`held` replaces the count of the blocks in use, `answer` what is made of it and of the unshared count."""

    def right(prompt: int, written: int, samples: int, size: int) -> int:
        table = up(prompt + written, size)
        shared = prompt // size if written else table
        return shared + samples * (table - shared)

    def do(prompt: int, written: int, samples: int, size: int) -> tuple[float, float]:
        in_use = (held or right)(prompt, written, samples, size)
        unshared = samples * up(prompt + written, size)
        return answer(in_use, unshared) if answer else (in_use, 1 - in_use / unshared)

    return Mistake(says, lambda *arguments: sharing(do, *arguments))


SHARING_MISTAKES = (
    sharing_mistake(
        "The prompt's last, partly filled block is not shared any more: it was copied before the first write into it.",
        lambda p, w, k, s: up(p, s) + k * (up(p + w, s) - up(p, s)),
    ),
    sharing_mistake(
        "An answer begins in the copy of the prompt's last block: count blocks of prompt and answer together.",
        lambda p, w, k, s: p // s + k * up(w, s),
    ),
    sharing_mistake(
        "An answer begins in the copy of the prompt's last block: count blocks of prompt and answer together.",
        lambda p, w, k, s: up(p, s) + k * up(w, s),
    ),
    sharing_mistake(
        "Nothing is written yet, so nothing was copied: the partly filled block is shared too.",
        lambda p, w, k, s: p // s + k * (up(p + w, s) - p // s),
    ),
    sharing_mistake("Samples share the full blocks of their prompt.", lambda p, w, k, s: k * up(p + w, s)),
    Mistake(
        "Sharing is by whole blocks: a share of tokens is not the share of blocks.",
        lambda p, w, k, s: {
            "in use": k * up(p + w, s) - (k - 1) * (p // s if w else up(p, s)),
            "saved": (k - 1) * p / (k * (p + w)),
        },
    ),
    sharing_mistake(
        "The prompt's own sequence is one of the samples: there are as many tables as samples.",
        lambda p, w, k, s: p // s + (k + 1) * (up(p + w, s) - p // s),
    ),
    sharing_mistake("That is the share of blocks in use; asked is the share saved.", answer=lambda h, u: (h, h / u)),
    sharing_mistake("Asked is a share from 0 to 1, not per cent.", answer=lambda h, u: (h, 100 * (1 - h / u))),
    sharing_mistake(
        "That is how many blocks are saved; the first number is how many are in use.",
        answer=lambda h, u: (u - h, 1 - h / u),
    ),
    sharing_mistake("The share is of the blocks that it takes without sharing.", answer=lambda h, u: (h, (u - h) / h)),
)
