"""Names of models to directories: a directory itself, the model that ships, an alias, or a hub id (downloaded)."""

import os
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from minitron_cli import stopping
from minitron_cli.artifacts import fingerprint
from minitron_cli.artifacts.license_files import PATTERNS as LICENSES
from minitron_cli.checkpoint import hub_blobs, other_formats
from minitron_cli.checkpoint.aliases import aliases
from minitron_cli.errors import CheckpointError, EnvironmentFault

DEMO_TEACHER = "demo-teacher"
"""Name of the model that ships with the package."""
FILES = ("*.safetensors", "*.json", "*.model", "merges.txt", "*.jinja", "*.masks", "README.md", *LICENSES)
"""Patterns of the files of a hub repository that are downloaded."""
OTHER_COPIES = ("*/*.safetensors", "consolidated*.safetensors")
"""Patterns of the weights once more, in the format of other programs, which some repositories hold."""
EXAMPLES = 8  # aliases that a message names


class ModelSource(NamedTuple):
    """A named model that was found on this machine."""

    name: str
    path: Path
    commit: str
    """Hub id and commit of a downloaded model, "org/name@40 digits"; empty for any other directory."""

    def fingerprint(self) -> str:
        """Identity of the model's content: the commit, or a hash of the files. Large files are read once.

        ArtifactError or CheckpointError for files that are not those which a stage wrote or which were downloaded.
        """
        if self.commit:
            hub_blobs.check(self.path, self.commit.partition("@")[0])
        return self.commit or fingerprint.of_directory(self.path)


def resolve(model: str, *, offline: bool = False) -> ModelSource:
    """Find a model: a directory, `demo-teacher`, an alias or a hub id.

    A hub model is downloaded unless `offline` or HF_HUB_OFFLINE is set.

    CheckpointError if there is no such model, EnvironmentFault if it cannot be downloaded.
    """
    if os.path.isdir(model):
        return ModelSource(model, Path(model), "")
    if os.path.lexists(model):
        raise CheckpointError(other_formats.instead_of_a_directory(Path(model)))
    if model == DEMO_TEACHER:
        return ModelSource(model, demo_teacher(), "")
    name = hub_id(model)
    if not _may_be_hub_id(name):
        raise CheckpointError(
            f"{model} does not exist: give the directory of a checkpoint, a hub id or an alias such as {_aliases()}"
        )
    path = _download(name, offline=offline)
    commit = path.name if len(path.name) == 40 else fingerprint.of_directory(path)
    return ModelSource(model, path, f"{name}@{commit}")


def demo_teacher() -> Path:
    """Directory of the model that ships with the package: a Llama of 3.9 M parameters, trained on Python source."""
    return Path(str(resources.files("minitron_cli"))) / "demo_teacher"


def directory(model: str) -> Path:
    """Directory of a model that is not on the hub, by the name under which `resolve` found it."""
    return demo_teacher() if model == DEMO_TEACHER and not os.path.isdir(model) else Path(model)


def hub_id(model: str) -> str:
    """Hub id of an alias; any other name as it is."""
    return aliases()[model].hub_id if model in aliases() else model


def cached(model: str) -> Path | None:
    """Directory of a hub model in the local cache; None if it is not cached."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id(model), "config.json") if _may_be_hub_id(hub_id(model)) else None
    return Path(found).parent if isinstance(found, str) else None


def _may_be_hub_id(text: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return "/" in text


def _aliases() -> str:
    """One alias of each name with the most of them."""
    families = {name.partition("-")[0]: name for name in aliases()}
    common = Counter(name.partition("-")[0] for name in aliases()).most_common(EXAMPLES)
    return ", ".join(families[family] for family, _ in common)


def _download(hub_id: str, *, offline: bool) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    local_only = offline or constants.HF_HUB_OFFLINE
    try:
        with stopping.interruptible():
            found = snapshot_download(
                hub_id,
                allow_patterns=[*FILES],
                ignore_patterns=[*OTHER_COPIES],
                local_files_only=local_only,
                etag_timeout=3,
            )
        return Path(found)
    except GatedRepoError:
        raise CheckpointError(f"{hub_id} is gated: accept its license on the hub and run `hf auth login`") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{hub_id} is not on the hub: check the name, or run `hf auth login` if it is private"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as e:
        why = "and downloads are off" if local_only else "and the hub cannot be reached"
        if isinstance(e, OSError) and e.errno:
            raise
        raise EnvironmentFault(
            f"{hub_id} is not in the local cache {why}: fetch it with `hf download {hub_id}` or give a directory"
        ) from None
