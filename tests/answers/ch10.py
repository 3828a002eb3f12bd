"""Chapter 10: answers about ragged batches, masks, a budget of tokens and preemption."""

from __future__ import annotations

from answers import Answers

RAGGED = """
def ragged(prompts, encode):
    rows = [encode(p) for p in prompts]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.tensor(sum(rows, []))
    owner = torch.arange(len(rows)).repeat_interleave(lengths)
    positions = torch.cat([torch.arange(n) for n in lengths.tolist()])
    causal = torch.ones(len(ids), len(ids)).tril().bool()
    mask = (owner[:, None] == owner[None, :]) & causal
    share = mask.double().mean().item()
    return ids, positions, mask, share
"""


def ragged(*changes: tuple[str, str]) -> str:
    return changed(RAGGED, changes)


def changed(source: str, changes: tuple[tuple[str, str], ...]) -> str:
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return source


SAME, SHARE = "(owner[:, None] == owner[None, :])", "share = mask.double().mean().item()"
ONE_BEHIND_THE_OTHER = Answers(
    right=[
        ("owners", ragged()),
        (
            "lists, token by token",
            """
def ragged(prompts, encode):
    tokens = [(number, i, t) for number, p in enumerate(prompts) for i, t in enumerate(encode(p))]
    mask = [[a == b and j <= i for b, j, _ in tokens] for a, i, _ in tokens]
    seen = sum(sum(row) for row in mask)
    return [t for *_, t in tokens], [i for _, i, _ in tokens], mask, seen / len(tokens) ** 2
""",
        ),
        (
            "NumPy, block by block",
            """
def ragged(prompts, encode):
    rows = list(map(encode, prompts))
    total = sum(map(len, rows))
    mask, start = np.zeros((total, total), dtype=bool), 0
    for row in rows:
        end = start + len(row)
        mask[start:end, start:end] = np.tri(len(row))
        start = end
    return np.concatenate(rows), np.concatenate([np.arange(len(r)) for r in rows]), mask, mask.mean()
""",
        ),
    ],
    wrong=[
        ("causal over everything", ragged((SAME + " & causal", "causal")), "The mask leaks"),
        ("no mask at all", ragged((SAME + " & causal", "torch.ones_like(causal)")), "The mask leaks"),
        ("labels are lengths", ragged(("torch.arange(len(rows)).repeat", "lengths.repeat")), "The mask leaks"),
        ("not causal", ragged((" & causal", "")), "Within a prompt the mask is causal: a token"),
        ("upper triangle", ragged(("tril()", "triu()")), "a lower triangle"),
        ("without itself", ragged(("tril()", "tril(-1)")), "sees itself, too"),
        ("positions go on", ragged(("positions = ", "positions = torch.arange(len(ids)) #")), "Positions restart"),
        ("positions from 1", ragged(("torch.arange(n)", "torch.arange(1, n + 1)")), "count from 0"),
        (
            "padded",
            ragged(
                (
                    "    lengths =",
                    "    rows = [[0] * (max(map(len, rows)) - len(row)) + row for row in rows]\n    lengths =",
                )
            ),
            "There are pads",
        ),
        ("all of it used", ragged((SHARE, "share = 1.0")), "No pads does not mean"),
        (
            "share of a rectangle",
            ragged((SHARE, "share = len(ids) / (len(rows) * lengths.max().item())")),
            "useful share of a rectangle",
        ),
        ("share dropped", ragged((SHARE, "share = 1 - mask.double().mean().item()")), "share that is dropped"),
        ("entries counted", ragged((SHARE, "share = mask.sum().item()")), "not a number of entries"),
    ],
)


def mask_size(
    rows: str = "new", columns: str = "cached + new", seen: str = "new * cached + new * (new + 1) // 2", end: str = ""
) -> str:
    return f"""
def mask_size(step):
    rows = columns = seen = 0
    for cached, new in step:
        rows += {rows}
        columns += {columns}
        seen += {seen}
    {end or "pass"}
    return rows, columns, seen
"""


