"""Chapter 07: answers about slots, softmax in pieces, merging, prefixes, copies and what sharing saves."""

from __future__ import annotations

from answers import Answers

SLOTS = """
def slot_mapping(tables, computed, new, block_size):
    out = []
    for i in range(len(tables)):
        for p in range(computed[i], computed[i] + new[i]):
            out.append({rule})
    return out
"""


def slots(rule: str) -> str:
    return SLOTS.replace("{rule}", rule)


SLOT_MAPPING = Answers(
    right=[
        (
            "torch, no loop over tokens",
            """
def slot_mapping(tables, computed, new, block_size):
    parts = []
    for table, first, count in zip(tables, computed, new):
        p = torch.arange(first, first + count)
        parts.append(torch.tensor(table)[p // block_size] * block_size + p % block_size)
    return torch.cat(parts)
""",
        ),
        (
            "a generator that walks through blocks",
            """
def slot_mapping(tables, computed, new, block_size):
    for table, done, count in zip(tables, computed, new):
        slots = [b * block_size + s for b in table for s in range(block_size)]
        yield from slots[done:done + count]
""",
        ),
        (
            "NumPy, all slots of a table at once",
            """
def slot_mapping(tables, computed, new, block_size):
    rows = []
    for t, c, n in zip(tables, computed, new):
        grid = np.array(t)[:, None] * block_size + np.arange(block_size)
        rows.append(grid.ravel()[c:c + n])
    return np.concatenate(rows).tolist()
""",
        ),
    ],
    wrong=[
        ("blocks taken to lie in order", slots("p"), "lie in no order"),
        ("table sorted", slots("sorted(tables[i])[p // block_size] * block_size + p % block_size"), "sorted table"),
        ("only the first block looked up", slots("tables[i][0] * block_size + p"), "not behind this one"),
        ("block id not multiplied", slots("tables[i][p // block_size] + p % block_size"), "block × block_size"),
        ("slot in the block", slots("p % block_size"), "Where in the pool"),
        ("first slot of the block", slots("tables[i][p // block_size] * block_size"), "Where in the block"),
        (
            "one too early",
            slots("tables[i][(p - 1) // block_size] * block_size + (p - 1) % block_size"),
            "computed last",
        ),
        (
            "one too late",
            slots("tables[i][(p + 1) // block_size] * block_size + (p + 1) % block_size"),
            "count from 0",
        ),
        (
            "start of the request overwritten",
            """
def slot_mapping(tables, computed, new, block_size):
    return [t[p // block_size] * block_size + p % block_size for t, n in zip(tables, new) for p in range(n)]
""",
            "overwrites the start",
        ),
        (
            "new taken for the end",
            """
def slot_mapping(tables, computed, new, block_size):
    rows = zip(tables, computed, new)
    return [t[p // block_size] * block_size + p % block_size for t, c, n in rows for p in range(c, n)]
""",
            "not the position where they end",
        ),
        (
            "everybody's tokens in one table",
            slots("tables[0][p // block_size] * block_size + p % block_size"),
            "of its own",
        ),
        (
            "a list for each request",
            """
def slot_mapping(tables, computed, new, block_size):
    rows = zip(tables, computed, new)
    return [[t[p // block_size] * block_size + p % block_size for p in range(c, c + n)] for t, c, n in rows]
""",
            "One flat list",
        ),
    ],
)

ONLINE = """
def attend(blocks):
    maximum, total, output = {start}, 0.0, 0.0
    for scores, values in blocks:
        new = max(maximum, scores.max().item())
        {skip}
        factor = math.exp(maximum - new)
        weights = torch.exp(scores - new)
        total = total * {sum} + weights.sum()
        output = output * {out} + weights @ values
        maximum = new
    return output / total
"""
SKIP = "if new == -math.inf: continue"


def online(out: str = "factor", total: str = "factor", start: str = "-math.inf", skip: str = SKIP) -> str:
    return ONLINE.replace("{out}", out).replace("{sum}", total).replace("{start}", start).replace("{skip}", skip)


