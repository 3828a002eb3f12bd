"""Answers to the capstone's questions: paged attention, a scheduler, and all four parts together."""

from answers import Answers
from answers.editing import changed

ATTENTION = """
def paged_attention(query, key_cache, value_cache, block_tables, query_starts, seq_lens, scale, mask):
    output = torch.empty_like(query)
    size, kv_heads = key_cache.shape[1], key_cache.shape[2]
    group = query.shape[1] // kv_heads
    for i in range(len(seq_lens)):
        start, stop, length = int(query_starts[i]), int(query_starts[i + 1]), int(seq_lens[i])
        new = stop - start
        blocks = block_tables[i, : math.ceil(length / size)]
        keys = key_cache[blocks].flatten(0, 1)[:length].repeat_interleave(group, dim=1)
        values = value_cache[blocks].flatten(0, 1)[:length].repeat_interleave(group, dim=1)
        allowed = mask(torch.arange(length - new, length), torch.arange(length))
        scores = torch.einsum("qhd,khd->hqk", query[start:stop], keys) * scale
        weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
        output[start:stop] = torch.einsum("hqk,khd->qhd", weights, values)
    return output
"""

ONLINE_ATTENTION = """
def paged_attention(query, key_cache, value_cache, block_tables, query_starts, seq_lens, scale, mask):
    size, group = key_cache.shape[1], query.shape[1] // key_cache.shape[2]
    rows = []
    for table, start, stop, length in zip(block_tables, query_starts[:-1], query_starts[1:], seq_lens):
        for row in range(int(start), int(stop)):
            position = int(length) - int(stop) + row
            allowed = mask(torch.tensor([position]), torch.arange(int(length)))[0]
            best = query.new_full((query.shape[1],), float("-inf"))
            total, mixed = torch.zeros_like(best), torch.zeros_like(query[row])
            for key_position in range(int(length)):
                if not allowed[key_position]:
                    continue
                block = int(table[key_position // size])
                key = key_cache[block, key_position % size].repeat_interleave(group, dim=0)
                value = value_cache[block, key_position % size].repeat_interleave(group, dim=0)
                score = (query[row] * key).sum(dim=-1) * scale
                higher = torch.maximum(best, score)
                old, weight = (best - higher).exp(), (score - higher).exp()
                total, mixed, best = total * old + weight, mixed * old[:, None] + weight[:, None] * value, higher
            rows.append(mixed / total[:, None])
    return torch.stack(rows)
"""

NUMPY_ATTENTION = """
def paged_attention(query, key_cache, value_cache, block_tables, query_starts, seq_lens, scale, mask):
    result = np.zeros(tuple(query.shape))
    q, k, v = (x.numpy().astype(np.float64) for x in (query, key_cache, value_cache))
    head_of = np.arange(q.shape[1]) // (q.shape[1] // k.shape[2])
    for i, n in enumerate(seq_lens.tolist()):
        rows = np.arange(int(query_starts[i]), int(query_starts[i + 1]))
        where = np.arange(n)
        slots = block_tables[i].numpy()[where // k.shape[1]], where % k.shape[1]
        keys, values = k[slots][:, head_of], v[slots][:, head_of]
        seen = np.asarray(mask(torch.arange(n)[n - len(rows) :], torch.arange(n)))
        scores = np.einsum("qhd,khd->hqk", q[rows], keys) * scale
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        result[rows] = np.einsum("hqk,khd->qhd", weights, values)
    return torch.from_numpy(result)
"""

