"""Chapter 03: bytes of a token, a cache in place, grouped heads, exact counts of a chat, a cached decode to repair."""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch

from pagedlab.basics import masks
from pagedlab.basics.attention import attention
from pagedlab.basics.counters import Count, Pass, naive_passes
from pagedlab.basics.kv_size import kv_layout, layout_of
from pagedlab.basics.published_configs import PUBLISHED
from pagedlab.course.drivers.ch01 import part
from pagedlab.course.drivers.ch03 import generated, replay, tiny_model
from pagedlab.course.questions.ch03_cache_mistakes import cache_explained, generate_explained, grouped_explained
from pagedlab.course.questions.ch03_mistakes import BYTES_MISTAKES, LLAMA_MISTAKES, chat_explained
from pagedlab.course.questions.mistakes import named, named_by_part
from pagedlab.course.questions.model import Case, Kind, Question


def llama_parts() -> Iterable[Case]:
    token = layout_of(PUBLISHED["Llama-2-7B"]).bytes_per_token()
    grouped = kv_layout(32, num_heads=32, num_kv_heads=8, head_dim=128).bytes_per_token()
    left = 24_000_000_000 - 13_480_000_000
    for name, number in {
        "token_bytes": token,
        "thousand_mib": 1000 * token / 2**20,
        "ten_requests_gib": 10 * 500 * token / 2**30,
        "requests_on_card": left // (500 * token),
        "requests_with_8_kv_heads": left // (500 * grouped),
    }.items():
        yield Case(name, (name,), number)


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
            plural = "bytes" if size > 1 else "byte"
            yield Case(f"{model}, {size} {plural}", (config, size), layout_of(config).bytes_per_token(size))


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
    draw = random.Random(3)
    scripts: dict[str, tuple[tuple[int, ...], list[tuple]]] = {
        "one layer, one by one": ((1, 4, 1, 2), [("append", 0, [7]), ("append", 0, [8]), ("append", 0, [9])]),
        "a prompt, then decode": ((1, 8, 2, 3), [("append", 0, [1, 2, 3]), ("append", 0, [4]), ("append", 0, [5, 6])]),
        "three layers": (
            (3, 5, 1, 2),
            [("append", layer, tokens) for tokens in ([1, 2], [3], [4]) for layer in range(3)] + [("length",)],
        ),
        "full": (
            (2, 3, 1, 1),
            [("append", 0, [1, 2]), ("append", 0, [3, 4]), ("append", 0, [5]), ("append", 1, [6, 7, 8]), ("length",)],
        ),
        "crop": (
            (2, 4, 1, 2),
            [("append", layer, [1, 2, 3, 4]) for layer in (0, 1)]
            + [("crop", 2), ("length",), ("append", 0, [5]), ("append", 1, [5, 6]), ("length",)],
        ),
        "the same memory": (
            (1, 6, 2, 2),
            [("length",), *[("append", 0, [token]) for token in (1, 2, 3, 4)], ("memory", 0)],
        ),
    }
    steps: list[tuple] = []
    for token in range(10, 26):
        tokens = list(range(token, token + draw.choice((1, 1, 2, 4))))
        steps += [("append", layer, tokens) for layer in (0, 1)]
        steps += [("crop", draw.randrange(4))] if draw.random() < 0.3 else []
        steps += [("length",)]
    scripts["a long script"] = (2, 9, 2, 2), steps
    for name, (shape, script) in scripts.items():
        right = Reference(*shape)
        yield Case(name, (shape, script), [getattr(right, kind)(*details) for kind, *details in script])


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
        q = torch.randn(heads, width, generator=generator) * 1.5
        k, v = torch.randn(2, tokens, kv_heads, width, generator=generator)
        kind = "MHA" if kv_heads == heads else "MQA" if kv_heads == 1 else "GQA"
        name = f"{kind}: {heads} query heads, {kv_heads} KV, {tokens} cached"
        yield Case(name, (q, k, v), attention(q[None], k, v)[0])


def chat_cases() -> Iterable[Case]:
    """Every pass one by one, added up by the package."""
    draw = random.Random(4)
    chats = [[(3, 2)], [(1, 1)], [(3, 2), (2, 1)], [(5, 4), (1, 3)], [(10, 20), (5, 30), (8, 10)]]
    chats += [[(draw.randrange(1, 40), draw.randrange(1, 60)) for _ in range(6)]]
    for turns in chats:
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
        yield Case(f"messages + answers: {name}", (turns,), expected)


