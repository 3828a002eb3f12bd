"""Chapter 06: answers about a long prompt, masks in blocks, one step's plan, a prefill to repair, and a promise."""

from __future__ import annotations

from answers import Answers
from answers.editing import changed

# ---- q1: a long prompt by hand ---------------------------------------------------------------------------------------


def prompt(**changed_parts: str) -> str:
    """The dictionary of question 1, with some entries other than right."""
    right = {
        "scores_gb": "288",
        "mlp_gb": "3.31776",
        "kv_gb": "9.8304",
        "logits_kb": "400",
        "mlp_chunk_gb": "0.22649",
        "kv_chunk_gb": "9.8304",
        "chunks": "15",
        "last_chunk": "2656",
        "tokens_sampled": "1",
        "kv_read_gb": "80.29",
    }
    entries = {**right, **changed_parts}
    return "long_prompt = {" + ", ".join(f'"{key}": {value}' for key, value in entries.items()) + "}"


PROMPT = Answers(
    right=[
        ("plain numbers, rounded", prompt()),
        (
            "NumPy",
            """
            starts = np.arange(0, 60_000, 4096)
            sizes = np.diff(np.append(starts, 60_000))
            token = 163_840
            long_prompt = dict(
                scores_gb=40 * 60_000**2 * 2 / 1e9,
                mlp_gb=np.float64(60_000) * 27_648 * 2 / 1e9,
                mlp_chunk_gb=sizes[0] * 27_648 * 2 / 1e9,
                kv_gb=60_000 * token / 1e9,
                kv_chunk_gb=sizes.sum() * token / 1e9,
                logits_kb=torch.tensor(400.0),
                chunks=len(starts),
                last_chunk=sizes[-1],
                tokens_sampled=1,
                kv_read_gb=(starts + sizes).sum() * token / 1e9,
            )
            """,
        ),
    ],
    wrong=[
        ("scores of one head", prompt(scores_gb="60_000**2 * 2 / 1e9"), "one head"),
        ("scores of KV heads", prompt(scores_gb="8 * 60_000**2 * 2 / 1e9"), "Query heads have scores"),
        ("scores of all layers", prompt(scores_gb="40 * 40 * 60_000**2 * 2 / 1e9"), "One layer is asked"),
        ("gate only", prompt(mlp_gb="60_000 * 13_824 * 2 / 1e9"), "gate and up"),
        ("chunks change no activations", prompt(mlp_chunk_gb="3.31776"), "holds 4,096 rows"),
        ("query heads cached", prompt(kv_gb="60_000 * 2 * 40 * 40 * 128 * 2 / 1e9"), "Only the KV heads"),
        ("chunks bound the cache", prompt(kv_chunk_gb="4096 * 163_840 / 1e9"), "not the cache"),
        ("the last chunk's cache", prompt(kv_chunk_gb="2656 * 163_840 / 1e9"), "not the cache"),
        ("logits of all rows", prompt(logits_kb="60_000 * 100_000 * 4 / 1e3"), "the last row only"),
        ("logits of 16 bits", prompt(logits_kb="200"), "float32"),
        ("chunks rounded down", prompt(chunks="60_000 // 4096"), "Rounded down"),
        ("chunks are blocks", prompt(chunks="60_000 // 16"), "A chunk is not a block"),
        ("the last chunk filled up", prompt(last_chunk="4096"), "not filled up"),
        ("a token a chunk", prompt(tokens_sampled="15"), "yields no token"),
        ("cache read once", prompt(kv_read_gb="9.8304"), "reads again what lies before"),
        ("equal chunks", prompt(kv_read_gb="9.8304 * (15 + 1) / 2"), "equal chunks"),
        ("all of it in every chunk", prompt(kv_read_gb="9.8304 * 15"), "not what comes after"),
        ("cached ones only", prompt(kv_read_gb="163_840 * 4096 * sum(range(15)) / 1e9"), "so the last one reads all"),
        ("an entry forgotten", "long_prompt = {'scores_gb': 288}", 'no entry "mlp_gb"'),
    ],
)

# ---- q2: the mask of a chunk, in blocks ------------------------------------------------------------------------------

MASK = """
def chunk_mask(past, new, block_size):
    end = past + new
    columns = -(-end // block_size) * block_size
    mask = np.zeros((new, columns), bool)
    for row in range(new):
        mask[row, :past + row + 1] = True
    return mask
"""


