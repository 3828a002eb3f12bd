"""Shared by all tests: quiet, offline, one thread a process under xdist, and the default model."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported: xdist runs a process a core, and threads on top of that would fight over the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
from hypothesis import HealthCheck, settings

# No clock decides: by default an example may take 200 ms and its making a second, and a machine that pauses for as long
# fails a test of something else. And everybody's run tries the same examples: a rare failure is to be searched for on
# purpose (pytest --hypothesis-profile search), not to be met by a change that has nothing to do with it.
settings.register_profile("same_for_all", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", settings.get_profile("same_for_all"), derandomize=False, max_examples=2000)
settings.load_profile("same_for_all")


@pytest.fixture(autouse=True)
def numbers_of_its_own() -> None:
    """What a test draws without a seed does not depend on which tests ran before it in this process."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """`pagedlab serve`, called in this process, sends logs to a stderr that pytest closes after the test."""
    loggers = [logging.getLogger(name) for name in ("pagedlab", "uvicorn")]
    before = [(one, one.handlers, one.propagate, one.level) for one in loggers]
    yield
    for one, handlers, propagate, level in before:
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    """The directory of SmolLM2-135M-Instruct; fetched and converted if this machine has none yet."""
    from pagedlab.model_authoring.models.provision import default_model_path

    return default_model_path()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no GPU; keep each file, and all GPU tests together, in one xdist process."""
    import torch

    for item in items:
        on_gpu = item.get_closest_marker("gpu") is not None
        item.add_marker(pytest.mark.xdist_group("gpu" if on_gpu else item.path.name))
        if on_gpu and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
