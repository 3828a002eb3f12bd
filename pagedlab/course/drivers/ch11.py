"""Chapter 11: a line before one counter, room made by preemption, and the capstone's parts run in the real engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from pagedlab.config import EngineConfig
from pagedlab.course.capstone import Watch, plug
from pagedlab.course.drivers.tiny_model import tiny_model
from pagedlab.errors import PagedlabError
from pagedlab.interfaces.engine import LLMEngine
from pagedlab.interfaces.engine_parts import EngineParts
from pagedlab.interfaces.outputs import RequestOutput
from pagedlab.model_authoring.block_manager import BlockManager
from pagedlab.model_authoring.models.loader import load_model
from pagedlab.model_authoring.models.provision import default_model_path
from pagedlab.model_authoring.models.transformer import CausalLM
from pagedlab.runtime.attention.registry import select_backend
from pagedlab.runtime.cache_engine import CacheEngine
from pagedlab.runtime.worker import Worker
from pagedlab.sampling_params import SamplingParams


def look_up(answer: Any, *keys: str) -> Any:
    """One entry of a dictionary of answers, or one in a dictionary inside it."""
    for key in keys:
        answer = answer[key]
    return list(answer) if isinstance(answer, (list, tuple, set, frozenset)) else answer


def make_room(answer: Callable[..., Any], running: list[dict], waiting: list[dict], free: int, needed: int) -> Any:
    """What the answer returns, and what it makes of the two lists: a line for each request."""
    running, waiting = deepcopy(running), deepcopy(waiting)
    result = answer(running, waiting, free, needed)
    return {"returned": result, "running": listed(running), "waiting": listed(waiting)}


def listed(requests: list[dict]) -> list[str]:
    return ["{name} ({computed} of {tokens} computed, {blocks} blocks)".format(**request) for request in requests]


def attend_or_run(answer: Callable[..., Tensor], given: dict[str, Any]) -> Any:
    """Attention over one batch; or, given a job, a run of the engine on this attention."""
    return attend(answer, given) if "query" in given else run_parts({"attention": answer}, ["attention"], given)


def attend(answer: Callable[..., Tensor], batch: dict[str, Any]) -> list[list[float]]:
    """Paged attention of one ragged batch, under the causal mask: the numbers of each row, over all heads."""
    watch = Watch()
    backend = plug(attention=answer, watch=watch)["attention_backend"]
    query = batch["query"].clone()
    tables = (batch["block_tables"], batch["query_starts"], batch["seq_lens"])
    caches = (batch["key_cache"].clone(), batch["value_cache"].clone())
    output = watch.call("attention", "attention", answer, query, *caches, *tables, batch["scale"], backend.mask)
    return backend.checked_output(output, query).flatten(1).tolist()


# ---- the capstone ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One run of the engine.

    Attributes:
        model: "tiny" (two layers, random) or "smollm2"
        prompts: name -> token ids
        max_tokens: of each answer
        num_blocks, block_size: of the pool; block 0 is the null block
        token_budget, max_num_seqs: limits of a step
        n: completions of each prompt; two share the prompt's blocks
    """

    model: str
    prompts: dict[str, list[int]]
    max_tokens: int
    num_blocks: int
    block_size: int
    token_budget: int
    max_num_seqs: int
    n: int = 1


