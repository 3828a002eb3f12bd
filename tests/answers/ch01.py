"""Answers to the questions of chapter 01."""

from answers import Answers
from answers.editing import changed


def card(**changed: str) -> str:
    """The dictionary of question 1, with some entries other than right."""
    right = {
        "ridge": "200",
        "decode_ms": "8",
        "tokens_per_second": "6250",
        "prompt_at_ridge": "200",
        "prompt_at_ridge_8bit": "100",
        "training_gb": "128",
    }
    return "card = {" + ", ".join(f'"{key}": {value}' for key, value in {**right, **changed}.items()) + "}"


CARD = Answers(
    right=[
        ("plain numbers", card()),
        (
            "NumPy scalars, one entry after the other",
            """
            card = dict(ridge=np.float64(400e12) / 2e12, decode_ms=torch.tensor(8.0))
            card["tokens_per_second"] = 50 * 1000 / 8
            card["prompt_at_ridge"], card["prompt_at_ridge_8bit"] = np.array([200.0, 100.0])
            card["training_gb"] = sum((2, 2, 4, 4, 4)) * 8
            """,
        ),
    ],
    wrong=[
        ("ridge upside down", card(ridge="2000e9 / 400e12"), "Upside down"),
        ("prefixes dropped", card(ridge="400 / 2000"), "prefixes do not cancel"),
        ("decode limited by its arithmetic", card(decode_ms="2 * 8e9 / 400e12 * 1000"), "waits for the weights"),
        ("seconds for milliseconds", card(decode_ms="0.008"), "milliseconds are asked"),
        ("both times added", card(decode_ms="8 + 0.04"), "not their sum"),
        ("weights read for each user", card(tokens_per_second="50 / (50 * 0.008) / 50"), "reads them once"),
        ("one user's speed", card(tokens_per_second="125"), "yields 50 tokens"),
        ("arithmetic sets the speed", card(tokens_per_second="400e12 / 16e9"), "reading of the weights sets the time"),
        ("one FLOP a weight", card(prompt_at_ridge="400"), "a multiplication and an addition"),
        ("8 bits change nothing", card(prompt_at_ridge_8bit="200"), "half as many bytes"),
        ("8 bits the other way round", card(prompt_at_ridge_8bit="400"), "fewer rows are enough"),
        ("training needs the weights only", card(training_gb="16"), "weights alone"),
        ("no optimizer", card(training_gb="32"), "optimizer's float32 copy"),
        ("a number as text", card(ridge="'200 FLOP/byte'"), "as a number"),
        ("an entry forgotten", "card = {'ridge': 200}", 'no entry "decode_ms"'),
        ("a list", "card = [200, 8, 6250, 200, 100, 128]", "Make it a dictionary"),
    ],
)

DECODE = """
def decode_step(model, context, batch, speeds):
    weights, kv, pair = model["weights"], model["kv_bytes"], model["pair_flop"]
    flop = 2 * weights * batch + batch * context * pair
    moved = 2 * weights + batch * context * kv
    arithmetic, reading = flop / speeds["flop_per_second"], moved / speeds["bytes_per_second"]
    bound = "compute" if arithmetic > reading else "memory"
    return flop / moved, bound, max(arithmetic, reading)
"""


def decode(*changes: str) -> str:
    """The function above with some of its text replaced: old, new, old, new."""
    return changed(DECODE, *changes)


STEP = Answers(
    right=[
        (
            "by comparing with the ridge",
            decode("arithmetic > reading", "flop / moved > speeds['flop_per_second'] / speeds['bytes_per_second']"),
        ),
        (
            "a row at a time, in a list",
            """
            def decode_step(m, context, batch, speeds):
                per_row = 2 * m["weights"] + context * m["pair_flop"]
                flop = sum(per_row for _ in range(batch))
                moved = 2 * m["weights"] + sum(context * m["kv_bytes"] for _ in range(batch))
                times = [("memory", moved / speeds["bytes_per_second"]), ("compute", flop / speeds["flop_per_second"])]
                bound, seconds = max(times, key=lambda pair: pair[1])
                return [flop / moved, bound, seconds]
            """,
        ),
    ],
    wrong=[
        (
            "weights read for each sequence",
            decode("moved = 2 * weights +", "moved = batch * 2 * weights +"),
            "read once in a step",
        ),
        (
            "cache shared by the batch",
            decode("batch * context * kv", "context * kv"),
            "every sequence of the batch reads its own",
        ),
        (
            "one FLOP a weight",
            decode("flop = 2 * weights * batch", "flop = weights * batch"),
            "multiplication and an addition",
        ),
        ("a weight is a byte", decode("moved = 2 * weights", "moved = weights"), "is 2 bytes"),
        ("no attention", decode(" + batch * context * pair", ""), "Attention's FLOP are missing"),
        ("times added", decode("max(arithmetic, reading)", "arithmetic + reading"), "not their sum"),
        ("the shorter time", decode("max(arithmetic, reading)", "min(arithmetic, reading)"), "not the shorter"),
        ("milliseconds", decode("max(arithmetic, reading)", "1000 * max(arithmetic, reading)"), "asked in seconds"),
        ("nothing returned", decode("return flop", "flop"), "end it with `return`"),
        ("bytes per FLOP", decode("flop / moved, bound", "moved / flop, bound"), "upside down"),
        ("words swapped", decode("arithmetic > reading", "arithmetic < reading"), "words are swapped"),
    ],
)

