"""Answers to the questions of chapter 08."""

from answers import Answers
from answers.editing import changed

# ---- q1: the floor ---------------------------------------------------------------------------------------------------


def floor(expression: str) -> str:
    arguments = "batch, context, query_heads, kv_heads, head_dim, bytes_per_number, gb_per_s"
    return f"def decode_floor_us({arguments}):\n    return {expression}\n"


READ = "2 * batch * context * kv_heads * head_dim * bytes_per_number"

FLOOR = Answers(
    right=[
        ("one line", floor(f"{READ} / gb_per_s / 1000")),
        (
            "from a tensor's shape",
            """
            def decode_floor_us(b, n, q, k, d, size, rate):
                numbers = np.prod([2, b, n, k, d], dtype=np.float64)
                seconds = numbers * size / (rate * 10**9)
                return float(seconds * 1_000_000)
            """,
        ),
    ],
    wrong=[
        ("keys only", floor(f"{READ} / gb_per_s / 2000"), "Keys and values"),
        ("query heads", floor(f"{READ} / kv_heads * query_heads / gb_per_s / 1000"), "Query heads share KV heads"),
        ("milliseconds", floor(f"{READ} / (gb_per_s * 1e9) * 1e3"), "milliseconds"),
        ("seconds", floor(f"{READ} / (gb_per_s * 1e9)"), "seconds"),
        ("nanoseconds", floor(f"{READ} / gb_per_s"), "nanoseconds"),
        ("gathered first", floor(f"3 * {READ} / gb_per_s / 1000"), "gathered copy"),
        ("numbers for bytes", floor(f"{READ} / bytes_per_number / gb_per_s / 1000"), "bytes_per_number"),
        ("one sequence", floor(f"{READ} / batch / gb_per_s / 1000"), "× batch"),
        ("one token", floor(f"{READ} / context / gb_per_s / 1000"), "All cached tokens"),
        ("one head", floor(f"{READ} / kv_heads / gb_per_s / 1000"), "× kv_heads"),
        ("GiB", floor(f"{READ} / (gb_per_s * 2**30) * 1e6"), "not 2³⁰"),
        ("bits", floor(f"8 * {READ} / gb_per_s / 1000"), "not bits"),
        ("bytes", floor(READ), "Divide by the bandwidth"),
    ],
)

# ---- q2: walk the table ----------------------------------------------------------------------------------------------

WALK = """
@triton.jit
def paged_decode(out_ptr, query_ptr, keys_ptr, values_ptr, table_ptr, length, scale,
                 GROUP: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    head = tl.program_id(0)
    slots, dims = tl.arange(0, BLOCK), tl.arange(0, DIM)
    query = tl.load(query_ptr + head * DIM + dims)
    m = -float("inf")
    l = 0.0
    o = tl.zeros([DIM], dtype=tl.float32)
    for j in range(tl.cdiv(length, BLOCK)):
        block = tl.load(table_ptr + j)
        ok = j * BLOCK + slots < length
        row = (block * BLOCK + slots) * KV_HEADS + head // GROUP
        k = tl.load(keys_ptr + row[:, None] * DIM + dims[None, :], mask=ok[:, None], other=0)
        v = tl.load(values_ptr + row[:, None] * DIM + dims[None, :], mask=ok[:, None], other=0)
        s = tl.sum(query[None, :] * k, axis=1) * scale
        s = tl.where(ok, s, -float("inf"))
        m_new = tl.maximum(m, tl.max(s, axis=0))
        p = tl.exp(s - m_new)
        l = l * tl.exp(m - m_new) + tl.sum(p, axis=0)
        o = o * tl.exp(m - m_new) + tl.sum(p[:, None] * v, axis=0)
        m = m_new
    tl.store(out_ptr + head * DIM + dims, o / l)
"""
TRANSPOSED = """
@triton.jit
def paged_decode(out_ptr, query_ptr, keys_ptr, values_ptr, table_ptr, length, scale,
                 GROUP: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    h = tl.program_id(0)
    d = tl.arange(0, DIM)
    q = tl.load(query_ptr + h * DIM + d) * scale
    top = float("-inf")
    weight = 0.0
    out = tl.zeros((DIM,), tl.float32)
    for position in range(0, length):
        slot = tl.load(table_ptr + position // BLOCK) * BLOCK + position % BLOCK
        at = (slot * KV_HEADS + h // GROUP) * DIM + d
        score = tl.sum(q * tl.load(keys_ptr + at), 0)
        higher = tl.maximum(top, score)
        weight = weight * tl.exp(top - higher) + tl.exp(score - higher)
        out = out * tl.exp(top - higher) + tl.exp(score - higher) * tl.load(values_ptr + at)
        top = higher
    tl.store(out_ptr + h * DIM + d, out / weight)
"""
MASKED_V = "v = tl.load(values_ptr + row[:, None] * DIM + dims[None, :], mask=ok[:, None], other=0)"
MASKED_K = "k = tl.load(keys_ptr + row[:, None] * DIM + dims[None, :], mask=ok[:, None], other=0)"

