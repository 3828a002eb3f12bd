"""The whole engine on real tensors: greedy tokens are those of transformers, however it cuts, pages and evicts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tiny_models import load_oracle, make_tiny_model

from pagedlab import LLM, SamplingParams
from pagedlab.errors import GenerationError

PREEMPTION = {"none": {}, "recompute": {"preemption_mode": "recompute"}, "swap": {"preemption_mode": "swap"}}
MAX_TOKENS = 10


def prompts_with_shared_prefixes() -> list[list[int]]:
    draw = random.Random(0)
    stem = [draw.randrange(3, 128) for _ in range(40)]
    lengths = (1, 15, 16, 25, 26, 27, 31, 33)
    return [stem[:length] + [draw.randrange(3, 128) for _ in range(length % 4)] for length in lengths] + [stem, stem]


def transformers_tokens(path: Path, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    model = load_oracle(path)
    model.generation_config.eos_token_id = None
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        # The mask is passed because a prompt may hold the padding id.
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False)
        outputs.append(out[0, len(prompt) :].tolist())
    return outputs


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2", "qwen3"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """A random model of each architecture, with what makes it that architecture, and the tokens to expect."""
    options = {
        "llama": {"rope_type": "llama3", "num_key_value_heads": 1, "tie_word_embeddings": True},
        "mistral": {"sliding_window": 12},
        "qwen2": {"rope_type": "yarn"},
        "qwen3": {"num_key_value_heads": 4, "head_dim": 24},
    }[request.param]
    path = make_tiny_model(tmp_path_factory.mktemp(request.param), request.param, **options)
    return path, transformers_tokens(path, prompts_with_shared_prefixes(), MAX_TOKENS)


@pytest.mark.parametrize("preemption", list(PREEMPTION))
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("block_size", [1, 16, 32])
@pytest.mark.parametrize("chunk", [1, 7, 64, 0])
def test_greedy_tokens_equal_transformers_generate(
    tiny: tuple[Path, list[list[int]]], chunk: int, block_size: int, prefix_caching: bool, preemption: str
) -> None:
    path, expected = tiny
    longest = -(-(45 + MAX_TOKENS) // block_size)
    llm = LLM(
        path,
        skip_tokenizer_init=True,
        max_num_seqs=6,
        max_num_batched_tokens=64 if chunk else 512,
        long_prefill_token_threshold=chunk,
        block_size=block_size,
        num_blocks=400 if preemption == "none" else longest + 2,
        enable_prefix_caching=prefix_caching,
        **PREEMPTION[preemption],
    )
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True)
    outputs = llm.generate(prompts_with_shared_prefixes(), params, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == expected
    stats = llm.stats()
    assert (stats.num_preemptions > 0) == (preemption != "none")
    assert stats.num_free_blocks == stats.num_total_blocks
    if prefix_caching and chunk == 0 and preemption == "none":
        again = llm.generate(prompts_with_shared_prefixes(), params, use_tqdm=False)
        assert [output.outputs[0].token_ids for output in again] == expected
        assert llm.stats().prefix_cache_hits > 0


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_backend_and_dtype_runs_the_whole_engine(tmp_path: Path, backend: str, dtype: str) -> None:
    """16-bit tokens differ from float32's by rounding after a while; their log-probabilities do not by much."""
    path = make_tiny_model(tmp_path, "llama", std=0.1)
    prompts = prompts_with_shared_prefixes()
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, ignore_eos=True)
    options = {"skip_tokenizer_init": True, "num_blocks": 100}
    exact = LLM(path, dtype="float32", attention_backend="reference", **options).generate(
        prompts, params, use_tqdm=False
    )
    found = LLM(path, dtype=dtype, attention_backend=backend, **options).generate(prompts, params, use_tqdm=False)
    tolerance = {"float32": 1e-4, "bfloat16": 0.15, "float16": 0.02}[dtype]
    for one, other in zip(exact, found, strict=True):
        for a, b in zip(one.prompt_logprobs[1:], other.prompt_logprobs[1:], strict=True):
            assert set(a) == set(b)
            for token in a:
                assert a[token].logprob == pytest.approx(b[token].logprob, abs=tolerance)


