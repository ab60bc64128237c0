"""Files in a cache of the hub, laid out as its client lays them out."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from minitron_cli.checkpoint import hub_blobs, model_names
from minitron_cli.errors import CheckpointError

SMALL, LARGE = b'{"model_type": "llama"}\n', bytes(range(256)) * 40


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    found, blobs = tmp_path / "snapshots" / "c0ffee", tmp_path / "blobs"
    found.mkdir(parents=True)
    blobs.mkdir()
    git = subprocess.run(["git", "hash-object", "--stdin"], input=SMALL, capture_output=True, check=True)
    names = {"config.json": (git.stdout.decode().strip(), SMALL), "model.safetensors": (_sha256(LARGE), LARGE)}
    for name, (blob, content) in names.items():
        (blobs / blob).write_bytes(content)
        (found / name).symlink_to(Path("../../blobs") / blob)
    return found


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_what_was_downloaded_is_accepted(snapshot: Path) -> None:
    (snapshot / "README.md").write_text("a file of the user")
    hub_blobs.check(snapshot, "me/small")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_flipped_bit_is_refused(snapshot: Path, name: str) -> None:
    content = bytearray((snapshot / name).read_bytes())
    content[len(content) // 2] ^= 4
    (snapshot / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} is not the file that was downloaded: remove .*/blobs"):
        hub_blobs.check(snapshot, "me/small")


def test_a_model_is_checked_before_its_commit_stands_for_it(snapshot: Path) -> None:
    source = model_names.ModelSource("small", snapshot, f"me/small@{'c' * 40}")
    assert source.fingerprint() == source.commit
    (snapshot / "config.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="then run `hf download me/small`"):
        source.fingerprint()
