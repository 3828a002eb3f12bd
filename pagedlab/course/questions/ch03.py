"""Chapter 03: bytes of a token, a cache in place, grouped heads, exact counts of a chat, a cached decode to repair."""

from __future__ import annotations

from collections.abc import Iterable

from pagedlab.basics.kv_size import kv_layout, layout_of
from pagedlab.basics.published_configs import PUBLISHED
from pagedlab.course.drivers.ch01 import part
from pagedlab.course.drivers.ch03 import generated, replay
from pagedlab.course.questions import ch03_cases as cases
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
        cases=cases.bytes_cases,
        fresh=cases.bytes_fresh,
        hints=(
            "First ask which kind it is: is there a latent?",
            "MHA, GQA and MQA are one formula with KV heads. MLA has another: one latent and one rotated key.",
            "config.get('num_key_value_heads', query heads), config.get('head_dim', hidden_size // query heads); with "
            "kv_lora_rank it is layers * (kv_lora_rank + qk_rope_head_dim) * bytes.",
        ),
        explain=named(*BYTES_MISTAKES, tolerance=0.0),
    ),
    Question(
        id="ch03.q3",
        title="A cache that copies nothing",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=4,
        answer="FixedCache",
        cases=cases.cache_cases,
        fresh=cases.cache_fresh,
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
        cases=cases.grouped_cases,
        fresh=cases.grouped_fresh,
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
        cases=cases.chat_cases,
        fresh=cases.chat_fresh,
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
        cases=cases.generate_cases,
        fresh=cases.generate_fresh,
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