def run_scheduler(answer: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Run a job on a scheduler, and the engine's own other parts."""
    return run_parts({"scheduler": answer}, ["scheduler"], job)


def run_parts(answer: dict[str, Any], names: list[str], job: dict[str, Any]) -> dict[str, Any]:
    """Run a job on some parts of the answer, and the engine's own others.

    Returns:
        the token ids of each answer as a line of text, and whether the run preempted, cut a prompt into chunks, and
        batched requests.

    Raises:
        PartError, NotImplementedError: what a part did wrong, or that it is a stub.
    """
    record = run_job(Job(**job), {name: answer[name] for name in names}, Watch())
    if names == ["mask"]:
        record["mask"] = drawn(answer["mask"])
    return record


def drawn(mask: Callable[..., Any]) -> list[str]:
    """A mask's rows for the queries at 2, 3 and 4, and the keys at 0 to 5, as text: 1 where it lets look."""
    allowed = torch.as_tensor(mask(torch.arange(2, 5), torch.arange(6)))
    return ["".join(str(int(cell)) for cell in row) for row in allowed]


def run_job(job: Job, parts: dict[str, Any], watch: Watch) -> dict[str, Any]:
    with one_thread():
        engine = build_engine(job, parts, watch)
        # Several answers to one prompt are drawn, each with a seed of its own; one answer is greedy.
        params = SamplingParams(
            temperature=0 if job.n == 1 else 2.0, seed=11, max_tokens=job.max_tokens, ignore_eos=True, n=job.n
        )
        for name, prompt in job.prompts.items():
            engine.add_request(name, prompt, params)
        try:
            answers = run_to_the_end(engine)
        except Exception:
            if watch.failure is not None:
                raise watch.failure from None
            raise
    plans = [event.args["requests"] for event in engine.tracer.events if event.name == "schedule"]
    ends = [(name, span[1]) for plan in plans for name, span in plan.items() if name in job.prompts]
    tokens = {name: answers[name] if job.n > 1 else answers[name][0] for name in job.prompts}
    in_words = {"text": {name: in_text(answers[name][0]) for name in job.prompts}} if job.model == "smollm2" else {}
    return {
        **in_words,
        "tokens": tokens,
        "preempted": engine.stats().num_preemptions > 0,
        "chunked": any(end < len(job.prompts[name]) for name, end in ends),
        "batched": max(len(plan) for plan in plans) > 1,
    }


def run_to_the_end(engine: LLMEngine) -> dict[str, list[str]]:
    """Token ids of every request's answers, each as one line of text."""
    answers: dict[str, list[str]] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if not isinstance(output, RequestOutput) or not output.finished:
                continue
            if output.outputs[0].finish_reason == "error":
                raise PagedlabError(f"Request {output.request_id} failed: {output.outputs[0].stop_reason}")
            answers[output.request_id] = [" ".join(map(str, one.token_ids)) for one in output.outputs]
    return answers


def in_text(token_ids: str) -> str:
    return " ".join(vocabulary().decode([int(number) for number in token_ids.split()]).split())


def build_engine(job: Job, parts: dict[str, Any], watch: Watch) -> LLMEngine:
    """What LLM(...) builds, on a model that is loaded already."""
    model = models(job.model)
    shape = model.config
    config = EngineConfig(
        dtype="float32",
        device="cpu",
        enable_trace=True,
        skip_tokenizer_init=True,
        block_size=job.block_size,
        num_blocks=job.num_blocks,
        **plug(**parts, watch=watch),
    )
    needs: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32, "head_dim": shape.head_dim}
    backend = select_backend(config.attention_backend, block_size=job.block_size, **needs)
    cache = CacheEngine(
        num_layers=shape.num_hidden_layers,
        num_blocks=job.num_blocks,
        block_size=job.block_size,
        num_kv_heads=shape.num_key_value_heads,
        **needs,
    )
    manager = (config.block_manager_cls or BlockManager)(
        num_blocks=job.num_blocks, block_size=job.block_size, enable_prefix_caching=False
    )
    ready = EngineParts(
        tokenizer=None,
        worker=Worker(model, cache, backend, torch.device("cpu"), shape.sliding_windows),
        block_manager=manager,
        vocab_size=shape.vocab_size,
        eos_token_ids=frozenset(),
        max_model_len=shape.max_position_embeddings,
        max_num_seqs=job.max_num_seqs,
        max_num_batched_tokens=job.token_budget,
    )
    return LLMEngine(config, ready)


def prepare() -> None:
    """Load what the runs share, once, before a grader forks. Starts no thread that a fork would lose.

    A run on the engine's own parts, for no result: it imports what the engine imports late, and no answer may.
    """
    with one_thread():
        for n in (1, 2):
            job = Job("tiny", {"A": [1, 2, 3]}, 2, num_blocks=9, block_size=4, token_budget=8, max_num_seqs=2, n=n)
            run_job(job, {}, Watch())
        models("smollm2")
        vocabulary()


@contextmanager
def one_thread() -> Iterator[None]:
    """The products here are small: a second thread costs more than it brings, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@lru_cache
def vocabulary() -> Tokenizer:
    """SmolLM2's."""
    return Tokenizer.from_file(str(default_model_path() / "tokenizer.json"))


@lru_cache
def models(name: str) -> CausalLM:
    """ "smollm2": the course's default model. "tiny": random weights, so that a run takes milliseconds."""
    if name == "smollm2":
        return load_model(default_model_path(), dtype=torch.float32, device="cpu")
    if name != "tiny":
        raise PagedlabError(f"The capstone knows the models tiny and smollm2, not {name!r}.")
    return tiny_model(11)