PAGED = Answers(
    right=[
        ("gather, then dense", ATTENTION),
        ("online softmax, a key at a time", ONLINE_ATTENTION),
        ("NumPy in float64", NUMPY_ATTENTION),
        (
            "SDPA",
            """
            def paged_attention(query, key_cache, value_cache, block_tables, query_starts, seq_lens, scale, mask):
                parts = []
                lengths = torch.diff(query_starts).tolist()
                for rows, table, n in zip(query.split(lengths), block_tables, seq_lens.tolist()):
                    slots = torch.arange(n)
                    picked = table[slots // key_cache.shape[1]], slots % key_cache.shape[1]
                    k, v = (cache[picked].transpose(0, 1)[None] for cache in (key_cache, value_cache))
                    seen = mask(slots[n - len(rows) :], slots)
                    out = torch.nn.functional.scaled_dot_product_attention(
                        rows.transpose(0, 1)[None], k, v, attn_mask=seen, scale=scale, enable_gqa=True
                    )
                    parts.append(out[0].transpose(0, 1))
                return torch.cat(parts)
            """,
        ),
    ],
    wrong=[
        (
            "no mask",
            changed(ATTENTION, ".masked_fill(~allowed, float('-inf'))".replace("'", '"'), ""),
            "later positions",
        ),
        (
            "positions from 0",
            changed(ATTENTION, "torch.arange(length - new, length)", "torch.arange(new)"),
            "counted from 0",
        ),
        (
            "without the context",
            changed(ATTENTION, "scores = torch", "allowed[:, : length - new] = False\n        scores = torch"),
            "context before them is forgotten",
        ),
        (
            "without the table",
            changed(
                ATTENTION, "block_tables[i, : math.ceil(length / size)]", "torch.arange(math.ceil(length / size)) + 1"
            ),
            "block table was ignored",
        ),
        (
            "the table sorted",
            changed(ATTENTION, "math.ceil(length / size)]", "math.ceil(length / size)].sort().values"),
            "order is that of the table",
        ),
        (
            "heads tiled",
            ATTENTION.replace(".repeat_interleave(group, dim=1)", ".repeat(1, group, 1)"),
            "h % num_kv_heads",
        ),
        ("no scale", changed(ATTENTION, " * scale", ""), "not multiplied by scale"),
        (
            "masked after the softmax",
            changed(
                ATTENTION,
                'scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)',
                "scores.softmax(dim=-1) * allowed",
            ),
            "no longer add up to 1",
        ),
        ("masked with 0", changed(ATTENTION, 'float("-inf")', "0.0"), "minus infinity"),
        (
            "leftovers read",
            changed(
                ATTENTION.replace("[:length]", ""),
                'masked_fill(~allowed, float("-inf"))',
                "masked_fill(~torch.nn.functional.pad(allowed, (0, scores.shape[-1] - length), value=True), "
                'float("-inf"))',
            ).replace(
                "torch.arange(length - new, length), torch.arange(length)",
                "torch.full((new,), length - 1), torch.arange(length)",
            ),
            "leftovers of others",
        ),
        (
            "blocks rounded down",
            changed(
                changed(ATTENTION, "math.ceil(length / size)]", "max(1, length // size)]"),
                "        scores = torch",
                "        allowed = allowed[:, : len(keys)]\n        scores = torch",
            ),
            "round the number of blocks up",
        ),
        ("heads flattened", changed(ATTENTION, "return output", "return output.flatten(1)"), "that of query"),
        (
            "the last sequence forgotten",
            changed(
                ATTENTION,
                "torch.empty_like(query)",
                'torch.full_like(query, float("nan"))',
                "range(len(seq_lens))",
                "range(len(seq_lens) - 1)",
            ),
            "never filled in",
        ),
        (
            "a list",
            changed(ATTENTION, "return output", "return output.tolist()"),
            "return a tensor like query",
        ),
    ],
)

SCHEDULER = """
class MyScheduler:
    def __init__(self, token_budget, max_num_seqs):
        self.token_budget = token_budget
        self.max_num_seqs = max_num_seqs

    def schedule(self, running, waiting, blocks):
        plan, left = {}, self.token_budget
        stay = sorted(running, key=lambda request: request.arrival)
        freed, turn = False, 0
        while turn < len(stay) and left > 0:
            request = stay[turn]
            number = min(request.num_tokens - request.num_computed, left)
            while not blocks.allocate(request, request.num_computed + number):
                victim = stay.pop()
                blocks.free(victim)
                freed = True
                if victim is request:
                    return plan
            plan[request] = number
            left -= number
            turn += 1
        if freed:
            return plan
        for request in waiting:
            number = min(request.num_tokens - request.num_computed, left)
            if number == 0 or len(stay) >= self.max_num_seqs:
                break
            if not blocks.allocate(request, number):
                break
            plan[request] = number
            left -= number
            stay.append(request)
        return plan
"""

