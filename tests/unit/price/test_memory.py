"""Estimated peak memory against what the system counted of a process that trains."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.program import invoke, runs_with

PROGRAM = """
import json, os, sys
import transformers.models.llama.modeling_llama
from minitron_cli import memory
from minitron_cli.cli.app import main
from minitron_cli.stages import distill

for words in json.loads(sys.argv[1]):
    if not os.fork():
        sys.argv = ["minitron", *words]
        try:
            main()
        finally:
            print(memory.peak_bytes("cpu"), flush=True)
            os._exit(0)
    os.wait()
"""
"""Each command in a fork of a process that has imported what it imports, then its peak.

Not what `wait4` reports, which includes the process that started it.
"""
OPTIONS = ((), ("activation_checkpointing=true", "micro_batch_size=4"))


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
def test_a_training_takes_about_the_memory_that_it_was_said_to(runs: Path) -> None:
    words = ("distill", "--steps", "1", "--batch-size", "16", "micro_batch_size=16", *text_of(runs))
    where = ("--runs-dir", str(runs), "--overwrite", "--json")
    commands = json.dumps([[*words, *options, *where] for options in OPTIONS])
    ended = subprocess.run([sys.executable, "-c", PROGRAM, commands], capture_output=True, text=True, check=True)
    rest = ended.stdout
    for options in OPTIONS:
        result, end = json.JSONDecoder().raw_decode(rest.lstrip())
        peak, _, rest = rest.lstrip()[end:].lstrip().partition("\n")
        expected = sum(result["run"]["price"]["memory"].values())
        assert 0.7 * expected < int(peak) < 1.4 * expected, options


@pytest.mark.slow
def test_recomputation_is_said_to_take_less_memory(runs: Path) -> None:
    def activations(*options: str) -> int:
        words = ("distill", "--steps", "200", "--batch-size", "16", "micro_batch_size=8", *text_of(runs), *options)
        found = json.loads(invoke(*words, "--overwrite", "--dry-run", "--runs-dir", runs, "--json").stdout)["price"]
        return int(found["memory"]["activations"])

    assert 2 * activations("activation_checkpointing=true") < activations()
