"""Answers to the questions of chapter 02."""

from answers import Answers
from answers.editing import changed


def visible(**entries: str) -> str:
    right = {"causal": "78", "packed": "32", "chunk": "42", "window": "33", "nan_after_1": "1", "nan_after_2": "6"}
    return "visible = {" + ", ".join(f'"{key}": {value}' for key, value in {**right, **entries}.items()) + "}"


COUNTS = Answers(
    right=[
        ("plain numbers", visible()),
        (
            "counted in masks",
            """
            def count(rule, rows, columns, start=0):
                return sum(rule(q, k) for q in range(start, start + rows) for k in range(columns))

            owner = [0] * 4 + [1] + [2] * 6
            visible = dict(
                causal=torch.ones(12, 12).tril().sum(),
                packed=count(lambda q, k: k <= q and owner[q] == owner[k], 11, 11),
                chunk=np.tri(12)[8:].sum(),
                window=count(lambda q, k: k <= q < k + 3, 12, 12),
            )
            x = torch.ones(6, 4)
            for name in ("nan_after_1", "nan_after_2"):
                hidden = torch.ones(6, 6, dtype=torch.bool).triu()
                x = (x @ x.T).masked_fill(hidden, -math.inf).softmax(-1) @ x
                visible[name] = int(x.isnan().any(-1).sum())
            """,
        ),
    ],
    wrong=[
        ("the whole square", visible(causal="12 * 12"), "does not see what comes after"),
        ("only earlier tokens", visible(causal="66"), "sees itself too"),
        ("half of the square", visible(causal="12 * 12 // 2"), "cuts the diagonal in two"),
        ("one mask for all requests", visible(packed="11 * 12 // 2"), "must not see each other"),
        ("blocks without a causal mask", visible(packed="16 + 1 + 36"), "inside its request"),
        ("no cached keys", visible(chunk="1 + 2 + 3 + 4"), "cached keys are missing"),
        ("a full chunk", visible(chunk="4 * 12"), "the mask is still causal"),
        ("a square chunk", visible(chunk="16"), "not square"),
        ("all rows of the prompt", visible(chunk="78"), "only its own 4 rows"),
        ("window beside itself", visible(window="1 + 2 + 3 + 9 * 4"), "not 3 before it"),
        ("every row full", visible(window="12 * 3"), "fewer than 3 to see"),
        ("an empty row is harmless", visible(nan_after_1="0"), "nothing at all"),
        ("NaN stays where it is", visible(nan_after_2="1"), "does not protect"),
        ("NaN goes one step", visible(nan_after_2="2"), "not only its neighbour"),
        ("an entry forgotten", "visible = {'causal': 78}", 'no entry "packed"'),
    ],
)

BATCH = """
def batch_mask(requests, window=None):
    rows = []
    for r, (past, new) in enumerate(requests):
        for query in range(past, past + new):
            row = []
            for s, (before, more) in enumerate(requests):
                for key in range(before + more):
                    row.append(s == r and key <= query and (window is None or query - key < window))
            rows.append(row)
    return torch.tensor(rows)
"""


def batch(*changes: str) -> str:
    return changed(BATCH, *changes)


