"""Peers of the benchmarks: each must return every token, and vLLM is called as vLLM's own API says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tiny_models import make_tiny_model

import pagedlab
from pagedlab.bench import cli, offline, peers
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


def test_a_peer_that_fails_is_said_and_the_others_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """generate_batch in the second round, vLLM before it is loaded: the result says so, and so does the exit status."""
    calls = []

    def fails_later(model: object, jobs: list[Job]) -> float:
        calls.append(len(jobs))
        if len(calls) == 3:
            raise RuntimeError("CUDA out of memory.\nTried to allocate 20 GiB")
        return 1.0

    monkeypatch.setattr(offline, "available_peers", lambda: ["static", "generate_batch", "vllm"])
    monkeypatch.setattr(offline, "run_generate_batch", fails_later)
    monkeypatch.setattr(offline, "load_vllm", lambda *a, **o: (_ for _ in ()).throw(ModuleNotFoundError("no vllm")))
    file, picture = tmp_path / "result.json", tmp_path / "result.png"
    options = ["--num-prompts", "3", "--input-len", "4", "9", "--output-len", "2", "5", "--dtype", "float32"]
    files = ["--json", str(file), "--picture", str(picture)]
    model = make_tiny_model(tmp_path / "model")
    assert cli.main(["offline", "--model", str(model), *options, "--rounds", "3", "--no-prefix", *files]) == 1
    run = json.loads(file.read_text())["runs"]["float32"]
    assert run["peers_missing"] == {
        "vllm": "ModuleNotFoundError: no vllm",
        "generate_batch": "RuntimeError: CUDA out of memory. Tried to allocate 20 GiB",
    }
    assert set(run["output_tokens_per_s"]) == {"pagedlab", "floor", "static"} and set(run["speedup"]) == {"static"}
    assert len(calls) == 3, "it was tried again after it had failed"
    said = capsys.readouterr().err
    assert said.count("Without ") == 2 and "Traceback" not in said
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_peer_that_returns_too_few_tokens_is_missing_for_that(capsys: pytest.CaptureFixture[str]) -> None:
    def few(jobs: list[Job]) -> float:
        raise PagedlabError("it returned 2 tokens where 4 were asked for: its time means nothing.")

    peers_run = offline.Peers(["good", "few"], {"good": lambda: lambda jobs: 2.0, "few": lambda: few}, JOBS)
    peers_run.run(JOBS)
    assert peers_run.seconds == {"good": [2.0]} and "2 tokens where 4" in peers_run.missing["few"]
    assert "Without few" in capsys.readouterr().err
