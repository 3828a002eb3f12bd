"""Chapter 10: what people get whose masks leak, whose budget counts requests, or who preempt the wrong one."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch

from pagedlab.basics import masks
from pagedlab.course.drivers import ch10 as drivers
from pagedlab.course.drivers.ch10 import described
from pagedlab.course.questions.ch09_mistakes import through
from pagedlab.course.questions.mistakes import Mistake
from pagedlab.course.questions.model import Case

# ---- q1: three prompts, no rectangle ---------------------------------------------------------------------------------

Ids = Sequence[Sequence[int]]


def packed(
    ids: Ids, mask: Any = None, share: Any = None, restart: bool = True, first: int = 0, padded: bool = False
) -> dict[str, Any]:
    """A ragged batch; `mask` is made from lengths, `share` from the lengths and the mask."""
    if padded:
        ids = [[0] * (max(map(len, ids)) - len(row)) + list(row) for row in ids]
    lengths = [len(row) for row in ids]
    positions = [i for n in lengths for i in range(n)] if restart else list(range(sum(lengths)))
    made = mask(lengths) if mask else masks.block_diagonal(lengths) & masks.causal(sum(lengths))
    part = share(lengths, made) if share else made.double().mean().item()
    return described([t for row in ids for t in row], [first + p for p in positions], made, part)


def ragged_mistake(says: str, **options: Any) -> Mistake:
    return Mistake(says, lambda prompts, ids: packed(ids, **options))


def labelled_by_length(lengths: list[int]) -> torch.Tensor:
    owner = torch.tensor(lengths).repeat_interleave(torch.tensor(lengths))
    return (owner[:, None] == owner[None, :]) & masks.causal(len(owner))


LEAK = "The mask leaks: a prompt sees tokens of the prompts before it. Each sees itself alone."
RAGGED_MISTAKES = (
    ragged_mistake(LEAK, mask=lambda lengths: masks.causal(sum(lengths))),
    ragged_mistake(LEAK, mask=labelled_by_length),
    ragged_mistake(LEAK, mask=lambda lengths: torch.ones(sum(lengths), sum(lengths)).bool()),
    ragged_mistake(
        "Within a prompt the mask is causal: a token does not see those after it.", mask=masks.block_diagonal
    ),
    ragged_mistake(
        "Within a prompt the mask is causal, a lower triangle: here tokens see what comes after them.",
        mask=lambda lengths: masks.block_diagonal(lengths) & masks.causal(sum(lengths)).T,
    ),
    ragged_mistake(
        "A token sees itself, too.",
        mask=lambda lengths: masks.block_diagonal(lengths) & masks.causal(sum(lengths)).tril(-1),
    ),
    ragged_mistake("Positions restart: every prompt begins at position 0, as it does alone.", restart=False),
    ragged_mistake("Positions count from 0.", first=1),
    ragged_mistake("There are pads in it: prompts of any lengths stand one behind the other.", padded=True),
    ragged_mistake(
        "No pads does not mean that every score is used: count what the mask drops.", share=lambda lengths, mask: 1.0
    ),
    ragged_mistake(
        "That is the useful share of a rectangle. Asked is the share of the mask's entries that are True.",
        share=lambda lengths, mask: sum(lengths) / (len(lengths) * max(lengths)),
    ),
    ragged_mistake(
        "That is the share that is dropped; asked is the share that is True.",
        share=lambda lengths, mask: 1 - mask.double().mean().item(),
    ),
    ragged_mistake("Asked is a share, not a number of entries.", share=lambda lengths, mask: mask.sum().item()),
)


def ragged_explained(known: Any) -> Any:
    def explain(case: Case, got: Any) -> str:
        if isinstance(got, dict) and len(got["ids"]) > len(case.expected["ids"]):
            return "There are pads in it: prompts of any lengths stand one behind the other."
        return known(case, got)

    return explain


# ---- q2: the mask of a mixed step ------------------------------------------------------------------------------------

Step = Sequence[tuple[int, int]]


def mask_mistake(says: str, rows: Any = None, columns: Any = None, seen: Any = None) -> Mistake:
    """Each of the three replaces what one request adds, from its cached and its new tokens."""

    def do(step: Step) -> tuple[int, int, int]:
        parts = [
            (
                rows(cached, new) if rows else new,
                columns(cached, new) if columns else cached + new,
                seen(cached, new) if seen else new * cached + new * (new + 1) // 2,
            )
            for cached, new in step
        ]
        total_rows, total_columns, total_seen = (sum(column) for column in zip(*parts, strict=True))
        return total_rows, total_columns, total_seen

    return Mistake(says, do)


def totals(step: Step) -> tuple[int, int, int]:
    new = sum(n for _, n in step)
    keys = sum(cached + n for cached, n in step)
    return new, keys, sum(n * cached + n * (n + 1) // 2 for cached, n in step)


MASK_MISTAKES = through(
    drivers.mask_size,
    mask_mistake(
        "Keys in the cache have columns, and they are seen: the mask is not square.",
        columns=lambda cached, new: new,
        seen=lambda cached, new: new * (new + 1) // 2,
    ),
    mask_mistake("Keys in the cache have columns: the mask is not square.", columns=lambda cached, new: new),
    mask_mistake("New tokens see the keys in the cache, too.", seen=lambda cached, new: new * (new + 1) // 2),
    mask_mistake("Cached tokens have no rows: they are not computed again.", rows=lambda cached, new: cached + new),
    mask_mistake(
        "Cached tokens have no rows: they are not computed again.",
        rows=lambda cached, new: cached + new,
        seen=lambda cached, new: (cached + new) * (cached + new + 1) // 2,
    ),
    mask_mistake(
        "New tokens are causal among themselves: only the last one sees all keys.",
        seen=lambda cached, new: new * (cached + new),
    ),
    mask_mistake("New tokens have keys as well: they belong to the columns.", columns=lambda cached, new: cached),
    mask_mistake(
        "A token sees itself, too.",
        seen=lambda cached, new: new * cached + new * (new - 1) // 2,
    ),
    mask_mistake("One request sees one key: each of its new tokens is a row of its own.", rows=lambda cached, new: 1),
    Mistake(
        "That leaks: a row sees keys of its own request only.",
        lambda step: (*totals(step)[:2], totals(step)[0] * totals(step)[1]),
    ),
    Mistake(
        "That leaks: rows are causal within their own request, not over the whole step.",
        lambda step: (*totals(step)[:2], totals(step)[0] * (totals(step)[0] + 1) // 2),
    ),
    Mistake(
        "Asked are the entries that are True, not those that are hidden.",
        lambda step: (*totals(step)[:2], totals(step)[0] * totals(step)[1] - totals(step)[2]),
    ),
    Mistake(
        "Rows are queries, columns are keys: yours are swapped.",
        lambda step: (totals(step)[1], totals(step)[0], totals(step)[2]),
    ),
)

# ---- q3: a mask that leaks, sometimes --------------------------------------------------------------------------------


def leak_explained(case: Case, got: Any) -> str:
    if isinstance(got, str):
        return "Give a list of prompt lengths, whole numbers of at least 1." * ("Error" in got)
    if got["leaks"]:
        return "It leaks, and fewer tokens are enough."
    return "No leak: every token sees its own request only. What must two requests share to get one label?"


# ---- q4: a budget of requests ----------------------------------------------------------------------------------------

Plan = list[tuple[str, int, bool]]


def planned(
    running: Sequence[tuple[str, int, int]],
    waiting: Sequence[tuple[str, int]],
    seats: int,
    budget: int,
    counts: str = "tokens",
    waiting_first: bool = False,
    cuts: bool = True,
    skips: bool = False,
    seated: bool = True,
    one_each: bool = False,
    again: bool = False,
    always_yields: bool = False,
    free_decodes: bool = False,
    chunk: int = 10**9,
    seats_for_new: bool = False,
) -> Plan:
    """One step; every option is one way to go wrong."""
    free = seats if seats_for_new else max(0, seats - len(running))
    old = [(name, known if again else known - computed, True) for name, computed, known in running]
    new = [(name, prompt, False) for name, prompt in (waiting[:free] if seated else waiting)]
    step: Plan = []
    for name, lacking, runs in new + old if waiting_first else old + new:
        wanted = 1 if one_each and runs else min(lacking, chunk)
        tokens = min(wanted, budget) if cuts or runs else wanted
        if counts == "requests":
            tokens = wanted if budget else 0
        if tokens == 0 or (tokens > budget and counts == "tokens"):
            if skips:
                continue
            break
        step.append((name, tokens, always_yields or tokens == lacking))
        budget -= 1 if counts == "requests" else tokens * (not (free_decodes and runs))
    return step


def plan_mistake(says: str, **options: Any) -> Mistake:
    return Mistake(says, lambda *arguments: planned(*arguments, **options))


def equal_shares(running: Any, waiting: Any, seats: int, budget: int) -> Plan:
    step = planned(running, waiting, seats, 10**9)
    return [(name, min(n, budget // len(step)), n <= budget // len(step)) for name, n, _ in step]


def plan_with_zeros(running: Any, waiting: Any, seats: int, budget: int) -> Plan:
    step = {name: (n, yields) for name, n, yields in planned(running, waiting, seats, budget)}
    everybody = planned(running, waiting, seats, 10**9)
    return [(name, *step.get(name, (0, False))) for name, _, _ in everybody]


BUDGET = "The budget counts tokens, not requests: a prompt takes as many as it has."
PLAN_MISTAKES = through(
    drivers.plan,
    plan_mistake(BUDGET, counts="requests"),
    plan_mistake(BUDGET, counts="requests", always_yields=True),
    plan_mistake("A chunk that is not the last yields no token.", always_yields=True),
    plan_mistake("Running requests come first: nobody may starve them.", waiting_first=True),
    plan_mistake("A prompt that does not fit is cut: it gets what is left of the budget.", cuts=False),
    plan_mistake("Nobody overtakes: a prompt that does not fit is cut, those behind it wait.", cuts=False, skips=True),
    plan_mistake("Running requests have seats already: only the others are free.", seats_for_new=True),
    plan_mistake("There are no more seats: a waiting request needs a free one.", seated=False),
    plan_mistake(
        "A running request may lack more than one token: the rest of its prompt, or what was preempted.", one_each=True
    ),
    plan_mistake("Computed tokens are in the cache: only what is lacking is computed.", again=True),
    plan_mistake("Decodes count, too: one token each.", free_decodes=True),
    Mistake(
        "The budget is not shared out equally: each gets what it lacks, in order, as far as it goes.", equal_shares
    ),
    Mistake("Only requests that get tokens belong to the step.", plan_with_zeros),
)


def plan_explained(known: Any) -> Any:
    def explain(case: Case, got: Any) -> str:
        if isinstance(got, str):
            return "Return a list of (name, tokens, yields)." if "things are asked" in got else ""
        if named := known(case, got):
            return named
        if sum(got["tokens"]) > case.arguments[3]:
            return "More tokens than the budget allows: it counts tokens, not requests."
        return ""

    return explain


# ---- q5: who gives blocks back ---------------------------------------------------------------------------------------

Preempted = tuple[list[str], list[str], int]


def decoded(
    running: Sequence[tuple[str, int]],
    free: int,
    size: int,
    choose: Any = lambda alive, current: len(alive) - 1,
    gives: Any = lambda held: held,
    needs: Any = lambda tokens, size: tokens % size == 1 or size == 1,
    stalls: bool = False,
    victims_run: bool = False,
    eager: bool = False,
    stops: bool = False,
    keeps: bool = False,
) -> Preempted:
    """One step of decodes; `choose` is the index of the victim, every other option is one way to go wrong."""
    alive, done, preempted, given = list(running), list[str](), list[str](), 0
    index = 0
    while index < len(alive):
        name, tokens = alive[index]
        needed = 1 if needs(tokens, size) else 0
        if needed > free or (eager and free == 0 and len(alive) > 1 and index < len(alive) - 1):
            if stalls:
                index += 1
                continue
            victim = choose(alive, index)
            victim_name, victim_tokens = alive.pop(victim)
            back = gives(ceil((victim_tokens - 1) / size))
            free, given = free + back, given + back
            preempted.append(victim_name)
            index -= victim < index
            if stops:
                preempted += [n for n, _ in reversed(alive[index + 1 :])]
                free += sum(ceil((t - 1) / size) for _, t in alive[index + 1 :])
                alive = alive[: index + 1]
            continue
        free -= needed
        done.append(name)
        index += 1
    done = [name for name in done if name not in preempted]
    return done + preempted if victims_run else done, preempted, free - given if keeps else free


def preempt_mistake(says: str, **options: Any) -> Mistake:
    return Mistake(says, lambda *arguments: decoded(*arguments, **options))


def most_blocks(alive: Any, current: int) -> int:
    return max(range(len(alive)), key=lambda i: alive[i][1])


def fewest_blocks(alive: Any, current: int) -> int:
    return min(range(len(alive)), key=lambda i: alive[i][1])


PREEMPT_MISTAKES = through(
    drivers.decode_step,
    preempt_mistake("The victim is the request that arrived last, not the first.", choose=lambda alive, current: 0),
    preempt_mistake("The victim is the one that arrived last, not the one with the most blocks.", choose=most_blocks),
    preempt_mistake(
        "The victim is the one that arrived last, not the one with the fewest blocks.", choose=fewest_blocks
    ),
    preempt_mistake(
        "The victim is the request that arrived last, not the one that needs a block.",
        choose=lambda alive, current: current,
    ),
    preempt_mistake("A preempted request gives back all of its blocks, not one.", gives=lambda held: 1),
    preempt_mistake("The blocks of a preempted request are free again.", gives=lambda held: 1, keeps=True),
    preempt_mistake("The blocks of a preempted request are free again.", keeps=True),
    preempt_mistake(
        "A new block is needed when the ones held are full: for token 5, 9, ... of blocks of 4, not for 4, 8, ...",
        needs=lambda tokens, size: tokens % size == 0,
    ),
    preempt_mistake("Not every token needs a block: most go into the last one held.", needs=lambda tokens, size: True),
    preempt_mistake("Somebody must give blocks back: a request that needs one does not just wait.", stalls=True),
    preempt_mistake("A preempted request is out of this step: it has no blocks to compute with.", victims_run=True),
    preempt_mistake("No block is needed here: nobody is preempted before that.", eager=True),
    preempt_mistake("One at a time: the others are preempted only if that is not enough.", stops=True),
)
