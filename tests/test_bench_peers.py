"""Peers of the benchmarks: each must return every token, and vLLM is called as vLLM's own API says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny_models import make_tiny_model

import pagedlab
from pagedlab.bench import peers
from pagedlab.bench.workloads import Job
from pagedlab.errors import PagedlabError

JOBS = [Job([5, 6, 7], 4), Job(list(range(3, 20)), 6)]


def test_the_calls_made_of_vllm_are_those_of_its_offline_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM itself needs a GPU; pagedlab has its API, so it can stand in for it."""
    monkeypatch.setitem(sys.modules, "vllm", pagedlab)
    llm = peers.load_vllm(make_tiny_model(tmp_path), "float32", dummy=True)
    assert peers.run_vllm(llm, JOBS) > 0


def test_an_engine_that_stops_early_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", pagedlab)
    llm = peers.load_vllm(make_tiny_model(tmp_path), "float32", dummy=True)
    generate = llm.generate
    monkeypatch.setattr(
        llm, "generate", lambda p, params, **o: generate(p, [x.clone(max_tokens=2) for x in params], **o)
    )
    with pytest.raises(PagedlabError, match="vLLM returned 2 tokens where 4 were asked for"):
        peers.run_vllm(llm, JOBS)
