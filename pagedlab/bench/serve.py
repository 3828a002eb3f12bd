"""`pagedlab bench serve`: latency and throughput over HTTP, against the offline engine and `transformers serve`.

Two loads on the same requests: a burst, at most --max-concurrency at once, whose throughput is compared with
`LLM.generate` round by round; and Poisson arrivals at --request-rate, whose latencies are what users would see.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pagedlab.bench.http_load import Answer, loopback_url, send_all
from pagedlab.bench.pictures import draw_serve
from pagedlab.bench.report import check_writable, environment, ratios, show, spread, write_json
from pagedlab.bench.serve_load import (
    MEANS,
    PERCENTILES,
    Slo,
    TextJob,
    check_counts,
    check_metrics,
    pagedlab_body,
    scaled_lengths,
    serve_jobs,
    summarize,
    transformers_body,
    whole_words,
)
from pagedlab.bench.servers import ServerProcess, ServerStartError, pagedlab_server, scrape, transformers_server
from pagedlab.errors import ConfigError, PagedlabError
from pagedlab.interfaces.llm import LLM
from pagedlab.model_authoring.models.transformer import CausalLM
from pagedlab.runtime.worker import Worker
from pagedlab.sampling_params import SamplingParams
from pagedlab.simulate.workloads import poisson_arrivals

TARGET = 0.9
"""What the project aims at with 32 requests at once: throughput over HTTP / offline."""

SHARE_OF_CAPACITY = 0.7
"""Poisson arrivals come at this share of the burst's request rate, unless told otherwise."""

WINDOW = 2048
LOADS = {"burst": "burst", "poisson": "Poisson", "transformers_serve": "transformers, burst"}
METRICS = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2E"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="directory or Hugging Face id; left out: SmolLM2-135M-Instruct")
    parser.add_argument("--base-url", help="a server of this machine that serves --model; left out: one is started")
    parser.add_argument("--device", default="cpu", help="cpu, the default, or cuda")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--num-prompts", type=int, default=32)
    parser.add_argument("--lengths", choices=sorted(MEANS), default="sharegpt", help="whose mean lengths")
    parser.add_argument("--scale", type=float, help="of the lengths: 0.25, or 1 on cuda")
    parser.add_argument("--max-concurrency", type=int, default=32, help="of the burst")
    parser.add_argument("--request-rate", type=float, help="Poisson arrivals a second; left out: 0.7 of the burst's")
    parser.add_argument("--ttft-slo", type=float, default=2000, metavar="MS", help="goodput: most to the first token")
    parser.add_argument("--tpot-slo", type=float, default=200, metavar="MS", help="goodput: most a token after it")
    parser.add_argument("--rounds", type=int, default=3, help="of the burst")
    parser.add_argument("--no-offline", action="store_true", help="do not compare with LLM.generate")
    parser.add_argument("--no-peer", action="store_true", help="do not compare with transformers serve")
    parser.add_argument("--peer-start-timeout", type=float, default=120, metavar="S")
    parser.add_argument("--request-timeout", type=float, default=300, metavar="S")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--picture", type=Path, help="draw the result there, as PNG")


def main(arguments: argparse.Namespace) -> int:
    """Run the benchmark; 1 if any request failed or any count is wrong."""
    check_arguments(arguments)
    errors: list[str] = []
    result = Benchmark(arguments, errors).run()
    print_tables(result)
    if arguments.json:
        print(f"Written to {write_json(arguments.json, result)}")
    if arguments.picture:
        print(f"Drawn to {draw_serve(result, arguments.picture)}")
    for error in errors[:20]:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        print(f"{len(errors)} errors: the numbers above do not count.", file=sys.stderr)
    return 1 if errors else 0


