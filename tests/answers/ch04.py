"""Chapter 04: answers about a server by hand, ways to be empty, best fit, histories that fragment, and blocks."""

from __future__ import annotations

from answers import Answers
from answers.editing import changed

# ---- q1: a server by hand --------------------------------------------------------------------------------------------


def server(**changed_parts: str) -> str:
    """The dictionary of question 1, with some entries other than right."""
    right = {
        "bytes_per_token": "196_608",
        "slots": "38_229",
        "reserve_max": "9",
        "first_fit": "42",
        "buddy": "37",
        "last_block": "12",
        "compaction_ms": "7.86432",
    }
    entries = {**right, **changed_parts}
    return "server = {" + ", ".join(f'"{key}": {value}' for key, value in entries.items()) + "}"


SERVER = Answers(
    right=[
        ("plain numbers", server()),
        (
            "NumPy scalars and floats",
            """
            token = np.prod([2, 48, 8, 128, 2])
            slots = np.floor(7 * 2**30 / token)
            server = dict(bytes_per_token=token, slots=slots, reserve_max=np.floor(slots / 4096))
            server["first_fit"], server["buddy"] = slots // 900, slots // 1024
            server["last_block"] = -900 % 16
            server["compaction_ms"] = torch.tensor(40_000 * 196_608 / 1e9)
            """,
        ),
    ],
    wrong=[
        ("keys only", server(bytes_per_token="48 * 8 * 128 * 2"), "a key and a value"),
        ("query heads cached", server(bytes_per_token="2 * 48 * 40 * 128 * 2"), "Only the KV heads"),
        ("one layer", server(bytes_per_token="2 * 8 * 128 * 2"), "Every layer"),
        ("GB for GiB", server(slots="7_000_000_000 // 196_608"), "2³⁰"),
        ("a third of a request", server(reserve_max="38_229 / 4096"), "Requests come whole"),
        ("rounded up", server(first_fit="43"), "Round down"),
        ("window forgotten", server(reserve_max="42"), "reserves the window"),
        ("buddy without rounding", server(buddy="42"), "powers of two"),
        ("only the largest tree", server(buddy="32"), "smaller ones"),
        ("paging wastes nothing", server(last_block="0"), "not nothing"),
        ("the tokens of the last block", server(last_block="900 % 16"), "How many of its slots are empty"),
        ("the average", server(last_block="7.5"), "average over all lengths"),
        ("compaction is free", server(compaction_ms="0"), "not free"),
        ("only written", server(compaction_ms="3.93216"), "writes it again"),
        ("seconds", server(compaction_ms="0.00786432"), "milliseconds are asked"),
        ("a number as text", server(slots="'38,229 slots'"), "as a number"),
        ("an entry forgotten", "server = {'slots': 38_229}", 'no entry "bytes_per_token"'),
    ],
)

# ---- q2: four ways to be empty ---------------------------------------------------------------------------------------

CENSUS = """
def census(kind, prompt, output, written):
    now, end = prompt + written, prompt + output
    if kind == "paged":
        asked = given = -(-now // 16) * 16
    else:
        if kind == "reserve-max":
            asked = 2048
        elif kind == "oracle":
            asked = end
        else:
            asked = prompt + (1 << (output - 1).bit_length())
            asked = min(asked, 2048)
        given = 1 << (asked - 1).bit_length()
    reserved = min(asked, end) - now
    internal = asked - now - reserved
    rounding = given - asked
    return {"tokens": now, "reserved": reserved, "internal": internal, "rounding": rounding}
"""


def census(*changes: str) -> str:
    return changed(CENSUS, *changes)