ATTEND = Answers(
    right=[
        (
            "NumPy",
            """
def attend(blocks):
    m, z, acc = -np.inf, 0.0, np.zeros(blocks[0][1].shape[1])
    for s, v in blocks:
        s, v = np.asarray(s), np.asarray(v)
        m_new = max(m, s.max())
        if np.isneginf(m_new):
            continue
        keep, w = np.exp(m - m_new), np.exp(s - m_new)
        z, acc, m = z * keep + w.sum(), acc * keep + w @ v, m_new
    return acc / z
""",
        ),
        (
            "score by score, plain Python",
            """
def attend(blocks):
    best, norm, acc = None, 0.0, [0.0] * blocks[0][1].shape[1]
    for scores, values in blocks:
        for score, value in zip(scores.tolist(), values.tolist()):
            if score == float("-inf"):
                continue
            if best is None or score > best:
                shrink = 0.0 if best is None else math.exp(best - score)
                norm, acc, best = norm * shrink, [a * shrink for a in acc], score
            weight = math.exp(score - best)
            norm += weight
            acc = [a + weight * x for a, x in zip(acc, value)]
    return [a / norm for a in acc]
""",
        ),
        (
            "a running mean: divided at each step, and multiplied again",
            """
def attend(blocks):
    top, total, mean = torch.tensor(-math.inf, dtype=torch.float64), 0.0, 0.0
    for scores, values in blocks:
        if (scores == -math.inf).all():
            continue
        new = torch.maximum(top, scores.max())
        old = total * torch.exp(top - new)
        weights = torch.exp(scores - new)
        total = old + weights.sum()
        mean = (mean * old + weights @ values) / total
        top = new
    return mean
""",
        ),
    ],
    wrong=[
        ("the code as found", "attend = attend_as_found", "output is never rescaled"),
        ("only the hidden blocks repaired", online(out="1"), "output is never rescaled"),
        ("sum not rescaled", online(total="1"), "sum is never rescaled"),
        ("nothing rescaled", online("1", "1"), "Nothing is rescaled"),
        (
            "factor upside down",
            online(skip=SKIP + "\n        if maximum == -math.inf: maximum = new").replace(
                "math.exp(maximum - new)", "math.exp(new - maximum)"
            ),
            "upside down",
        ),
        ("NaN in a hidden block", online(skip="pass"), "-inf - -inf"),
        ("maximum starts at 0", online(start="0.0"), "start at -inf"),
        (
            "no maximum",
            """
def attend(blocks):
    total = sum(scores.exp().sum() for scores, _ in blocks)
    return sum(scores.exp() @ values for scores, values in blocks) / total
""",
            "overflows",
        ),
        (
            "mean of the blocks' results",
            """
def attend(blocks):
    seen = [(s, v) for s, v in blocks if s.max() > -math.inf]
    return sum(s.softmax(0) @ v for s, v in seen) / len(seen)
""",
            "approximation",
        ),
        (
            "low blocks skipped",
            online(skip="if scores.max() < maximum or new == -math.inf: continue"),
            "may not be skipped",
        ),
        (
            "a softmax for each block, added",
            """
def attend(blocks):
    return sum(s.softmax(0) @ v for s, v in blocks if s.max() > -math.inf)
""",
            "Divide once",
        ),
        (
            "the last block alone",
            "def attend(blocks):\n    return blocks[-1][0].softmax(0) @ blocks[-1][1]",
            "last block alone",
        ),
    ],
)

MERGE = """
def merge(left, right):
    (lm, lt, lo), (rm, rt, ro) = left, right
    m = torch.maximum(lm, rm)
    lf, rf = torch.exp(lm - m), torch.exp(rm - m)
    {body}
"""


def merging(total: str, output: str, maximum: str = "m", before: str = "pass") -> str:
    return MERGE.replace("{body}", f"{before}\n    return {maximum}, {total}, {output}")