BATCHES = Answers(
    right=[
        ("four loops", BATCH),
        (
            "NumPy, block after block",
            """
            def batch_mask(requests, window=None):
                columns = sum(past + new for past, new in requests)
                mask, row, column = np.zeros((0, columns), dtype=bool), 0, 0
                for past, new in requests:
                    band = np.tri(new, past + new, past, dtype=bool)
                    if window:
                        band &= ~np.tri(new, past + new, past - window, dtype=bool)
                    block = np.zeros((new, columns), dtype=bool)
                    block[:, column : column + past + new] = band
                    mask, column = np.concatenate([mask, block]), column + past + new
                return mask
            """,
        ),
        (
            "rows of lists, made of 0 and 1",
            """
            def batch_mask(requests, window=None):
                total, start, rows = sum(p + n for p, n in requests), 0, []
                for past, new in requests:
                    for i in range(past, past + new):
                        first = 0 if window is None else max(0, i - window + 1)
                        rows.append([int(start + first <= c <= start + i) for c in range(total)])
                    start += past + new
                return rows
            """,
        ),
    ],
    wrong=[
        ("requests see each other", batch("s == r and ", ""), "see each other"),
        ("past forgotten", batch("range(past, past + new)", "range(new)"), "stands at position `past`"),
        ("cache hidden", batch("s == r and", "s == r and key >= before and"), "cached tokens are hidden"),
        ("not causal", batch("key <= query and ", ""), "Not causal"),
        (
            "window to both sides",
            batch("key <= query and ", "", "query - key < window", "abs(query - key) < window"),
            "reaches both ways",
        ),
        ("no diagonal", batch("key <= query", "key < query"), "sees itself too"),
        ("window too wide", batch("query - key < window", "query - key <= window"), "one too wide"),
        ("window too narrow", batch("query - key < window", "query - key < window - 1"), "one too narrow"),
        ("no window", batch("(window is None or query - key < window)", "True"), "not applied"),
        ("transposed", batch("torch.tensor(rows)", "torch.tensor(rows).T"), "Rows and columns"),
        (
            "places in the batch for positions",
            """
            def batch_mask(requests, window=None):
                rows, columns = sum(n for _, n in requests), sum(p + n for p, n in requests)
                mask = torch.ones(rows, columns, dtype=torch.bool).tril()
                return mask if window is None else mask & ~torch.ones(rows, columns).tril(-window).bool()
            """,
            "no positions in a request",
        ),
        (
            "numbers to add to scores",
            batch("return torch.tensor(rows)", "return torch.where(torch.tensor(rows), 0.0, -math.inf)"),
            "added to scores",
        ),
        (
            "a column for each new token alone",
            """
            def batch_mask(requests, window=None):
                return torch.block_diag(*[torch.ones(new, new).tril() for past, new in requests]).bool()
            """,
            "columns (keys)",
        ),
    ],
)

ATTEND = """
def masked_attention(q, k, v, mask):
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    scores = torch.where(mask, scores, -math.inf)
    weights = torch.softmax(scores, dim=-1)
    output = (weights @ v).transpose(0, 1)
    output[~mask.any(dim=-1)] = 0.0
    return output
"""


def attend(*changes: str) -> str:
    return changed(ATTEND, *changes)


