"""A distillation that diverges without becoming infinite, from the command line."""

import shutil
from pathlib import Path

import pytest

from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.results.training import TrainingResult
from tests.cli.program import invoke

pytestmark = pytest.mark.slow

DISTILL = ("distill", "--steps", 2, "batch_size=2", "--micro-batch-size", 2, "warmup_steps=0", "eval_blocks=2")


@pytest.fixture(scope="module")
def diverged(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs directory whose current distilled model has diverged."""
    root = tmp_path_factory.mktemp("diverged") / "runs"
    words = ("--data", tiny / "text.jsonl", "--sequence-length", 16, "--samples", 4, "layer_removal=false")
    prune = ("prune", "--shape", "ffn=64", "--repair", "none")
    for command in (("importance", tiny / "model", *words), prune, (*DISTILL, "--lr", 5)):
        result = invoke(*command, "--runs-dir", root)
        assert result.exit_code == 0, result.stderr
    assert "warning: distill: held-out KL to the teacher ended at" in result.stderr
    return root


@pytest.fixture
def runs(diverged: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(diverged, tmp_path / "runs", symlinks=True))


def test_it_is_marked_in_its_result(runs: Path) -> None:
    made = Workspace(runs / "model").require("distill", "")
    worse = made.result(TrainingResult).worse
    assert worse
    assert (worse.measure, worse.is_above_start) == ("kl", True)


def test_it_is_pushed_only_on_request(runs: Path) -> None:
    refused = invoke("push", "me/small", "--dry-run", "--runs-dir", runs)
    assert refused.exit_code == 2
    assert "push the pruned model with --stage prune, or add --allow-worse" in refused.stderr
    for words in (("--allow-worse",), ("--stage", "prune")):
        assert invoke("push", "me/small", "--dry-run", *words, "--runs-dir", runs).exit_code == 0


def test_fail_if_worse_exits_with_1_and_keeps_the_result(runs: Path) -> None:
    found = invoke(*DISTILL, "--lr", 5, "--fail-if-worse", "--runs-dir", runs)
    assert found.exit_code == 1
    assert "distill: up to date" in found.stderr
    assert found.stderr.splitlines()[-1].startswith("error: distill: held-out KL to the teacher ended at ")
    sound = invoke(*DISTILL, "--lr", "1e-4", "min_learning_rate=0", "--fail-if-worse", "--runs-dir", runs)
    assert sound.exit_code == 0, sound.stderr
    assert "warning" not in sound.stderr
    assert invoke("push", "me/small", "--dry-run", "--runs-dir", runs).exit_code == 0
