"""Chapter 09: answers about rectangles, newcomers, time-outs, seats and padded inputs."""

from __future__ import annotations

from answers import Answers


def rectangle(counted: str = "len(encode(p))", pads: str = "cells - sum(n)", share: str = "sum(n) / cells") -> str:
    return f"""
def rectangle(prompts, encode):
    n = [{counted} for p in prompts]
    cells = len(n) * max(n)
    return n, {pads}, {share}
"""


RECTANGLE = Answers(
    right=[
        (
            "NumPy and a mask",
            """
def rectangle(prompts, encode):
    rows = list(map(encode, prompts))
    lengths = np.array([len(row) for row in rows])
    real = np.arange(lengths.max())[None, :] < lengths[:, None]
    return lengths.tolist(), int((~real).sum()), float(real.mean())
""",
        ),
        (
            "a really padded batch",
            """
def rectangle(prompts, encode):
    rows = [encode(p) for p in prompts]
    width = max(len(r) for r in rows)
    padded = [[None] * (width - len(r)) + r for r in rows]
    flat = [cell for row in padded for cell in row]
    return [len(r) for r in rows], flat.count(None), 1 - flat.count(None) / len(flat)
""",
        ),
        (
            "mean of the shares of rows",
            rectangle(pads="sum(max(n) - x for x in n)", share="sum(x / max(n) for x in n) / len(n)"),
        ),
    ],
    wrong=[
        ("characters", rectangle("len(p)"), "Those are characters"),
        ("words", rectangle("len(p.split())"), "Those are words"),
        ("masked means free", rectangle(share="1.0"), "Masked is not free"),
        ("share of pads", rectangle(share="1 - sum(n) / cells"), "share of pads"),
        ("per cent", rectangle(share="100 * sum(n) / cells"), "not per cent"),
        ("divided by the pads", rectangle(share="sum(n) / max(1, cells - sum(n))"), "not by the pads"),
        ("pads of each prompt", rectangle(pads="[max(n) - x for x in n]"), "asked is their sum"),
        ("cells for pads", rectangle(pads="cells"), "Those are all cells"),
        ("cut to the shortest", rectangle(pads="0", share="1.0"), "nothing may be cut off"),
        (
            "only the shortest is padded",
            rectangle(pads="max(n) - min(n)", share="sum(n) / (sum(n) + max(n) - min(n))"),
            "every row has to reach",
        ),
        (
            "the counts that are usually given",
            "def rectangle(prompts, encode):\n    return [2, 5, 10], 13, 17 / 30",
            "guesses",
        ),
    ],
)


def joining(pads: str, cells: str = "rows * width") -> str:
    return f"""
def joining(decoding, newcomers):
    width = max(newcomers, default=1)
    rows = decoding + len(newcomers)
    return {pads}, {cells}
"""


RIGHT_PADS = "rows * width - decoding - sum(newcomers)"
JOINING = Answers(
    right=[
        (
            "row by row",
            """
def joining(decoding, newcomers):
    lengths = [1] * decoding + list(newcomers)
    longest = max(lengths)
    return sum(longest - n for n in lengths), longest * len(lengths)
""",
        ),
        (
            "torch, cells counted",
            """
def joining(decoding, newcomers):
    lengths = torch.tensor([1] * decoding + newcomers)
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    return (~real).sum(), real.numel()
""",
        ),
        ("the formula, newcomer by newcomer", joining("decoding * (width - 1) + sum(width - n for n in newcomers)")),
    ],
    wrong=[
        ("the newcomer not counted", joining("(width - 1) * (decoding - 1)", "width * decoding"), "9 rows, not 8"),
        (
            "the rows of the decodes alone",
            joining("width * decoding - decoding - sum(newcomers)", "width * decoding"),
            "9 rows, not 8",
        ),
        ("rows of newcomers left out", joining("decoding * (width - 1)", "decoding * width"), "belong to the cells"),
        ("shorter newcomers not padded", joining("decoding * (width - 1)"), "is padded, too"),
        (
            "decodes without a real token",
            joining("decoding * width + len(newcomers) * width - sum(newcomers)"),
            "has one real token",
        ),
        ("quadratic in the length", joining("(width - 1) ** 2 * decoding"), "not quadratic"),
        ("quadratic in the batch", joining("decoding ** 2 * (width - 1)"), "not quadratic"),
        (
            "as wide as all newcomers",
            joining("rows * max(1, sum(newcomers)) - decoding - sum(newcomers)", "rows * max(1, sum(newcomers))"),
            "as the longest newcomer",
        ),
        ("useful cells", joining("decoding + sum(newcomers)"), "asked are the pads"),
        ("masked means free", joining("0"), "Masked is not free"),
        ("useful cells for all cells", joining(RIGHT_PADS, "decoding + sum(newcomers)"), "count them among all cells"),
        (
            "a share",
            "def joining(decoding, newcomers):\n    n = [1] * decoding + newcomers\n"
            "    return 1 - sum(n) / (max(n) * len(n))",
            "two numbers",
        ),
    ],
)