LATE = (
    "torch.where(mask, scores, -math.inf)",
    "scores",
    "torch.softmax(scores, dim=-1)",
    "torch.softmax(scores, dim=-1) * mask",
)
ATTENTION = Answers(
    right=[
        ("heads first", ATTEND),
        (
            "PyTorch's own",
            """
            def masked_attention(q, k, v, mask):
                q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
                return F.scaled_dot_product_attention(q, k, v, mask)[0].transpose(0, 1)
            """,
        ),
        (
            "loops in NumPy",
            """
            def masked_attention(queries, keys, values, mask):
                queries, keys, values, mask = (np.asarray(x) for x in (queries, keys, values, mask))
                output = np.zeros((len(queries), queries.shape[1], values.shape[2]))
                for i, row in enumerate(mask):
                    for h in range(queries.shape[1]):
                        query = queries[i, h] / queries.shape[2] ** 0.5
                        seen = [(query @ keys[j, h], values[j, h]) for j in np.flatnonzero(row)]
                        if seen:
                            top = max(score for score, _ in seen)
                            weights = [np.exp(score - top) for score, _ in seen]
                            output[i, h] = sum(w * value for w, (_, value) in zip(weights, seen)) / sum(weights)
                return output
            """,
        ),
        (
            "masked once more by its sum",
            attend(
                *LATE,
                "* mask",
                "* mask; weights = (weights / weights.sum(-1, keepdim=True)).nan_to_num()",
                "q.shape[-1] ** -0.5",
                "q.shape[-1] ** -0.5; scores = scores.masked_fill(~mask, -1e30)",
            ),
        ),
    ],
    wrong=[
        ("mask after softmax", attend(*LATE), "after the softmax"),
        ("mask turned round", attend("torch.where(mask,", "torch.where(mask.T,"), "swapped"),
        ("not scaled", attend(" * q.shape[-1] ** -0.5", ""), "not scaled"),
        ("divided by d", attend("** -0.5", "** -1.0"), "not by d"),
        ("width of the values", attend("q.shape[-1] ** -0.5", "v.shape[-1] ** -0.5"), "not of the values"),
        (
            "softmax over the queries",
            attend("dim=-1)\n    output", "dim=-2).nan_to_num()\n    output"),
            "softmax runs over the keys",
        ),
        ("hidden scores are 0", attend("scores, -math.inf", "scores, 0.0"), "exp(0) is 1"),
        (
            "a large negative number",
            attend("scores, -math.inf", "scores, -1e9", "    output[~mask.any(dim=-1)] = 0.0\n", ""),
            "mean of all values",
        ),
        ("NaN left", attend("    output[~mask.any(dim=-1)] = 0.0\n", ""), "give it zeros"),
        (
            "exp by hand",
            attend(
                "torch.softmax(scores, dim=-1)",
                "(scores * 2).exp() / (scores * 2).exp().sum(-1, keepdim=True)",
                "** -0.5",
                "** -0.5 / 2",
            ),
            "overflows",
        ),
        (
            "heads split the sequence",
            attend("x.transpose(0, 1) for", "x.reshape(x.shape[1], x.shape[0], x.shape[2]) for"),
            "Heads split the sequence",
        ),
        (
            "heads left in front",
            attend("(weights @ v).transpose(0, 1)\n    output[~mask.any(dim=-1)] = 0.0", "(weights @ v).nan_to_num()"),
            "[queries, heads, width of a value]",
        ),
    ],
)

REPAIRED = """
def self_attention(x, num_heads):
    n, hidden = x.shape
    heads = x.view(n, num_heads, -1).transpose(0, 1)
    scores = heads @ heads.mT / (hidden // num_heads) ** 0.5
    allowed = torch.ones(n, n).tril()
    weights = scores.masked_fill(allowed == 0, -math.inf).softmax(-1)
    return (weights @ heads).transpose(0, 1).reshape(n, hidden)
"""
CUT = ("x.view(n, num_heads, -1).transpose(0, 1)", "x.view(num_heads, n, -1)")
JOINED = ("(weights @ heads).transpose(0, 1)", "(weights @ heads)")
SWAPPED = ("tril()", "triu()")
TOO_LATE = ("scores.masked_fill(allowed == 0, -math.inf).softmax(-1)", "scores.softmax(-1) * allowed")


def repaired(*changes: str) -> str:
    return changed(REPAIRED, *changes)