def generate_cases() -> Iterable[Case]:
    """Greedy generation without any cache: everything is computed again for every token."""
    for seed, prompt, new_tokens in (
        (1, [7], 1),
        (2, [3, 1, 4, 1, 5], 1),
        (54, [7], 6),
        (2, [9, 2, 6], 3),
        (32, [5, 3, 5, 8], 10),
    ):
        project, choose = tiny_model(seed)
        tokens = list(prompt)
        for _ in range(new_tokens):
            q, k, v = (part[:, None] for part in project(tokens, range(len(tokens))))
            tokens.append(choose(attention(q, k, v, masks.causal(len(tokens)))[-1, 0]))
        lengths = [len(prompt) + step for step in range(new_tokens)]
        expected = {"tokens": tokens[len(prompt) :], "lengths": lengths}
        yield Case(f"prompt of {len(prompt)}, {new_tokens} new", (seed, prompt, new_tokens), expected)


QUESTIONS: tuple[Question, ...] = (
    Question(
        id="ch03.q1",
        title="The KV cache of Llama-2-7B",
        kind=Kind.COMPUTE,
        difficulty=1,
        points=3,
        answer="llama",
        cases=llama_parts,
        hints=(
            "How many numbers does one token leave in one layer? Then layers, then bytes.",
            "A key and a value for each KV head. MiB and GiB are powers of 2: divide by 2**20 and 2**30.",
            "One token: 2 * layers * kv_heads * head_dim * 2 bytes. On the card: what the weights leave free, "
            "divided by 500 tokens, rounded down.",
        ),
        explain=named_by_part(LLAMA_MISTAKES, tolerance=1e-5),
        tolerance=1e-6,
        drive=part,
    ),
    Question(
        id="ch03.q2",
        title="Bytes of a token, from a config",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=3,
        answer="bytes_per_token",
        cases=bytes_cases,
        hints=(
            "First ask which kind it is: is there a latent?",
            "MHA, GQA and MQA are one formula with KV heads. MLA has another: one latent and one rotated key.",
            "config.get('num_key_value_heads', query heads), config.get('head_dim', hidden_size // query heads); with "
            "kv_lora_rank it is layers * (kv_lora_rank + qk_rope_head_dim) * bytes.",
        ),
        explain=named(*BYTES_MISTAKES),
    ),
    Question(
        id="ch03.q3",
        title="A cache that copies nothing",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=4,
        answer="FixedCache",
        cases=cache_cases,
        hints=(
            "One large tensor of keys and one of values, made once. What else must you remember for each layer?",
            "A list of lengths, one a layer. New rows go to length : length + new; a slice of the tensor is a view.",
            "append: end = length + len(key); if end > capacity raise ValueError; write; set the length; return [:end] "
            "of both. crop: each length becomes min(length, new length).",
        ),
        explain=cache_explained,
        drive=replay,
    ),
    Question(
        id="ch03.q4",
        title="A decode step with grouped heads",
        kind=Kind.IMPLEMENT,
        difficulty=1,
        points=2,
        answer="decode_attention",
        cases=grouped_cases,
        hints=(
            "With 6 query heads and 2 KV heads: which query heads share KV head 0?",
            "Query head h uses KV head h // (query heads / KV heads). One query that sees everything needs no mask.",
            "k.repeat_interleave(group, dim=1) gives each query head its KV head; then scores, softmax, mix.",
        ),
        explain=grouped_explained,
        tolerance=1e-4,
        absolute=True,
    ),
    Question(
        id="ch03.q5",
        title="What a conversation costs",
        kind=Kind.COMPUTE,
        difficulty=3,
        points=4,
        answer="chat_work",
        cases=chat_cases,
        hints=(
            "Write down every pass of the worked example: how many rows are new, and how many keys does each see?",
            "The row at position p has p + 1 scores. With a cache that is kept, each position is computed just once.",
            "Loop over turns with `text` (tokens so far) and `cached` (text - 1 after an answer). Naive passes have "
            "text, text + 1, ... rows; kept starts with text - cached rows.",
        ),
        explain=chat_explained,
    ),
    Question(
        id="ch03.q6",
        title="A cached generation with four faults",
        kind=Kind.DIAGNOSE,
        difficulty=3,
        points=4,
        answer="generate",
        cases=generate_cases,
        hints=(
            "Print, for each pass, what is fed, at which positions, and how long the cache is afterwards.",
            "A decode step feeds one token. It stands behind everything in the cache, and it sees all of it.",
            "past = len(keys) before the pass. Positions are past, past + 1, ...; the mask is tril(past); fed is the "
            "newest token alone; there are new_tokens passes.",
        ),
        explain=generate_explained,
        drive=generated,
    ),
)
