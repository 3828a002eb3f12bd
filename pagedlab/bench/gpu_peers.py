"""`python -m pagedlab.bench.gpu_peers SHAPE`: batches of equal requests, in pagedlab and in the peers, taking turns.

Every engine gets the same random weights' shape, number type and requests, all of a batch at once, so that the numbers
say what a step costs it at that batch; a workload with ragged lengths is `pagedlab bench offline`.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pagedlab.bench.offline import run_engine
from pagedlab.bench.peers import available_peers, load_peer, load_vllm, run_generate_batch, run_static, run_vllm
from pagedlab.bench.report import environment, write_json
from pagedlab.bench.shapes import SHAPES, write_shape
from pagedlab.bench.workloads import offline_jobs
from pagedlab.interfaces.llm import LLM

BATCHES = (1, 32, 256)
INPUT, OUTPUT = 128, 64
"""Tokens of each request."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one shape and write what there is after each number: a limit on the time costs only the rest."""
    parser = argparse.ArgumentParser(prog="python -m pagedlab.bench.gpu_peers", description=__doc__)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--toy", action="store_true", help="one tiny batch on a CPU, without generate_batch")
    arguments = parser.parse_args(argv)
    device, dtype = ("cpu", "float32") if arguments.toy else ("cuda", "bfloat16")
    batches, input_len, output_len = ((2,), 6, 3) if arguments.toy else (BATCHES, INPUT, OUTPUT)
    rows: list[dict[str, Any]] = []
    result = {"environment": environment(device), "dtype": dtype, "rows": rows}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(write_shape(arguments.shape, directory))
        llm = LLM(
            str(path),
            load_format="dummy",
            skip_tokenizer_init=True,
            device=device,
            dtype=dtype,
            enable_prefix_caching=False,
            gpu_memory_utilization=0.4,  # a peer on the same GPU needs room of its own
        )
        vocab = llm.llm_engine.limits.vocab_size
        jobs = {batch: offline_jobs(batch, vocab, batch, (input_len,) * 2, (output_len,) * 2) for batch in batches}
        warm_up = offline_jobs(2, vocab, 0, (4, 4), (2, 2))

        def measure(engine: str, run: Any) -> None:
            run(warm_up)
            for batch in batches:
                tokens_per_s = batch * output_len / run(jobs[batch])
                about = {"shape": arguments.shape, "batch": batch, "input": input_len, "output": output_len}
                rows.append({**about, "engine": engine, "tokens_per_s": tokens_per_s})
                write_json(arguments.json, result)
                print(f"{arguments.shape:13s} batch {batch:3d} {engine:15s} {tokens_per_s:9,.0f} tokens/s", flush=True)

        measure("pagedlab", lambda some: run_engine(llm, some)[0])
        peers = available_peers()
        model = load_peer(path, getattr(torch, dtype), torch.device(device), dummy=True)
        measure("static", partial(run_static, model, batch_size=max(batches)))
        if not arguments.toy:  # it fills the memory that is free: minutes on a CPU
            measure("generate_batch", partial(run_generate_batch, model))
        if "vllm" in peers:
            del model
            gc.collect()
            torch.cuda.empty_cache()
            measure("vllm", partial(run_vllm, load_vllm(path, dtype, dummy=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
