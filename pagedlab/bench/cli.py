"""`pagedlab bench`: one subcommand a benchmark; each imports what it needs when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark and return its exit status."""
    from pagedlab.bench import offline, scheduler, serve, soak

    parser = argparse.ArgumentParser(
        prog="pagedlab bench",
        description="Measure the engine against peers and against the physical limit.",
        epilog="examples:\n  pagedlab bench offline\n  pagedlab bench offline --dtype float32 --rounds 5\n"
        "  pagedlab bench kernels --toy",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    sub = commands.add_parser("offline", help="throughput on a fixed workload, against transformers and the floor")
    offline.add_arguments(sub)
    sub.set_defaults(handler=offline.main)
    sub = commands.add_parser("serve", help="latency and throughput over HTTP, against offline and transformers serve")
    serve.add_arguments(sub)
    sub.set_defaults(handler=serve.main)
    sub = commands.add_parser("soak", help="minutes of mixed load on a server: flat memory, no block leaked")
    soak.add_arguments(sub)
    sub.set_defaults(handler=soak.main)
    sub = commands.add_parser("scheduler", help="cost of scheduling and book-keeping in a step, with no model")
    scheduler.add_arguments(sub)
    sub.set_defaults(handler=scheduler.main)
    sub = commands.add_parser(
        "kernels", help="Triton kernels against the memory's and the matrix units' rates", add_help=False
    )
    sub.set_defaults(handler=None)
    arguments, rest = parser.parse_known_args(argv)
    if arguments.handler is None:
        from pagedlab.bench import kernels

        return kernels.main(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments.handler(arguments)