WAITS = """
def waits(arrival, scheduled, times):
    gaps = [b - a for a, b in zip(times, times[1:])]
    queued, ttft = scheduled - arrival, times[0] - arrival
    tpot = (times[-1] - times[0]) / len(gaps) if gaps else 0.0
    worst = max(gaps) if gaps else 0.0
    return {"queued": queued, "ttft": ttft, "tpot": tpot, "worst_gap": worst}
"""


def waits(*changes: str) -> str:
    return changed(WAITS, *changes)


LATENCY = Answers(
    right=[
        ("first and last only", WAITS),
        (
            "NumPy",
            """
            def waits(arrival, scheduled, times):
                gaps = np.diff(np.asarray(times)) if len(times) > 1 else np.zeros(1)
                return dict(queued=scheduled - arrival, ttft=times[0] - arrival, tpot=gaps.mean(), worst_gap=gaps.max())
            """,
        ),
    ],
    wrong=[
        (
            "TTFT without the queue",
            waits("times[0] - arrival", "times[0] - scheduled"),
            "TTFT is not the prefill alone",
        ),
        ("TTFT from 0", waits("times[0] - arrival", "times[0]"), "does not start at 0"),
        ("one gap too many", waits("/ len(gaps) if", "/ len(times) if"), "n - 1 gaps"),
        (
            "TPOT with the first wait",
            waits("(times[-1] - times[0]) / len(gaps)", "(times[-1] - arrival) / len(times)"),
            "TPOT holds the gaps after it",
        ),
        ("median", waits("(times[-1] - times[0]) / len(gaps)", "sorted(gaps)[len(gaps) // 2]"), "not their median"),
        (
            "tokens per second",
            waits("(times[-1] - times[0]) / len(gaps)", "len(gaps) / (times[-1] - times[0])"),
            "tokens per second",
        ),
        (
            "worst with the first wait",
            waits("max(gaps) if gaps else 0.0", "max([ttft, *gaps])"),
            "no gap between tokens",
        ),
        ("the first gap", waits("max(gaps) if", "gaps[0] if"), "first gap"),
        ("the last gap", waits("max(gaps) if", "gaps[-1] if"), "last gap"),
        (
            "milliseconds",
            waits('"queued": queued, "ttft": ttft', '"queued": 1000 * queued, "ttft": 1000 * ttft'),
            "in seconds",
        ),
        (
            "queue until the first token",
            waits("queued, ttft = scheduled - arrival", "queued, ttft = times[0] - scheduled"),
            "until `scheduled`",
        ),
        ("a single token forgotten", waits(" if gaps else 0.0", ""), "has no gaps"),
        (
            "a tuple",
            waits('{"queued": queued, "ttft": ttft, "tpot": tpot, "worst_gap": worst}', "queued, ttft, tpot, worst"),
            "Return a dictionary",
        ),
    ],
)

COST = """
def serving_cost(requests_per_day, tokens_per_request, tokens_per_second, dollars_per_hour):
    tokens = requests_per_day * tokens_per_request
    rate = tokens / 86_400
    gpus = math.ceil(rate / tokens_per_second)
    bill = gpus * dollars_per_hour * 24
    return gpus, bill / tokens * 1e6
"""


def cost(*changes: str) -> str:
    return changed(COST, *changes)