TOTAL, OUTPUT = "lt * lf + rt * rf", "lo * lf[:, None] + ro * rf[:, None]"
MERGED = Answers(
    right=[
        (
            "head by head in Python",
            """
def merge(left, right):
    heads = []
    for lm, lt, lo, rm, rt, ro in zip(*left, *right):
        m = max(lm.item(), rm.item())
        a, b = math.exp(lm - m), math.exp(rm - m)
        heads.append((torch.tensor(m).double(), lt * a + rt * b, lo * a + ro * b))
    return tuple(torch.stack(parts) for parts in zip(*heads))
""",
        ),
        (
            "NumPy over a stack of both",
            """
def merge(left, right):
    m, t, o = (np.stack([np.asarray(a), np.asarray(b)]) for a, b in zip(left, right))
    top = m.max(0)
    f = np.exp(m - top)
    return top, (t * f).sum(0), (o * f[..., None]).sum(0)
""",
        ),
        (
            "rescaled only where the other one is larger",
            """
def merge(left, right):
    swap = right[0] > left[0]
    gap = torch.exp(-(left[0] - right[0]).abs())
    a, b = torch.where(swap, gap, torch.ones_like(gap)), torch.where(swap, torch.ones_like(gap), gap)
    total = a * left[1] + b * right[1]
    output = a.unsqueeze(-1) * left[2] + b.unsqueeze(-1) * right[2]
    return torch.where(swap, right[0], left[0]), total, output
""",
        ),
    ],
    wrong=[
        ("added as they are", merging("lt + rt", "lo + ro"), "relative to its own maximum"),
        ("output not rescaled", merging(TOTAL, "lo + ro"), "The sum is rescaled, the output is not"),
        ("sum not rescaled", merging("lt + rt", OUTPUT), "The output is rescaled, the sum is not"),
        ("factors upside down", merging(TOTAL, OUTPUT, before="lf, rf = 1 / lf, 1 / rf"), "upside down"),
        ("only the left one", merging(TOTAL, OUTPUT, before="rf = torch.ones_like(rf)"), "Only one half"),
        ("only the right one", merging(TOTAL, OUTPUT, before="lf = torch.ones_like(lf)"), "Only one half"),
        (
            "left minus right",
            merging(TOTAL, OUTPUT, before="lf, rf = torch.exp(lm - rm), torch.ones_like(rm)"),
            "left half",
        ),
        ("factors swapped", merging(TOTAL, OUTPUT, before="lf, rf = rf, lf"), "swapped"),
        ("divided too early", merging(TOTAL, f"({OUTPUT}) / ({TOTAL})[:, None]"), "Do not divide"),
        ("mean of results", merging(TOTAL, "(lo / lt[:, None] + ro / rt[:, None]) / 2"), "mean of the two"),
        ("maximum of the right one", merging(TOTAL, OUTPUT, maximum="rm"), "larger of the two"),
        (
            "one maximum for all heads",
            merging("lt + rt", "lo + ro", maximum="m.max()"),
            "larger of the two, head by head",
        ),
        ("factor without a last dimension", merging(TOTAL, "lo * lf + ro * rf"), "last dimension"),
        (
            "NaN from the half that saw nothing",
            merging(TOTAL, OUTPUT, before="m = torch.minimum(lm, rm); lf, rf = torch.exp(lm - m), torch.exp(rm - m)"),
            "NaN",
        ),
    ],
)

PREFIX = """
class PrefixCache:
    def __init__(self, block_size):
        self.size, self.known = block_size, set()

    def keys(self, tokens):
        return [tuple(tokens[: i + self.size]) for i in range(0, len(tokens) - self.size + 1, self.size)]

    def remember(self, tokens):
        self.known.update(self.keys(tokens))

    def find(self, tokens):
        found = 0
        for key in self.keys(tokens[:-1]):
            if key not in self.known:
                break
            found += self.size
        return found
"""


def prefix(*changes: tuple[str, str]) -> str:
    source = PREFIX
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return source