LAUNCHES = """
def launches(arrivals, batch_size, timeout, busy):
    out, free, i = [], 0, 0
    while i < len(arrivals):
        full = arrivals[i + batch_size - 1] if i + batch_size <= len(arrivals) else math.inf
        start = max(free, min(full, arrivals[i] + timeout))
        n = len([a for a in arrivals[i:] if a <= start])
        n = min(n, batch_size)
        out.append((start, n))
        i += n
        free = start + busy
    return out
"""


def launching(*changes: tuple[str, str]) -> str:
    source = LAUNCHES
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return source


START = "max(free, min(full, arrivals[i] + timeout))"
LAUNCHING = Answers(
    right=[
        (
            "a queue",
            """
from collections import deque

def launches(arrivals, batch_size, timeout, busy):
    queue, ready = deque(arrivals), 0.0
    while queue:
        deadline = queue[0] + timeout
        if len(queue) >= batch_size:
            deadline = min(deadline, queue[batch_size - 1])
        start = max(deadline, ready)
        taken = 0
        while queue and queue[0] <= start and taken < batch_size:
            queue.popleft()
            taken += 1
        ready = start + busy
        yield start, taken
""",
        ),
        (
            "events: look at every moment at which something can change",
            """
def launches(arrivals, batch_size, timeout, busy):
    result, free, done = [], 0.0, 0
    while done < len(arrivals):
        moments = sorted({free, *arrivals, *(a + timeout for a in arrivals)})
        for now in moments:
            waiting = [a for a in arrivals[done:] if a <= now]
            if now >= free and waiting and (len(waiting) >= batch_size or now - waiting[0] >= timeout):
                break
        count = min(batch_size, len(waiting))
        result.append([now, count])
        done, free = done + count, now + busy
    return result
""",
        ),
        (
            "NumPy search",
            """
def launches(arrivals, batch_size, timeout, busy):
    times = np.asarray(arrivals, dtype=float)
    first, free, result = 0, 0.0, []
    while first < len(times):
        last = first + batch_size - 1
        due = times[first] + timeout if last >= len(times) else min(times[first] + timeout, times[last])
        start = max(due, free)
        count = min(int(np.searchsorted(times, start, side="right")) - first, batch_size)
        result.append((float(start), count))
        first, free = first + count, start + busy
    return result
""",
        ),
    ],
    wrong=[
        (
            "a full batch waits",
            launching((START, "max(free, arrivals[i] + timeout)")),
            "does not wait for the time-out",
        ),
        (
            "static",
            launching((START, "max(free, full if full < math.inf else arrivals[-1])")),
            "static batching",
        ),
        (
            "time-out since the newest",
            """
def launches(arrivals, batch_size, timeout, busy):
    out, free, i = [], 0, 0
    while i < len(arrivals):
        j = i
        while j + 1 < len(arrivals) and j + 1 < i + batch_size and arrivals[j + 1] <= arrivals[j] + timeout:
            j += 1
        start = arrivals[j] if j + 1 == i + batch_size else arrivals[j] + timeout
        start = max(free, start)
        n = min(batch_size, sum(a <= start for a in arrivals[i:]))
        out.append((start, n))
        i, free = i + n, start + busy
    return out
""",
            "does not start it anew",
        ),
        ("the device is never busy", launching(("free = start + busy", "free = 0")), "device is busy"),
        (
            "time-out from when the device is free",
            launching((START, "max(free, min(full, max(free, arrivals[i]) + timeout))")),
            "counts from the arrival",
        ),
        (
            "closed before the device is free",
            launching(("if a <= start]", "if a <= min(full, arrivals[i] + timeout)]")),
            "while the device was still busy",
        ),
        ("no limit", launching(("n = min(n, batch_size)", "pass")), "at most"),
        (
            "latecomers by a hair",
            launching(("a <= start", "a < start"), ("n = min(n, batch_size)", "n = max(1, min(n, batch_size))")),
            "at the very moment",
        ),
        (
            "the last one known",
            launching(("else math.inf", "else arrivals[-1]")),
            "nobody else will come",
        ),
        ("whoever is there", launching((START, "max(free, arrivals[i])")), "starts with whoever is there"),
        ("starts only", launching(("out.append((start, n))", "out.append(start)")), "A pair for each batch"),
        (
            "a pair for each request",
            launching(("out.append((start, n))", "out += [(start, n)] * n")),
            "not for each request",
        ),
        (
            "when it is done",
            launching(("out.append((start, n))", "out.append((start + busy, n))")),
            "not when it is done",
        ),
    ],
)


