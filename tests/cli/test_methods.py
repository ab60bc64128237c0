"""`--method`: what is printed, what is refused, and every name from scores to a checkpoint."""

from pathlib import Path

import pytest

from minitron_cli import methods
from tests.cli.program import Run

SIZES = {"minitron-width": "hidden=48,ffn=96", "flap": "ffn=96", "sheared-llama": "hidden=48,ffn=96"}


def test_keys_are_printed_and_contradictions_refused(run: Run, tiny: Path) -> None:
    made = run("sparsify", tiny / "model", "--method", "magnitude", "--dry-run")
    assert made.exit_code == 0, made.stderr
    said = "method magnitude (Han et al. 2015) stands for sparsify.metric.kind=magnitude sparsify.repair=none"
    assert said in " ".join(made.stderr.split())
    refused = run("sparsify", tiny / "model", "--method", "wanda", "--metric", "sparsegpt")
    assert refused.exit_code == 2
    assert "metric.kind=wanda, and metric.kind is sparsegpt: leave one of them out" in " ".join(refused.stderr.split())


@pytest.mark.slow
def test_every_method_of_prune_makes_a_smaller_model(run: Run, tiny: Path) -> None:
    text = ("--data", tiny / "text.jsonl", "--sequence-length", 16)
    measured = ("--samples", 8, "--layer-removal", "block_distances=[2]", "collapse=1")
    measured += ("learned.shape.hidden=48", "learned.shape.ffn=96", "learned.tokens=128", "learned.batch_size=2")
    scored = run("importance", tiny / "model", *text, *measured)
    assert scored.exit_code == 0, scored.stderr
    for name in methods.names("prune"):
        made = run("prune", "--method", name, "--shape", SIZES.get(name, "layer=2"), "-o", name)
        assert made.exit_code == 0, made.stderr
        assert f"method {name} (" in made.stderr
        assert (Path(name) / "model.safetensors").is_file()


@pytest.mark.slow
def test_every_method_of_sparsify_makes_a_sparse_model(run: Run, tiny: Path) -> None:
    text = ("--data", tiny / "text.jsonl", "--sequence-length", 16)
    for name in methods.names("sparsify"):
        made = run("sparsify", tiny / "model", *text, "--method", name, "samples=8", "effect_blocks=0", "-o", name)
        assert made.exit_code == 0, made.stderr
        assert (Path(name) / "sparsity.masks").is_file()