OWN_TOKENS = ("tuple(tokens[: i + self.size])", "tuple(tokens[i : i + self.size])")
BY_PLACE = ("tuple(tokens[: i + self.size])", "(i, tuple(tokens[i : i + self.size]))")
PREFIX_CACHE = Answers(
    right=[
        ("keys are whole prefixes", prefix()),
        (
            "a tree of blocks",
            """
class PrefixCache:
    def __init__(self, block_size):
        self.block_size, self.root = block_size, {}

    def remember(self, tokens):
        node = self.root
        for start in range(0, len(tokens) // self.block_size * self.block_size, self.block_size):
            node = node.setdefault(tuple(tokens[start : start + self.block_size]), {})

    def find(self, tokens):
        node, start = self.root, 0
        while start + self.block_size < len(tokens):
            node = node.get(tuple(tokens[start : start + self.block_size]))
            if node is None:
                break
            start += self.block_size
        return start
""",
        ),
        (
            "sha256 chained, a count of blocks",
            """
import hashlib

class PrefixCache:
    def __init__(self, block_size):
        self.n = block_size
        self.seen = {}

    def hashes(self, tokens, count):
        parent = b""
        for b in range(count):
            block = ",".join(str(t) for t in tokens[b * self.n:(b + 1) * self.n])
            parent = hashlib.sha256(parent + block.encode()).digest()
            yield parent

    def remember(self, tokens):
        for h in self.hashes(tokens, len(tokens) // self.n):
            self.seen[h] = True

    def find(self, tokens):
        usable = (len(tokens) - 1) // self.n
        hits = 0
        for h in self.hashes(tokens, usable):
            if not self.seen.get(h):
                return hits * self.n
            hits += 1
        return hits * self.n
""",
        ),
    ],
    wrong=[
        ("covers the last token", prefix(("tokens[:-1]", "tokens")), "covered the last token"),
        ("blocks by their own tokens", prefix(OWN_TOKENS), "Chain the blocks"),
        ("blocks by place and tokens", prefix(BY_PLACE), "equal place"),
        ("goes on after a gap", prefix(BY_PLACE, ("break", "continue")), "went on after a block"),
        ("goes on after a gap, tokens alone", prefix(OWN_TOKENS, ("break", "continue")), "went on after a block"),
        (
            "one token less than all",
            prefix(("tokens[:-1]", "tokens"), ("return found", "return min(found, len(tokens) - 1)")),
            "ends at a whole block",
        ),
        (
            "always one block less",
            prefix(("tokens[:-1]", "tokens"), ("return found", "return max(0, found - self.size)")),
            "One block too few",
        ),
        ("counts blocks", prefix(("found += self.size", "found += 1")), "Tokens are asked"),
        (
            "forgets",
            prefix(("self.known.update(self.keys(tokens))", "self.known = set(self.keys(tokens))")),
            "nothing is forgotten",
        ),
        (
            "finding remembers",
            prefix(("return found", "self.remember(tokens)\n        return found")),
            "only `remember` adds",
        ),
        (
            "to the token",
            """
class PrefixCache:
    def __init__(self, block_size):
        self.prompts = []
    def remember(self, tokens):
        self.prompts.append(tokens)
    def find(self, tokens):
        best = 0
        for known in self.prompts:
            n = 0
            while n < min(len(known), len(tokens) - 1) and known[n] == tokens[n]:
                n += 1
            best = max(best, n)
        return best
""",
            "Only whole blocks",
        ),
        (
            "whole prompts",
            """
class PrefixCache:
    def __init__(self, block_size):
        self.size, self.prompts = block_size, set()
    def remember(self, tokens):
        self.prompts.add(tuple(tokens))
    def find(self, tokens):
        return (len(tokens) - 1) // self.size * self.size if tuple(tokens) in self.prompts else 0
""",
            "equal as a whole",
        ),
        ("nothing is known", prefix(("self.known.update(self.keys(tokens))", "pass")), "Nothing was found"),
        (
            "partly filled blocks too",
            prefix(
                ("range(0, len(tokens) - self.size + 1, self.size)", "range(0, len(tokens), self.size)"),
                ("tokens[:-1]", "tokens"),
                ("return found", "return min(found, len(tokens))"),
            ),
            "partly filled block cannot be found",
        ),
    ],
)

