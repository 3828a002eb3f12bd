"""plug: from parts that a reader wrote to the options of LLM that put them into the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pagedlab.course.capstone.attention import AttentionSocket
from pagedlab.course.capstone.pool import ManagerSocket
from pagedlab.course.capstone.scheduler import SchedulerSocket
from pagedlab.course.capstone.watch import Watch, check_part


def plug(
    mask: Callable[..., Any] | None = None,
    pool: type | None = None,
    scheduler: type | None = None,
    attention: Callable[..., Any] | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Options for `LLM(...)` or `EngineConfig(...)`: the engine then runs on these parts, and on its own for the rest.

    >>> llm = LLM(num_blocks=12, **plug(pool=MyPool, scheduler=MyScheduler))

    Args:
        mask, pool, scheduler, attention: as the package's docstring says; None leaves the engine's own.
        watch: counts calls and keeps the first failure.

    Raises:
        PartError: a part is the engine's own, or not of its kind.
    """
    watch = watch or Watch()
    # No prefix cache: a pool need not bring back a block that was freed. The next step waits for this one's tokens.
    options: dict[str, Any] = {"enable_prefix_caching": False, "async_scheduling": False}
    if pool is not None:
        check_part("pool", pool, ("allocate", "share", "release"))
        options["block_manager_cls"] = type("PluggedManager", (ManagerSocket,), {"part": pool, "watch": watch})
    if scheduler is not None:
        check_part("scheduler", scheduler, ("schedule",))
    options["scheduler_cls"] = type("PluggedScheduler", (SchedulerSocket,), {"part": scheduler, "watch": watch})
    for name, function in (("mask", mask), ("attention", attention)):
        if function is not None:
            check_part(name, function)
    if mask is not None or attention is not None:
        options["attention_backend"] = AttentionSocket(mask, attention, watch)
    return options
