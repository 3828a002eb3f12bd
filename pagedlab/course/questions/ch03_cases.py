"""Cases of chapter 03, shown and drawn: configs, scripts for a cache, grouped heads, chats and generations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from random import Random
from typing import Any

import torch

from pagedlab.basics import masks
from pagedlab.basics.attention import attention
from pagedlab.basics.counters import Count, Pass, naive_passes
from pagedlab.basics.kv_size import layout_of
from pagedlab.basics.published_configs import PUBLISHED
from pagedlab.course.drivers.ch03 import generated, tiny_model
from pagedlab.course.questions.ch03_cache_mistakes import FAULTS, OTHER_MISTAKES, faulty_generate
from pagedlab.course.questions.model import Case

# ---- q2: bytes of a token --------------------------------------------------------------------------------------------

Config = dict[str, int]


def bytes_cases() -> Iterable[Case]:
    names = (
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "kv_lora_rank",
        "qk_rope_head_dim",
    )
    configs = {
        model: {name: PUBLISHED[model][name] for name in names if PUBLISHED[model].get(name)}
        for model in ("Llama-2-7B", "Llama-2-70B", "DeepSeek-V3")
    }
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 40}
    configs["wide heads"] = {"num_hidden_layers": 3, "hidden_size": 96, **heads}
    configs["no num_key_value_heads"] = {"num_hidden_layers": 6, "hidden_size": 512, "num_attention_heads": 8}
    configs["no head_dim, one KV head"] = {**configs["no num_key_value_heads"], "num_key_value_heads": 1}
    for model, config in configs.items():
        for size in (2, 1) if model == "Llama-2-70B" else (2,):
            yield bytes_case(model, config, size)


def bytes_fresh(draw: Random) -> Iterable[Case]:
    """Models that nobody has published, with the same entries as those above."""

    def model(heads: int, width: int) -> Config:
        return {
            "num_hidden_layers": draw.randrange(7, 100),
            "hidden_size": heads * width,
            "num_attention_heads": heads,
        }

    heads, width = draw.randrange(10, 60, 2), draw.choice((48, 64, 80, 96))
    yield bytes_case("MHA, drawn", model(heads, width) | {"num_key_value_heads": heads, "head_dim": width}, 2)
    kv, width = draw.choice((4, 6, 8)), draw.choice((48, 64, 80, 96))
    # As in Llama-2-70B, there are as many KV heads as query heads in a group.
    config = model(kv * kv, width) | {"num_key_value_heads": kv, "head_dim": width}
    yield bytes_case("GQA, drawn", config, 2)
    yield bytes_case("GQA, drawn", config, 1)
    heads, width = draw.randrange(10, 60, 2), draw.choice((48, 64, 80, 96))
    latent = {"kv_lora_rank": draw.randrange(128, 768, 32), "qk_rope_head_dim": draw.randrange(16, 100, 8)}
    config = model(heads, width) | {"num_key_value_heads": heads, "head_dim": width} | latent
    yield bytes_case("MLA, drawn", config, 2)
    kv, group, width = draw.randrange(2, 5), draw.randrange(5, 8), draw.randrange(10, 30, 2)
    wide = {"num_key_value_heads": kv, "head_dim": width + draw.randrange(20, 60, 2)}
    yield bytes_case("wide heads, drawn", model(kv * group, width) | wide, 2)
    config = model(draw.randrange(6, 30), draw.randrange(32, 100, 4))
    yield bytes_case("no num_key_value_heads, drawn", config, 2)
    config = model(draw.randrange(6, 30), draw.randrange(32, 100, 4)) | {"num_key_value_heads": 1}
    yield bytes_case("no head_dim, one KV head, drawn", config, 2)


def bytes_case(model: str, config: Config, size: int) -> Case:
    plural = "bytes" if size > 1 else "byte"
    return Case(f"{model}, {size} {plural}", (config, size), layout_of(config).bytes_per_token(size))


# ---- q3: a cache in place --------------------------------------------------------------------------------------------

Script = list[tuple[Any, ...]]


class Reference:
    """The cache of question 3 as lists: what must come back, made another way than the reader's."""

    def __init__(self, layers: int, capacity: int, kv_heads: int, head_dim: int) -> None:
        self.capacity = capacity
        self.tokens: list[list[int]] = [[] for _ in range(layers)]

    def append(self, layer: int, tokens: list[int]) -> str:
        if len(self.tokens[layer]) + len(tokens) > self.capacity:
            return "ValueError"
        self.tokens[layer] += tokens
        return "keys of " + " ".join(map(str, self.tokens[layer]))

    def crop(self, length: int) -> str:
        for tokens in self.tokens:
            del tokens[length:]
        return "cropped"

    def length(self) -> str:
        return f"length {len(self.tokens[0])}"

    def memory(self, layer: int) -> str:
        return "in place"