DECODE = Answers(
    right=[
        ("blocks counted, other names", WALK),
        ("one position after another", TRANSPOSED),
    ],
    wrong=[
        ("output not rescaled", changed(WALK, "o = o * tl.exp(m - m_new) +", "o = o +"), "acc × exp(old − new)"),
        ("sum not rescaled", changed(WALK, "l = l * tl.exp(m - m_new) +", "l = l +"), "The sum must be rescaled"),
        (
            "nothing rescaled",
            changed(WALK, "o = o * tl.exp(m - m_new) +", "o = o +", "l = l * tl.exp(m - m_new) +", "l = l +"),
            "Nothing is rescaled",
        ),
        ("not scaled", changed(WALK, " * scale", ""), "not scaled"),
        ("logical blocks", changed(WALK, "block = tl.load(table_ptr + j)", "block = j"), "block 0, 1, 2 of the pool"),
        ("modulo", changed(WALK, "head // GROUP", "head % KV_HEADS"), "share KV head 0"),
        ("KV head 0", changed(WALK, " + head // GROUP", ""), "All query heads read KV head 0"),
        ("head // KV_HEADS", changed(WALK, "head // GROUP", "head // KV_HEADS"), "fewer KV heads"),
        ("own head", changed(WALK, "head // GROUP", "head"), "fewer KV heads"),
        ("scores unmasked", changed(WALK, 's = tl.where(ok, s, -float("inf"))', "s = s"), "exp(0) counts"),
        ("values unmasked", changed(WALK, MASKED_V, MASKED_V.split(", mask")[0] + ")"), "Weight 0 × NaN"),
        ("nothing masked", changed(WALK, ", mask=ok[:, None], other=0", ""), "Weight 0 × NaN"),
        ("rounded down", changed(WALK, "tl.cdiv(length, BLOCK)", "length // BLOCK"), "must round up"),
        ("first block", changed(WALK, "range(tl.cdiv(length, BLOCK))", "range(1)"), "Only the first block"),
        ("not divided", changed(WALK, "o / l)", "o)"), "divided by the sum"),
        ("keys weighed", changed(WALK, "p[:, None] * v", "p[:, None] * k"), "The keys are weighed"),
        ("no maximum", changed(WALK, "m_new = tl.maximum(m, tl.max(s, axis=0))", "m_new = 0.0"), "is infinite"),
        ("never stored", changed(WALK, "    tl.store(out_ptr + head * DIM + dims, o / l)\n", ""), "never stored"),
    ],
)

# ---- q3: merge -------------------------------------------------------------------------------------------------------