STATES = Answers(
    right=[
        ("step by step, in whole numbers", CENSUS),
        (
            "a letter a slot, counted",
            """
            def census(kind, prompt, output, written):
                def power(n):
                    p = 1
                    while p < n:
                        p *= 2
                    return p
                asked = {
                    "reserve-max": 2048,
                    "power-of-two": min(prompt + power(output), 2048),
                    "oracle": prompt + output,
                    "paged": math.ceil((prompt + written) / 16) * 16,
                }[kind]
                slots = ["T"] * (prompt + written) + ["r"] * (output - written)
                slots = (slots + ["."] * 2048)[:asked]
                if kind != "paged":
                    slots += ["x"] * (power(asked) - asked)
                names = {"T": "tokens", "r": "reserved", ".": "internal", "x": "rounding"}
                return {name: np.array([s == letter for s in slots]).sum() for letter, name in names.items()}
            """,
        ),
    ],
    wrong=[
        (
            "all empty slots are internal",
            census('"reserved": reserved, "internal": internal', '"reserved": 0, "internal": reserved + internal'),
            "two losses",
        ),
        (
            "all empty slots are reserved",
            census('"reserved": reserved, "internal": internal', '"reserved": reserved + internal, "internal": 0'),
            "an internal slot is never written",
        ),
        (
            "swapped",
            census('"reserved": reserved, "internal": internal', '"reserved": internal, "internal": reserved'),
            "are swapped",
        ),
        (
            "rounding is internal",
            census('internal, "rounding": rounding', 'internal + rounding, "rounding": 0'),
            "It is rounding",
        ),
        ("no rounding", census("given = 1 << (asked - 1).bit_length()", "given = asked"), "rounding is missing"),
        (
            "prompt and output rounded together",
            census("prompt + (1 << (output - 1).bit_length())", "1 << (prompt + output - 1).bit_length()"),
            "rounds the output alone",
        ),
        (
            "output not rounded",
            census("prompt + (1 << (output - 1).bit_length())", "prompt + output"),
            "rounds the output up",
        ),
        ("window ignored", census("asked = min(asked, 2048)", "pass"), "longer than the window"),
        (
            "a power too large where it is one already",
            census("(1 << (output - 1).bit_length())", "(1 << output.bit_length())"),
            "is a power of two already",
        ),
        ("blocks for the whole request", census("-(-now // 16)", "-(-end // 16)"), "Paging reserves nothing"),
        ("a block too many", census("-(-now // 16) * 16", "(now // 16 + 1) * 16"), "One block too many"),
        (
            "paging wastes nothing",
            census("    reserved = min", "    if kind == 'paged': asked = given = now\n    reserved = min"),
            "not nothing",
        ),
        (
            "paged requests reserve up to their end",
            census("min(asked, end) - now", "end - now", "asked - now - reserved", "max(0, asked - end)"),
            "last block still holds",
        ),
        (
            "blocks rounded to a power of two",
            census(
                "asked = given = -(-now // 16) * 16",
                "asked = -(-now // 16) * 16; given = 1 << (asked - 1).bit_length()",
            ),
            "need no power of two",
        ),
        ("prompt not counted", census('"tokens": now', '"tokens": written'), "prompt's tokens"),
        (
            "all of the output taken as written",
            census('"tokens": now, "reserved": reserved', '"tokens": end, "reserved": 0'),
            "still to come",
        ),
    ],
)

# ---- q3: best fit ----------------------------------------------------------------------------------------------------

RUNS = """
class BestFit:
    def __init__(self, capacity):
        self.capacity, self.used, self.free = capacity, {}, [(0, capacity)]

    def gaps(self):
        return [gap for gap in sorted(self.free) if gap[1]]

    def take(self, size):
        best = None
        for start, free in self.gaps():
            if free >= size and (best is None or free < best[1]):
                best = (start, free)
        if best is None:
            return None
        self.free.remove(best)
        self.free.append((best[0] + size, best[1] - size))
        self.used[best[0]] = size
        return best[0]

    def give(self, start):
        size = self.used.pop(start)
        for s, f in self.gaps():
            if s + f == start:
                self.free.remove((s, f))
                start, size = s, size + f
        for s, f in self.gaps():
            if start + size == s:
                self.free.remove((s, f))
                size += f
        self.free.append((start, size))

    def compact(self):
        moved, top, used = {}, 0, {}
        for start, size in sorted(self.used.items()):
            if start != top:
                moved[start] = top
            used[top] = size
            top += size
        self.used, self.free = used, [(top, self.capacity - top)]
        return moved
"""


def runs(*changes: str) -> str:
    return changed(RUNS, *changes)