def cache_cases() -> Iterable[Case]:
    yield cache_case("one layer, one by one", (1, 4, 1, 2), [("append", 0, [token]) for token in (7, 8, 9)])
    prompt = [("append", 0, tokens) for tokens in ([1, 2, 3], [4], [5, 6])]
    yield cache_case("a prompt, then decode", (1, 8, 2, 3), prompt)
    passes = [("append", layer, tokens) for tokens in ([1, 2], [3], [4]) for layer in range(3)]
    yield cache_case("three layers", (3, 5, 1, 2), [*passes, ("length",)])
    appends = [("append", 0, [1, 2]), ("append", 0, [3, 4]), ("append", 0, [5]), ("append", 1, [6, 7, 8])]
    yield cache_case("full", (2, 3, 1, 1), [*appends, ("length",)])
    crop: Script = [("append", layer, [1, 2, 3, 4]) for layer in (0, 1)]
    crop += [("crop", 2), ("length",), ("append", 0, [5]), ("append", 1, [5, 6]), ("length",)]
    yield cache_case("crop", (2, 4, 1, 2), crop)
    same: Script = [("length",), *[("append", 0, [token]) for token in (1, 2, 3, 4)], ("memory", 0)]
    yield cache_case("the same memory", (1, 6, 2, 2), same)
    yield cache_case("a long script", (2, 9, 2, 2), long_script(Random(3), 10))


def cache_fresh(draw: Random) -> Iterable[Case]:
    """The same scripts with other tokens, more or fewer: what was full is full again, what had room has room."""

    def tokens(number: int) -> list[int]:
        return draw.sample(range(1, 100), number)

    def some(least: int = 1, more: int = 3) -> int:
        return least + draw.randrange(more)

    each = tokens(some(3))
    script: Script = [("append", 0, [token]) for token in each]
    yield cache_case("one layer, one by one, drawn", (1, len(each) + 1, some(), some(2)), script)
    script = [("append", 0, tokens(number)) for number in (some(2), 1, some(2))]
    yield cache_case("a prompt, then decode, drawn", (1, some(8), 2, some(3)), script)
    layers, prompt, later = some(3), tokens(some(2)), tokens(2)
    script = [("append", layer, new) for new in (prompt, later[:1], later[1:]) for layer in range(layers)]
    yield cache_case(f"{layers} layers, drawn", (layers, len(prompt) + 3, 1, some(2)), [*script, ("length",)])
    room = some(3, 4)
    script = [("append", 0, tokens(number)) for number in (room - 1, 2, 1)]
    yield cache_case("full, drawn", (2, room, 1, 1), [*script, ("append", 1, tokens(room)), ("length",)])
    room, left, all_tokens, new = some(4, 4), some(2, 2), tokens(7), tokens(6)
    script = [("append", layer, all_tokens[:room]) for layer in (0, 1)]
    script += [("crop", left), ("length",), ("append", 0, new[:1]), ("append", 1, new[: room - left]), ("length",)]
    yield cache_case("crop, drawn", (2, room, 1, some(2)), script)
    script = [("length",), *[("append", 0, [token]) for token in tokens(some(3))], ("memory", 0)]
    yield cache_case("the same memory, drawn", (1, some(6), 2, some(2)), script)
    yield cache_case("a long script, drawn", (2, some(8), 2, some(2)), long_script(draw, draw.randrange(10, 60)))


def long_script(draw: Random, first: int) -> Script:
    """Both layers get one to four tokens at a time, more than fit; now and then most are forgotten."""
    steps: Script = []
    for token in range(first, first + 16):
        tokens = list(range(token, token + draw.choice((1, 1, 2, 4))))
        steps += [("append", layer, tokens) for layer in (0, 1)]
        steps += [("crop", draw.randrange(4))] if draw.random() < 0.3 else []
        steps += [("length",)]
    return steps


def cache_case(name: str, shape: tuple[int, int, int, int], script: Sequence[tuple[Any, ...]]) -> Case:
    right = Reference(*shape)
    return Case(name, (shape, [*script]), [getattr(right, kind)(*details) for kind, *details in script])


# ---- q4: one step of grouped attention -------------------------------------------------------------------------------


def grouped_cases() -> Iterable[Case]:
    generator = torch.Generator().manual_seed(5)
    for heads, kv_heads, width, tokens in (
        (4, 2, 2, 3),
        (2, 2, 3, 4),
        (4, 1, 2, 5),
        (6, 3, 2, 4),
        (6, 2, 2, 3),
        (2, 1, 4, 1),
    ):
        yield grouped_case(heads, kv_heads, width, tokens, generator)


def grouped_fresh(draw: Random) -> Iterable[Case]:
    """Groups of several heads, three times; as many KV heads as heads; a single one, also with a single token."""
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    for groups, kv_heads, tokens in (
        ((2, 3), (2, 2), (3, 6)),
        ((1, 1), (2, 5), (3, 6)),
        ((3, 6), (1, 1), (3, 6)),
        ((2, 3), (3, 4), (3, 6)),
        ((4, 5), (2, 2), (3, 6)),
        ((2, 5), (1, 1), (1, 1)),
    ):
        kv = draw.randint(*kv_heads)
        heads, width = kv * draw.randint(*groups), draw.randint(2, 5)
        yield grouped_case(heads, kv, width, draw.randint(*tokens), generator, ", drawn")