MONEY = Answers(
    right=[
        ("by the second", COST),
        (
            "counting GPUs one by one, whole numbers",
            """
            def serving_cost(requests_per_day, tokens_per_request, tokens_per_second, dollars_per_hour):
                load, gpus = requests_per_day * tokens_per_request, 1
                while gpus * tokens_per_second * 86400 < load:
                    gpus += 1
                hourly = gpus * dollars_per_hour
                return [gpus, hourly / (load / 24 / 1_000_000)]
            """,
        ),
    ],
    wrong=[
        ("a part of a GPU", cost("math.ceil(rate / tokens_per_second)", "rate / tokens_per_second"), "whole GPUs"),
        ("rounded down", cost("math.ceil(rate / tokens_per_second)", "int(rate // tokens_per_second)"), "Rounded down"),
        (
            "rounded to the nearest",
            cost("math.ceil(rate / tokens_per_second)", "round(rate / tokens_per_second)"),
            "nearest",
        ),
        (
            "always one more",
            cost("math.ceil(rate / tokens_per_second)", "int(rate // tokens_per_second) + 1"),
            "One GPU too many",
        ),
        ("busy GPUs", cost("bill / tokens * 1e6", "dollars_per_hour / (tokens_per_second * 3600) * 1e6"), "Idle hours"),
        ("an hour's bill", cost(" * 24", ""), "a day has 24"),
        ("a month's bill", cost("* 24", "* 24 * 30"), "month's bill"),
        ("per 1,000 tokens", cost("* 1e6", "* 1e3"), "for 1,000 tokens"),
        ("per token", cost(" * 1e6", ""), "for one token"),
        ("requests a second", cost("rate = tokens", "rate = requests_per_day"), "each request has many tokens"),
        ("per million requests", cost("bill / tokens", "bill / requests_per_day"), "a million requests"),
        ("minutes of a day", cost("86_400", "1_440"), "86,400 seconds"),
    ],
)

SHEET = """
def answer_ms(prompt, new_tokens, weights, speeds):
    def step_ms(rows):
        reading = 2 * weights / speeds["bytes_per_second"]
        arithmetic = rows * 2 * weights / speeds["flop_per_second"]
        return 1000 * max(reading, arithmetic)

    total = step_ms(prompt)
    for _ in range(new_tokens - 1):
        total += step_ms(1)
    return total
"""


def sheet(*changes: str) -> str:
    return changed(SHEET, *changes)


READ = ("reading = 2", "reading = rows * 2")
ADD = ("max(reading, arithmetic)", "(reading + arithmetic)")
MANY = ("range(new_tokens - 1)", "range(new_tokens)")
REPAIRED = Answers(
    right=[
        ("the loop kept", SHEET),
        (
            "all passes in a list, seconds first",
            """
            def answer_ms(prompt, new_tokens, weights, speeds):
                passes = np.array([prompt] + [1] * (new_tokens - 1))
                flop = passes * 2 * weights
                seconds = np.maximum(flop / speeds["flop_per_second"], 2 * weights / speeds["bytes_per_second"])
                return seconds.sum() * 1e3
            """,
        ),
    ],
    wrong=[
        ("nothing repaired", sheet(*READ, *ADD, *MANY), "All three faults show here"),
        ("only reading repaired", sheet(*ADD, *MANY), "Two faults show here"),
        ("only the sum repaired", sheet(*READ, *MANY), "Two faults show here"),
        ("only the loop repaired", sheet(*READ, *ADD), "Two faults show here"),
        ("reading left", sheet(*READ), "reads the weights once"),
        ("the sum left", sheet(*ADD), "not their sum"),
        ("the loop left", sheet(*MANY), "one prefill and n - 1 decodes"),
        ("the shorter time", sheet("max(", "min("), "not the shorter"),
        ("two decodes too few", sheet("new_tokens - 1", "new_tokens - 2"), "yields one token, not two"),
        ("seconds", sheet("1000 * ", ""), "Milliseconds are asked"),
        ("prefill lost", sheet("total = step_ms(prompt)", "total = 0"), "prefill is missing"),
        ("decode by its arithmetic", sheet("max(reading, arithmetic)", "arithmetic"), "waits for all the weights"),
        (
            "prefill by its reading",
            sheet("max(reading, arithmetic)", "reading"),
            "long prompt is limited by its arithmetic",
        ),
        (
            "no cache",
            sheet("for _ in range", "for made in range", "step_ms(1)", "step_ms(prompt + made + 1)"),
            "without a cache",
        ),
    ],
)

BANK = {"ch01.q1": CARD, "ch01.q2": STEP, "ch01.q3": LATENCY, "ch01.q4": MONEY, "ch01.q5": REPAIRED}
