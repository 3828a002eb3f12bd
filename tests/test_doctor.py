"""The doctor finds what is wrong and says what to do; the command line is quick to start and clear when it fails."""

from __future__ import annotations

import importlib.metadata
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pagedlab.errors import ModelError
from pagedlab.interfaces import cli, doctor
from pagedlab.interfaces.doctor import FAIL, NOTE, OK, Check
from pagedlab.model_authoring.models import provision, wheel

COMMANDS = ["doctor", "models", "generate", "chat", "demo", "bench"]


def versions(monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> None:
    """Pretend that some packages have another version, or are missing (None)."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name not in changed:
            return real(name)
        if changed[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return str(changed[name])

    monkeypatch.setattr(importlib.metadata, "version", version)


def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision, "locate_default", lambda: None)


def test_this_machine_passes(default_model_path: Path) -> None:
    checks = doctor.run_doctor()
    assert [check.name for check in checks if check.status == FAIL] == []
    assert {"python", "torch", "cpu", "triton", "gpu", "memory", "disk", "model", "packages"} == {
        c.name for c in checks
    }
    assert str(default_model_path) in next(check.detail for check in checks if check.name == "model")


def test_a_package_outside_its_range_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, transformers="5.16.1", gguf=None)
    check = doctor.check_packages()
    assert check.status == FAIL and check.advice
    assert "transformers 5.16.1 is not >=5.17" in check.detail and "gguf is missing" in check.detail


def test_a_local_build_of_torch_is_within_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, torch="2.12.0a0+git1234")
    assert doctor.check_packages().status == OK


def test_a_missing_server_package_is_only_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, fastapi=None)
    check = doctor.check_packages()
    assert check.status == NOTE and "fastapi is missing" in check.detail and check.advice


def test_a_machine_without_triton_or_gpu_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    versions(monkeypatch, triton=None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.check_triton().status == OK and "absent" in doctor.check_triton().detail
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.check_gpu().status == OK


def test_a_cpu_build_of_torch_beside_an_nvidia_driver_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    check = doctor.check_gpu()
    assert check.status == NOTE and "torch" in check.advice


def test_an_absent_model_is_noted_and_costs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    no_model(monkeypatch)
    check = doctor.check_model()
    assert check.status == NOTE and "pagedlab models --fetch" in check.advice


def test_a_damaged_model_fails_with_the_files_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in wheel.REQUIRED_FILES:
        (tmp_path / name).write_text("{}")
    wheel.write_manifest(tmp_path)
    monkeypatch.setattr(provision, "locate_default", lambda: provision.Located(tmp_path, "here"))
    assert doctor.check_model().status == OK
    (tmp_path / "model.safetensors").write_text("{]")
    check = doctor.check_model()
    assert check.status == FAIL and "model.safetensors" in check.detail and str(tmp_path) in check.advice


def test_a_damaged_blob_of_the_hugging_face_cache_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blob").write_text("weights")
    blob = (tmp_path / "blob").rename(tmp_path / wheel.sha256(tmp_path / "blob"))
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to(blob)
    monkeypatch.setattr(provision, "locate_default", lambda: provision.Located(snapshot, "cache"))
    assert doctor.check_model().status == OK
    blob.write_text("Weights")
    check = doctor.check_model()
    assert check.status == FAIL and "model.safetensors" in check.detail


def test_a_wrong_pagedlab_model_fails_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEDLAB_MODEL", str(tmp_path))
    check = doctor.check_model()
    assert check.status == FAIL and "config.json" in check.advice


def test_a_full_disk_matters_only_while_the_model_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    found = provision.Located(Path("/there"), "there")
    monkeypatch.setattr(provision, "locate_default", lambda: found)
    assert doctor.check_disk().status == OK
    no_model(monkeypatch)
    check = doctor.check_disk()
    assert check.status == FAIL and "PAGEDLAB_HOME" in check.advice


def test_little_memory_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30, total=2**32))
    assert doctor.check_memory().status == NOTE


def test_a_check_that_breaks_hides_no_other_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_torch() -> Check:
        raise ImportError("libtorch.so is gone")

    monkeypatch.setattr(doctor, "CHECKS", (check_torch, doctor.check_python))
    broken, python = doctor.run_doctor()
    assert (broken.name, broken.status) == ("torch", FAIL) and "libtorch.so is gone" in broken.detail
    assert python.status == OK
    assert not doctor.all_pass([broken, python])


@pytest.mark.parametrize("status, code", [(OK, 0), (NOTE, 0), (FAIL, 1)])
def test_the_exit_status_tells_whether_pagedlab_can_work(
    status: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    advice = "" if status == OK else "Do this."
    monkeypatch.setattr(doctor, "run_doctor", lambda: [Check("thing", status, "found", advice)])
    assert cli.main(["doctor"]) == code
    printed = capsys.readouterr().out
    assert "thing" in printed and advice in printed


# ---- the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert f"examples:\n  pagedlab {command}" in capsys.readouterr().out


def test_an_unknown_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", "--cure"])
    assert end.value.code == 2 and "--cure" in capsys.readouterr().err


def test_bench_passes_everything_on_to_its_own_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[list[str]] = []
    monkeypatch.setattr("pagedlab.bench.cli.main", lambda argv: got.append(list(argv)) or 0)
    assert cli.main(["bench", "offline", "--rounds", "5"]) == 0
    assert got == [["offline", "--rounds", "5"]]


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from pagedlab.interfaces import cli; cli.build_parser().format_help();"
        "print([name for name in ('torch', 'transformers', 'numpy', 'huggingface_hub', 'rich') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_refusal_is_one_sentence_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--fetch", "./no/such/place"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pagedlab: There is no model directory") and captured.err.count("\n") == 1


def test_ctrl_c_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> list[Check]:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run_doctor", interrupted)
    assert cli.main(["doctor"]) == 130


def test_models_lists_what_is_here_and_what_can_run(
    default_model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models"]) == 0
    printed = capsys.readouterr().out
    assert str(default_model_path) in printed and "LlamaForCausalLM" in printed


def test_fetching_a_model_prints_its_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert cli.main(["models", "--fetch", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}\n"


class EchoLLM:
    """Stands in for LLM: records the prompts, streams two pieces, refuses what contains "refuse"."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def apply_chat_template(self, messages: list[dict[str, str]]) -> str:
        return "|".join(f"{message['role']}={message['content']}" for message in messages)

    def get_tokenizer(self) -> SimpleNamespace:
        return SimpleNamespace(encode=lambda text, add_special_tokens: list(text.encode()))

    def stream(self, prompt: object, params: object):  # type: ignore[no-untyped-def]
        text = bytes(prompt["prompt_token_ids"]).decode() if isinstance(prompt, dict) else str(prompt)
        if "refuse" in text:
            raise ModelError("That was refused.")
        self.prompts.append(text)
        yield from ("an", "swer")


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> EchoLLM:
    llm = EchoLLM()
    monkeypatch.setattr(cli, "open_llm", lambda arguments: llm)
    return llm


def type_lines(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_generate_reads_its_prompt_from_the_argument_or_standard_input(
    echo: EchoLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_lines(monkeypatch)("from a pipe")
    assert cli.main(["generate", "from the argument"]) == cli.main(["generate"]) == 0
    assert echo.prompts == ["from the argument", "from a pipe"]
    assert capsys.readouterr().out == "answer\nanswer\n"


def test_a_conversation_remembers_resets_and_survives_a_refusal(
    echo: EchoLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_lines(monkeypatch)("one\nrefuse\ntwo\n\n/reset\nthree\n")
    assert cli.main(["chat", "--system", "s"]) == 0
    assert echo.prompts == [
        "system=s|user=one",
        "system=s|user=one|assistant=answer|user=two",
        "system=s|user=three",
    ]
    assert "That was refused." in capsys.readouterr().err


def test_one_question_needs_no_conversation(echo: EchoLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", "why?"]) == 0
    assert echo.prompts == ["user=why?"]
    assert capsys.readouterr().out == "answer\n"


def test_sampling_options_reach_the_parameters() -> None:
    line = ["generate", "x", "--max-tokens", "3", "--temperature", "0.5", "--seed", "1", "--stop", "a", "--stop", "b"]
    params = cli.sampling_params(cli.build_parser().parse_args(line))
    assert (params.max_tokens, params.temperature, params.seed, params.stop) == (3, 0.5, 1, ("a", "b"))


def test_a_value_out_of_range_is_a_refusal(echo: EchoLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "x", "--max-tokens", "0"]) == 1
    assert "max_tokens must be at least 1" in capsys.readouterr().err


def test_the_real_model_answers_on_the_command_line(
    default_model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(default_model_path), "--dtype", "float32", "--device", "cpu", "--max-tokens", "12"]
    assert cli.main(["chat", "What is the capital of France?", *options]) == 0
    assert capsys.readouterr().out.strip().endswith("Paris.")