MERGE = """
@triton.jit
def merge_parts(out_ptr, parts_ptr, lse_ptr, splits, HEADS: tl.constexpr, DIM: tl.constexpr, SPLITS_PAD: tl.constexpr):
    head = tl.program_id(0)
    part, dims = tl.arange(0, SPLITS_PAD), tl.arange(0, DIM)
    ok = part < splits
    at = part * HEADS + head
    lse = tl.load(lse_ptr + at, mask=ok, other=-float("inf"))
    x = tl.load(parts_ptr + at[:, None] * DIM + dims[None, :], mask=ok[:, None], other=0.0)
    w = tl.exp(lse - tl.max(lse, axis=0))
    w = w / tl.sum(w, axis=0)
    tl.store(out_ptr + head * DIM + dims, tl.sum(w[:, None] * x, axis=0))
"""
ONE_BY_ONE = """
@triton.jit
def merge_parts(out_ptr, parts_ptr, lse_ptr, splits, HEADS: tl.constexpr, DIM: tl.constexpr, SPLITS_PAD: tl.constexpr):
    head = tl.program_id(0)
    dims = tl.arange(0, DIM)
    top = -1e30
    total = 0.0
    acc = tl.zeros((DIM,), tl.float32)
    for s in range(0, splits):
        row = s * HEADS + head
        lse = tl.load(lse_ptr + row)
        new = tl.maximum(top, lse)
        weight = tl.exp(lse - new)
        total = total * tl.exp(top - new) + weight
        acc = acc * tl.exp(top - new) + weight * tl.load(parts_ptr + row * DIM + dims)
        top = new
    tl.store(out_ptr + head * DIM + dims, acc / total)
"""
SHIFTED = "w = tl.exp(lse - tl.max(lse, axis=0))"
NORMALISED = "w = w / tl.sum(w, axis=0)"

PARTS = Answers(
    right=[
        ("weights normalised first", MERGE),
        ("one part after another", ONE_BY_ONE),
    ],
    wrong=[
        (
            "mean",
            changed(MERGE, SHIFTED, "w = tl.where(ok, 1.0, 0.0)"),
            "averaged as if each had seen as much",
        ),
        (
            "added up",
            changed(MERGE, SHIFTED, "w = tl.where(ok, 1.0, 0.0)", NORMALISED, "w = w"),
            "added up",
        ),
        ("not normalised", changed(MERGE, NORMALISED, "w = w"), "Divide by the sum of the weights"),
        (
            "lse as weight",
            changed(MERGE, SHIFTED, "w = tl.where(ok, lse, 0.0)"),
            "it is a logarithm",
        ),
        ("exp2", changed(MERGE, SHIFTED, "w = tl.exp2(lse - tl.max(lse, axis=0))"), "exp, not exp2"),
        (
            "largest only",
            changed(MERGE, SHIFTED, "w = tl.where(lse == tl.max(lse, axis=0), 1.0, 0.0)"),
            "Only the part with the largest lse",
        ),
        ("padding counts", changed(MERGE, 'other=-float("inf")', "other=0.0"), "other=-inf"),
        ("heads first", changed(MERGE, "part * HEADS + head", "head * splits + part"), "row = part × HEADS + head"),
        ("no maximum", changed(MERGE, SHIFTED, "w = tl.exp(lse)"), "subtract the largest lse"),
        ("outputs unmasked", changed(MERGE, ", mask=ok[:, None], other=0.0", ""), "nothing to read"),
        ("upside down", changed(MERGE, SHIFTED, "w = tl.where(ok, tl.exp(-lse), 0.0)"), "not shrink"),
        ("never stored", changed(MERGE, "    tl.store(", "    if splits > 99:\n        tl.store("), "never stored"),
    ],
)

# ---- q4: three faults ------------------------------------------------------------------------------------------------

REPAIRED = changed(WALK, "def paged_decode", "def repaired")
RESCALED = "o = o * tl.exp(m - m_new) +"
NOT_RESCALED = (RESCALED, "o = o +")
UNMASKED = (MASKED_V, MASKED_V.split(", mask")[0] + ")")
WRONG_HEAD = ("head // GROUP", "head % KV_HEADS")