MASK_SIZE = Answers(
    right=[
        (
            "the mask itself, in torch",
            """
def mask_size(step):
    parts = [torch.ones(new, cached + new).tril(cached) for cached, new in step]
    mask = torch.block_diag(*parts)
    return mask.shape[0], mask.shape[1], int(mask.sum())
""",
        ),
        (
            "token by token",
            """
def mask_size(step):
    queries = [(r, cached + i) for r, (cached, new) in enumerate(step) for i in range(new)]
    keys = [(r, p) for r, (cached, new) in enumerate(step) for p in range(cached + new)]
    return [len(queries), len(keys), sum(position + 1 for _, position in queries)]
""",
        ),
        (
            "NumPy, whole triangle less the cached one",
            """
def mask_size(step):
    cached, new = np.array(step).T
    end = cached + new
    triangle = end * (end + 1) // 2 - cached * (cached + 1) // 2
    return new.sum(), end.sum(), triangle.sum()
""",
        ),
    ],
    wrong=[
        ("square", mask_size(columns="new", seen="new * (new + 1) // 2"), "not square"),
        ("square, keys counted", mask_size(columns="new"), "not square"),
        ("cache not seen", mask_size(seen="new * (new + 1) // 2"), "see the keys in the cache"),
        ("cached tokens have rows", mask_size(rows="cached + new"), "have no rows"),
        (
            "whole causal masks",
            mask_size(rows="cached + new", seen="(cached + new) * (cached + new + 1) // 2"),
            "have no rows",
        ),
        ("no causality in a chunk", mask_size(seen="new * (cached + new)"), "causal among themselves"),
        ("columns are the cache", mask_size(columns="cached"), "New tokens have keys"),
        ("without itself", mask_size(seen="new * cached + new * (new - 1) // 2"), "sees itself"),
        ("a row for each request", mask_size(rows="1"), "a row of its own"),
        ("everything seen", mask_size(end="seen = rows * columns"), "That leaks"),
        ("causal over the step", mask_size(end="seen = rows * (rows + 1) // 2"), "That leaks"),
        ("hidden entries", mask_size(end="seen = rows * columns - seen"), "not those that are hidden"),
        ("swapped", mask_size(end="rows, columns = columns, rows"), "are swapped"),
    ],
)

LEAKING = Answers(
    right=[
        ("a list", "leaking = [1, 1]"),
        ("a tuple", "leaking = (1,) * 2"),
        (
            "searched for",
            """
from itertools import product

def leaks(lengths):
    blocks = [torch.ones(n, n).tril() for n in lengths]
    return not torch.equal(mask_as_found(list(lengths)), torch.block_diag(*blocks).bool())

batches = (b for count in (1, 2, 3) for b in product(range(1, 4), repeat=count))
leaking = min(filter(leaks, batches), key=sum)
""",
        ),
    ],
    wrong=[
        ("the chapter's batch", "leaking = [3, 2]", "No leak"),
        ("the three prompts", "leaking = [1, 6, 9]", "No leak"),
        ("one prompt", "leaking = [2]", "No leak"),
        ("one token", "leaking = [1]", "No leak"),
        ("different lengths", "leaking = [1, 2]", "No leak"),
        ("equal, but longer", "leaking = [2, 2]", "fewer tokens are enough"),
        ("three of them", "leaking = [1, 1, 1]", "fewer tokens are enough"),
        ("two equal ones apart", "leaking = [1, 2, 1]", "fewer tokens are enough"),
        ("nobody", "leaking = []", "Give a list of prompt lengths"),
        ("empty prompts", "leaking = [0, 0]", "at least 1"),
        ("a number", "leaking = 2", "Give a list of prompt lengths"),
    ],
)

PLAN = """
def plan(running, waiting, seats, budget):
    step, left = [], budget
    for name, computed, known in running:
        lacking = known - computed
        tokens = min(lacking, left)
        if tokens:
            step.append((name, tokens, tokens == lacking))
            left -= tokens
    open_seats = seats - len(running)
    for name, prompt in waiting:
        if open_seats <= 0 or left == 0:
            break
        tokens = min(prompt, left)
        step.append((name, tokens, tokens == prompt))
        left -= tokens
        open_seats -= 1
    return step
"""


def plan(*changes: tuple[str, str]) -> str:
    return changed(PLAN, changes)


