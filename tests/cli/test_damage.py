"""Every file of every stage's artifact, damaged in every way: the stage that reads it and `verify` say so."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from minitron_cli import api
from tests.cli.program import invoke

PRUNE = ("prune", "--shape", "ffn=64", "--repair", "none")
TRAINING = ("--steps", 1, "batch_size=1", "--micro-batch-size", 1, "warmup_steps=0", "eval_blocks=1")
MADE = (
    ("correct", *TRAINING),
    ("search", "--target", "90%", "candidates=2", "score_blocks=1"),
    PRUNE,
    ("distill", *TRAINING),
    ("eval", "blocks=1"),
    ("report",),
)
READ_BY: dict[str, tuple[str, ...]] = {
    "importance": PRUNE,
    "search": ("prune",),
    "prune": ("distill", "--steps", "2"),
    "correct": ("distill", "--steps", "2"),
    "distill": ("eval", "blocks=2"),
    "evaluate": ("show", "eval"),
}
"""Stage -> a command that reads its result."""


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs directory with a result of every stage."""
    root = tmp_path_factory.mktemp("made") / "runs"
    words = ("--data", tiny / "text.jsonl", "--sequence-length", 16, "--samples", 4, "layer_removal=false")
    for command in (("importance", tiny / "model", *words), *MADE):
        result = invoke(*command, "--runs-dir", root)
        assert result.exit_code == 0, result.stderr
    return root


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs", symlinks=True))


def files(runs: Path) -> list[Path]:
    """Every file of every artifact."""
    return sorted(path for manifest in runs.glob("*/*/*/manifest.json") for path in manifest.parent.iterdir())


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def zero(path: Path, draw: random.Random) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))


def truncate(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def swap(path: Path, draw: random.Random) -> None:
    """Exchange it with the next file of its directory."""
    others = sorted(set(path.parent.iterdir()) - {path})
    other, spare = others[draw.randrange(len(others))], path.with_name("spare")
    path.rename(spare)
    other.rename(path)
    spare.rename(other)


def remove(path: Path, draw: random.Random) -> None:
    path.unlink()


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (flip, zero, truncate, swap, remove)


def assert_one_sentence(result: Result, named: Path) -> None:
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert str(named) in errors[0]
    assert "to make it again" in errors[0]


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_finds_every_damage_to_every_file(runs: Path, damage: Callable[[Path, random.Random], None]) -> None:
    workspace, draw = runs / "model", random.Random(0)
    assert api.verify(workspace).findings == ()
    for path in files(runs):
        keep = Path(shutil.copytree(path.parent, runs / "kept"))
        status = path.stat()
        damage(path, draw)
        if path.exists():
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        found = {finding.path: finding for finding in api.verify(workspace).damaged}
        shutil.rmtree(path.parent)
        keep.rename(path.parent)
        assert list(found) == [str(path.parent)], path
        finding = found[str(path.parent)]
        assert any(path.name in problem for problem in finding.problems), finding
        assert finding.command.startswith("minitron ")
    assert api.verify(workspace).findings == ()