FAULTS = Answers(
    right=[
        ("written anew", REPAIRED),
        (
            "values masked by where",
            changed(REPAIRED, *UNMASKED, "p = tl.exp", "v = tl.where(ok[:, None], v, 0.0)\n        p = tl.exp"),
        ),
    ],
    wrong=[
        ("nothing repaired", changed(REPAIRED, *NOT_RESCALED, *UNMASKED, *WRONG_HEAD), "Weight 0 × NaN"),
        ("rescaling left", changed(REPAIRED, *NOT_RESCALED), "acc × exp(old − new)"),
        ("mask left", changed(REPAIRED, *UNMASKED), "Weight 0 × NaN"),
        ("head left", changed(REPAIRED, *WRONG_HEAD), "share KV head 0"),
        ("only rescaling repaired", changed(REPAIRED, *UNMASKED, *WRONG_HEAD), "Weight 0 × NaN"),
        ("only the mask repaired", changed(REPAIRED, *NOT_RESCALED, *WRONG_HEAD), "Two faults are left"),
        ("only the head repaired", changed(REPAIRED, *NOT_RESCALED, *UNMASKED), "Weight 0 × NaN"),
        (
            "sum no longer rescaled",
            changed(REPAIRED, "l = l * tl.exp(m - m_new) +", "l = l +"),
            "The sum must be rescaled",
        ),
        (
            "head by KV_HEADS",
            changed(REPAIRED, "head // GROUP", "head // KV_HEADS"),
            "fewer KV heads",
        ),
        (
            "scores no longer masked",
            changed(REPAIRED, 's = tl.where(ok, s, -float("inf"))', "s = s"),
            "exp(0) counts",
        ),
    ],
)

# ---- q5: how many splits ---------------------------------------------------------------------------------------------


def splits(expression: str) -> str:
    return f"def num_splits(batch, kv_heads, context, processors, shortest):\n    return {expression}\n"


WANTED = "-(-2 * processors // (batch * kv_heads))"

SPLITS = Answers(
    right=[
        (
            "counted up",
            """
            def num_splits(batch, kv_heads, context, processors, shortest):
                n = 1
                while n * batch * kv_heads < 2 * processors and context // (n + 1) >= shortest:
                    n += 1
                return n
            """,
        ),
        ("integers only", splits(f"max(min({WANTED}, context // shortest), 1)")),
        ("NumPy", splits(f"int(np.clip({WANTED}, 1, max(1, context // shortest)))")),
    ],
    wrong=[
        (
            "rounded down",
            splits("max(1, min(2 * processors // (batch * kv_heads), context // shortest))"),
            "Rounded down",
        ),
        (
            "one a processor",
            splits("max(1, min(math.ceil(processors / (batch * kv_heads)), context // shortest))"),
            "not one",
        ),
        (
            "KV heads forgotten",
            splits("max(1, min(math.ceil(2 * processors / batch), context // shortest))"),
            "Each KV head is a program",
        ),
        (
            "batch forgotten",
            splits("max(1, min(math.ceil(2 * processors / kv_heads), context // shortest))"),
            "Each sequence brings",
        ),
        ("no shortest", splits(f"max(1, {WANTED})"), "gets too short"),
        ("none", splits(f"min({WANTED}, context // shortest)"), "always one split"),
        (
            "limit rounded up",
            splits(f"max(1, min({WANTED}, math.ceil(context / shortest)))"),
            "shorter than `shortest`",
        ),
        ("as many as fit", splits("max(1, context // shortest)"), "More are not faster"),
        ("a fraction", splits("max(1, min(2 * processors / (batch * kv_heads), context // shortest))"), "round up"),
        (
            "a power of two",
            splits(f"max(1, min(1 << ({WANTED} - 1).bit_length(), context // shortest))"),
            "power of two",
        ),
    ],
)

# ---- q6: rows of a prompt --------------------------------------------------------------------------------------------