PLANS = Answers(
    right=[
        ("two loops", plan()),
        (
            "a generator over running sums",
            """
from itertools import accumulate

def plan(running, waiting, seats, budget):
    names = [r[0] for r in running] + [w[0] for w in waiting]
    need = [r[2] - r[1] for r in running] + [w[1] for w in waiting]
    allowed = max(seats, len(running))
    ends = list(accumulate(need))
    for name, lacking, end in list(zip(names, need, ends))[:allowed]:
        given = min(lacking, budget - (end - lacking))
        if given <= 0:
            return
        yield name, given, end <= budget
""",
        ),
        (
            "NumPy, sums clipped to the budget",
            """
def plan(running, waiting, seats, budget):
    rows = [(n, k - c) for n, c, k in running] + waiting[: max(0, seats - len(running))]
    need = np.array([lacking for _, lacking in rows], dtype=int)
    ends = np.minimum(np.cumsum(need), budget)
    given = np.diff(ends, prepend=0)
    return [[n, int(g), bool(g == l)] for (n, l), g in zip(rows, given) if g]
""",
        ),
    ],
    wrong=[
        ("as found", "plan = plan_as_found", "counts tokens, not requests"),
        (
            "requests counted, yields repaired",
            plan(
                ("min(lacking, left)", "lacking if left else 0"),
                ("min(prompt, left)", "prompt"),
                ("left -= tokens", "left -= 1"),
            ),
            "counts tokens, not requests",
        ),
        ("a chunk yields", plan(("tokens == prompt", "True"), ("tokens == lacking", "True")), "yields no token"),
        (
            "waiting first",
            """
def plan(running, waiting, seats, budget):
    rows = waiting[: max(0, seats - len(running))] + [(n, k - c) for n, c, k in running]
    step = []
    for name, lacking in rows:
        tokens = min(lacking, budget)
        if tokens:
            step.append((name, tokens, tokens == lacking))
        budget -= tokens
    return step
""",
            "Running requests come first",
        ),
        ("prompts are never cut", plan(("left == 0", "prompt > left")), "is cut"),
        (
            "short ones overtake",
            plan(("            break", "            break\n        if prompt > left:\n            continue")),
            "Nobody overtakes",
        ),
        ("seats forgotten", plan(("open_seats <= 0 or ", "")), "no more seats"),
        ("seats for newcomers only", plan(("seats - len(running)", "seats")), "have seats already"),
        ("one token for each that runs", plan(("min(lacking, left)", "min(1, left)")), "may lack more than one"),
        ("computed again", plan(("known - computed", "known")), "only what is lacking"),
        (
            "decodes are free",
            plan(("            left -= tokens\n    open_seats", "            left -= 0\n    open_seats")),
            "Decodes count, too",
        ),
        (
            "equal shares",
            """
def plan(running, waiting, seats, budget):
    rows = [(n, k - c) for n, c, k in running] + waiting[: max(0, seats - len(running))]
    share = budget // len(rows)
    return [(n, min(lacking, share), lacking <= share) for n, lacking in rows]
""",
            "not shared out equally",
        ),
        (
            "nothing is something",
            """
def plan(running, waiting, seats, budget):
    rows = [(n, k - c) for n, c, k in running] + waiting[: max(0, seats - len(running))]
    step = []
    for name, lacking in rows:
        tokens = min(lacking, budget)
        step.append((name, tokens, tokens == lacking))
        budget -= tokens
    return step
""",
            "Only requests that get tokens",
        ),
        (
            "budget checked too late",
            plan(("min(prompt, left)", "prompt"), ("left == 0", "left <= 0")),
            "More tokens than the budget",
        ),
        ("names only", plan(("return step", "return [name for name, _, _ in step]")), "Return a list of"),
    ],
)

DECODE = """
def decode_step(running, free, block_size):
    alive, done, out = list(running), [], []
    i = 0
    while i < len(alive):
        name, tokens = alive[i]
        new = 1 if (tokens - 1) % block_size == 0 else 0
        if new > free:
            v = len(alive) - 1
            victim, n = alive.pop(v)
            free += -(-(n - 1) // block_size)
            out.append(victim)
            if v < i:
                i -= 1
            continue
        free -= new
        done.append(name)
        i += 1
    return done, out, free
"""


def decode(*changes: tuple[str, str]) -> str:
    return changed(DECODE, changes)


