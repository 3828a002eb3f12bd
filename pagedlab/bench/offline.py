"""`pagedlab bench offline`: the engine against transformers' static and continuous batching, and against the floor.

Every round times all engines one after the other on the same requests, so that a shared machine's drift falls on all of
them; ratios are formed round by round.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from pagedlab.bench.floor import RecordingWorker, StepSize, floor_seconds
from pagedlab.bench.peers import available_peers, load_peer, load_vllm, run_generate_batch, run_static, run_vllm
from pagedlab.bench.pictures import draw_offline
from pagedlab.bench.report import check_writable, environment, ratios, show, spread, write_json
from pagedlab.bench.shapes import SHAPES, write_shape
from pagedlab.bench.workloads import Job, offline_jobs, shared_prefix_jobs
from pagedlab.errors import ConfigError, PagedlabError
from pagedlab.interfaces.llm import LLM
from pagedlab.model_authoring.model_executor import QueueingWorker
from pagedlab.model_authoring.models.transformer import CausalLM
from pagedlab.runtime.worker import Worker
from pagedlab.sampling_params import SamplingParams

TARGETS = {
    "float32": {"static": 2.5, "generate_batch": 3.5, "floor": 0.55, "prefix_caching": 5.0},
    "bfloat16": {"static": 2.0, "generate_batch": 3.5, "floor": 0.55, "prefix_caching": 5.0},
}
"""What the project aims at on a CPU with 32 requests: ratios of throughput."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="directory or Hugging Face id; left out: SmolLM2-135M-Instruct")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of a published model's shape instead")
    parser.add_argument("--device", default="cpu", help="cpu, the default, or cuda, whose default workload is larger")
    parser.add_argument("--num-prompts", type=int, help="32, or 256 on cuda")
    parser.add_argument("--input-len", type=int, nargs=2, metavar=("MIN", "MAX"), help="16 256, or 100 1024 on cuda")
    parser.add_argument("--output-len", type=int, nargs=2, metavar=("MIN", "MAX"), help="16 128, or 100 1024 on cuda")
    parser.add_argument("--dtype", nargs="+", help="float32 bfloat16, or bfloat16 on cuda")
    parser.add_argument("--enforce-eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--attention-backend", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", help="static, generate_batch, vllm; left out: all that are installed")
    parser.add_argument("--no-prefix", action="store_true", help="leave out the shared-prefix run")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--picture", type=Path, help="draw the result there, as PNG")


def main(arguments: argparse.Namespace) -> int:
    """Run the benchmark for each number type and print one table for each; 1 if a peer failed and is missing in it."""
    fill_in_defaults(arguments)
    if arguments.peers is None:
        arguments.peers = available_peers()
    missing = set(arguments.peers) - set(available_peers())
    if missing or arguments.rounds < 1 or arguments.num_prompts < 1:
        raise ConfigError(
            f"--peers here are {', '.join(available_peers())}; --rounds and --num-prompts must be at least 1."
        )
    for name, (shortest, longest) in (("input", arguments.input_len), ("output", arguments.output_len)):
        if not 1 <= shortest <= longest:
            raise ConfigError(f"--{name}-len takes the least and the most, 1 or more: got {shortest} {longest}.")
    check_writable(arguments.json, arguments.picture)
    result: dict[str, Any] = {"environment": environment(arguments.device), "runs": {}}
    with tempfile.TemporaryDirectory() as directory:
        if arguments.shape:
            arguments.model = write_shape(arguments.shape, directory)
        for dtype in arguments.dtype:
            result["runs"][dtype] = run = bench_dtype(arguments, dtype)
            print_table(dtype, run)
    if arguments.json:
        print(f"Written to {write_json(arguments.json, result)}")
    if arguments.picture:
        print(f"Drawn to {draw_offline(result, arguments.picture)}")
    return 1 if any(run["peers_missing"] for run in result["runs"].values()) else 0


def fill_in_defaults(arguments: argparse.Namespace) -> None:
    """The workload for two CPU cores, or nano-vllm's for a GPU."""
    gpu = arguments.device.startswith("cuda")
    arguments.num_prompts = arguments.num_prompts if arguments.num_prompts is not None else (256 if gpu else 32)
    arguments.input_len = arguments.input_len or ((100, 1024) if gpu else (16, 256))
    arguments.output_len = arguments.output_len or ((100, 1024) if gpu else (16, 128))
    arguments.dtype = arguments.dtype or (["bfloat16"] if gpu else ["float32", "bfloat16"])


def bench_dtype(arguments: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """All rounds of one number type."""
    llm = open_engine(arguments, dtype)
    worker = llm.llm_engine.parts.worker
    assert isinstance(worker, Worker) and isinstance(worker.model, CausalLM) and llm.model_path is not None
    vocab = llm.llm_engine.limits.vocab_size
    jobs = offline_jobs(
        arguments.num_prompts, vocab, input_range=tuple(arguments.input_len), output_range=tuple(arguments.output_len)
    )
    static_batch_size = 64 if worker.device.type == "cuda" else 32  # 256 padded rows of 2,048 tokens overflow 80 GB
    warm_up = [Job(job.prompt_token_ids, 2) for job in jobs[:4]]
    run_engine(llm, warm_up)
    peers = Peers(
        arguments.peers, peer_runs(llm, dtype, worker.device, static_batch_size, dummy=bool(arguments.shape)), warm_up
    )
    seconds: dict[str, list[float]] = {"pagedlab": [], "floor": []}
    overhead: list[float] = []
    for _ in tqdm(range(arguments.rounds), desc=f"Rounds in {dtype}"):
        llm.reset_prefix_cache()
        before = llm.stats()
        taken, steps = run_engine(llm, jobs)
        after = llm.stats()
        overhead.append((after.schedule_time + after.update_time - before.schedule_time - before.update_time) / taken)
        seconds["pagedlab"].append(taken)
        seconds["floor"].append(floor_seconds(worker.model, steps))
        peers.run(jobs)
    seconds |= peers.seconds
    num_output = sum(job.max_tokens for job in jobs)
    run_result: dict[str, Any] = {
        "num_prompts": len(jobs),
        "num_input_tokens": sum(len(job.prompt_token_ids) for job in jobs),
        "num_output_tokens": num_output,
        "num_steps": len(steps),
        "static_batch_size": static_batch_size,
        "output_tokens_per_s": {name: spread([num_output / t for t in times]) for name, times in seconds.items()},
        "speedup": {name: ratios(seconds[name], seconds["pagedlab"]) for name in peers.seconds},
        "peers_missing": peers.missing,
        "share_of_floor": ratios(seconds["floor"], seconds["pagedlab"]),
        "host_share": spread(overhead),
    }
    if not arguments.no_prefix:
        run_result["prefix_caching"] = bench_prefix(arguments, dtype, vocab)
    is_standard = worker.device.type == "cpu" and not arguments.shape and not arguments.model and len(jobs) == 32
    run_result["targets"] = TARGETS.get(dtype, {}) if is_standard else {}
    return run_result


def peer_runs(
    llm: LLM, dtype: str, device: torch.device, static_batch_size: int, dummy: bool
) -> dict[str, Callable[[], Callable[[list[Job]], float]]]:
    """For each peer, what loads it and returns what times it; transformers' two share one model."""
    path = llm.model_path
    assert path is not None

    @cache
    def transformers() -> Any:
        return load_peer(path, getattr(torch, dtype), device, dummy=dummy)

    return {
        "static": lambda: partial(run_static, transformers(), batch_size=static_batch_size),
        "generate_batch": lambda: partial(run_generate_batch, transformers()),
        "vllm": lambda: partial(run_vllm, load_vllm(path, dtype, dummy=dummy)),
    }


class Peers:
    """The other engines. One that fails is left out from then on, and its failure is said in one sentence.

    Args:
        names: of those that are wanted.
        loads: for each name, what loads the engine and returns what times it.
        warm_up: its first jobs, which are not timed.

    Attributes:
        seconds: of each engine that has not failed, one number a round
        missing: name -> why it failed
    """

    def __init__(
        self, names: Sequence[str], loads: Mapping[str, Callable[[], Callable[[list[Job]], float]]], warm_up: list[Job]
    ) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.missing: dict[str, str] = {}
        self._runs: dict[str, Callable[[list[Job]], float]] = {}
        for name in names:
            with self._said(name):
                self._runs[name] = loads[name]()
                self._runs[name](warm_up)
                self.seconds[name] = []

    def run(self, jobs: list[Job]) -> None:
        """Time one round of each."""
        for name in list(self.seconds):
            with self._said(name):
                self.seconds[name].append(self._runs[name](jobs))

    @contextmanager
    def _said(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # it is another project's, and may fail in any way
            text = " ".join(str(error).split())[:300]
            self.missing[name] = text if isinstance(error, PagedlabError) else f"{type(error).__name__}: {text}"
            self.seconds.pop(name, None)
            self._runs.pop(name, None)
            print(f"Without {name}, which failed: {self.missing[name]}", file=sys.stderr)


def bench_prefix(arguments: argparse.Namespace, dtype: str, vocab: int) -> dict[str, float]:
    """Speed-up by the prefix cache, cold at the start, on prompts that share 512 tokens."""
    jobs = shared_prefix_jobs(32, vocab)
    times: dict[bool, list[float]] = {True: [], False: []}
    engines = {cached: open_engine(arguments, dtype, enable_prefix_caching=cached) for cached in times}
    for _ in range(arguments.rounds):
        for cached, llm in engines.items():
            llm.reset_prefix_cache()
            times[cached].append(run_engine(llm, jobs)[0])
    return ratios(times[False], times[True])


def open_engine(arguments: argparse.Namespace, dtype: str, **options: Any) -> LLM:
    return LLM(
        arguments.model,
        dtype=dtype,
        device=arguments.device,
        attention_backend=arguments.attention_backend,
        skip_tokenizer_init=True,
        load_format="dummy" if arguments.shape else "auto",
        enforce_eager=arguments.enforce_eager,
        gpu_memory_utilization=0.4 if arguments.peers else 0.9,  # a peer on the same GPU needs room of its own
        **options,
    )


def run_engine(llm: LLM, jobs: list[Job]) -> tuple[float, list[StepSize]]:
    """Seconds for all jobs, and the sizes of the steps taken."""
    engine = llm.llm_engine
    worker = engine.executor.worker
    assert isinstance(worker, QueueingWorker)
    recorder = RecordingWorker(worker)
    engine.executor.worker = recorder
    prompts = [job.prompt_token_ids for job in jobs]
    params = [SamplingParams(temperature=0, max_tokens=job.max_tokens, ignore_eos=True) for job in jobs]
    try:
        start = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        taken = time.perf_counter() - start
    finally:
        engine.executor.worker = worker
    for output, job in zip(outputs, jobs, strict=True):
        if len(output.outputs[0].token_ids) != job.max_tokens:
            raise PagedlabError("pagedlab returned fewer tokens than were asked for: its time means nothing.")
    return taken, recorder.steps


def print_table(dtype: str, run: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    targets = run["targets"]
    table = Table(
        title=f"{dtype}: {run['num_prompts']} requests, {run['num_input_tokens']} tokens in, "
        f"{run['num_output_tokens']} out; median (min-max) of the rounds"
    )
    for column in ("", "output tokens/s", "pagedlab is", "aim"):
        table.add_column(column)
    rates = run["output_tokens_per_s"]
    table.add_row("pagedlab", show(rates["pagedlab"], 1), "", "")
    for name, ratio in run["speedup"].items():
        aim = f"{targets[name]:.1f}x" if name in targets else ""
        table.add_row(
            "vLLM" if name == "vllm" else f"transformers {name}", show(rates[name], 1), show(ratio) + " x", aim
        )
    aim = f"{targets['floor']:.2f}" if "floor" in targets else ""
    table.add_row("floor: matrix products alone", show(rates["floor"], 1), show(run["share_of_floor"]) + " of it", aim)
    if "prefix_caching" in run:
        aim = f"{targets['prefix_caching']:.1f}x" if "prefix_caching" in targets else ""
        table.add_row("without prefix cache, 512 shared", "", show(run["prefix_caching"]) + " x", aim)
    table.add_row("scheduler, blocks and outputs", "", f"{100 * run['host_share']['median']:.2f} % of the time", "5 %")
    Console().print(table)
