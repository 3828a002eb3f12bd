"""What people get wrong when they count bytes and work in the questions of chapter 03, and what to say to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pagedlab.course.display import plain_value
from pagedlab.course.questions.mistakes import Mistake
from pagedlab.course.questions.model import Case

# ---- q1: Llama-2-7B by hand ------------------------------------------------------------------------------------------

LLAMA_MISTAKES: dict[str, list[tuple[float, str]]] = {
    "token_bytes": [
        (262_144, "A token leaves a key and a value: twice as much. Or did you take 1 byte a number?"),
        (131_072, "Twice 2 is missing: a key and a value, and 2 bytes a number."),
        (16_384, "That is one layer; every layer keeps its own keys and values."),
        (8_192, "That is the keys of one layer: values, and the other layers, are missing."),
        (786_432, "Queries are not cached: a key and a value are kept, two things, not three."),
        (1_048_576, "FP16 numbers have 2 bytes, not 4."),
        (512, "That is in KiB; bytes are asked."),
        (4_194_304, "That is in bits."),
    ],
    "thousand_mib": [
        (524.288, "Those are MB, of 1,000,000 bytes. 1 MiB is 2²⁰ = 1,048,576 bytes."),
        (512, "Those are KiB of one token, or 1,024 tokens in MiB. 1,000 tokens are asked."),
        (0.5, "That is one token."),
        (524_288_000, "That is in bytes; MiB are asked."),
    ],
    "ten_requests_gib": [
        (2.62144, "Those are GB, of 10⁹ bytes. 1 GiB is 2³⁰ bytes."),
        (0.244140625, "That is one request; ten are asked."),
        (2.5, "1 GiB is 1,024 MiB, not 1,000."),
        (2500, "That is in MiB."),
        (2_621_440_000, "That is in bytes; GiB are asked."),
    ],
    "requests_on_card": [
        (91, "The weights lie in the same memory: only what is left after them holds requests."),
        (46, "The card was said to have 24 GB of 10⁹ bytes, not 24 GiB."),
        (42, "A token takes 524,288 bytes, not half a million: the 5 % cost two requests."),
        (41, "Rounded up: the last one does not fit whole."),
        (10_520_000_000 / 262_144_000, "Whole requests are asked: round down."),
        (20_065, "Those are tokens; each request has 500."),
    ],
    "requests_with_8_kv_heads": [
        (40, "A quarter of the KV heads is a quarter of the bytes."),
        (10, "The other way round: fewer KV heads, more requests."),
        (160.522, "Whole requests are asked: round down."),
        (10_520_000_000 / 65_536_000, "Whole requests are asked: round down."),
        (161, "Rounded up: the last one does not fit whole."),
        (321, "8 of 32 heads are a quarter, not an eighth."),
        (366, "The weights lie in the same memory: only what is left after them holds requests."),
    ],
}

# ---- q2: bytes of a token --------------------------------------------------------------------------------------------

Config = Mapping[str, int]


def token_bytes(
    config: Config,
    size: int,
    heads: str = "kv",
    kinds: int = 2,
    layers: bool = True,
    own_width: bool = True,
    latent: str = "both",
    latent_kinds: int = 1,
    default: str = "mha",
    bits: bool = False,
) -> int:
    """Bytes that one token leaves; every option is one way to go wrong."""
    count = config["num_hidden_layers"] if layers else 1
    queries = config["num_attention_heads"]
    if config.get("kv_lora_rank") and latent != "none":
        rotated = config["qk_rope_head_dim"] if latent in ("both", "heads") else 0
        width = (config["kv_lora_rank"] + rotated) * latent_kinds
        return count * width * size * (queries if latent == "heads" else 1)
    kv = config.get("num_key_value_heads") or (queries if default == "mha" else 1)
    given = config.get("head_dim") if own_width else None
    width = given or config["hidden_size"] // queries
    kept = {"kv": kv, "query": queries, "group": queries // kv, "one": 1}[heads]
    return kinds * count * kept * width * size // (8 if bits else 1)


def bytes_mistake(says: str, **options: Any) -> Mistake:
    return Mistake(says, lambda *arguments: token_bytes(*arguments, **options))


BYTES_MISTAKES = (
    bytes_mistake(
        "That is as much as the query heads would take: count KV heads, and divide hidden_size by the query heads.",
        heads="query",
    ),
    bytes_mistake("Half is missing: a key and a value are kept.", kinds=1),
    bytes_mistake("Queries are not cached: two things are kept, not three.", kinds=3),
    bytes_mistake("That is one layer: every layer has a cache.", layers=False),
    bytes_mistake(
        "head_dim is a number of its own if the config has it: hidden_size // heads is only the default.",
        own_width=False,
    ),
    bytes_mistake("With a latent (kv_lora_rank) no key or value of a head is kept.", latent="none"),
    bytes_mistake("MLA also keeps the rotated key, qk_rope_head_dim numbers.", latent="rank"),
    bytes_mistake("MLA keeps one latent for keys and values together: no factor 2.", latent_kinds=2),
    bytes_mistake("All heads share MLA's latent: the number of heads does not enter.", latent="heads"),
    bytes_mistake("Without num_key_value_heads there are as many KV heads as query heads.", default="mqa"),
    bytes_mistake("That is the number of heads in a group; the number of KV heads is kept.", heads="group"),
    bytes_mistake("That is one KV head: all of them are kept.", heads="one"),
    bytes_mistake("bytes_per_element is in bytes already.", bits=True),
)

# ---- q5: a chat, counted ---------------------------------------------------------------------------------------------

Counts = tuple[int, int]


def chat_counts(
    turns: Sequence[tuple[int, int]],
    fed_last: bool = False,
    forget_pending: bool = False,
    full: bool = False,
    squares: bool = False,
    as_last: bool = False,
    free_prefill: bool = False,
    constant: bool = False,
    alone: bool = False,
    swap: bool = False,
) -> dict[str, Counts]:
    """Rows and scores of a conversation in three ways; every option is one way to go wrong."""
    passes: dict[str, list[tuple[int, int]]] = {"naive": [], "per_answer": [], "kept": []}  # (new rows, all rows)
    text = cached = 0
    for said, made in turns:
        text = said if alone else text + said
        last = text + made if fed_last else text + made - 1
        final = sum(map(sum, turns)) - 1
        passes["naive"] += [(final if as_last else n, final if as_last else n) for n in range(text, last + 1)]
        passes["per_answer"] += [(0 if free_prefill else text, text), *((1, n) for n in range(text + 1, last + 1))]
        cached = 0 if alone else cached
        start = cached if not forget_pending or not cached else cached + 1
        passes["kept"] += [(text - start, text), *((1, n) for n in range(text + 1, last + 1))]
        text, cached = text + made, last
    if swap:
        passes["per_answer"], passes["kept"] = passes["kept"], passes["per_answer"]

    def scores(new: int, n: int) -> int:
        if constant and new == 1:
            return 1
        if full:
            return n * n
        return new * n if squares else sum(range(n - new + 1, n + 1))

    return {name: (sum(new for new, _ in each), sum(scores(*one) for one in each)) for name, each in passes.items()}


def chat_mistake(says: str, **options: bool) -> Mistake:
    return Mistake(says, lambda turns: chat_counts(turns, **options))


CHAT_MISTAKES = (
    chat_mistake("The last token of an answer is made, but no pass of that answer is fed it.", fed_last=True),
    chat_mistake(
        "kept: the last token of the answer before was never fed, so it is computed with the next message.",
        forget_pending=True,
    ),
    chat_mistake("Whole squares were counted: only pairs that the causal mask lets through.", squares=True),
    chat_mistake(
        "A step with a cache does not compute the square of everything: a new row meets each key once.", full=True
    ),
    chat_mistake("naive: every pass was charged as if it were the last and longest.", as_last=True),
    chat_mistake("The cache does not speed up a prefill: its rows are all computed.", free_prefill=True),
    chat_mistake("A decode step is not O(1): its row meets every key in the cache.", constant=True),
    chat_mistake("The conversation goes on: a turn's text holds all turns before it.", alone=True),
    chat_mistake("per_answer and kept are the wrong way round.", swap=True),
)


def chat_explained(case: Case, got: Any) -> str:
    """A mistake counts if it gives all three, or at least one that is wrong."""
    if not isinstance(got, dict) or set(got) != {"naive", "per_answer", "kept"}:
        return (
            ""
            if isinstance(got, str) and "Error" in got
            else "Return a dictionary with the keys naive, per_answer and kept."
        )
    right = plain_value(case.expected)
    made = [(mistake.says, plain_value(mistake.do(*case.arguments))) for mistake in CHAT_MISTAKES]
    for says, numbers in made:
        if numbers == got:
            return says
    for key in right:
        if got[key] != right[key]:
            # Zeros are no mistake of this kind: the number was not counted at all.
            named = [says for says, numbers in made if numbers[key] == got[key] != [0, 0]]
            return named[0] if named else f"{key} is not right yet."
    return ""