def seats(length: str = "max(batch)", waited: str = "start", idle: str = "max(batch) - m", before: str = "pass") -> str:
    return f"""
def seats(answers, batch_size):
    out, start = [], 0
    {before}
    for i in range(0, len(answers), batch_size):
        batch = answers[i:i + batch_size]
        out += [({waited}, {idle}) for m in batch]
        start += {length}
    return out
"""


SEATS = Answers(
    right=[
        (
            "torch, padded with empty seats",
            """
def seats(answers, batch_size):
    a = torch.tensor(answers)
    padded = torch.nn.functional.pad(a, (0, -len(a) % batch_size)).view(-1, batch_size)
    longest = padded.amax(1)
    start = longest.cumsum(0) - longest
    pairs = torch.stack([start[:, None].expand_as(padded), longest[:, None] - padded], -1)
    return pairs.view(-1, 2)[: len(a)]
""",
        ),
        (
            "step by step",
            """
def seats(answers, batch_size):
    queue, now, result = list(enumerate(answers)), 0, {}
    while queue:
        batch, queue = queue[:batch_size], queue[batch_size:]
        begin, left = now, dict(batch)
        idle = {i: 0 for i in left}
        while any(left.values()):
            for i in left:
                if left[i]:
                    left[i] -= 1
                else:
                    idle[i] += 1
            now += 1
        result.update({i: (begin, idle[i]) for i in left})
    return [result[i] for i in range(len(answers))]
""",
        ),
    ],
    wrong=[
        (
            "free seats taken at once",
            """
def seats(answers, batch_size):
    free, out = [0] * batch_size, []
    for m in answers:
        seat = free.index(min(free))
        out.append((free[seat], 0))
        free[seat] += m
    return out
""",
            "continuous batching",
        ),
        (
            "sorted by length",
            """
def seats(answers, batch_size):
    order = sorted(range(len(answers)), key=lambda i: answers[i])
    out, start = [None] * len(answers), 0
    for i in range(0, len(order), batch_size):
        batch = order[i:i + batch_size]
        longest = max(answers[j] for j in batch)
        for j in batch:
            out[j] = (start, longest - answers[j])
        start += longest
    return out
""",
            "in order of arrival",
        ),
        ("ends with the shortest", seats("min(batch)", idle="0"), "not with its shortest"),
        ("the longest of all", seats(idle="max(answers) - m"), "of its own batch"),
        ("a finished row is free", seats(idle="0"), "is not free"),
        ("only the batch before", seats().replace("start +=", "start ="), "not only the last one"),
        ("own answer counted as waiting", seats(waited="start + m"), "over when the batch starts"),
        ("the answer in place of the idle steps", seats(idle="m"), "not the answer itself"),
        ("answer and idle steps", seats(idle="max(batch)"), "does not count"),
        ("one step less", seats("max(batch) - 1"), "takes m steps"),
        ("a prefill of its own", seats("max(batch) + 1"), "takes m steps"),
        (
            "an unfilled batch is dropped",
            seats(before="answers = answers[: len(answers) // batch_size * batch_size]"),
            "its requests are missing",
        ),
        ("answers one after another", seats("sum(batch)"), "do not follow one another"),
    ],
)

