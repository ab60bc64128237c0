"""Estimated peak memory against what the system counted of a process that trains."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.program import invoke, runs_with

PROGRAM = """
import sys
from minitron_cli import memory
from minitron_cli.cli.app import main
try:
    main()
finally:
    print(memory.peak_bytes("cpu"), file=sys.stderr)
"""
"""Not what `wait4` reports, which includes the process that started it."""


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
    command = [sys.executable, "-c", PROGRAM, *words, "--runs-dir", str(runs), "--overwrite", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = sum(json.loads(ended.stdout)["run"]["price"]["memory"].values())
    peak = int(ended.stderr.splitlines()[-1])
    assert 0.7 * expected < peak < 1.4 * expected


@pytest.mark.slow
def test_recomputation_is_said_to_take_less_memory(runs: Path) -> None:
    def activations(*options: str) -> int:
        words = ("distill", "--steps", "200", "--batch-size", "16", "micro_batch_size=8", *text_of(runs), *options)
        found = json.loads(invoke(*words, "--overwrite", "--dry-run", "--runs-dir", runs, "--json").stdout)["price"]
        return int(found["memory"]["activations"])

    assert 2 * activations("activation_checkpointing=true") < activations()