def mask(*changes: str) -> str:
    return changed(MASK, *changes)


MASKS = Answers(
    right=[
        ("NumPy, row by row", MASK),
        (
            "the last rows of a triangle, padded",
            """
            def chunk_mask(past, new, block_size):
                end = past + new
                triangle = torch.ones(end, end).tril().bool()[past:]
                return torch.cat([triangle, torch.zeros(new, -end % block_size, dtype=torch.bool)], dim=1)
            """,
        ),
        (
            "lists of 0 and 1",
            """
            def chunk_mask(past, new, block_size):
                blocks = math.ceil((past + new) / block_size)
                return [[int(k <= q) for k in range(blocks * block_size)] for q in range(past, past + new)]
            """,
        ),
    ],
    wrong=[
        (
            "no columns for empty slots",
            mask("-(-end // block_size) * block_size", "end"),
            "every slot of the last block",
        ),
        (
            "empty slots visible",
            mask("    return mask", "    mask[:, end:] = True\n    return mask"),
            "hold no key yet",
        ),
        (
            "all True",
            "def chunk_mask(past, new, block_size):\n"
            "    return np.ones((new, math.ceil((past + new) / block_size) * block_size), bool)",
            "Every slot is visible",
        ),
        ("not causal in the chunk", mask(":past + row + 1", ":end"), "chunk's later tokens"),
        ("the cache forgotten", mask(":past + row + 1", "past:past + row + 1"), "forgets the cache"),
        ("rows counted from 0", mask(":past + row + 1", ":row + 1"), "past + i + 1 keys"),
        ("without itself", mask(":past + row + 1", ":past + row"), "sees itself, too"),
        ("upper triangular", mask(":past + row + 1", "past + row:end"), "see the future"),
        ("True hides", mask("return mask", "return ~mask"), "Turned round"),
        (
            "rows of all tokens",
            mask("(new, columns)", "(end, columns)", "range(new)", "range(end)", ":past + row + 1", ":row + 1"),
            "Only the chunk's own tokens",
        ),
        ("one block too many", mask("-(-end // block_size)", "(end // block_size + 1)"), "One block too many"),
        ("transposed", mask("return mask", "return mask.T"), "swapped"),
        ("to be added", mask("return mask", "return np.where(mask, 0.0, -np.inf)"), "boolean"),
    ],
)

# ---- q3: one step's plan ---------------------------------------------------------------------------------------------

PLAN = """
def plan_step(requests, budget, limit):
    plan = []
    for known, computed in requests:
        lacks = known - computed
        count = min(lacks, limit)
        count = min(count, budget)
        sampled = count == lacks
        budget -= count
        plan.append((count, sampled))
    return plan
"""


def plan(*changes: str) -> str:
    return changed(PLAN, *changes)


PLANS = Answers(
    right=[
        ("the budget itself shrinks", PLAN),
        (
            "a generator of lists",
            """
            def plan_step(requests, budget, limit):
                used = 0
                for known, computed in requests:
                    take = max(0, min(known, computed + limit, computed + budget - used) - computed)
                    used += take
                    yield [take, computed + take == known]
            """,
        ),
        (
            "NumPy: how far the budget reaches",
            """
            def plan_step(requests, budget, limit):
                lacks = np.array([known - computed for known, computed in requests])
                wanted = np.minimum(lacks, limit)
                reached = np.minimum(np.cumsum(wanted), budget)
                counts = np.diff(reached, prepend=0)
                return list(zip(counts, counts == lacks))
            """,
        ),
    ],
    wrong=[
        (
            "budget counts requests",
            plan("count = min(count, budget)", "count = count if budget > 0 else 0", "budget -= count", "budget -= 1"),
            "not requests",
        ),
        ("no limit", plan("min(lacks, limit)", "lacks"), "limit is missing"),
        (
            "limit for all",
            plan("    plan = []", "    plan, budget = [], min(budget, limit)"),
            "The limit is for each request",
        ),
        ("budget for each", plan("budget -= count", "pass"), "what one takes"),
        (
            "a token a chunk",
            plan("sampled = count == lacks", "sampled = count > 0"),
            "what follows is the prompt's own",
        ),
        ("only decodes get tokens", plan("count == lacks", "count == lacks == 1"), "first of the answer"),
        ("nobody gets a token", plan("count == lacks", "False"), "Nobody gets a token"),
        (
            "chunks of whole blocks",
            plan("        sampled", "        if count > 1: count = max(1, count // 16 * 16)\n        sampled"),
            "need not be whole blocks",
        ),
        (
            "whole prompts only",
            plan("count = min(count, budget)", "count = lacks if lacks <= min(limit, budget) else 0"),
            "not put off",
        ),
        (
            "last request first",
            plan("in requests:", "in requests[::-1]:", "return plan", "return plan[::-1]"),
            "first request in the list",
        ),
        (
            "decodes first",
            """
            def plan_step(requests, budget, limit):
                lacks = [known - computed for known, computed in requests]
                plan = {}
                for i in sorted(range(len(lacks)), key=lambda i: lacks[i] > 1):
                    count = min(lacks[i], limit, budget)
                    plan[i] = (count, count == lacks[i])
                    budget -= count
                return [plan[i] for i in range(len(lacks))]
            """,
            "no right of way",
        ),
        ("computed tokens once more", plan("lacks = known - computed", "lacks = known"), "in the cache"),
        (
            "a chunk ends the step",
            plan("plan.append((count, sampled))", "plan.append((count, sampled))\n        if not sampled: budget = 0"),
            "does not end the step",
        ),
        (
            "equal parts",
            plan(
                "count = min(count, budget)",
                "count = min(count, part)",
                "    plan = []",
                "    plan, part = [], budget // len(requests)",
            ),
            "equal parts",
        ),
        (
            "numbers without pairs",
            plan("plan.append((count, sampled))", "plan.append(count)"),
            "one pair for each request",
        ),
    ],
)

