"""The whole engine on the Triton backend: its kernels interpreted, in a process of their own, or native on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import greedy_tokens, make_tiny_model

PROMPTS = [[5, 6, 7], list(range(3, 22)), [9] * 16, [*range(3, 22), 40, 41]]
MAX_TOKENS = 5

SCRIPT = """
import json, sys
from pagedlab import LLM, SamplingParams
path, prompts, max_tokens, options = json.loads(sys.argv[1])
llm = LLM(path, attention_backend="triton", skip_tokenizer_init=True, dtype="float32", **options)
params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
outputs = llm.generate(prompts, params, use_tqdm=False)
stats = llm.stats()
print(json.dumps([[o.outputs[0].token_ids for o in outputs], stats.num_preemptions, stats.num_steps]))
"""


def run_engine(path: Path, interpret: bool, **options: object) -> tuple[list[list[int]], int]:
    environment = os.environ | ({"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} if interpret else {})
    arguments = json.dumps([str(path), PROMPTS, MAX_TOKENS, options])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, arguments], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tokens, preemptions, _ = json.loads(done.stdout.strip().splitlines()[-1])
    return tokens, preemptions


SETTINGS = {
    "chunked": {"num_blocks": 40, "max_num_batched_tokens": 12, "max_num_seqs": 4},
    "preempting": {"num_blocks": 4, "max_num_batched_tokens": 64, "max_num_seqs": 4},
}


@pytest.mark.parametrize("setting", list(SETTINGS))
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_interpreted_kernels_give_transformers_tokens(tmp_path: Path, architecture: str, setting: str) -> None:
    pytest.importorskip("triton")
    options = (
        {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 1} if architecture == "qwen3" else {}
    )
    path = make_tiny_model(tmp_path, architecture, num_key_value_heads=1, **options)
    tokens, preemptions = run_engine(path, interpret=True, device="cpu", **SETTINGS[setting])
    assert tokens == [greedy_tokens(path, prompt, MAX_TOKENS) for prompt in PROMPTS]
    assert (preemptions > 0) == (setting == "preempting")


@pytest.mark.gpu
@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graphs"])
@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_the_engine_on_a_gpu_gives_transformers_tokens(tmp_path: Path, eager: bool, mode: str) -> None:
    path = make_tiny_model(tmp_path, num_key_value_heads=1)
    expected = [greedy_tokens(path, prompt, MAX_TOKENS) for prompt in PROMPTS]
    options = {"device": "cuda", "enforce_eager": eager, "preemption_mode": mode}
    roomy, _ = run_engine(path, interpret=False, num_blocks=40, **options)
    tight, preemptions = run_engine(path, interpret=False, num_blocks=4, **options)
    assert roomy == tight == expected and preemptions > 0


@pytest.mark.gpu
def test_the_pool_takes_the_share_of_the_gpu_that_it_was_given(tmp_path: Path) -> None:
    import torch

    from pagedlab import LLM

    path = make_tiny_model(tmp_path, max_position_embeddings=2**20)
    total = torch.cuda.get_device_properties(0).total_memory
    # Enough sequences of a million tokens to fill any GPU: the pool is never larger than they could use.
    llm = LLM(path, device="cuda", skip_tokenizer_init=True, gpu_memory_utilization=0.5, max_num_seqs=512)
    used = total - torch.cuda.mem_get_info()[0]
    assert 0.2 * total < used < 0.5 * total + 2**30
    assert llm.stats().num_total_blocks > 1000