RECURSIVE_SCHEDULER = """
class MyScheduler:
    def __init__(self, budget, seats):
        self.budget, self.seats = budget, seats

    def schedule(self, running, waiting, blocks):
        gone, plan = set(), {}

        def room(request, end):
            if blocks.allocate(request, end):
                return True
            others = [r for r in running if r not in gone and r not in plan]
            if request in waiting or not others:
                return False
            last = max(others, key=lambda r: (r.arrival, r.name))
            blocks.free(last)
            gone.add(last)
            return last is not request and room(request, end)

        for request in [*running, *waiting]:
            wanted = min(request.num_tokens - request.num_computed, self.budget - sum(plan.values()))
            seated = request in running or len(running) - len(gone) + sum(r in waiting for r in plan) < self.seats
            if request in gone or not wanted or not seated or (request in waiting and gone):
                continue
            if room(request, request.num_computed + wanted):
                plan[request] = wanted
            elif request in waiting:
                break
        return plan
"""

POLICY_SCHEDULER = """
class MyScheduler:
    \"\"\"Shortest first among those who wait; the one with most tokens to lose is preempted last.\"\"\"

    def __init__(self, token_budget, max_num_seqs):
        self.limits = token_budget, max_num_seqs

    def schedule(self, running, waiting, blocks):
        budget, seats = self.limits
        plan = {}
        alive = sorted(running, key=lambda r: (r.arrival, r.name))
        calm = True
        for request in list(alive):
            if request not in alive:
                break
            number = min(budget, request.num_tokens - request.num_computed)
            if not number:
                break
            granted = blocks.allocate(request, request.num_computed + number)
            while not granted and alive[-1] is not request:
                blocks.free(alive.pop())
                calm = False
                granted = blocks.allocate(request, request.num_computed + number)
            if not granted:
                blocks.free(alive.pop())
                return plan
            plan[request] = number
            budget -= number
        if calm:
            for request in sorted(waiting, key=lambda r: r.num_tokens):
                number = min(budget, request.num_tokens)
                if len(alive) < seats and number and blocks.allocate(request, number):
                    plan[request] = number
                    budget -= number
                    alive.append(request)
        return plan
"""

PREEMPT = """                victim = stay.pop()
                blocks.free(victim)
                freed = True
                if victim is request:
                    return plan
"""

SCHEDULING = Answers(
    right=[
        ("two loops", SCHEDULER),
        ("one loop and recursion", RECURSIVE_SCHEDULER),
        ("shortest first", POLICY_SCHEDULER),
    ],
    wrong=[
        (
            "never preempts",
            changed(
                SCHEDULER,
                PREEMPT,
                "                return plan\n",
            ),
            "planned nothing",
        ),
        (
            "one at a time",
            """
            class MyScheduler:
                def __init__(self, token_budget, max_num_seqs):
                    self.token_budget = token_budget

                def schedule(self, running, waiting, blocks):
                    request = (running or waiting)[0]
                    number = min(request.num_tokens - request.num_computed, self.token_budget)
                    blocks.allocate(request, request.num_computed + number)
                    return {request: number}
            """,
            "one at a time",
        ),
        (
            "no budget",
            changed(
                SCHEDULER,
                "min(request.num_tokens - request.num_computed, left)",
                "request.num_tokens - request.num_computed",
                "left -= number",
                "pass",
            ),
            "over the budget",
        ),
        (
            "no seats",
            changed(SCHEDULER, " or len(stay) >= self.max_num_seqs", ""),
            "max_num_seqs is 2",
        ),
        (
            "no chunks",
            changed(SCHEDULER, "number == 0 or", "number < request.num_tokens or"),
            "planned nothing",
        ),
        (
            "no question to the blocks",
            changed(SCHEDULER, "if not blocks.allocate(request, number):", "if False:"),
            "ask blocks.allocate first",
        ),
        (
            "no taken for a yes",
            changed(
                SCHEDULER,
                "while not blocks.allocate(request, request.num_computed + number):",
                "if not blocks.allocate(request, request.num_computed + number) and False:",
            ),
            "take no for an answer",
        ),
        (
            "the last token is forgotten",
            changed(SCHEDULER, "request.num_computed + number):", "request.num_computed):"),
            "its blocks have room for",
        ),
        (
            "all tokens again",
            changed(
                SCHEDULER,
                "request.num_tokens - request.num_computed, left)\n            while",
                "request.num_tokens, left)\n            while",
            ),
            "plan 1 to 1",
        ),
        (
            "the victim stays in the plan",
            changed(SCHEDULER, "victim = stay.pop()", "victim = stay.pop(0)").replace(
                "if victim is request:", "turn -= 1\n                if victim is request:"
            ),
            "you freed them in this step",
        ),
        (
            "those who wait take the blocks of those who run",
            """
            class MyScheduler:
                def __init__(self, token_budget, max_num_seqs):
                    self.token_budget = token_budget

                def schedule(self, running, waiting, blocks):
                    if waiting:
                        for request in running:
                            blocks.free(request)
                    request = (waiting or running)[0]
                    number = min(request.num_tokens - request.num_computed, self.token_budget)
                    blocks.allocate(request, request.num_computed + number)
                    return {request: number}
            """,
            "Let the oldest keep its blocks",
        ),
        (
            "a loop without end",
            changed(
                SCHEDULER,
                PREEMPT,
                "                pass\n",
            ),
            "its loop never ends",
        ),
        (
            "blocks for somebody who does not run",
            changed(
                SCHEDULER,
                "            if not blocks.allocate(request, number):\n                break\n",
                "            if not blocks.allocate(request, number) or plan:\n                break\n",
            ),
            "is not in the plan",
        ),
        ("a list", SCHEDULER.replace("return plan", "return list(plan)"), "return a dictionary"),
        (
            "the engine's own",
            """
            from pagedlab.model_authoring.scheduler import Scheduler

            class MyScheduler(Scheduler):
                pass
            """,
            "engine's own scheduler",
        ),
        ("an object", SCHEDULER + "\nMyScheduler = MyScheduler(8, 3)", "must be a class"),
        (
            "an error of its own",
            changed(SCHEDULER, "plan, left = {}, self.token_budget", "plan, left = {}, self.tokens"),
            "schedule() raised AttributeError",
        ),
    ],
)