FAULTS = Answers(
    right=[
        ("the broken lines repaired", REPAIRED),
        (
            "a row and a head at a time, NumPy",
            """
            def self_attention(x, num_heads):
                x = np.asarray(x, dtype=np.float64)
                output, width = np.empty_like(x), x.shape[1] // num_heads
                for start in range(0, x.shape[1], width):
                    part = x[:, start : start + width]
                    for i in range(len(x)):
                        scores = part[: i + 1] @ part[i] / np.sqrt(width)
                        weights = np.exp(scores - scores.max())
                        output[i, start : start + width] = weights @ part[: i + 1] / weights.sum()
                return output
            """,
        ),
        (
            "divided once more by what is left",
            repaired(*TOO_LATE, "* allowed", "* allowed\n    weights = weights / weights.sum(-1, keepdim=True)"),
        ),
    ],
    wrong=[
        ("nothing repaired", repaired(*CUT, *JOINED, *SWAPPED, *TOO_LATE), "swapped"),
        ("only the mask's place", repaired(*CUT, *JOINED, *SWAPPED), "heads split the sequence"),
        ("only the triangle", repaired(*CUT, *JOINED, *TOO_LATE), "after the softmax"),
        ("only the heads", repaired(*SWAPPED, *TOO_LATE), "after the softmax"),
        ("late mask left", repaired(*TOO_LATE), "the mask comes after the softmax"),
        ("triangle left", repaired(*SWAPPED), "rows and columns of the mask are swapped"),
        ("heads cut wrongly", repaired(*CUT), "heads split the sequence"),
        ("heads not brought back", repaired(*JOINED), "not brought back"),
        ("scaled by all channels", repaired("(hidden // num_heads) ** 0.5", "hidden ** 0.5"), "by its own channels"),
        ("hidden scores are 0", repaired("-math.inf", "0.0"), "exp(0) is 1"),
        ("no diagonal", repaired("tril()", "tril(-1)"), "first token must see itself"),
    ],
)

LEAKS = """
def leaks(attend, x):
    before, found = attend(x), []
    for j in range(len(x)):
        other = x.clone()
        other[j] = other[j] + 1
        after = attend(other)
        for i in range(len(x)):
            if j > i and not torch.equal(before[i], after[i]):
                found.append((i, j))
    return found
"""


def leaks(*changes: str) -> str:
    return changed(LEAKS, *changes)


DETECTOR = Answers(
    right=[
        ("row by row", LEAKS),
        (
            "a set, NumPy, changed by a random row",
            """
            def leaks(attend, x):
                draw, base = np.random.default_rng(0), np.asarray(attend(x))
                result = set()
                for later in range(1, len(x)):
                    changed = x.numpy().copy()
                    changed[later] = draw.normal(size=changed.shape[1])
                    moved = np.abs(np.asarray(attend(torch.tensor(changed))) - base).max(axis=1) > 1e-12
                    result |= {(earlier, later) for earlier in np.flatnonzero(moved[:later])}
                return result
            """,
        ),
        (
            "a generator that restores the row",
            """
            def leaks(attend, x):
                y = attend(x.clone())
                for j in range(len(x)):
                    kept = x[j].clone()
                    x[j] = -2 * kept
                    z = attend(x)
                    x[j] = kept
                    yield from ((i, j) for i in range(j) if (y[i] != z[i]).any())
            """,
        ),
    ],
    wrong=[
        ("pairs turned round", leaks("(i, j))", "(j, i))"), "turned round"),
        ("the past too", leaks("j > i and", "j != i and"), "past is no leak"),
        ("itself too", leaks("j > i and", "j >= i and"), "own input is no leak"),
        ("the past instead", leaks("j > i and", "j <= i and"), "reach the past"),
        (
            "only the last input",
            leaks("for j in range(len(x)):\n        other", "for j in [len(x) - 1]:\n        other"),
            "from the last input",
        ),
        ("only neighbours", leaks("j > i and", "j == i + 1 and"), "further away"),
        (
            "changes pile up",
            leaks(
                "other = x.clone()",
                "other = x",
                "before, found = attend(x), []",
                "before, found = attend(x.clone()), []",
            ),
            "pile up",
        ),
        (
            "faint leaks missed",
            leaks("not torch.equal(before[i], after[i])", "(before[i] - after[i]).abs().max() > 0.01"),
            "faint change",
        ),
        ("nothing is changed", leaks("other[j] + 1", "other[j]"), "really be changed"),
        ("positions instead of pairs", leaks("(i, j))", "i)"), "list of pairs"),
        ("pairs twice", leaks("return found", "return found + found"), "twice"),
    ],
)

BANK = {"ch02.q1": COUNTS, "ch02.q2": BATCHES, "ch02.q3": ATTENTION, "ch02.q4": FAULTS, "ch02.q5": DETECTOR}