TABLES = """
class Tables(TablesAsFound):
    def append(self, name):
        table, (logical, slot) = self.tables[name], divmod(self.lengths[name], self.block_size)
        self.lengths[name] += 1
        if slot == 0:
            table.append(self.take())
            return None
        old = table[logical]
        if self.counts[old] == 1:
            return None
        self.counts[old] -= 1
        table[logical] = self.take()
        return old, table[logical]

    def end(self, name):
        for block in self.tables.pop(name):
            self.counts[block] -= 1
            if self.counts[block] == 0:
                self.free_blocks.append(block)
"""


def tables(*changes: tuple[str, str]) -> str:
    source = TABLES
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return source


TABLES_BANK = Answers(
    right=[
        (
            "counts looked up in the tables themselves",
            """
class Tables(TablesAsFound):
    def holders(self, block):
        return sum(block in t for t in self.tables.values())

    def append(self, name):
        n = self.lengths[name]
        moved = None
        if n % self.block_size:
            last = self.tables[name][-1]
            if self.holders(last) > 1:
                fresh = self.free_blocks.pop()
                self.counts[fresh] = 1
                self.tables[name][-1] = fresh
                moved = [last, fresh]
        else:
            fresh = self.free_blocks.pop()
            self.counts[fresh] = 1
            self.tables[name].append(fresh)
        self.lengths[name] = n + 1
        return moved

    def end(self, name):
        mine = self.tables.pop(name)
        self.free_blocks.extend(b for b in mine if not self.holders(b))
""",
        ),
        (
            "built on the methods as found",
            """
class Tables(TablesAsFound):
    def append(self, name):
        logical, slot = divmod(self.lengths[name], self.block_size)
        super().append(name)
        block = self.tables[name][logical]
        if slot and self.counts[block] > 1:
            self.counts[block] -= 1
            self.tables[name][logical] = self.take()
            return (block, self.tables[name][logical])

    def end(self, name):
        kept = []
        for block in self.tables[name]:
            self.counts[block] -= 1
            if self.counts[block]:
                kept.append(block)
        self.tables[name] = [b for b in self.tables[name] if b not in kept]
        super().end(name)
""",
        ),
    ],
    wrong=[
        ("nothing repaired", "class Tables(TablesAsFound):\n    pass", "shared block was written"),
        (
            "only the end repaired",
            tables(("if self.counts[old] == 1:", "if True:")),
            "shared block was written",
        ),
        (
            "only the write repaired",
            tables(
                (
                    "            self.counts[block] -= 1\n            if self.counts[block] == 0:\n    ",
                    "            if True:\n    ",
                )
            ),
            "freed while others still held it",
        ),
        ("never freed", tables(("self.counts[block] == 0", "False")), "Blocks are lost"),
        ("the last holder copies too", tables(("self.counts[old] == 1", "False")), "last holder copies nothing"),
        ("count of the old block not lowered", tables(("self.counts[old] -= 1", "pass")), "Too many copies"),
        (
            "the table keeps the old block",
            tables(("table[logical] = self.take()\n        return old, table[logical]", "return old, self.take()")),
            "name the new block",
        ),
        (
            "copied the wrong way",
            tables(("return old, table[logical]", "return table[logical], old")),
            "were not copied",
        ),
        ("copy not returned", tables(("return old, table[logical]", "return None")), "were not copied"),
        (
            "block taken without a count",
            tables(("table[logical] = self.take()", "table[logical] = self.free_blocks.pop(0)")),
            "take()",
        ),
        (
            "copied at the fork",
            """
class Tables(TablesAsFound):
    def fork(self, parent, child):
        self.tables[child] = [self.take() for _ in self.tables[parent]]
        self.lengths[child] = self.lengths[parent]
""",
            "were not copied",
        ),
        (
            "freed when counted down once, whoever holds it",
            tables(("self.counts[block] == 0", "self.counts[block] <= 1")),
            "freed while others still held it",
        ),
        (
            "only the last block goes back",
            tables(("for block in self.tables.pop(name):", "for block in self.tables.pop(name)[-1:]:")),
            "Blocks are lost",
        ),
        (
            "whoever ended keeps a table",
            tables(("self.tables.pop(name)", "self.tables[name]")),
            "still has a table",
        ),
        ("lengths as they were", tables(("self.lengths[name] += 1", "pass")), "each `append` is one more"),
    ],
)


