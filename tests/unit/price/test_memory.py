"""Estimated peak memory against what the system counted of a process that trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.program import invoke, runs_with


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a pruned model of 16 million parameters."""
    from tests.unit.stages.place import write_place

    root = tmp_path_factory.mktemp("wide")
    write_place(root, hidden_size=512, intermediate_size=2048, num_attention_heads=8, head_dim=64)
    (root / "text.jsonl").write_text("".join(f'{{"text": "{f"the cat {i} sat " * 40}"}}\n' for i in range(200)))
    return runs_with(root / "runs", root, ("prune", "--shape", "ffn=1536", "repair=none"))


def text_of(runs: Path) -> tuple[str, ...]:
    return "--data", str(runs.parent / "text.jsonl"), "--sequence-length", "128", "warmup_steps=0", "eval_blocks=1"


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("activation_checkpointing=true", "micro_batch_size=4")], ids=str)
def test_a_training_takes_about_the_memory_that_it_was_said_to(runs: Path, options: tuple[str, ...]) -> None:
    words = ("distill", "--steps", "1", "--batch-size", "16", "micro_batch_size=16", *text_of(runs), *options)
    command = [sys.executable, "-m", "minitron_cli", *words, "--runs-dir", str(runs), "--overwrite", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    expected = sum(json.loads(printed)["run"]["price"]["memory"].values())
    assert 0.7 * expected < usage.ru_maxrss * 1024 < 1.4 * expected


@pytest.mark.slow
def test_recomputation_is_said_to_take_less_memory(runs: Path) -> None:
    def activations(*options: str) -> int:
        words = ("distill", "--steps", "200", "--batch-size", "16", "micro_batch_size=8", *text_of(runs), *options)
        found = json.loads(invoke(*words, "--overwrite", "--dry-run", "--runs-dir", runs, "--json").stdout)["price"]
        return int(found["memory"]["activations"])

    assert 2 * activations("activation_checkpointing=true") < activations()
