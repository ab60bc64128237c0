"""The commands in a model's card, run in another workspace, write the same bytes."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from minitron_cli.artifacts.workspace import Workspace
from tests.cli.program import Run, invoke

LENGTH = ("--sequence-length", 16)
IMPORTANCE = ("importance", "MODEL", "--data", "TEXT", *LENGTH, "--samples", 8, "layer_removal=false")
PRUNE = ("prune", "--shape", "ffn=64", "--repair", "none")
SPARSIFY = ("sparsify", "--metric", "wanda", "--samples", 8)
DISTILL = ("distill", "--steps", 2, "--batch-size", 2, "--micro-batch-size", 2, "--warmup-steps", 1, "eval_blocks=2")
EVAL = ("eval", "blocks=4")
FROM_MODEL = ("MODEL", "--data", "TEXT", *LENGTH)
OTHER_TEXT = ("--data", "OTHER", *LENGTH)
CASES = {
    "prune, distill, eval": (IMPORTANCE, PRUNE, DISTILL, EVAL),
    "a repair on another text": (IMPORTANCE, ("prune", "--shape", "ffn=64", "repair_samples=8", *OTHER_TEXT), EVAL),
    "an evaluation on another text": (IMPORTANCE, PRUNE, (*EVAL, *OTHER_TEXT)),
    "sparsify alone": ((*SPARSIFY, *FROM_MODEL),),
    "sparsify, distill": ((*SPARSIFY, *FROM_MODEL), DISTILL),
    "prune, sparsify": (IMPORTANCE, PRUNE, SPARSIFY, DISTILL, EVAL),
    "rounds": ((*SPARSIFY, *FROM_MODEL, "--pattern", "50%", "--rounds", 3, "round_tokens=64"), DISTILL, EVAL),
    "rounds after a pruning": (IMPORTANCE, PRUNE, (*SPARSIFY, "--rounds", 2, "round_tokens=64"), DISTILL, EVAL),
    "a corrected teacher": (
        ("correct", *FROM_MODEL, *DISTILL[1:]),
        IMPORTANCE,
        PRUNE,
        DISTILL,
        EVAL,
    ),
    "stored signals": (IMPORTANCE, PRUNE, ("teach", "--draws", 8), DISTILL),
    "another teacher": (IMPORTANCE, PRUNE, (*DISTILL, "--teacher", "SECOND"), EVAL),
    "a given student": (("distill", *FROM_MODEL, *DISTILL[1:], "--student", "SECOND"), EVAL),
    "a search": (
        IMPORTANCE,
        (
            "search",
            "--target",
            "80%",
            "--axes",
            "ffn",
            "--retrain-tokens",
            "0",
            "budget.tolerance=0.2",
            "score_blocks=4",
        ),
        ("prune", "--repair", "none"),
    ),
    "two axes by other metrics": (
        IMPORTANCE,
        ("prune", "--shape", "hidden=48,ffn=64", "ranking.width={kind: magnitude}", "--repair", "none"),
    ),
    "an evaluation alone": (("eval", "MODEL", "SECOND", "THIRD", *FROM_MODEL[1:], EVAL[1]),),
}


@pytest.fixture(scope="session")
def places(tiny: Path) -> dict[str, str]:
    """Word of the cases -> a model or a text."""
    lines = (tiny / "text.jsonl").read_text().splitlines()
    (tiny / "other.jsonl").write_text("\n".join(reversed(lines[:300])))
    for name in ("second", "third"):
        shutil.copytree(tiny / "model", tiny / name)
        config = json.loads((tiny / name / "config.json").read_text())
        (tiny / name / "config.json").write_text(json.dumps(config | {"rms_norm_eps": len(name) * 1e-3}))
    names = ("model", "second", "third", "text.jsonl", "other.jsonl")
    return {name.upper().removesuffix(".JSONL"): str(tiny / name) for name in names}


def in_card(workspace: Workspace) -> list[list[str]]:
    """Words of the commands that a report's card has."""
    report = workspace.current("report")
    assert report is not None
    card = (report.path / "model-card.md").read_text()
    return [shlex.split(line) for line in card.split("## Reproduce")[1].split("```")[1].splitlines()[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_commands_of_a_card_write_the_same_bytes(
    run: Run, places: dict[str, str], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (*CASES[case], ("report",)):
        result = invoke(*(places.get(str(word), word) for word in words))
        assert result.exit_code == 0, result.stderr
    workspace = Workspace(Path("runs/model").absolute())
    commands = in_card(workspace)
    assert len(commands) >= len(CASES[case])
    Path("again").mkdir()
    monkeypatch.chdir("again")
    names = {Path(path).name: path for path in places.values()}
    for program, *words in commands:
        assert program == "minitron"
        before = ["", *words]  # a card names no directory of this machine
        placed = [names.get(word, word) if before[i] != "--run" else word for i, word in enumerate(words)]
        for name in ("text.jsonl", "other.jsonl"):
            placed = [word.replace(f'"{name}"', json.dumps(names[name])) for word in placed]
        result = invoke(*placed)
        assert result.exit_code == 0, result.stderr
    again = Workspace(Path("runs/model"))
    for stage in {str(words[0]).replace("eval", "evaluate") for words in CASES[case]}:
        made, repeated = workspace.current(stage), again.current(stage)
        assert made is not None
        assert repeated is not None
        assert made.manifest.files == repeated.manifest.files, stage
        assert made.key == repeated.key, stage
