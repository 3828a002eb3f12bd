"""The command line: what it prints, and that it refuses in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pagedlab.interfaces import cli

COMMANDS = (
    *("doctor", "models", "generate", "chat", "serve", "demo", "kernels", "bench"),
    *("notebooks", "exercises", "grade"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert "examples:" in text and f"pagedlab {command}" in text


def test_generate_streams_the_completion(default_model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "The capital of France is", "--max-tokens", "4"]) == 0
    assert "Paris" in capsys.readouterr().out


def test_chat_answers_one_question(default_model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", "What is the capital of France?", "--max-tokens", "20"]) == 0
    assert capsys.readouterr().out.strip() == "The capital of France is Paris."


def test_demo_answers_eight_questions_and_reports_its_rate(
    default_model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "--short"]) == 0
    text = capsys.readouterr().out
    assert "The capital of France is Paris." in text
    assert "tokens for 8 requests" in text and "tokens/s" in text
    cached = int(text.split("steps, ")[1].split()[0])
    assert cached >= 16 * 7, "each question after the first shares a block of the chat template"


def test_the_demo_draws_every_block_and_every_question(default_model_path: Path) -> None:
    from rich.console import Console

    from pagedlab import LLM
    from pagedlab.interfaces import demo

    llm = LLM(num_blocks=demo.NUM_BLOCKS, max_num_seqs=8, max_num_batched_tokens=demo.TOKEN_BUDGET)
    progress = demo.Progress()
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for number, _ in enumerate(demo.steps(llm, 6, progress)):
        if number == 12:
            console.print(demo.picture(llm, progress, 120))
            held = sum(block.ref_count > 0 for block in llm.llm_engine.block_manager.pool.blocks)
    text = console.export_text()
    cells = text.split("owned")[0].split("KV blocks")[1]
    assert cells.count("█") - 1 + cells.count("▓") == held > 5  # one █ stands in the legend
    assert all(question[:20] in text for question in demo.QUESTIONS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "hi", "--model", "/nowhere/at/all"], "nowhere"),
        (["generate", "hi", "--temperature", "-1"], "temperature must be"),
        (["generate", "hi", "--dtype", "int8"], "dtype must be"),
        (["generate", "", "--max-tokens", "4"], "empty"),
        (["bench", "offline", "--rounds", "0"], "--rounds"),
        (["grade", "/nowhere/at/all"], "/nowhere/at/all cannot be read"),
        (["grade", ".", "--jobs", "0"], "--jobs must be"),
        (["grade", ".", "-o", "grades.xlsx"], "ends in .csv"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_1(
    default_model_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("pagedlab: ") and words in error[0]


@pytest.mark.parametrize(
    ("command", "shell", "status", "words"),
    [
        ("printf 'caf\\351\\n'", "generate", 1, "not UTF-8"),
        ("printf 'caf\\351\\n'", "chat", 1, "not UTF-8"),
        ("printf hi", "generate --max-tokens 1 > /dev/full", 1, "No space left"),
        ("printf hi", "generate <&-", 1, "no standard input"),
        ("printf hi", "chat <&-", 1, "no standard input"),
        ("printf ''", "generate 'é é é é é é é é' --max-tokens 6", 0, ""),
        ("printf 'say é'", "chat --max-tokens 0", 1, "max_tokens"),
    ],
)
def test_odd_input_and_output_end_in_a_sentence(
    default_model_path: Path, command: str, shell: str, status: int, words: str
) -> None:
    """A pipe of ASCII, bytes that are no UTF-8, a full disk, no input at all: never a traceback."""
    line = f"{command} | {sys.executable} -m pagedlab.interfaces.cli {shell}"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8" if "351" in command else "ascii:surrogateescape"}
    run = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == status and words in run.stderr, run.stderr
    assert "?" in run.stdout or "é" not in shell  # what the pipe cannot say
    assert "Traceback" not in run.stderr and len(run.stderr.splitlines()) == (status != 0)


def test_bench_offline_times_every_engine_and_writes_its_result(default_model_path: Path, tmp_path: Path) -> None:
    """A toy size: the numbers mean little, but every token is counted and every part of the result is there."""
    import json

    file = tmp_path / "result.json"
    command = ["bench", "offline", "--num-prompts", "3", "--input-len", "4", "9", "--output-len", "2", "5"]
    picture = tmp_path / "result.png"
    options = ["--dtype", "float32", "--rounds", "1", "--no-prefix", "--json", str(file), "--picture", str(picture)]
    subprocess.run([sys.executable, "-m", "pagedlab.interfaces.cli", *command, *options], check=True, timeout=500)
    result = json.loads(file.read_text())
    run = result["runs"]["float32"]
    assert set(run["output_tokens_per_s"]) == {"pagedlab", "floor", "static", "generate_batch"}
    assert all(spread["median"] > 0 for spread in run["output_tokens_per_s"].values())
    assert result["environment"]["packages"]["torch"]
    assert picture.read_bytes().startswith(b"\x89PNG")