BEST_FIT = Answers(
    right=[
        ("a list of gaps that merge as they come back", RUNS),
        (
            "one letter a slot, NumPy",
            """
            class BestFit:
                def __init__(self, capacity):
                    self.owner = np.full(capacity, -1)

                def gaps(self):
                    edges = np.flatnonzero(np.diff(np.concatenate([[0], self.owner == -1, [0]])))
                    return [(a, b - a) for a, b in edges.reshape(-1, 2)]

                def take(self, size):
                    fitting = sorted(((n, s) for s, n in self.gaps() if n >= size))
                    if fitting:
                        start = fitting[0][1]
                        self.owner[start:start + size] = start
                        return start

                def give(self, start):
                    if not (self.owner == start).any():
                        raise KeyError(f"no run at {start}")
                    self.owner[self.owner == start] = -1

                def compact(self):
                    starts, counts = np.unique(self.owner[self.owner >= 0], return_counts=True)
                    news = np.cumsum(counts) - counts
                    self.owner[:] = -1
                    self.owner[:counts.sum()] = np.repeat(news, counts)
                    return {old: new for old, new in zip(starts, news) if old != new}
            """,
        ),
        (
            "sorted lists of starts and ends",
            """
            class BestFit:
                def __init__(self, capacity):
                    self.capacity, self.runs = capacity, []

                def gaps(self):
                    out, top = [], 0
                    for start, end in self.runs + [(self.capacity, self.capacity)]:
                        if start > top:
                            out.append((start, top) and (top, start - top))
                        top = end
                    return out

                def take(self, size):
                    fits = [gap for gap in self.gaps() if gap[1] >= size]
                    if not fits:
                        return None
                    start = min(fits, key=lambda gap: gap[1])[0]
                    self.runs = sorted(self.runs + [(start, start + size)])
                    return start

                def give(self, start):
                    kept = [run for run in self.runs if run[0] != start]
                    if len(kept) == len(self.runs):
                        raise KeyError(start)
                    self.runs = kept

                def compact(self):
                    before, top = self.runs, 0
                    self.runs = []
                    for start, end in before:
                        self.runs.append((top, top + end - start))
                        top += end - start
                    return {a[0]: b[0] for a, b in zip(before, self.runs) if a != b}
            """,
        ),
    ],
    wrong=[
        ("first fit", runs("or free < best[1]", ""), "That is first fit"),
        ("worst fit", runs("free < best[1]", "free > best[1]"), "worst fit"),
        ("the highest of equal gaps", runs("free < best[1]", "free <= best[1]"), "take the lowest"),
        ("no merging", runs("if s + f == start", "if False", "if start + size == s", "if False"), "do not merge"),
        ("merges with the gap before only", runs("if start + size == s", "if False"), "only with the one before"),
        ("merges with the gap after only", runs("if s + f == start", "if False"), "only with the one after"),
        (
            "the whole gap is given",
            runs("self.free.append((best[0] + size, best[1] - size))", "pass"),
            "What is left of a gap stays free",
        ),
        (
            "accepts a second give",
            runs("size = self.used.pop(start)", "size = self.used.pop(start, 0)\n        if not size: return"),
            "raise KeyError",
        ),
        (
            "compaction on paper only",
            runs("self.used, self.free = used, [(top, self.capacity - top)]", "pass"),
            "at their new places",
        ),
        (
            "sorted by size",
            runs("sorted(self.used.items())", "sorted(self.used.items(), key=lambda run: -run[1])"),
            "keeps the order",
        ),
        ("runs that stay are moved too", runs("if start != top", "if True"), "nothing is copied"),
        ("new to old", runs("moved[start] = top", "moved[top] = start"), "old start -> new start"),
    ],
)

# ---- q4: histories ---------------------------------------------------------------------------------------------------


def histories(first_fit: str = "", buddy: str = "", both: str = "") -> str:
    """Three histories, each written as "t1 t4 g0 t4"."""
    texts = {
        "only first fit refuses": first_fit or "t1 t4 g0 t4",
        "only buddy refuses": buddy or "t1 t2 t2 t2 g1 g2 t4",
        "both refuse": both or "t1 t2 t2 g0 t4",
    }
    entries = []
    for key, text in texts.items():
        actions = ", ".join(f'("{"take" if a[0] == "t" else "give"}", {a[1:]})' for a in text.split())
        entries.append(f'"{key}": [{actions}]')
    return "histories = {" + ", ".join(entries) + "}"