def grouped_case(
    heads: int, kv_heads: int, width: int, tokens: int, generator: torch.Generator, note: str = ""
) -> Case:
    q = torch.randn(heads, width, generator=generator) * 1.5
    k, v = torch.randn(2, tokens, kv_heads, width, generator=generator)
    kind = "MHA" if kv_heads == heads else "MQA" if kv_heads == 1 else "GQA"
    name = f"{kind}: {heads} query heads, {kv_heads} KV, {tokens} cached{note}"
    return Case(name, (q, k, v), attention(q[None], k, v)[0])


# ---- q5: a chat, counted ---------------------------------------------------------------------------------------------

Turns = list[tuple[int, int]]


def chat_cases() -> Iterable[Case]:
    draw = Random(4)
    chats = [[(3, 2)], [(1, 1)], [(3, 2), (2, 1)], [(5, 4), (1, 3)], [(10, 20), (5, 30), (8, 10)]]
    chats += [[(draw.randrange(1, 40), draw.randrange(1, 60)) for _ in range(6)]]
    yield from map(chat_case, chats)


def chat_fresh(draw: Random) -> Iterable[Case]:
    """One answer, also of one token; two, the second of one token or to a message of one; three; six."""

    def turn(least: int, most: int) -> tuple[int, int]:
        return draw.randint(least, most), draw.randint(least, most)

    yield chat_case([turn(2, 30)])
    yield chat_case([(draw.randint(2, 30), 1)])
    yield chat_case([turn(2, 20), (draw.randint(2, 20), 1)])
    yield chat_case([turn(2, 20), (1, draw.randint(2, 20))])
    yield chat_case([turn(4, 30) for _ in range(3)])
    yield chat_case([turn(1, 50) for _ in range(6)])


def chat_case(turns: Turns) -> Case:
    """Every pass one by one, added up by the package."""
    naive: list[Pass] = []
    per_answer: list[Pass] = []
    kept: list[Pass] = []
    before = cached = 0
    for said, made in turns:
        prompt = before + said
        decodes = [Pass(1, past=prompt + step) for step in range(made - 1)]
        naive += naive_passes(prompt, made)
        per_answer += [Pass(prompt), *decodes]
        kept += [Pass(prompt - cached, past=cached), *decodes]
        before, cached = prompt + made, prompt + made - 1
    ways = {"naive": naive, "per_answer": per_answer, "kept": kept}
    counts = {name: Count.of(passes) for name, passes in ways.items()}
    expected = {name: (count.rows, count.causal_pairs) for name, count in counts.items()}
    name = ", ".join(f"{said} + {made}" for said, made in turns)
    return Case(f"messages + answers: {name}", (turns,), expected)


# ---- q6: a cached generation -----------------------------------------------------------------------------------------


def generate_cases() -> Iterable[Case]:
    for seed, prompt, new_tokens in (
        (1, [7], 1),
        (2, [3, 1, 4, 1, 5], 1),
        (54, [7], 6),
        (2, [9, 2, 6], 3),
        (32, [5, 3, 5, 8], 10),
    ):
        yield generate_case(seed, prompt, new_tokens)


def generate_fresh(draw: Random) -> Iterable[Case]:
    """One token behind a prompt of one and of several; then models that give away each of the known mistakes."""
    for prompts, new, telling in (
        ((1, 1), (1, 1), False),
        ((4, 7), (1, 1), False),
        ((1, 1), (4, 6), True),
        ((3, 4), (3, 4), True),
        ((3, 6), (6, 8), True),
    ):
        new_tokens, length = draw.randint(*new), draw.randint(*prompts)
        case = None
        while case is None or (telling and not tells(case)):
            prompt = [draw.randrange(50) for _ in range(length)]
            case = generate_case(draw.randrange(1000, 10**6), prompt, new_tokens, ", drawn")
        yield case


def tells(case: Case) -> bool:
    """Does each mistake show in the tokens? Where a prompt has one token, its first row is its last."""
    others = [other for _, other in OTHER_MISTAKES if other != "first row" or len(case.arguments[1]) > 1]
    # In this order because the last of the others shows least often.
    answers = [partial(faulty_generate, other=other) for other in reversed(others)]
    answers += [partial(faulty_generate, faults=(fault,)) for fault in FAULTS]
    return all(generated(answer, *case.arguments)["tokens"] != case.expected["tokens"] for answer in answers)


def generate_case(seed: int, prompt: list[int], new_tokens: int, note: str = "") -> Case:
    """Greedy generation without any cache: everything is computed again for every token."""
    project, choose = tiny_model(seed)
    tokens = list(prompt)
    for _ in range(new_tokens):
        q, k, v = (part[:, None] for part in project(tokens, range(len(tokens))))
        tokens.append(choose(attention(q, k, v, masks.causal(len(tokens)))[-1, 0]))
    lengths = [len(prompt) + step for step in range(new_tokens)]
    expected = {"tokens": tokens[len(prompt) :], "lengths": lengths}
    return Case(f"prompt of {len(prompt)}, {new_tokens} new{note}", (seed, prompt, new_tokens), expected)