def sharing(held: str, saving: str = "1 - held / unshared") -> str:
    return f"""
def sharing(prompt, written, samples, block_size):
    up = lambda tokens: math.ceil(tokens / block_size)
    table = up(prompt + written)
    unshared = samples * table
    full = prompt // block_size if written else table
    held = {held}
    return held, {saving}
"""


RIGHT_HELD = "full + samples * (table - full)"
SHARING = Answers(
    right=[
        (
            "sets of blocks",
            """
def sharing(prompt, written, samples, block_size):
    held = set()
    entries = 0
    for s in range(samples):
        for block in range(-(-(prompt + written) // block_size)):
            mine = written > 0 and (block + 1) * block_size > prompt
            held.add((s if mine else None, block))
            entries += 1
    return len(held), 1 - len(held) / entries
""",
        ),
        (
            "saved blocks first",
            """
def sharing(prompt, written, samples, block_size):
    table = (prompt + written + block_size - 1) // block_size
    shared = table if written == 0 else prompt // block_size
    saved = (samples - 1) * shared
    return [samples * table - saved, saved / (samples * table)]
""",
        ),
        (
            "NumPy",
            """
def sharing(prompt, written, samples, block_size):
    blocks = np.arange(np.ceil((prompt + written) / block_size))
    own = (blocks + 1) * block_size > prompt if written else np.zeros(len(blocks), bool)
    held = int(np.where(own, samples, 1).sum())
    return held, float(1 - held / (samples * len(blocks)))
""",
        ),
    ],
    wrong=[
        (
            "the partly filled block stays shared",
            sharing("up(prompt) + samples * (table - up(prompt))"),
            "partly filled block is not shared",
        ),
        (
            "answers in blocks of their own",
            sharing("prompt // block_size + samples * up(written)"),
            "blocks of prompt and answer together",
        ),
        (
            "answers in blocks of their own, rounded up",
            sharing("up(prompt) + samples * up(written)"),
            "blocks of prompt and answer together",
        ),
        (
            "nothing written overlooked",
            sharing("prompt // block_size + samples * (table - prompt // block_size)"),
            "nothing was copied",
        ),
        ("nothing shared", sharing("samples * table"), "share the full blocks"),
        (
            "tokens counted",
            sharing(RIGHT_HELD, "(samples - 1) * prompt / (samples * (prompt + written))"),
            "whole blocks",
        ),
        ("one sequence too many", sharing("full + (samples + 1) * (table - full)"), "as many tables as samples"),
        ("share in use", sharing(RIGHT_HELD, "held / unshared"), "asked is the share saved"),
        ("per cent", sharing(RIGHT_HELD, "100 * (1 - held / unshared)"), "not per cent"),
        ("share of those in use", sharing(RIGHT_HELD, "(unshared - held) / held"), "without sharing"),
        (
            "blocks saved",
            sharing(RIGHT_HELD).replace("return held,", "return unshared - held,"),
            "how many blocks are saved",
        ),
    ],
)

BANK: dict[str, Answers] = {
    "ch07.q1": SLOT_MAPPING,
    "ch07.q2": ATTEND,
    "ch07.q3": MERGED,
    "ch07.q4": PREFIX_CACHE,
    "ch07.q5": TABLES_BANK,
    "ch07.q6": SHARING,
}