PADDED = """
def padded_inputs(rows, pad):
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    real = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, width - len(row) :] = torch.tensor(row)
        real[number, width - len(row) :] = True
    causal = torch.ones(width, width).tril().bool()
    itself = torch.eye(width).bool()
    mask = (causal & real[:, None, :] & real[:, :, None]) | itself
    positions = (real.cumsum(dim=1) - 1).clamp(min=0)
    return ids, mask, positions
"""


def padded(*changes: tuple[str, str]) -> str:
    source = PADDED
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return source


CUMSUM = "(real.cumsum(dim=1) - 1).clamp(min=0)"
PADDED_INPUTS = Answers(
    right=[
        (
            "lists only",
            """
def padded_inputs(rows, pad):
    width = max(len(row) for row in rows)
    ids, masks, positions = [], [], []
    for row in rows:
        gap = width - len(row)
        ids.append([pad] * gap + list(row))
        positions.append([0] * gap + list(range(len(row))))
        masks.append([[k == q or (k >= gap and k <= q) for k in range(width)] for q in range(width)])
    return ids, masks, positions
""",
        ),
        (
            "NumPy, from the number of pads",
            """
def padded_inputs(rows, pad):
    width = max(map(len, rows))
    gaps = np.array([width - len(row) for row in rows])
    ids = np.array([[pad] * gap + list(row) for gap, row in zip(gaps, rows)])
    column = np.arange(width)
    positions = np.maximum(column[None] - gaps[:, None], 0)
    query, key = column[:, None], column[None, :]
    mask = (key <= query) & (key >= gaps[:, None, None]) | (key == query)
    return ids, mask, positions
""",
        ),
    ],
    wrong=[
        (
            "as found",
            "padded_inputs = padded_inputs_as_found",
            "Pads go to the left",
        ),
        (
            "pads still on the right",
            padded(("width - len(row) :]", ": len(row)]")),
            "Pads go to the left",
        ),
        (
            "positions count pads",
            padded((CUMSUM, "torch.arange(width).repeat(len(rows), 1)")),
            "Positions count the pads",
        ),
        (
            "only the side repaired",
            padded((CUMSUM, "torch.arange(width).repeat(len(rows), 1)"), (" | itself", "")),
            "Positions count the pads",
        ),
        ("pads see nothing", padded((" | itself", "")), "softmax over nothing"),
        ("pads see everything", padded(("| itself", "| ~real[:, :, None]")), "sees itself alone"),
        (
            "pads are visible",
            padded(("causal & real[:, None, :] & real[:, :, None]", "causal & real[:, :, None]")),
            "real token sees pads",
        ),
        (
            "only causal",
            padded(("(causal & real[:, None, :] & real[:, :, None]) | itself", "causal.repeat(len(rows), 1, 1)")),
            "real token sees pads",
        ),
        ("upper triangle", padded(("tril()", "triu()")), "come later"),
        ("not causal", padded((".tril()", "")), "come later"),
        ("negative positions", padded((".clamp(min=0)", "")), "not a negative one"),
        ("positions from 1", padded((CUMSUM, "real.cumsum(dim=1)")), "count from 0"),
        ("pads found by id", padded(("    causal =", "    real = ids != pad\n    causal =")), "go by lengths"),
    ],
)

BANK: dict[str, Answers] = {
    "ch09.q1": RECTANGLE,
    "ch09.q2": JOINING,
    "ch09.q3": LAUNCHING,
    "ch09.q4": SEATS,
    "ch09.q5": PADDED_INPUTS,
}