# ---- q4: a prefill to repair -----------------------------------------------------------------------------------------

PREFILL = """
def prefill(model, prompt, chunk_size):
    count = math.ceil(len(prompt) / chunk_size)
    for i in range(count):
        first = i * chunk_size
        chunk = prompt[first : first + chunk_size]
        positions = [first + j for j in range(len(chunk))]
        token = model.forward(chunk, positions, sample=i == count - 1)
    return token
"""


def prefill(*changes: str) -> str:
    return changed(PREFILL, *changes)


PREFILLS = Answers(
    right=[
        ("chunks counted first", PREFILL),
        (
            "a loop that eats the prompt",
            """
            def prefill(model, prompt, chunk_size):
                done, rest = 0, list(prompt)
                while len(rest) > chunk_size:
                    model.forward(rest[:chunk_size], range(done, done + chunk_size), False)
                    done, rest = done + chunk_size, rest[chunk_size:]
                return model.forward(rest, range(done, done + len(rest)), True)
            """,
        ),
        (
            "torch splits",
            """
            def prefill(model, prompt, chunk_size):
                parts = torch.tensor(prompt).split(chunk_size)
                places = torch.arange(len(prompt)).split(chunk_size)
                calls = [(t.tolist(), p.tolist(), p[-1].item() == len(prompt) - 1) for t, p in zip(parts, places)]
                return [model.forward(*arguments) for arguments in calls][-1]
            """,
        ),
    ],
    wrong=[
        ("as found", "prefill = prefill_as_found", "All four faults show here"),
        (
            "whole blocks",
            prefill("    count =", "    chunk_size = max(16, chunk_size // 16 * 16)\n    count ="),
            "need not be a multiple",
        ),
        (
            "the rest lost",
            prefill(
                "math.ceil(len(prompt) / chunk_size)",
                "len(prompt) // chunk_size",
                "    for i",
                "    token = None\n    for i",
            ),
            "The rest of the prompt is lost",
        ),
        ("positions from 0", prefill("first + j for", "j for"), "Positions go on"),
        (
            "all chunks sampled",
            prefill("sample=i == count - 1", "sample=True"),
            "Only the last chunk",
        ),
        (
            "the first chunk's token",
            prefill(
                "token = model.forward(chunk, positions, sample=i == count - 1)",
                "new = model.forward(chunk, positions, sample=True)\n        token = new if i == 0 else token",
            ),
            "Only the last chunk is asked",
        ),
        (
            "positions and samples",
            prefill("first + j for", "j for", "sample=i == count - 1", "sample=True"),
            "Two faults show here",
        ),
        (
            "an empty chunk",
            prefill("math.ceil(len(prompt) / chunk_size)", "len(prompt) // chunk_size + 1"),
            "An empty chunk",
        ),
        ("one pass", prefill("    count =", "    chunk_size = len(prompt)\n    count ="), "That is one pass"),
        ("never sampled", prefill("i == count - 1", "False"), "Nobody is asked"),
        (
            "overlapping chunks",
            prefill(
                "chunk = prompt[first : first + chunk_size]",
                "end = first + chunk_size\n        first = max(0, first - 1)\n        chunk = prompt[first:end]",
            ),
            "in the cache already",
        ),
        ("nothing returned", prefill("    return token", ""), "nothing is returned"),
    ],
)

