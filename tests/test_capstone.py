"""The capstone: its references are right by other means, its sockets run the reader's parts, a fork may grade it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from answers.ch11_capstone import ALL_FOUR, ATTENTION, MASK, engine
from answers.editing import changed
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import dense_attention

from pagedlab import LLM, SamplingParams
from pagedlab.course.capstone import PartError, Watch, plug
from pagedlab.course.drivers import ch11 as driver
from pagedlab.course.questions import ch11_capstone as capstone
from pagedlab.course.questions.ch11 import OWNERS
from pagedlab.model_authoring.models.provision import default_model_path

JOBS = {
    "tiny": capstone.SHOWN.tiny,
    "seats": capstone.SHOWN.seats,
    "tight": capstone.SHOWN.tight,
    "smollm2": capstone.smollm2_job(),
}
CLEAR = 0.01
"""The best next token must lead the second by this much, so that no right answer fails by rounding."""


def parts_of(source: str) -> dict[str, Any]:
    names: dict[str, Any] = {"torch": torch, "__name__": "__main__"}
    import math

    import numpy

    names.update(math=math, np=numpy)
    exec(compile(source, "answer", "exec"), names)
    return names["parts"]


def greedy(logits_of: Any, prompt: list[int], count: int) -> str:
    """Greedy tokens, each step from scratch and without a cache; every choice is clear."""
    tokens = list(prompt)
    for _ in range(count):
        best = logits_of(torch.tensor(tokens)).topk(2)
        assert best.values[0] - best.values[1] > CLEAR
        tokens.append(int(best.indices[0]))
    return " ".join(map(str, tokens[len(prompt) :]))


@pytest.mark.parametrize("name", ["tiny", "seats", "tight"])
def test_references_of_the_random_model_come_from_dense_attention_too(name: str) -> None:
    job, model = JOBS[name], driver.models("tiny")

    @torch.inference_mode()
    def logits_of(tokens: torch.Tensor) -> torch.Tensor:
        return model.compute_logits(model(tokens, torch.arange(len(tokens)), dense_attention)[-1:])[0]

    tokens = {key: greedy(logits_of, prompt, job.max_tokens) for key, prompt in job.prompts.items()}
    assert capstone.expected(job)["tokens"] == tokens


def test_the_reference_of_smollm2_is_what_transformers_gives() -> None:
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(default_model_path(), dtype=torch.float32).eval()

    @torch.inference_mode()
    def logits_of(tokens: torch.Tensor) -> torch.Tensor:
        return oracle(tokens[None]).logits[0, -1]

    job = JOBS["smollm2"]
    tokens = {key: greedy(logits_of, prompt, job.max_tokens) for key, prompt in job.prompts.items()}
    assert capstone.expected(job)["tokens"] == tokens


def test_every_part_is_what_the_engine_runs() -> None:
    watch = Watch()
    driver.run_job(capstone.SHOWN.shared, parts_of(engine()), watch)
    used = {name for name, count in watch.calls.items() if count}
    assert used >= {"mask", "attention", "schedule", "blocks.allocate", "blocks.free", "allocate", "share", "release"}


FORGETFUL = changed(ATTENTION, "        scores", "        allowed[:, : length - new] = False\n        scores")
WRONG_PARTS = {
    "a mask that sees the future": {
        "mask": changed(MASK, "<= query_positions[:, None]", "<= 10**6 + query_positions[:, None]")
    },
    "a mask that sees nothing else": {"mask": changed(MASK, "<=", "==")},
    "an attention that forgets": {"attention": FORGETFUL},
    "an attention without scale": {"attention": changed(ATTENTION, " * scale", "")},
}


@pytest.mark.parametrize("name", WRONG_PARTS)
@pytest.mark.parametrize("model", ["tiny", "smollm2"])
def test_a_wrong_part_changes_the_tokens(name: str, model: str) -> None:
    job = JOBS[model]
    record = driver.run_job(job, parts_of(engine(**WRONG_PARTS[name])), Watch())
    assert record["preempted"] and record["tokens"] != capstone.expected(job)["tokens"]


def test_the_engine_uses_the_blocks_that_the_pool_chooses() -> None:
    """Two pools that choose other blocks fill other slots of the cache, and give the same tokens."""
    first, last = (parts_of(ALL_FOUR.right[number][1])["pool"] for number in (0, 1))
    filled = {}
    for name, pool in (("first", first), ("last", last)):
        engine_ = driver.build_engine(replace(capstone.SHOWN.tiny, num_blocks=30), {"pool": pool}, Watch())
        engine_.add_request("a", capstone.SHOWN.tiny.prompts["a"], SamplingParams(temperature=0, max_tokens=2))
        driver.run_to_the_end(engine_)
        cache = engine_.parts.worker.cache.kv  # type: ignore[attr-defined]
        filled[name] = cache.abs().sum(dim=(0, 1, 3, 4, 5)).nonzero().flatten().tolist()
    assert filled["last"] == [1, 2, 3] and filled["first"] == [27, 28, 29]


def test_LLM_takes_the_plugged_parts() -> None:
    job = JOBS["smollm2"]
    llm = LLM(
        dtype="float32",
        block_size=job.block_size,
        num_blocks=job.num_blocks,
        max_num_batched_tokens=job.token_budget,
        max_num_seqs=job.max_num_seqs,
        **plug(**parts_of(engine())),
    )
    params = SamplingParams(temperature=0, max_tokens=job.max_tokens, ignore_eos=True)
    outputs = llm.generate(list(job.prompts.values()), params, use_tqdm=False)
    tokens = [" ".join(map(str, output.outputs[0].token_ids)) for output in outputs]
    assert tokens == list(capstone.expected(job)["tokens"].values()) and llm.stats().num_preemptions > 0


def test_the_first_failure_is_told_and_not_what_follows_from_it() -> None:
    """Tidying up after a failed step releases blocks, which fails as well in this pool."""
    parts = parts_of(engine())

    class Torn(parts["pool"]):  # type: ignore[misc]
        def share(self, block: int) -> None:
            raise KeyError("lost")

        def release(self, block: int) -> None:
            raise IndexError("lost too")

    watch = Watch()
    with pytest.raises(PartError, match=r"Your pool, step \d+: share\(\) raised KeyError: 'lost'"):
        driver.run_job(replace(capstone.SHOWN.shared, num_blocks=30), {"pool": Torn}, watch)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    blocks=st.integers(8, 14),
    budget=st.integers(5, 24),
    answers=st.integers(1, 2),
)
def test_the_right_parts_give_the_reference_in_any_pool(
    lengths: list[int], blocks: int, budget: int, answers: int
) -> None:
    prompts = capstone.random_prompts(**{f"r{number}": length for number, length in enumerate(lengths)})
    job = replace(
        capstone.SHOWN.tiny,
        prompts=prompts,
        max_tokens=6,
        num_blocks=2 * blocks,
        token_budget=budget,
        max_num_seqs=5,
        n=answers,
    )
    reference = driver.run_job(replace(job, num_blocks=200), {}, Watch())
    assert driver.run_job(job, parts_of(engine()), Watch())["tokens"] == reference["tokens"]


def test_owners_in_question_1_have_what_it_says_they_own() -> None:
    built = driver.build_engine(capstone.SHOWN.tiny, {}, Watch())
    owners = [built, built.scheduler, built.block_manager, built.executor, built.executor.worker]
    owners.append(built.parts.worker.cache)  # type: ignore[attr-defined]
    by_name = {base.__name__: owner for owner in owners for base in type(owner).__mro__}
    for thing, (name, attribute) in OWNERS.items():
        assert hasattr(by_name[name], attribute), f"{name} does not own {thing}"


@pytest.mark.slow
def test_a_fork_can_grade_after_prepare() -> None:
    """The server that forks graders calls prepare(); a thread that stayed behind would hang the child."""
    code = """
import os, sys
from pagedlab.course.drivers import ch11
from pagedlab.course.questions import ch11_capstone as capstone
ch11.prepare()
assert len(os.listdir("/proc/self/task")) == 1, os.listdir("/proc/self/task")
job = capstone.smollm2_job()
child = os.fork()
if child == 0:
    import signal
    signal.alarm(500)
    record = ch11.run_job(job, {}, ch11.Watch())
    os._exit(0 if record["preempted"] else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-1000:]
