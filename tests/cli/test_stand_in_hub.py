"""Models by alias, downloaded by the hub's own client from a hub on this machine."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.stand_in_hub import LARGE, serving

ID, ALIAS = "meta-llama/Llama-3.1-8B", "llama-3.1-8b"
Program = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.slow


@pytest.fixture
def repository(tiny: Path, tmp_path: Path) -> Path:
    """Directory that is served as Llama 3.1 8B: a tiny model, and a file as large as those that have another hash."""
    directory = tmp_path / "served"
    shutil.copytree(tiny / "model", directory)
    (directory / "padding.json").write_text(" " * LARGE + "{}")
    return directory


@pytest.fixture
def minitron(repository: Path, tmp_path: Path) -> Iterator[Program]:
    """Run the program, online, with an empty cache."""
    with serving({ID: repository}) as address:
        online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "*"}
        environment = {k: v for k, v in os.environ.items() if k.lower() not in ("http_proxy", "https_proxy")} | online

        def run(*words: object) -> "subprocess.CompletedProcess[str]":
            command = [sys.executable, "-m", "minitron_cli", *map(str, words)]
            return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

        yield run


def test_the_chain_runs_from_an_alias(minitron: Program, tiny: Path, tmp_path: Path):
    text = ("--data", tiny / "text.jsonl", "--sequence-length", 16)
    scored = minitron("importance", ALIAS, *text, "--samples", 4)
    assert scored.returncode == 0, scored.stderr
    pruned = minitron("prune", "--width", "--target", "75%", "--json")
    assert pruned.returncode == 0, pruned.stderr
    (record,) = (tmp_path / "runs" / ALIAS / "importance").glob("*/manifest.json")
    commit = json.loads(record.read_text())["inputs"]["model"]
    assert commit.startswith(f"{ID}@")
    assert len(commit.partition("@")[2]) == 40


def test_a_file_that_changed_after_its_download_is_named(minitron: Program, tiny: Path, tmp_path: Path):
    words = ("importance", ALIAS, "--data", tiny / "text.jsonl", "--sequence-length", 16, "--samples")
    assert minitron(*words, 4).returncode == 0
    (weights,) = (tmp_path / "cache").rglob("model.safetensors")
    content = bytearray(weights.resolve().read_bytes())
    content[-1] ^= 1
    weights.resolve().write_bytes(content)
    scored = minitron(*words, 5)
    assert scored.returncode == 2
    assert "is not the file that was downloaded" in scored.stderr


def test_a_model_that_the_hub_does_not_have_is_one_sentence(minitron: Program, tiny: Path):
    found = minitron("importance", "me/missing", "--data", tiny / "text.jsonl")
    assert found.returncode == 2
    assert "me/missing is not on the hub: check the name" in found.stderr