HISTORIES = Answers(
    right=[
        ("the shortest ones", histories()),
        ("others", histories("t1 t2 t4 g0 t2", "t2 t2 t2 t2 g1 g2 t4", "t2 t2 t2 t1 g0 g2 t4")),
        (
            "found by a search",
            """
            def first_fit(used, size):
                for start in range(9 - size):
                    if not used & set(range(start, start + size)):
                        return start

            def buddy(used, size):
                def whole(start, block):
                    while block > size and used & set(range(start, start + block)):
                        block //= 2
                    return block
                places = [s for s in range(0, 8, size) if not used & set(range(s, s + size))]
                def free_block(start):  # the largest aligned free block around it
                    block = size
                    while block < 8:
                        larger = start // (2 * block) * 2 * block
                        if used & set(range(larger, larger + 2 * block)):
                            break
                        block *= 2
                    return block
                return min(places, key=lambda s: (free_block(s), s), default=None)

            def search():
                found, frontier = {}, [((), (), ())]
                while len(found) < 3:
                    following = []
                    for history, *memories in frontier:
                        for size in (1, 2, 4, 8):
                            used = [set(x for start, n in m if n for x in range(start, start + n)) for m in memories]
                            places = [first_fit(used[0], size), buddy(used[1], size)]
                            new = history + (("take", size),)
                            refused = [p is None for p in places]
                            if len(used[0]) + size <= 8 and any(refused):
                                name = {(1, 0): "only first fit refuses", (0, 1): "only buddy refuses"}
                                found.setdefault(name.get(tuple(map(int, refused)), "both refuse"), list(new))
                            if not any(refused):
                                following.append((new, *(m + ((p, size),) for m, p in zip(memories, places))))
                        for i in range(len(memories[0])):
                            if memories[0][i][1]:
                                kept = [m[:i] + ((0, 0),) + m[i + 1:] for m in memories]
                                following.append((history + (("give", i),), *kept))
                    frontier = following
                return found

            histories = search()
            """,
        ),
    ],
    wrong=[
        ("the example", histories("t2 t4 g0 t2"), "Both place it"),
        ("full, not fragmented", histories(both="t4 t2 t2 g1 t4"), "full, not fragmented"),
        ("both refuse where one should place", histories("t1 t2 t2 g0 t4"), "Both refuse it"),
        ("buddy would also place", histories(both="t1 t4 g0 t4"), "still has a place"),
        ("the two mixed up", histories(buddy="t1 t4 g0 t4"), "The other way round"),
        ("too long", histories(both="t1 g0 t1 g1 t1 t2 t2 g2 t4"), "At most 7 actions"),
        ("ends with a give", histories("t1 t4 g0"), "The last action is the take"),
        ("refused on the way", histories("t4 t8 g0 t4"), "Only the last take may be refused"),
        ("given back twice", histories("t1 t4 g0 g0 t4"), "given back once"),
        ("addresses for numbers", histories("t1 t4 g1 g4 t4"), "counts the takes"),
        ("another word for give", histories("t1 t4 g0 t4").replace("give", "free"), 'An action is ("take", size)'),
        ("odd sizes", histories(both="t1 t1 g0 t7"), "powers of two"),
        ("external taken for rounding", histories(buddy="t3 t3 t2"), "powers of two"),
        ("an entry forgotten", "histories = {}", "no entry"),
        ("lists of numbers", 'histories = {"both refuse": [2, 2, -1]}', "lists of pairs"),
    ],
)

# ---- q5: blocks that come back ---------------------------------------------------------------------------------------

