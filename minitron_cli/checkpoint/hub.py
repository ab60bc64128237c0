"""Uploads files to the hub in one commit. Knows no model; `hf` downloads."""

import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from minitron_cli import progress, stopping
from minitron_cli.errors import EnvironmentFault, InputError

REACH_SECONDS = 2.0  # so that a missing network is reported within three seconds

FileContent = Path | bytes


def check_name(repo: str) -> None:
    """InputError unless this is a valid OWNER/NAME of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise InputError(
            f"{repo!r} is not a valid name on the hub: write OWNER/NAME, in letters, digits, '-', '_' and '.'"
        ) from None
    if "/" not in repo:
        raise InputError(f"{repo!r} names no owner: write OWNER/{repo}")


def upload(repo: str, files: Mapping[str, FileContent], *, private: bool, message: str) -> str:
    """Commit files to a repository, which is created if necessary; its address. Other files in it are kept.

    EnvironmentFault without a network, a login or write access.
    """
    _check_reachable()
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if not get_token():
        raise EnvironmentFault(f"not logged in to the hub, so {repo} cannot be written: run `hf auth login` first")
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    progress.say(f"uploading {len(operations)} files to {repo}")
    api = HfApi(library_name="minitron")
    try:
        with stopping.interruptible():
            url = api.create_repo(repo, private=private, exist_ok=True)
            api.create_commit(repo, operations, commit_message=message)
    except HfHubHTTPError as e:
        raise EnvironmentFault(_refusal(repo, e)) from None
    return str(url)


def _refusal(repo: str, error: Any) -> str:
    status = getattr(error.response, "status_code", None)
    if status in (401, 403):
        return f"this token may not write to {repo} ({status}): run `hf auth login` with a token that may"
    reason = " ".join(str(getattr(error, "server_message", None) or error).split())[:200]
    return f"the hub refused the upload ({reason}); run the same command again, or see its status page"


def _check_reachable() -> None:
    """EnvironmentFault, within seconds, if the hub cannot be reached."""
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        raise EnvironmentFault("HF_HUB_OFFLINE is set: unset it to push")
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return  # only the proxy knows
    if not _answers(address.hostname or "", address.port or (80 if address.scheme == "http" else 443)):
        raise EnvironmentFault(
            f"{address.hostname} cannot be reached: check the connection, then run the same command again"
        )


def _answers(host: str, port: int) -> bool:
    """Whether a connection succeeds in time. In a thread, because looking up a name has no timeout."""
    reached = threading.Event()

    def connect() -> None:
        try:
            with socket.create_connection((host, port), timeout=REACH_SECONDS):
                reached.set()
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    return reached.is_set()