def test_sampled_tokens_do_not_depend_on_who_shares_the_batch(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path)
    params = [SamplingParams(temperature=1.0, seed=i, max_tokens=12, ignore_eos=True, n=2) for i in range(10)]
    prompts = prompts_with_shared_prefixes()
    together = LLM(path, skip_tokenizer_init=True, num_blocks=200).generate(prompts, params, use_tqdm=False)
    for index, prompt in enumerate(prompts):
        alone = LLM(path, skip_tokenizer_init=True, num_blocks=200).generate([prompt], params[index], use_tqdm=False)
        for a, b in zip(alone[0].outputs, together[index].outputs, strict=True):
            assert a.token_ids == b.token_ids
    assert len({tuple(o.token_ids) for output in together for o in output.outputs}) > 10, "seeds made no difference"


def test_prompt_logprobs_equal_transformers_log_softmax_over_chunks(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path)
    prompt = prompts_with_shared_prefixes()[-1]
    params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=3, logprobs=2, ignore_eos=True)
    llm = LLM(path, skip_tokenizer_init=True, num_blocks=50, max_num_batched_tokens=16, max_num_seqs=2)
    llm.generate([prompt], SamplingParams(max_tokens=2), use_tqdm=False)  # the prompt is cached now
    output = llm.generate([prompt], params, use_tqdm=False)[0]
    with torch.no_grad():
        logprobs = load_oracle(path)(torch.tensor([prompt])).logits[0].log_softmax(-1)
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(prompt)
    for position in range(1, len(prompt)):
        entry = output.prompt_logprobs[position]
        row = logprobs[position - 1]
        wanted = {prompt[position], *row.topk(3).indices.tolist()}
        assert set(entry) == wanted
        for token, value in entry.items():
            assert value.logprob == pytest.approx(float(row[token]), abs=1e-4)
            assert value.rank == int((row > row[token]).sum()) + 1
    assert len(output.outputs[0].logprobs) == 2
    assert output.outputs[0].token_ids[0] in output.outputs[0].logprobs[0]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_encode_pools_transformers_hidden_states(tmp_path: Path, pooling: str) -> None:
    from pagedlab import PoolingParams

    path = make_tiny_model(tmp_path)
    llm = LLM(path, skip_tokenizer_init=True, num_blocks=100, max_num_batched_tokens=16, max_num_seqs=4)
    prompts = prompts_with_shared_prefixes()
    outputs = llm.encode(prompts, PoolingParams(pooling=pooling, normalize=False), use_tqdm=False)
    model = load_oracle(path)
    for prompt, output in zip(prompts, outputs, strict=True):
        with torch.no_grad():
            states = model.model(torch.tensor([prompt])).last_hidden_state[0]
        expected = states[-1] if pooling == "last" else states.mean(0)
        torch.testing.assert_close(output.outputs.data, expected, atol=1e-4, rtol=1e-4)


def test_beam_search_equals_transformers(tmp_path: Path) -> None:
    from pagedlab import BeamSearchParams

    path = make_tiny_model(tmp_path)
    model = load_oracle(path)
    model.generation_config.eos_token_id = None
    llm = LLM(path, skip_tokenizer_init=True, num_blocks=60, block_size=4)
    for prompt in prompts_with_shared_prefixes()[:5]:
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=4,
            num_return_sequences=4,
            max_new_tokens=8,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        found = llm.beam_search([prompt], BeamSearchParams(beam_width=4, max_tokens=8, ignore_eos=True))[0]
        assert [s.tokens for s in found.sequences] == expected.sequences.tolist()
        scores = [s.cum_logprob / 8 for s in found.sequences]
        assert scores == pytest.approx(expected.sequences_scores.tolist(), abs=1e-4)