MASK = """
def causal_mask(query_positions, key_positions):
    return key_positions[None, :] <= query_positions[:, None]
"""

POOL = """
class MyPool:
    def __init__(self, num_blocks):
        self.free = list(range(1, num_blocks))
        self.holders = [0] * num_blocks

    @property
    def num_free(self):
        return len(self.free)

    def allocate(self):
        block = self.free.pop()
        self.holders[block] = 1
        return block

    def share(self, block):
        self.holders[block] += 1

    def release(self, block):
        self.holders[block] -= 1
        if self.holders[block] == 0:
            self.free.append(block)
"""

DICT_POOL = """
class MyPool:
    def __init__(self, n):
        self.n, self.count = n, {}

    @property
    def num_free(self):
        return self.n - 1 - len(self.count)

    def allocate(self):
        block = next(b for b in range(1, self.n) if b not in self.count)
        self.count[block] = 1
        return block

    def share(self, block):
        self.count[block] = self.count[block] + 1

    def release(self, block):
        if self.count[block] == 1:
            del self.count[block]
        else:
            self.count[block] -= 1
"""

NUMPY_POOL = """
class MyPool:
    def __init__(self, num_blocks):
        self.refs = np.zeros(num_blocks, int)
        self.refs[0] = 1

    def num_free(self):
        return (self.refs == 0).sum()

    def allocate(self):
        block = np.flatnonzero(self.refs == 0)[-1]
        self.refs[block] += 1
        return block

    def share(self, block):
        self.refs[block] += 1

    def release(self, block):
        self.refs[block] -= 1
"""

PARTS = """
parts = {"mask": causal_mask, "pool": MyPool, "scheduler": MyScheduler, "attention": paged_attention}
"""


def engine(mask: str = MASK, pool: str = POOL, scheduler: str = SCHEDULER, attention: str = ATTENTION) -> str:
    """A cell with all four parts."""
    return mask + pool + scheduler + attention + PARTS


