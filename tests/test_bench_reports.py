"""What every benchmark does before and after it measures: arguments checked at once, results written whole."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import torch

from pagedlab.bench import cli, kernels, offline, pictures, report, servers
from pagedlab.bench.http_load import HttpError
from pagedlab.bench.kernel_peers import PEERS
from pagedlab.errors import ConfigError, PagedlabError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["offline", "--input-len", "5", "2"], "--input-len takes the least and the most"),
        (["offline", "--output-len", "0", "3"], "--output-len takes the least and the most"),
        (["scheduler", "--steps", "0"], "at least 1"),
        (["scheduler", "--num-seqs", "4", "0"], "at least 1"),
    ],
)
def test_ranges_that_are_none_are_refused_before_anything_is_loaded(arguments, words, monkeypatch):
    monkeypatch.setattr(offline, "open_engine", lambda *_: pytest.fail("an engine was opened"))
    with pytest.raises(ConfigError, match=words):
        cli.main(arguments)


@pytest.mark.parametrize("arguments", [["offline"], ["serve"], ["soak"]])
def test_a_result_that_cannot_be_written_is_refused_before_the_measurement(arguments, tmp_path: Path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "result.json", Path("/proc/nobody/result.json")):
        with pytest.raises(ConfigError, match="cannot be written"):
            cli.main([*arguments, "--json", str(path)])


def test_a_result_is_written_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch):
    path = report.write_json(tmp_path / "new" / "result.json", {"n": 1})
    assert json.loads(path.read_text()) == {"n": 1}
    whole = Path.write_text

    def cut_off(self: Path, text: str) -> int:
        whole(self, text[: len(text) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", cut_off)
    with pytest.raises(OSError, match="no space"):
        report.write_json(path, {"n": 2})
    assert json.loads(path.read_text()) == {"n": 1}


def test_vllm_is_drawn_and_listed_under_its_own_name(tmp_path: Path, capsys):
    rate = {"median": 2.0, "min": 1.0, "max": 3.0}
    names = ["pagedlab", "floor", "static", "vllm"]
    run = {
        "num_prompts": 1,
        "num_input_tokens": 1,
        "num_output_tokens": 1,
        "output_tokens_per_s": dict.fromkeys(names, rate),
        "speedup": dict.fromkeys(names[2:], rate),
        "share_of_floor": rate,
        "host_share": rate,
        "targets": {},
    }
    offline.print_table("float32", run)
    printed = capsys.readouterr().out
    assert "transformers static" in printed and "vLLM" in printed and "transformers vllm" not in printed
    assert set(names) <= set(pictures.NAMES) and set(pictures.NAMES) == set(pictures.COLOURS)
    pictures.draw_offline({"environment": report.environment(), "runs": {"float32": run}}, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_a_server_that_has_ended_is_said_in_a_sentence():
    with pytest.raises(PagedlabError, match="does not answer /metrics"):
        asyncio.run(servers.scrape((servers.HOST, servers.free_port())))
    assert issubclass(HttpError, PagedlabError)


def test_a_difference_that_was_not_measured_is_not_reported_as_zero(monkeypatch):
    """SDPA may refuse a shape; then nothing was compared."""

    def refuse(dense):
        raise RuntimeError("no such kernel")

    class Backend(kernels.TritonBackend):
        def attend(self, query, kv_cache, metadata, *, scale, sliding_window):
            return torch.zeros_like(query)

    monkeypatch.setattr(kernels, "TritonBackend", Backend)
    monkeypatch.setitem(PEERS, "decode", {"sdpa": refuse})
    missing: set[str] = set()
    limits = {"copy_gb_s": 1.0, "matmul_tflop_s": 1.0}
    row = kernels.run_case(kernels.TOY[0], torch.device("cpu"), torch.float32, limits, missing)
    assert row.difference_from_sdpa is None and len(missing) == 1