def check_arguments(arguments: argparse.Namespace) -> None:
    if arguments.base_url:
        loopback_url(arguments.base_url)
    for name in ("num_prompts", "max_concurrency", "rounds"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1.")
    for name in ("scale", "request_rate", "ttft_slo", "tpot_slo", "peer_start_timeout", "request_timeout"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be more than 0, got {value}.")
    check_writable(arguments.json, arguments.picture)


Round = tuple[list[Answer], float]
"""The answers of one burst, and the seconds that it took."""


class Benchmark:
    """One run.

    Args:
        errors: filled with one sentence for each request that failed and each count that is wrong.
    """

    def __init__(self, arguments: argparse.Namespace, errors: list[str]) -> None:
        self.arguments = arguments
        self.errors = errors
        self.slo = Slo(arguments.ttft_slo / 1000, arguments.tpot_slo / 1000)
        self.salts = 0
        self.llm = self._open_offline()
        assert self.llm.model_path is not None
        self.model_path = self.llm.model_path
        worker = self.llm.llm_engine.parts.worker
        assert isinstance(worker, Worker) and isinstance(worker.model, CausalLM)
        self.dtype = str(next(worker.model.parameters()).dtype).removeprefix("torch.")
        tokenizer = self.llm.get_tokenizer()
        scale = arguments.scale or (1.0 if arguments.device.startswith("cuda") else 0.25)
        self.extra_prompt_tokens = len(tokenizer.encode(""))
        window = min(WINDOW, self.llm.llm_engine.limits.max_model_len - self.extra_prompt_tokens)
        words = whole_words(
            lambda text: tokenizer.encode(text, add_special_tokens=False), len(tokenizer), tokenizer.decode
        )
        self.jobs = serve_jobs(
            arguments.num_prompts, words, scaled_lengths(arguments.lengths, scale, window), arguments.seed
        )
        self.warm_up_jobs = [TextJob(job.prompt, job.num_prompt_tokens, 2) for job in self.jobs[:4]]

    def _open_offline(self) -> LLM:
        """The offline engine runs as many sequences as HTTP may have at once."""
        options: dict[str, Any] = {"kv_cache_memory": 1 << 30} if not self._on_gpu() else {}
        return LLM(
            self.arguments.model,
            dtype=self.arguments.dtype,
            device=self.arguments.device,
            max_num_seqs=self.arguments.max_concurrency,
            gpu_memory_utilization=0.3,  # the server needs as much, and the peer the rest
            **options,
        )

    def _on_gpu(self) -> bool:
        return bool(self.arguments.device.startswith("cuda"))

    @contextlib.contextmanager
    def _server(self) -> Iterator[tuple[tuple[str, int], float | None]]:
        """The server's address, and the seconds that it took to start, if it was started here."""
        if self.arguments.base_url:
            yield loopback_url(self.arguments.base_url), None
            return
        memory = ["--gpu-memory-utilization", "0.3"] if self._on_gpu() else ["--kv-cache-memory", str(1 << 30)]
        engine = ["--device", self.arguments.device, "--dtype", self.arguments.dtype, *memory]
        with pagedlab_server(self.model_path, *engine) as server:
            yield server.address, server.start_seconds

    def run(self) -> dict[str, Any]:
        arguments = self.arguments
        result: dict[str, Any] = {"environment": environment(arguments.device), **self._about()}
        with contextlib.ExitStack() as stack:
            address, result["start_seconds"] = stack.enter_context(self._server())
            peer = None if arguments.no_peer else self._start_peer(stack, result)
            self._warm_up(address, peer, result)
            rounds, tokens = self._bursts(address, peer, result)
            result["burst"] = self._all_rounds(rounds)
            rate = arguments.request_rate or SHARE_OF_CAPACITY * float(
                np.median([self._summary(*one)["request_throughput"] for one in rounds])
            )
            if rate > 0:
                arrivals = poisson_arrivals(len(self.jobs), rate, np.random.default_rng(arguments.seed)).tolist()
                poisson = self._over_http(address, self.jobs, arrivals, len(self.jobs), "Poisson")
                result["poisson"] = {**self._summary(*poisson), "request_rate": rate}
        result["output_tokens_per_s"] = {name: spread(rates) for name, rates in tokens.items()}
        for name in ("offline", "transformers_serve"):
            if len(tokens.get(name, ())) == arguments.rounds:
                result[f"ratio_to_{name}"] = ratios(tokens["pagedlab_serve"], tokens[name])
        result["target"] = TARGET
        result["errors"] = self.errors
        return result

    def _about(self) -> dict[str, Any]:
        arguments = self.arguments
        return {
            "model": arguments.model or "default",
            "dtype": self.dtype,
            "num_prompts": len(self.jobs),
            "num_input_tokens": sum(job.num_prompt_tokens for job in self.jobs),
            "num_output_tokens": sum(job.max_tokens for job in self.jobs),
            "lengths": arguments.lengths,
            "max_concurrency": arguments.max_concurrency,
            "rounds": arguments.rounds,
            "ttft_slo_ms": arguments.ttft_slo,
            "tpot_slo_ms": arguments.tpot_slo,
        }

    def _start_peer(self, stack: contextlib.ExitStack, result: dict[str, Any]) -> ServerProcess | None:
        limits = self.llm.llm_engine.limits
        device, kv_tokens = ("cuda", None) if self._on_gpu() else ("cpu", limits.num_blocks * limits.block_size)
        try:
            return stack.enter_context(
                transformers_server(
                    self.model_path, device, result["dtype"], self.arguments.peer_start_timeout, kv_tokens
                )
            )
        except ServerStartError as error:
            result["peer_missing"] = str(error)
            print(f"Without a peer: {error}")
            return None

    def _warm_up(self, address: tuple[str, int], peer: ServerProcess | None, result: dict[str, Any]) -> None:
        self._over_http(address, self.warm_up_jobs, [0.0] * len(self.warm_up_jobs), 4, "warm-up")
        if peer is not None:
            bodies = [transformers_body(job, str(self.model_path)) for job in self.warm_up_jobs]
            answers, _ = asyncio.run(send_all(peer.address, bodies, [0.0] * len(bodies), 4, 120))
            check_counts(self.warm_up_jobs, answers, self.extra_prompt_tokens)
            failed = [answer.error for answer in answers if answer.error]
            if failed:
                result["peer_missing"] = f"transformers serve failed its warm-up: {failed[0]}"
                print(f"Without a peer: {result['peer_missing']}")
                peer.stop()
            else:
                peer.pause()
        if not self.arguments.no_offline:
            self._offline(self.warm_up_jobs)

    def _bursts(
        self, address: tuple[str, int], peer: ServerProcess | None, result: dict[str, Any]
    ) -> tuple[list[Round], dict[str, list[float]]]:
        """Each round times one after the other, so that a drift of the machine's speed falls on all."""
        burst: list[Round] = []
        others: list[Round] = []
        tokens: dict[str, list[float]] = {"offline": [], "pagedlab_serve": [], "transformers_serve": []}
        now = [0.0] * len(self.jobs)
        for index in range(self.arguments.rounds):
            if not self.arguments.no_offline:
                tokens["offline"].append(result["num_output_tokens"] / self._offline(self.jobs))
            burst.append(self._over_http(address, self.jobs, now, self.arguments.max_concurrency, f"burst {index + 1}"))
            tokens["pagedlab_serve"].append(self._summary(*burst[-1])["output_throughput"])
            if peer is not None and "peer_missing" not in result and (other := self._peer_burst(peer, now, result)):
                others.append(other)
                tokens["transformers_serve"].append(self._summary(*other)["output_throughput"])
        if others:
            result["transformers_serve"] = self._all_rounds(others)
        return burst, {name: rates for name, rates in tokens.items() if rates}

    def _summary(self, answers: list[Answer], seconds: float) -> dict[str, Any]:
        return summarize(answers, seconds, self.slo)

    def _all_rounds(self, rounds: list[Round]) -> dict[str, Any]:
        """One summary of them: latencies over every request of every round, rates over the time of all."""
        answers = [answer for one, _ in rounds for answer in one]
        return {**self._summary(answers, sum(seconds for _, seconds in rounds)), "rounds": len(rounds)}

    def _peer_burst(self, peer: ServerProcess, arrivals: list[float], result: dict[str, Any]) -> Round | None:
        """The peer's answers; a peer that fails is left out from then on, and said to be."""
        bodies = [transformers_body(job, str(self.model_path)) for job in self.jobs]
        limits = (self.arguments.max_concurrency, self.arguments.request_timeout)
        peer.resume()
        answers, seconds = asyncio.run(send_all(peer.address, bodies, arrivals, *limits))
        peer.pause()
        check_counts(self.jobs, answers, self.extra_prompt_tokens)
        failed = [answer.error for answer in answers if answer.error]
        if failed:
            result["peer_missing"] = f"transformers serve failed {len(failed)} of {len(answers)} requests: {failed[0]}"
            print(f"Without a peer: {result['peer_missing']}")
            return None
        return answers, seconds

    def _over_http(
        self, address: tuple[str, int], jobs: list[TextJob], arrivals: list[float], at_once: int, what: str
    ) -> Round:
        """Send the jobs to pagedlab's server; errors and wrong counts are noted."""
        self.salts += 1
        bodies = [pagedlab_body(job, f"round {self.salts}") for job in jobs]
        before = asyncio.run(scrape(address))
        answers, seconds = asyncio.run(send_all(address, bodies, arrivals, at_once, self.arguments.request_timeout))
        check_counts(jobs, answers, self.extra_prompt_tokens)
        self.errors += [f"{what}, request {i}: {answer.error}" for i, answer in enumerate(answers) if answer.error]
        after = asyncio.run(scrape(address))
        if before is not None and after is not None:
            self.errors += [f"{what}: {wrong}" for wrong in check_metrics(before, after, answers)]
        return answers, seconds

    def _offline(self, jobs: list[TextJob]) -> float:
        """Seconds that LLM.generate takes for the same texts."""
        self.llm.reset_prefix_cache()
        params = [SamplingParams(temperature=0, max_tokens=job.max_tokens, ignore_eos=True) for job in jobs]
        start = time.perf_counter()
        outputs = self.llm.generate([job.prompt for job in jobs], params, use_tqdm=False)
        taken = time.perf_counter() - start
        for output, job in zip(outputs, jobs, strict=True):
            if len(output.outputs[0].token_ids) != job.max_tokens:
                raise PagedlabError("The offline engine returned fewer tokens than were asked for.")
        return taken


def print_tables(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = (
        f"{result['dtype']}: {result['num_prompts']} requests, {result['num_input_tokens']} tokens in, "
        f"{result['num_output_tokens']} out, {result['max_concurrency']} at once; median (min-max) of the rounds"
    )
    table = Table(title=title)
    for column in ("", "output tokens/s", "pagedlab over HTTP is", "aim"):
        table.add_column(column)
    names = {"offline": "LLM.generate", "pagedlab_serve": "pagedlab serve", "transformers_serve": "transformers serve"}
    for name, rates in result["output_tokens_per_s"].items():
        ratio = result.get(f"ratio_to_{name}")
        aim = f"{result['target']:.1f}" if name == "offline" else ""
        table.add_row(names[name], show(rates, 1), show(ratio) + " of it" if ratio else "", aim)
    Console().print(table)

    table = Table(title="Latency over HTTP, ms")
    for column in ("", "", *(f"p{rank}" for rank in PERCENTILES)):
        table.add_column(column, justify="left" if not column else "right")
    runs = {name: result[name] for name in LOADS if name in result}
    for name, run in runs.items():
        for metric in METRICS:
            values = [run.get(f"p{rank}_{metric}_ms") for rank in PERCENTILES]
            if None not in values:
                label = LOADS[name] if metric == "ttft" else ""
                table.add_row(label, METRICS[metric], *(f"{value:,.0f}" for value in values))
        table.add_section()
    Console().print(table)
    print(f"Good: first token within {result['ttft_slo_ms']:g} ms, then at most {result['tpot_slo_ms']:g} ms a token.")
    for name, run in runs.items():
        rate = f" of {run['request_rate']:.2f} offered" if "request_rate" in run else ""
        print(
            f"  {LOADS[name]}: {run['good_requests']} of {run['completed'] + run['failed']} requests, "
            f"{run['request_goodput']:.2f} a second{rate}"
        )