def test_nan_logits_fail_their_request_and_no_other(tmp_path: Path) -> None:
    """A token whose embedding is not a number poisons every prompt that holds it, and nothing else."""
    from pagedlab.runtime.worker import Worker

    path = make_tiny_model(tmp_path)
    llm = LLM(path, skip_tokenizer_init=True, num_blocks=60)
    worker = llm.llm_engine.parts.worker
    assert isinstance(worker, Worker)
    forward = worker.model.forward

    def poisoned(token_ids: torch.Tensor, positions: torch.Tensor, attention: object) -> torch.Tensor:
        hidden = forward(token_ids, positions, attention)
        hidden[token_ids == 99] = float("nan")
        return hidden

    worker.model.forward = poisoned
    good, bad = [5, 6, 7], [5, 6, 99]
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    alone = llm.generate([good], params, use_tqdm=False)[0].outputs[0].token_ids
    with pytest.raises(GenerationError, match="1 of 3") as caught:
        llm.generate([good, bad, good], params, use_tqdm=False)
    outputs = caught.value.outputs
    assert [o.outputs[0].finish_reason for o in outputs] == ["length", "error", "length"]
    assert outputs[0].outputs[0].token_ids == outputs[2].outputs[0].token_ids == alone
    assert llm.generate([good], params, use_tqdm=False)[0].outputs[0].token_ids == alone
    llm.llm_engine.block_manager.check_integrity()


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"block_size": 32, "max_num_batched_tokens": 24, "max_num_seqs": 20, "enable_prefix_caching": False},
        {"block_size": 1, "num_blocks": 130, "max_num_seqs": 8, "preemption_mode": "swap"},
    ],
    ids=["defaults", "small-budget", "swapping"],
)
def test_default_model_gives_transformers_tokens_on_twenty_prompts(
    default_model_path: Path, default_model_tokens: tuple[list[list[int]], list[list[int]]], setting: dict
) -> None:
    prompts, expected = default_model_tokens
    llm = LLM(dtype="float32", **({"num_blocks": 600} | setting))
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=16, ignore_eos=True), use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == expected
    if setting.get("preemption_mode"):
        assert llm.stats().num_preemptions > 0


@pytest.fixture(scope="module")
def default_model_tokens(default_model_path: Path) -> tuple[list[list[int]], list[list[int]]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(default_model_path, local_files_only=True)
    texts = [
        "The capital of France is",
        "def fibonacci(n):\n",
        "Once upon a time",
        "1, 2, 3, 4,",
        "The three laws of thermodynamics say that",
        "Water boils at",
        "北京是",
        "import torch\nmodel =",
        "She opened the door and",
        "A paged KV cache",
        "Dear Sir or Madam,",
        "Q: What is 2+2?\nA:",
        "SELECT name FROM users WHERE",
        "La vie est",
        "In 1969, humans",
        "The mitochondria",
        "🙂 means",
        "To be, or not to be",
        "Roses are red,",
        "x",
    ]
    prompts = [tokenizer.encode(text) for text in texts]
    return prompts, transformers_tokens(default_model_path, prompts, 16)


def test_running_ahead_changes_no_token_text_or_logprob(tmp_path: Path) -> None:
    """Sampled with seeds, greedy, with log-probabilities, penalties, stop tokens and forks, in one run."""
    path = make_tiny_model(tmp_path)
    prompts = [[5, 6, 7], list(range(3, 40)), [9] * 16, [*range(3, 22), 40, 41], [8, 8], [12, 13]]
    params = [
        SamplingParams(temperature=0.9, top_p=0.9, seed=3, max_tokens=20, ignore_eos=True),
        SamplingParams(temperature=0, max_tokens=11, ignore_eos=True, logprobs=3),
        SamplingParams(temperature=1.0, top_k=7, seed=5, max_tokens=17, stop_token_ids=list(range(40, 60))),
        SamplingParams(temperature=0, max_tokens=15, repetition_penalty=1.3, ignore_eos=True),
        SamplingParams(temperature=1.0, n=3, seed=11, max_tokens=9, ignore_eos=True),
        SamplingParams(temperature=0, max_tokens=5, prompt_logprobs=2, ignore_eos=True),
    ]
    found = {}
    for ahead in (False, True):
        llm = LLM(
            path, skip_tokenizer_init=True, num_blocks=600, block_size=4, max_num_batched_tokens=32,
            max_num_seqs=4, async_scheduling=ahead,
        )  # fmt: skip
        assert llm.llm_engine.runs_ahead == ahead
        outputs = llm.generate(prompts, params, use_tqdm=False)
        found[ahead] = [
            (c.token_ids, c.finish_reason, c.logprobs, output.prompt_logprobs)
            for output in outputs
            for c in output.outputs
        ]
    assert [f[:2] for f in found[True]] == [f[:2] for f in found[False]]
    for ahead, waiting in zip(found[True], found[False], strict=True):
        for mine, theirs in ((ahead[2], waiting[2]), (ahead[3], waiting[3])):
            for one, other in zip(mine or [], theirs or [], strict=True):
                assert (one is None) == (other is None)
                assert list(one or {}) == list(other or {})
                assert [p.logprob for p in (one or {}).values()] == pytest.approx(
                    [p.logprob for p in (other or {}).values()], abs=1e-4
                )