PREFILL = """
@triton.jit
def paged_prefill(out_ptr, query_ptr, keys_ptr, values_ptr, table_ptr, num_rows, context, scale,
                  GROUP: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
                  BLOCK_M: tl.constexpr):
    head, tile = tl.program_id(0), tl.program_id(1)
    slots, dims = tl.arange(0, BLOCK), tl.arange(0, DIM)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    heads: tl.constexpr = GROUP * KV_HEADS
    inside = rows < num_rows
    at = (rows[:, None] * heads + head) * DIM + dims[None, :]
    q = tl.load(query_ptr + at, mask=inside[:, None], other=0.0)
    m = tl.full([BLOCK_M], -float("inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    o = tl.zeros([BLOCK_M, DIM], tl.float32)
    end = tl.minimum(context + (tile + 1) * BLOCK_M, context + num_rows)
    for j in range(0, tl.cdiv(end, BLOCK)):
        block = tl.load(table_ptr + j)
        position = j * BLOCK + slots
        ok = position < end
        line = (block * BLOCK + slots) * KV_HEADS + head // GROUP
        k = tl.load(keys_ptr + line[:, None] * DIM + dims[None, :], mask=ok[:, None], other=0.0)
        v = tl.load(values_ptr + line[:, None] * DIM + dims[None, :], mask=ok[:, None], other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        s = tl.where(position[None, :] <= (context + rows)[:, None], s, -float("inf"))
        s = tl.where(ok[None, :], s, -float("inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp(s - m_new[:, None])
        a = tl.exp(m - m_new)
        l = l * a + tl.sum(p, 1)
        o = o * a[:, None] + tl.dot(p, v, input_precision="ieee")
        m = m_new
    tl.store(out_ptr + at, o / l[:, None], mask=inside[:, None])
"""
WITHOUT_DOT = changed(
    PREFILL,
    's = tl.dot(q, tl.trans(k), input_precision="ieee") * scale',
    "s = tl.sum(q[:, None, :] * k[None, :, :], 2) * scale",
    'tl.dot(p, v, input_precision="ieee")',
    "tl.sum(p[:, :, None] * v[None, :, :], 1)",
)
SEES = "position[None, :] <= (context + rows)[:, None]"
END = "end = tl.minimum(context + (tile + 1) * BLOCK_M, context + num_rows)"

ROWS = Answers(
    right=[
        ("other names, blocks counted", PREFILL),
        ("sums in place of dot", WITHOUT_DOT),
    ],
    wrong=[
        ("no causal mask", changed(PREFILL, SEES, "position[None, :] >= 0"), "there is no causal mask"),
        (
            "not itself",
            changed(PREFILL, SEES, "position[None, :] < tl.maximum(context + rows, 1)[:, None]"),
            "A row sees itself",
        ),
        (
            "one too many",
            changed(PREFILL, SEES, "position[None, :] <= (context + rows + 1)[:, None]"),
            "One position too many",
        ),
        (
            "context forgotten",
            changed(PREFILL, SEES, "position[None, :] <= rows[:, None]"),
            "position context + r, not at r",
        ),
        ("output not rescaled", changed(PREFILL, "o = o * a[:, None] +", "o = o +"), "acc × exp(old − new)"),
        ("sum not rescaled", changed(PREFILL, "l = l * a +", "l = l +"), "The sum must be rescaled"),
        ("not scaled", changed(PREFILL, " * scale", ""), "not scaled"),
        ("modulo", changed(PREFILL, "head // GROUP", "head % KV_HEADS"), "share KV head 0"),
        (
            "logical blocks",
            changed(PREFILL, "block = tl.load(table_ptr + j)", "block = j"),
            "block 0, 1, 2 of the pool",
        ),
        ("not divided", changed(PREFILL, "o / l[:, None]", "o"), "divided by the sum"),
        (
            "all positions loaded",
            changed(PREFILL, END, "end = context + num_rows"),
            "after the tile's last row were loaded",
        ),
        (
            "store unmasked",
            changed(PREFILL, "o / l[:, None], mask=inside[:, None])", "o / l[:, None])"),
            "mask the store",
        ),
        (
            "last block unmasked",
            changed(PREFILL, "ok = position < end", "ok = position < end + BLOCK"),
            "NaN",
        ),
        ("first tile only", changed(PREFILL, "    tl.store(", "    if tile == 0:\n        tl.store("), "never stored"),
    ],
)

BANK: dict[str, Answers] = {
    "ch08.q1": FLOOR,
    "ch08.q2": DECODE,
    "ch08.q3": PARTS,
    "ch08.q4": FAULTS,
    "ch08.q5": SPLITS,
    "ch08.q6": ROWS,
}