PAGED = """
class Paged(PagedAsFound):
    def extend(self, name, num_tokens):
        table = list(self.tables.get(name, []))
        length = self.lengths.get(name, 0) + num_tokens
        needed = math.ceil(length / self.block_size) - len(table)
        if needed > len(self.free_ids):
            return False
        for _ in range(needed):
            table.append(self.free_ids.pop())
        self.tables[name], self.lengths[name] = table, length
        return True

    def shrink(self, name, num_tokens):
        self.lengths[name] -= num_tokens
        keep = math.ceil(self.lengths[name] / self.block_size)
        self.free_ids += self.tables[name][keep:]
        self.tables[name] = self.tables[name][:keep]

    def free(self, name):
        if name not in self.tables:
            raise KeyError(name)
        self.free_ids += self.tables.pop(name)
        del self.lengths[name]
"""


def paged(*changes: str) -> str:
    return changed(PAGED, *changes)


BLOCKS = Answers(
    right=[
        ("blocks taken from the end of the list", PAGED),
        (
            "block by block, and undone if refused",
            """
            class Paged(PagedAsFound):
                def fits(self, name):
                    return len(self.tables[name]) * self.block_size >= self.lengths[name]

                def extend(self, name, num_tokens):
                    new = name not in self.tables
                    if new:
                        self.tables[name], self.lengths[name] = [], 0
                    before = len(self.tables[name])
                    self.lengths[name] += num_tokens
                    while not self.fits(name):
                        if not self.free_ids:
                            self.free_ids += self.tables[name][before:]
                            del self.tables[name][before:]
                            self.lengths[name] -= num_tokens
                            if new:
                                del self.tables[name], self.lengths[name]
                            return False
                        self.tables[name].append(self.free_ids.pop(0))
                    return True

                def shrink(self, name, num_tokens):
                    self.lengths[name] -= num_tokens
                    while (len(self.tables[name]) - 1) * self.block_size >= self.lengths[name]:
                        self.free_ids.append(self.tables[name].pop())

                def free(self, name):
                    del self.lengths[name]
                    self.free_ids.extend(reversed(self.tables.pop(name)))
            """,
        ),
    ],
    wrong=[
        ("as found", "Paged = PagedAsFound", "exactly full needs no other block"),
        (
            "only the exactly full block is left",
            paged("math.ceil(length / self.block_size)", "(length // self.block_size + 1)"),
            "exactly full needs no other block",
        ),
        (
            "a refused request keeps its blocks",
            paged(
                "            return False\n        for",
                "            while self.free_ids: table.append(self.free_ids.pop())\n"
                "            self.tables[name], self.lengths[name] = table, length\n"
                "            return False\n        for",
            ),
            "must leave everything as it was",
        ),
        (
            "shrink rounds down",
            paged("math.ceil(self.lengths[name] / self.block_size)", "self.lengths[name] // self.block_size"),
            "still holds one token",
        ),
        (
            "freed twice",
            paged(
                "if name not in self.tables:\n            raise KeyError(name)\n"
                "        self.free_ids += self.tables.pop(name)\n        del self.lengths[name]",
                "self.free_ids += self.tables[name]\n        self.lengths[name] = 0",
            ),
            "give the same blocks away again",
        ),
        (
            "extend rounds down",
            paged("math.ceil(length / self.block_size)", "length // self.block_size"),
            "partly filled block have no place",
        ),
        ("the last block is never given", paged("needed > len", "needed >= len"), "may be taken too"),
        (
            "shrink keeps one more",
            paged(
                "math.ceil(self.lengths[name] / self.block_size)", "math.ceil(self.lengths[name] / self.block_size) + 1"
            ),
            "holds no token any more",
        ),
        (
            "shrink loses blocks",
            paged("        self.free_ids += self.tables[name][keep:]\n", ""),
            "Blocks are lost",
        ),
        (
            "shrink does not cut the table",
            paged("        self.tables[name] = self.tables[name][:keep]\n", ""),
            "free and still in a table",
        ),
        (
            "a refused request grows",
            paged("        if needed > len", "        self.lengths[name] = length\n        if needed > len"),
            "has not grown",
        ),
        (
            "free says nothing",
            paged("raise KeyError(name)", "return"),
            "mistake of the caller",
        ),
    ],
)

BANK: dict[str, Answers] = {
    "ch04.q1": SERVER,
    "ch04.q2": STATES,
    "ch04.q3": BEST_FIT,
    "ch04.q4": HISTORIES,
    "ch04.q5": BLOCKS,
}
