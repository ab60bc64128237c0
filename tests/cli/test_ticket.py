"""`minitron landscape` and `minitron ticket` on the command line."""

import json
from pathlib import Path

import pytest

from tests.cli.program import Run

SHORT = ("--steps", "4", "--batch-size", "4", "training.warmup_steps=1", "--sequence-length", "32")


@pytest.mark.slow
def test_a_ticket_and_the_landscape_around_it(run: Run, tiny: Path) -> None:
    text = ("--data", str(tiny / "text.jsonl"))
    words = ("ticket", "train", str(tiny / "model"), *text, *SHORT, "--rounds", "1", "--control", "shuffled")
    found = json.loads(run(*words, "--run", "t", "--json").stdout)
    assert [row["arm"] for row in found["result"]["rows"]] == ["ticket", "ticket", "shuffled"]
    shown = run(*words, "--run", "t")
    assert shown.exit_code == 0
    assert "weights left" in shown.stderr
    models = [str(Path("runs/t") / row["path"]) for row in found["result"]["rows"][1:]]
    quick = ("--directions", "2", "--blocks", "1", "--subspace", "last", "--cutoff", "0.001", "--scale", "curvature")
    around = run("landscape", *models, *text, *quick, "--run", "t")
    assert around.exit_code == 0, around.stderr
    assert "Loss on the line" in around.stderr
    assert "carry the volume" in around.stderr
    moved = run("ticket", "train", "--mask", str(Path(found["path"])), *text, *SHORT, "--run", "other")
    assert moved.exit_code == 0, moved.stderr
    assert "Tickets found on another text" in moved.stderr
    assert "transferred" in moved.stderr
    dense = str(Path("runs/t") / found["result"]["rows"][0]["path"])
    masks = run("ticket", "supermask", str(tiny / "model"), *text, *SHORT, "--criterion", "random,large_final")
    assert masks.exit_code == 0, masks.stderr
    assert "frequencies of tokens" in masks.stderr
    refused = run("landscape", dense, models[0], *text, *quick, "--subspace", "all", "--scale", "none", "--run", "t")
    assert refused.exit_code == 2
    assert "do not compare" in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rewind", "last"), "write init, step:K or none"),
        ((), "the length of the run is unknown; set ticket.training.tokens or ticket.training.steps"),
        (("--steps", "4", "--rewind", "step:9"), "is after the last of 4 steps"),
        (
            ("--mask", "runs/t/ticket/x", "--rounds", "3"),
            "--rounds, MODEL: the tickets of --mask say this: leave them out",
        ),
        (
            ("--steps", "4", "--rounds", "30", "--rate", "0.5"),
            "in 28 matrices, and each keeps one at least: set fewer rounds or a lower rate",
        ),
        (("--steps", "4", "training.losses=[{kind: forward_kl}]"), "is trained on the text with its mask"),
    ],
)
def test_what_is_no_ticket_is_refused(run: Run, tiny: Path, words: tuple[str, ...], message: str) -> None:
    text = ("--data", str(tiny / "text.jsonl"), "--sequence-length", "32")
    result = run("ticket", "train", str(tiny / "model"), *text, *words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_an_unknown_criterion_is_refused(run: Run, tiny: Path) -> None:
    words = ("ticket", "supermask", str(tiny / "model"), "--data", str(tiny / "text.jsonl"), "--criterion", "largest")
    result = run(*words, "--steps", "4")
    assert result.exit_code == 2
    assert "supermask.criteria" in result.stderr