VICTIM = "v = len(alive) - 1"
DECODES = Answers(
    right=[
        ("an index", decode()),
        (
            "a dictionary of blocks held",
            """
def decode_step(running, free, block_size):
    held = {name: math.ceil((n - 1) / block_size) for name, n in running}
    want = {name: math.ceil(n / block_size) for name, n in running}
    computed, preempted = [], []
    for name, _ in running:
        while name in held and want[name] - held[name] > free:
            last = list(held)[-1]
            free += held.pop(last)
            preempted.append(last)
        if name in held:
            free -= want[name] - held[name]
            held[name] = want[name]
            computed.append(name)
    return computed, preempted, free
""",
        ),
        (
            "a deque, from both ends",
            """
from collections import deque

def decode_step(running, free, block_size):
    queue, result = deque(running), ([], [])
    while queue:
        name, n = queue[0]
        if (n - 1) % block_size or free > 0:
            queue.popleft()
            free -= (n - 1) % block_size == 0
            result[0].append(name)
        else:
            late, m = queue.pop()
            free += (m - 1 + block_size - 1) // block_size
            result[1].append(late)
    return (*result, free)
""",
        ),
    ],
    wrong=[
        (
            "the oldest is preempted",
            decode((VICTIM, "v = 0"), ("return done", "return [d for d in done if d not in out]")),
            "not the first",
        ),
        (
            "the largest is preempted",
            decode(
                (VICTIM, "v = max(range(len(alive)), key=lambda j: alive[j][1])"),
                ("return done", "return [d for d in done if d not in out]"),
            ),
            "with the most blocks",
        ),
        (
            "the smallest is preempted",
            decode(
                (VICTIM, "v = min(range(len(alive)), key=lambda j: alive[j][1])"),
                ("return done", "return [d for d in done if d not in out]"),
            ),
            "with the fewest blocks",
        ),
        ("the one that needs a block is preempted", decode((VICTIM, "v = i")), "not the one that needs a block"),
        ("one block comes back", decode(("free += -(-(n - 1) // block_size)", "free += 1")), "all of its blocks"),
        (
            "blocks are lost",
            decode(
                ("free += -(-(n - 1) // block_size)", "free += 1; lost = lost + -(-(n - 1) // block_size) - 1"),
                ("i = 0", "i = lost = 0"),
            ),
            "all of its blocks",
        ),
        (
            "boundary one too early",
            decode(("(tokens - 1) % block_size", "tokens % block_size")),
            "when the ones held are full",
        ),
        ("every token takes a block", decode(("1 if (tokens - 1) % block_size == 0 else 0", "1")), "Not every token"),
        (
            "nobody is preempted",
            """
def decode_step(running, free, block_size):
    done = []
    for name, tokens in running:
        new = int((tokens - 1) % block_size == 0)
        if new <= free:
            free -= new
            done.append(name)
    return done, [], free
""",
            "does not just wait",
        ),
        ("the preempted are computed", decode(("return done,", "return done + out,")), "out of this step"),
        (
            "preempted before it is needed",
            decode(("if new > free:", "if new > free or (free == 0 and i < len(alive) - 1):")),
            "nobody is preempted before",
        ),
        (
            "all that follow are preempted",
            decode(
                (
                    "            continue",
                    "            while len(alive) > i + 1:\n"
                    "                late, n = alive.pop()\n"
                    "                free += -(-(n - 1) // block_size)\n"
                    "                out.append(late)\n"
                    "            continue",
                )
            ),
            "One at a time",
        ),
        (
            "free blocks as before",
            """
def decode_step(running, free, block_size):
    alive, done, out, back = list(running), [], [], 0
    while len(done) < len(alive):
        name, tokens = alive[len(done)]
        new = int((tokens - 1) % block_size == 0)
        if new > free + back:
            victim, n = alive.pop()
            back += -(-(n - 1) // block_size)
            out.append(victim)
        else:
            free -= new
            done.append(name)
    return done, out, free
""",
            "are free again",
        ),
    ],
)

BANK: dict[str, Answers] = {
    "ch10.q1": ONE_BEHIND_THE_OTHER,
    "ch10.q2": MASK_SIZE,
    "ch10.q3": LEAKING,
    "ch10.q4": PLANS,
    "ch10.q5": DECODES,
}
