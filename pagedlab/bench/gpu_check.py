"""`python -m pagedlab.bench.gpu_check`: is the engine right on this GPU, and how fast is it?

Correctness first: every attention backend against float64 on fresh random inputs, then the engine's tokens with and
without CUDA graphs. Then kernels against the memory's and the matrix units' measured rates, decode steps against their
roofline, the offline workload, and batches against other engines. Results go to a folder as JSON with device, versions
and date, and as pictures. `--toy` runs all of it at toy sizes where there is no GPU, the kernels in Triton's
interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PEER_SECONDS = 110
"""Most that the peers of one shape may take, so that the whole check stays under eight minutes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run every part; 0 if all came to their end and nothing was wrong."""
    parser = argparse.ArgumentParser(prog="python -m pagedlab.bench.gpu_check", description=__doc__)
    parser.add_argument("--toy", action="store_true", help="toy sizes on a CPU, kernels interpreted")
    parser.add_argument("--output", type=Path, default=Path("gpu_check"), help="folder for JSON and pictures")
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), help="these parts alone")
    arguments = parser.parse_args(argv)
    if arguments.toy:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    import torch

    if not arguments.toy and not torch.cuda.is_available():
        print("There is no CUDA GPU here: run with --toy to try the script itself.", file=sys.stderr)
        return 1
    failed = []
    for name, part in PARTS.items():
        if arguments.only and name not in arguments.only:
            continue
        start = time.perf_counter()
        print(f"== {name}", flush=True)
        try:
            part(arguments)
        except Exception:  # one part's failure must not cost the others their turn on the machine
            traceback.print_exc()
            failed.append(name)
        print(f"== {name}: {'FAILED' if name in failed else 'done'} in {time.perf_counter() - start:.0f} s", flush=True)
    print("Failed: " + ", ".join(failed) if failed else "All parts came to their end.")
    return 1 if failed else 0


def check_attention(arguments: argparse.Namespace) -> None:
    """Each backend on random ragged batches against float64; raises if one is wrong."""
    from pagedlab.bench.attention_check import check_backends

    check_backends(toy=arguments.toy)


def check_engine(arguments: argparse.Namespace) -> None:
    """The engine's greedy tokens: Triton with and without graphs, and under preemption, against the reference backend.

    In float32 where the products are exact enough for equal tokens.
    """
    import torch

    from pagedlab.bench.shapes import write_shape
    from pagedlab.interfaces.llm import LLM
    from pagedlab.sampling_params import SamplingParams

    device = "cpu" if arguments.toy else "cuda"
    torch.backends.cuda.matmul.allow_tf32 = False
    generator = torch.Generator().manual_seed(time.time_ns() % 2**31)
    count, longest, output = (3, 40, 4) if arguments.toy else (24, 700, 24)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    prompts = [torch.randint(0, 512, (n,), generator=generator).tolist() for n in lengths]
    params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
    with tempfile.TemporaryDirectory() as directory:
        path = write_shape("toy", directory)

        def tokens(**options: Any) -> list[list[int]]:
            llm = LLM(
                path,
                load_format="dummy",
                skip_tokenizer_init=True,
                device=device,
                dtype="float32",
                max_num_batched_tokens=256,
                max_num_seqs=32,
                **({"num_blocks": 1200} | options),
            )
            outputs = llm.generate(prompts, params, use_tqdm=False)
            return [completion.outputs[0].token_ids for completion in outputs]

        expected = tokens(attention_backend="reference", enforce_eager=True)
        tight = -(-(longest + output) // 16) + 10
        variants: dict[str, dict[str, Any]] = {
            "triton": {"attention_backend": "triton", "enforce_eager": True},
            "triton, small pool": {"attention_backend": "triton", "enforce_eager": True, "num_blocks": tight},
        }
        if not arguments.toy:
            variants["triton, graphs"] = {"attention_backend": "triton"}
            variants["triton, graphs, swap"] = {
                "attention_backend": "triton",
                "num_blocks": tight,
                "preemption_mode": "swap",
            }
        wrong = []
        for name, options in variants.items():
            found = tokens(**options)
            equal = sum(a == b for a, b in zip(found, expected, strict=True))
            print(f"{name}: {equal} of {count} sequences equal the reference's")
            # Rounding may turn a near tie; a wrong kernel turns everything.
            if equal < 0.9 * count:
                wrong.append(name)
        if wrong:
            raise AssertionError(f"tokens differ from the reference's: {', '.join(wrong)}")


def bench_kernels(arguments: argparse.Namespace) -> None:
    """Decode and prefill kernels against the measured limits and other libraries."""
    from pagedlab.bench import kernels

    kernels.main([*(["--toy"] if arguments.toy else []), "--out", str(arguments.output)])


def bench_decode(arguments: argparse.Namespace) -> None:
    """Decode steps against their roofline; without running ahead, CUDA graphs or fused kernels, one at a time."""
    import torch

    from pagedlab.bench.decode_step import as_dict, copy_bandwidth, measure
    from pagedlab.bench.report import environment, write_json
    from pagedlab.bench.shapes import write_shape
    from pagedlab.model_authoring.models import ops

    device = "cpu" if arguments.toy else "cuda"
    dtype = "float32" if arguments.toy else "bfloat16"
    bandwidth = copy_bandwidth(torch.device(device))
    print(f"copy bandwidth {bandwidth / 1e12:.2f} TB/s (bytes read and written)")
    points = [("toy", 2, 20)] if arguments.toy else [
        (shape, batch, 1024) for shape in ("qwen3-0.6b", "llama-3.1-8b") for batch in (1, 32, 256)
    ]  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for shape, batch, context in points:
            for left_out in ("nothing", "ahead", "graphs", "fused"):
                if left_out == "fused" and shape == "llama-3.1-8b":
                    continue  # more work for the memory, less for the launches: there the kernels gain least
                ahead, graphs, fused = (left_out != part for part in ("ahead", "graphs", "fused"))
                ops.use_kernels = fused
                options: dict[str, Any] = {"num_steps": 12} if arguments.toy else {}
                step = measure(
                    write_shape(shape, directory),
                    batch,
                    context,
                    device=device,
                    dtype=dtype,
                    bandwidth=bandwidth,
                    graphs=graphs,
                    ahead=ahead,
                    **options,
                )
                ops.use_kernels = True
                rows.append({"shape": shape, "fused": fused, **as_dict(step)})
                print(
                    f"{shape:13s} batch {batch:3d} without {left_out:7s} step {step.step_ms:7.2f} ms "
                    f"({step.low:.2f}-{step.high:.2f}), roofline {step.roofline_ms:6.2f} ms, "
                    f"share {step.share_of_roofline:.2f}, host {step.host_ms:.2f} ms",
                    flush=True,
                )
    write_json(
        arguments.output / "decode.json",
        {"environment": environment(device), "copy_bytes_per_s": bandwidth, "steps": rows},
    )


def bench_offline(arguments: argparse.Namespace) -> None:
    """The offline workload."""
    from pagedlab.bench.cli import main as bench
    from pagedlab.bench.decode_step import release_memory

    options = ["--device", "cuda", "--shape", "qwen3-0.6b"]
    if arguments.toy:
        options = ["--shape", "toy", "--num-prompts", "2", "--input-len", "4", "8", "--output-len", "2", "3"]
        options += ["--dtype", "float32"]
    files = ["--json", str(arguments.output / "offline.json"), "--picture", str(arguments.output / "offline.png")]
    bench(["offline", *options, "--rounds", "1", "--no-prefix", "--peers", *files])
    release_memory()


def bench_peers(arguments: argparse.Namespace) -> None:
    """Batches of equal requests against each peer; a shape that takes too long keeps what it has measured."""
    from pagedlab.bench.report import write_json

    found: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for shape in ("toy",) if arguments.toy else ("qwen3-0.6b", "llama-3.1-8b"):
        with tempfile.TemporaryDirectory() as directory:
            target = Path(directory) / "peers.json"
            command = [sys.executable, "-m", "pagedlab.bench.gpu_peers", shape, "--json", str(target)]
            try:
                subprocess.run(command + (["--toy"] if arguments.toy else []), check=True, timeout=PEER_SECONDS)
            except subprocess.TimeoutExpired:
                print(f"{shape}: stopped after {PEER_SECONDS} s, what is missing was not measured")
            if target.exists():
                found = json.loads(target.read_text())
                rows += found["rows"]
    write_json(arguments.output / "peers.json", {**found, "rows": rows})


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "attention": check_attention,
    "engine": check_engine,
    "kernels": bench_kernels,
    "decode": bench_decode,
    "offline": bench_offline,
    "peers": bench_peers,
}

if __name__ == "__main__":
    sys.exit(main())
