"""What the size of a prompt's chunks costs on a GPU: peak memory, time to first token, and the gaps of eight chats.

`python -m pagedlab.bench.chunked_prefill` runs the engine on random weights of Llama-2-7B's shape, with positions
raised from 4,096 to as many as the prompt needs. The notebook of chapter 06 shows the recorded result.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pagedlab.basics.published_configs import PUBLISHED
from pagedlab.bench.report import environment, write_json
from pagedlab.config import EngineConfig
from pagedlab.interfaces.engine import LLMEngine
from pagedlab.sampling_params import SamplingParams

NUM_CHATS = 8
CHAT_PROMPT = 64
CHAT_BLOCKS = 56
"""KV blocks for each chat: 896 tokens, enough for the steps of the run with the smallest chunks."""
CHUNK_SIZES = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


def model_directory(root: Path, num_positions: int) -> Path:
    """A config.json of Llama-2-7B's shape, without weights."""
    fields = dict(PUBLISHED["Llama-2-7B"]) | {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "eos_token_id": 2,
        "max_position_embeddings": num_positions,
        "torch_dtype": "bfloat16",
    }
    (root / "config.json").write_text(json.dumps(fields))
    return root


def make_engine(model: Path, num_tokens: int, num_chats: int, **options: Any) -> LLMEngine:
    """An engine whose pool holds the long prompt and the chats, and whose budget takes all of it in one step."""
    return LLMEngine(
        EngineConfig(
            model=model,
            load_format="dummy",
            skip_tokenizer_init=True,
            device="cuda",
            dtype="bfloat16",
            num_blocks=-(-(num_tokens + 16) // 16) + 1 + num_chats * CHAT_BLOCKS,
            max_num_seqs=2 * NUM_CHATS,
            max_num_batched_tokens=num_tokens + 2 * NUM_CHATS,
            enable_prefix_caching=False,
            **options,
        )
    )


def add(engine: LLMEngine, name: str, num_tokens: int, max_tokens: int) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    tokens = torch.randint(10, 30000, (num_tokens,), generator=generator).tolist()
    engine.add_request(name, tokens, SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True))


def paste(engine: LLMEngine, num_tokens: int, chunk_size: int) -> dict[str, Any]:
    """Start eight chats, then send one long prompt; time every step() until its first token.

    An engine that runs one step ahead of the GPU has a step in flight when the prompt comes: one call more than chunks.
    """
    engine.abort_request(["long", *(f"chat {chat}" for chat in range(NUM_CHATS))])
    for chat in range(NUM_CHATS):
        add(engine, f"chat {chat}", CHAT_PROMPT + chat, 16 * CHAT_BLOCKS - CHAT_PROMPT - NUM_CHATS)
    alone = [timed_step(engine)[0] for _ in range(12)][4:]
    engine.scheduler.max_tokens_per_request = chunk_size
    preempted = engine.stats().num_preemptions
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    add(engine, "long", num_tokens, 1)
    steps: list[float] = []
    names: list[str] = []
    while "long" not in names:
        seconds, names = timed_step(engine)
        steps.append(seconds)
    return {
        "chunk_size": chunk_size,
        "num_calls": len(steps),
        "num_preemptions": engine.stats().num_preemptions - preempted,
        "peak_activation_bytes": torch.cuda.max_memory_allocated() - before,
        "time_to_first_token": sum(steps),
        "worst_gap": max(steps),
        "median_gap": median(steps),
        "gap_without_it": median(alone),
        "tokens_per_second": (num_tokens + NUM_CHATS * len(steps)) / sum(steps),
    }


def timed_step(engine: LLMEngine) -> tuple[float, list[str]]:
    """Seconds of one step (its tokens are back on the host then), and who got a token."""
    start = time.perf_counter()
    outputs = engine.step()
    return time.perf_counter() - start, [output.request_id for output in outputs]


def trade_off(model: Path, num_tokens: int, sizes: Sequence[int]) -> dict[str, Any]:
    """Each chunk size once, the whole prompt last, after a warm-up on a prompt of 4,000 tokens."""
    engine = make_engine(model, num_tokens, NUM_CHATS)
    for size in (512, num_tokens):
        paste(engine, min(4000, num_tokens), size)
    runs: list[dict[str, Any]] = []
    for size in (*[size for size in sizes if size < num_tokens], num_tokens):
        try:
            runs.append(paste(engine, num_tokens, size))
        except torch.cuda.OutOfMemoryError as error:
            runs.append({"chunk_size": size, "result": "out of memory", "message": first_sentences(error)})
        print(runs[-1], flush=True)
    return {"num_tokens": num_tokens, "num_chats": NUM_CHATS, "runs": runs}


def first_sentences(error: Exception) -> str:
    """What CUDA's allocator wanted, without its advice."""
    return ". ".join(str(error).split(". ")[:2])


def fits(model: Path, num_tokens: int, chunk_size: int, **options: Any) -> dict[str, Any]:
    """Does a prompt get its first token within the memory that this process may take? What raised if not."""
    case = {"num_tokens": num_tokens, "chunk_size": chunk_size, **options}
    doing = "load weights and KV cache"
    engine: LLMEngine | None = None
    try:
        engine = make_engine(model, num_tokens, 0, max_model_len=num_tokens + 8, **options)
        doing = "prefill"
        engine.scheduler.max_tokens_per_request = chunk_size
        add(engine, "long", num_tokens, 1)
        while engine.has_unfinished_requests():
            engine.step()
        case["result"] = "first token"
    except torch.cuda.OutOfMemoryError as error:
        case["result"] = f"out of memory: {doing}"
        case["message"] = first_sentences(error)
    except Exception as error:
        case["result"] = f"{type(error).__name__}: {doing}"
        case["message"] = str(error)[:300]
    engine = None  # the next case needs its memory
    gc.collect()
    torch.cuda.empty_cache()
    print(case, flush=True)
    return case


def limited(model: Path, limit: int, num_tokens: int) -> list[dict[str, Any]]:
    """As if the card had `limit` bytes: 12,000 tokens whole and in chunks, scores stored or not; then all tokens."""
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    cases = [
        fits(model, 12_000, 12_000, attention_backend="reference"),
        fits(model, 12_000, 512, attention_backend="reference"),
        fits(model, 12_000, 12_000),
        fits(model, 12_000, 4096),
        fits(model, num_tokens, 4096),
    ]
    torch.cuda.set_per_process_memory_fraction(1.0)
    return cases


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pagedlab.bench.chunked_prefill", description=__doc__)
    parser.add_argument("--tokens", type=int, default=100_000, help="length of the long prompt (default 100000)")
    parser.add_argument("--limit-gib", type=float, default=24, help="memory of the smaller card (default 24)")
    parser.add_argument("--json", type=Path, help="write the result there")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as root:
        model = model_directory(Path(root), arguments.tokens + 8192)
        cases = limited(model, int(arguments.limit_gib * 2**30), arguments.tokens)
        result = {
            "environment": environment("cuda"),
            "shape": "Llama-2-7B, random weights, bfloat16",
            "limit_gib": arguments.limit_gib,
            "within_the_limit": cases,
            "trade_off": trade_off(model, arguments.tokens, CHUNK_SIZES),
        }
    print(json.dumps(result, indent=2))
    if arguments.json:
        write_json(arguments.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