# ---- q5: a promise ---------------------------------------------------------------------------------------------------

LARGEST = """
def largest_chunk(prompt, decodes, cost, promise):
    def steps(m):
        times = []
        for past in range(0, prompt, m):
            new = min(m, prompt - past)
            rows = new + decodes
            keys = past + new
            times.append(cost["launch"] + cost["token"] * rows + cost["pair"] * new * keys)
        return times
    best = 0
    for m in range(1, prompt + 1):
        if max(steps(m)) <= promise:
            best = m
    return best
"""


def largest(*changes: str) -> str:
    return changed(LARGEST, *changes)


PROMISE = Answers(
    right=[
        ("all sizes, upwards", LARGEST),
        (
            "NumPy, from the largest size down",
            """
            def largest_chunk(prompt, decodes, cost, promise):
                for m in range(prompt, 0, -1):
                    past = np.arange(0, prompt, m)
                    new = np.minimum(m, prompt - past)
                    times = cost["launch"] + cost["token"] * (new + decodes) + cost["pair"] * new * (past + new)
                    if (times <= promise).all():
                        return m
                return 0
            """,
        ),
        (
            "only the last two chunks can be the longest",
            """
            def largest_chunk(prompt, decodes, cost, promise):
                def took(past, end):
                    new = end - past
                    return cost["launch"] + cost["token"] * (new + decodes) + cost["pair"] * new * end
                kept = [0]
                for m in range(1, prompt + 1):
                    full, rest = divmod(prompt, m)
                    times = [took((full - 1) * m, full * m)]
                    if rest:
                        times.append(took(full * m, prompt))
                    if max(times) <= promise:
                        kept.append(m)
                return max(kept)
            """,
        ),
    ],
    wrong=[
        (
            "stops at the first size that breaks it",
            largest("            best = m", "            best = m\n        else:\n            break"),
            "does not always grow",
        ),
        (
            "halving the interval",
            """
            def largest_chunk(prompt, decodes, cost, promise):
                def worst(m):
                    return max(
                        cost["launch"] + cost["token"] * (min(m, prompt - past) + decodes)
                        + cost["pair"] * min(m, prompt - past) * min(past + m, prompt)
                        for past in range(0, prompt, m)
                    )
                low, high = 0, prompt
                while low < high:
                    middle = (low + high + 1) // 2
                    if worst(middle) <= promise:
                        low = middle
                    else:
                        high = middle - 1
                return low
            """,
            "does not always grow",
        ),
        ("the shortest step", largest("max(steps(m))", "min(steps(m))"), "take the longest of all"),
        ("the first chunk only", largest("max(steps(m))", "steps(m)[0]"), "as many new tokens"),
        ("the last chunk only", largest("max(steps(m))", "steps(m)[-1]"), "may be a short one"),
        ("all steps together", largest("max(steps(m))", "sum(steps(m))"), "about each step"),
        ("the mean step", largest("max(steps(m))", "sum(steps(m)) / len(steps(m))"), "A mean keeps no promise"),
        ("no chats", largest("new + decodes", "new"), "one for each of them"),
        ("no launch", largest('cost["launch"] + ', ""), "however small"),
        ("cached keys only", largest("keys = past + new", "keys = past"), "the chunk itself"),
        ("own keys only", largest("keys = past + new", "keys = new"), "as many new tokens"),
        ("the smallest", largest("            best = m", "            return m"), "the largest is asked"),
        ("shorter than the promise", largest("<= promise", "< promise"), "as long as the promise"),
        ("multiples of 16", largest("range(1, prompt + 1)", "range(16, prompt + 1, 16)"), "multiple of the block size"),
        ("1 where none is", largest("best = 0", "best = 1"), "the answer is 0"),
    ],
)

BANK: dict[str, Answers] = {
    "ch06.q1": PROMPT,
    "ch06.q2": MASKS,
    "ch06.q3": PLANS,
    "ch06.q4": PREFILLS,
    "ch06.q5": PROMISE,
}