ALL_FOUR = Answers(
    right=[
        ("the plain parts", engine()),
        (
            "a mask of broadcasting ge, a pool of a dict, NumPy attention",
            engine(
                "def causal_mask(q, k):\n    return torch.ge(q.unsqueeze(1), k.unsqueeze(0))\n",
                DICT_POOL,
                RECURSIVE_SCHEDULER,
                NUMPY_ATTENTION,
            ),
        ),
        (
            "a mask of nested lists, a NumPy pool",
            engine(
                "def causal_mask(q, k):\n    return [[key <= query for key in k.tolist()] for query in q.tolist()]\n",
                NUMPY_POOL,
                POLICY_SCHEDULER,
            ),
        ),
    ],
    wrong=[
        (
            "mask: sees the future",
            engine(
                mask=changed(
                    MASK,
                    "key_positions[None, :] <= query_positions[:, None]",
                    "torch.ones(len(query_positions), len(key_positions), dtype=torch.bool)",
                )
            ),
            "see the future",
        ),
        ("mask: upside down", engine(mask=changed(MASK, "<=", ">=")), "upside down"),
        (
            "mask: one too far",
            engine(mask=changed(MASK, "<= query_positions[:, None]", "<= query_positions[:, None] + 1")),
            "one position too far",
        ),
        ("mask: not itself", engine(mask=changed(MASK, "<=", "<")), "not even its own"),
        ("mask: itself alone", engine(mask=changed(MASK, "<=", "==")), "itself alone"),
        (
            "mask: row numbers",
            engine(
                mask=changed(
                    MASK,
                    "key_positions[None, :] <= query_positions[:, None]",
                    "torch.ones(len(query_positions), len(key_positions)).tril().bool()",
                )
            ),
            "counts rows from 0",
        ),
        (
            "mask: rows and columns swapped",
            engine(mask=changed(MASK, "return ", "return (").replace("[:, None]\n", "[:, None]).T\n")),
            "rows are queries",
        ),
        (
            "mask: minus infinity",
            engine(mask=changed(MASK, "return ", "return -1e9 * ~(").replace("[:, None]\n", "[:, None])\n")),
            "truth values",
        ),
        (
            "pool: hands out what is in use",
            engine(
                pool=changed(POOL, "self.free.pop()", "self.free[0]").replace(
                    "return len(self.free)", "return self.holders[1:].count(0)"
                )
            ),
            "which is in use",
        ),
        (
            "pool: frees what is shared",
            engine(pool=changed(POOL, "if self.holders[block] == 0:", "if True:")),
            "last holder has given it back",
        ),
        (
            "pool: does not count who shares",
            engine(pool=changed(POOL, "self.holders[block] += 1", "pass")),
            "last holder has given it back",
        ),
        ("pool: leaks", engine(pool=changed(POOL, "self.free.append(block)", "pass")), "have no holder"),
        (
            "pool: block 0 too",
            engine(pool=changed(POOL, "range(1, num_blocks)", "range(num_blocks)")),
            "Block 0 is never handed out",
        ),
        ("pool: returns nothing", engine(pool=changed(POOL, "        return block\n", "")), "allocate() returned None"),
        ("pool: a method forgotten", engine(pool=changed(POOL, "def share", "def sharing")), "has no share"),
        (
            "pool: the engine's own",
            "from pagedlab.model_authoring.block_pool import BlockPool\n"
            + engine(pool="class MyPool(BlockPool): pass\n"),
            "engine's own pool",
        ),
        (
            "scheduler: never preempts",
            engine(scheduler=changed(SCHEDULER, "blocks.free(victim)", "return plan")),
            "planned nothing",
        ),
        (
            "scheduler: the engine's own",
            "from pagedlab.model_authoring.scheduler import Scheduler\n"
            + engine(scheduler="class MyScheduler(Scheduler): pass\n"),
            "engine's own scheduler",
        ),
        (
            "attention: forgets the context",
            engine(
                attention=changed(
                    ATTENTION,
                    "        scores = torch",
                    "        allowed[:, : length - new] = False\n        scores = torch",
                )
            ),
            "with a context behind it",
        ),
        (
            "attention: no table",
            engine(
                attention=changed(
                    ATTENTION,
                    "block_tables[i, : math.ceil(length / size)]",
                    "torch.arange(math.ceil(length / size)) + 1",
                )
            ),
            "Other tokens than the reference",
        ),
        (
            "attention: never asks the mask",
            engine(
                attention=changed(
                    ATTENTION,
                    "mask(torch.arange(length - new, length), torch.arange(length))",
                    "torch.arange(length) <= torch.arange(length - new, length)[:, None]",
                )
            ),
            "your mask is idle",
        ),
        ("attention: no scale", engine(attention=changed(ATTENTION, " * scale", "")), "read wrongly"),
        ("a part forgotten", engine() + "del parts['pool']\n", "has no entry 'pool'"),
    ],
)

CAPSTONE: dict[str, Answers] = {"ch11.q4": PAGED, "ch11.q5": SCHEDULING, "ch11.q6": ALL_FOUR}
