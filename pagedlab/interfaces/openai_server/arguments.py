"""The options of `pagedlab serve`, by vLLM's names. Nothing heavy is imported before the server is wanted."""

from __future__ import annotations

import argparse
import gc
import os


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Options left out are None: EngineConfig and ServerSettings have the defaults, once."""
    parser.add_argument("model", nargs="?", help="directory or Hugging Face id; left out: SmolLM2-135M-Instruct")

    group = parser.add_argument_group("server")
    group.add_argument("--host", help="address to listen on (default 127.0.0.1: this machine only)")
    group.add_argument("--port", type=int, help="default 8000; 0 takes a free one")
    group.add_argument("--served-model-name", nargs="+", metavar="NAME", help="what clients call the model")
    group.add_argument(
        "--api-key",
        nargs="+",
        metavar="KEY",
        help="keys that open the server, one a tenant; or "
        "PAGEDLAB_API_KEY, which other users of the machine cannot see",
    )
    group.add_argument(
        "--allowed-origins",
        nargs="+",
        metavar="ORIGIN",
        help='pages that may call the server from a browser: http://localhost:3000, or "*" for all (default none)',
    )
    group.add_argument("--rate-limit", metavar="RATE", help='for each key: "60/minute;5/second"')
    group.add_argument("--max-pending-requests", type=int, metavar="N", help="unfinished requests; more get 503")
    group.add_argument("--max-pending-tokens", type=int, metavar="N", help="their prompt tokens, likewise")
    group.add_argument("--max-pending-per-key", type=int, metavar="N", help="of one key; more get 429")
    group.add_argument("--max-body-bytes", type=int, metavar="N", help="larger bodies get 413")
    group.add_argument("--request-timeout", type=float, metavar="S", help="seconds until a request is aborted")
    group.add_argument("--send-timeout", type=float, metavar="S", help="seconds that a stream may stay unread")
    group.add_argument("--drain-timeout", type=float, metavar="S", help="seconds to finish requests after SIGTERM")
    group.add_argument("--dead-engine-grace", type=float, metavar="S", help="seconds of 503 before a dead server exits")

    group = parser.add_argument_group("logs and traces")
    group.add_argument("--log-level", help="debug (every step of every request), info, warning or error")
    group.add_argument("--log-format", help="text, or json: an object a line")
    group.add_argument(
        "--otlp-traces-endpoint", metavar="URL", help="OpenTelemetry collector, http://host:4318/v1/traces"
    )
    group.add_argument("--trace-file", metavar="FILE", help="write Chrome trace events there when the server ends")

    group = parser.add_argument_group("engine")
    group.add_argument("--tokenizer", help="directory or id, if it is not the model's")
    group.add_argument(
        "--generation-config",
        help="auto: what a request leaves out, the model's generation_config.json says; vllm: OpenAI's defaults hold",
    )
    for name in ("--dtype", "--device", "--load-format", "--scheduling-policy", "--preemption-mode"):
        group.add_argument(name)
    for name in (
        "--max-model-len",
        "--max-num-seqs",
        "--max-num-batched-tokens",
        "--long-prefill-token-threshold",
        "--block-size",
        "--num-blocks",
        "--kv-cache-memory",
        "--seed",
    ):
        group.add_argument(name, type=int, metavar="N")
    for name in ("--gpu-memory-utilization", "--swap-space"):
        group.add_argument(name, type=float, metavar="X")
    group.add_argument("--attention-backend", help="auto, reference, sdpa or triton")
    group.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=None)
    group.add_argument("--enforce-eager", action="store_true", default=None)
    group.add_argument("--enable-trace", action="store_true", default=None, help="record events; GET /trace has them")


KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""What bounds oneDNN's cache of kernels and PyTorch's of their descriptions: up to half a MiB for each shape and number
of rows. Each would keep 1024, so that on a CPU a server's memory grew for thousands of steps."""
NUM_CACHED_KERNELS = 128
"""Enough for the five matrix shapes of a model at two dozen batch sizes."""


def run(arguments: argparse.Namespace) -> int:
    """Serve as the options say. Returns the exit status."""
    for name in KERNEL_CACHES:  # read when torch first multiplies; whoever sets them knows better
        os.environ.setdefault(name, str(NUM_CACHED_KERNELS))
    # Until all is loaded there is next to no garbage, and looking for it was an eighth of the time to the first answer.
    gc.disable()
    try:
        return load_and_serve(arguments)
    finally:
        gc.enable()


def load_and_serve(arguments: argparse.Namespace) -> int:
    """Import the server, make its settings of the options, and run it."""
    from pagedlab.errors import PagedlabError

    try:
        from pagedlab.interfaces.openai_server.settings import ServerSettings

        values = dict(vars(arguments))
        if values["api_key"] is None and "PAGEDLAB_API_KEY" in os.environ:
            # An empty one is refused: whoever sets it ("$KEY" of another shell) wants no open server.
            values["api_key"] = [os.environ["PAGEDLAB_API_KEY"]]
        settings = ServerSettings(**given(ServerSettings, values))
        if settings.log_level == "debug" or settings.trace_file:
            values["enable_trace"] = True
        from pagedlab.config import EngineConfig

        config = EngineConfig(**given(EngineConfig, values))
        from pagedlab.interfaces.openai_server.server import serve
    except ModuleNotFoundError as error:
        raise PagedlabError(f"{error.name} is not installed: pip install 'pagedlab[server]'.") from None
    return serve(config, settings)


def given(cls: type, values: dict) -> dict:
    """Those of the values that are fields of the dataclass and were given."""
    return {name: values[name] for name in cls.__dataclass_fields__ if values.get(name) is not None}  # type: ignore[attr-defined]
