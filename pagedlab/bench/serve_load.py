"""What `pagedlab bench serve` sends, and what it makes of the answers: workload, percentiles, goodput, counts."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pagedlab.bench.http_load import Answer
from pagedlab.errors import ConfigError
from pagedlab.simulate.workloads import ALPACA_MEANS, SHAREGPT_MEANS, Lengths

MEANS = {"sharegpt": SHAREGPT_MEANS, "alpaca": ALPACA_MEANS}
PERCENTILES = (50, 90, 95, 99)
MAX_WORDS = 4096


@dataclass(frozen=True)
class TextJob:
    """One request: a text of `num_prompt_tokens` tokens, and `max_tokens` tokens wanted, end of text ignored."""

    prompt: str
    num_prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True)
class Slo:
    """What a request must keep to count as good, seconds."""

    ttft: float
    tpot: float

    def is_met(self, answer: Answer) -> bool:
        return answer.error is None and answer.ttft <= self.ttft and (answer.tpot or 0.0) <= self.tpot


def whole_words(encode: Callable[[str], list[int]], vocab_size: int, decode: Callable[[list[int]], str]) -> list[str]:
    """Texts that are one token each, alone and next to each other, so that a prompt's length is the number of words.

    Raises:
        ConfigError: the tokenizer has none, among those looked at.
    """
    words = []
    for token in range(vocab_size):
        text = decode([token])
        if text.startswith(" ") and text[1:].isalpha() and text.isascii() and encode(text * 3) == [token] * 3:
            words.append(text)
            if len(words) == MAX_WORDS:
                break
    if not words:
        raise ConfigError("The model's tokenizer has no token for a word with the space before it: no prompt is made.")
    return words


def serve_jobs(count: int, words: Sequence[str], lengths: Lengths, seed: int = 0) -> list[TextJob]:
    """Requests of random words; the same for the same arguments."""
    draw = random.Random(seed)
    pairs = zip(*(column.tolist() for column in lengths.draw(count, np.random.default_rng(seed))), strict=True)
    return [TextJob("".join(draw.choice(words) for _ in range(n)), n, m) for n, m in pairs]


def scaled_lengths(name: str, scale: float, window: int) -> Lengths:
    """ShareGPT's or Alpaca's mean lengths times `scale`, at most `window` tokens a request."""
    prompt, output = (max(1.0, mean * scale) for mean in MEANS[name])
    return Lengths(prompt, output, window=window)


def pagedlab_body(job: TextJob, cache_salt: str) -> dict[str, Any]:
    """A salt of its own for each round: the prefix cache must not know the prompts of the round before."""
    return {
        "prompt": job.prompt,
        "max_tokens": job.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_salt": cache_salt,
    }


def transformers_body(job: TextJob, model: str) -> dict[str, Any]:
    """The same for transformers' server, which always sends usage, and takes an end of text that no token has."""
    config = {"do_sample": False, "eos_token_id": -1, "pad_token_id": 0, "max_new_tokens": job.max_tokens}
    return {
        "model": model,
        "prompt": job.prompt,
        "max_tokens": job.max_tokens,
        "stream": True,
        "generation_config": json.dumps(config),
    }


def check_counts(jobs: Sequence[TextJob], answers: Sequence[Answer], extra_prompt_tokens: int = 0) -> None:
    """Every answer must have exactly the tokens that were asked for; the others become errors.

    Args:
        extra_prompt_tokens: what the tokenizer adds to a text (a BOS).
    """
    for job, answer in zip(jobs, answers, strict=True):
        if answer.error is not None:
            continue
        expected = (job.num_prompt_tokens + extra_prompt_tokens, job.max_tokens)
        got = (answer.num_prompt_tokens, answer.num_tokens)
        if got != expected:
            answer.error = f"{got} prompt and output tokens where {expected} were asked for"
        elif answer.finish_reason != "length":
            answer.error = f"finish reason {answer.finish_reason!r} where 'length' was due"


def check_metrics(before: dict[str, float], after: dict[str, float], answers: Sequence[Answer]) -> list[str]:
    """Where the server's own counters disagree with what came over HTTP, one sentence each."""
    if any(answer.error for answer in answers):
        return []  # what failed may or may not be on the server's books
    expected = {
        "generation_tokens": sum(answer.num_tokens for answer in answers),
        "prompt_tokens": sum(answer.num_prompt_tokens for answer in answers),
        "request_success{length}": len(answers),
        "request_success{error}": 0,
    }
    wrong = []
    for name, value in expected.items():
        seen = after.get(name, 0) - before.get(name, 0)
        if seen != value:
            wrong.append(f"/metrics counts {seen:g} {name} where {value} came over HTTP (does another client use it?)")
    return wrong


def summarize(answers: Sequence[Answer], duration: float, slo: Slo) -> dict[str, Any]:
    """The result under the names of vLLM's `bench serve`: counts, rates a second, and latencies in milliseconds."""
    good = [answer for answer in answers if answer.error is None]
    num_output = sum(answer.num_tokens for answer in good)
    num_input = sum(answer.num_prompt_tokens for answer in good)
    result: dict[str, Any] = {
        "duration": duration,
        "completed": len(good),
        "failed": len(answers) - len(good),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": len(good) / duration,
        "request_goodput": sum(slo.is_met(answer) for answer in good) / duration,
        "good_requests": sum(slo.is_met(answer) for answer in good),
        "output_throughput": num_output / duration,
        "total_token_throughput": (num_input + num_output) / duration,
    }
    series = {
        "ttft": [answer.ttft for answer in good],
        "tpot": [answer.tpot for answer in good if answer.tpot is not None],
        "itl": [gap for answer in good for gap in answer.itl],
        "e2el": [answer.e2e for answer in good],
    }
    for name, values in series.items():
        result |= latency(name, values)
    return result


def latency(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """mean, median, standard deviation and percentiles in milliseconds; nothing where there are no values."""
    if not seconds:
        return {}
    values = 1000 * np.asarray(seconds)
    ranks = {f"p{rank}_{name}_ms": float(np.percentile(values, rank)) for rank in PERCENTILES}
    mean, median, std = float(values.mean()), float(np.median(values)), float(values.std())
    return {f"mean_{name}_ms": mean, f"median_{name}_ms": median, f"std_{name}_ms": std, **ranks}
