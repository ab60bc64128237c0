"""The commands in a model's card, run in another workspace, write the same bytes."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.evaluate.cloze import Cloze, write_task
from minitron_cli.results.evaluation import EvaluationResult
from tests.cli.program import Run, invoke
from tests.unit.evaluate import suite_data

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
    "an evaluation on tasks of one's own": (
        (*("eval", "MODEL", "--data", "TEXT", *LENGTH, EVAL[1], "--tasks", "own"), "--include-path", "TASKS"),
    ),
    "an evaluation on one's own data of a task": (
        (*("eval", "MODEL", "--data", "TEXT", *LENGTH, EVAL[1], "--tasks", "winogrande:0"), "--task-data", "DATA"),
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
    cloze = Cloze(items=4, context_words=6, continuation_words=3)
    write_task(tiny / "tasks", [json.loads(line)["text"] for line in lines[:100]], cloze, name="own")
    suite_data.write(tiny / "data")
    names = ("model", "second", "third", "text.jsonl", "other.jsonl", "tasks", "data")
    return {name.upper().removesuffix(".JSONL"): str(tiny / name) for name in names}


def in_card(workspace: Workspace) -> list[list[str]]:
    """Words of the commands that a report's card has."""
    report = workspace.current("report")
    assert report is not None
    card = (report.path / "model-card.md").read_text()
    return [shlex.split(line) for line in card.split("## Reproduce")[1].split("```")[1].splitlines()[1:]]


def run_again(commands: list[list[str]], places: dict[str, str]) -> None:
    """Run a card's commands here, with the paths that a card leaves out."""
    names = {Path(path).name: path for path in places.values()}
    for program, *words in commands:
        assert program == "minitron"
        before = ["", *words]
        placed = [names.get(word, word) if before[i] != "--run" else word for i, word in enumerate(words)]
        for name in ("text.jsonl", "other.jsonl"):
            placed = [word.replace(f'"{name}"', json.dumps(names[name])) for word in placed]
        for name in ("tasks", "data"):
            placed = [re.sub(rf"^(include_path|task_data)={name}$", rf"\1={names[name]}", word) for word in placed]
        result = invoke(*placed)
        assert result.exit_code == 0, result.stderr


def check_alike(workspace: Workspace, again: Workspace, stage: str) -> None:
    """Require the same artifacts of a stage; a training between rounds that was not used is not made again."""
    first, second = ({made.key: made.manifest.files for made in one.artifacts(stage)} for one in (workspace, again))
    assert second.items() <= first.items(), stage
    made, repeated = workspace.current(stage), again.current(stage)
    assert (made and made.key) == (repeated and repeated.key), stage


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
    run_again(commands, places)
    for stage in {str(words[0]).replace("eval", "evaluate") for words in CASES[case]}:
        check_alike(workspace, Workspace(Path("runs/model")), stage)


TRAINING = "{steps: 2, batch_size: 2, micro_batch_size: 2, warmup_steps: 1, eval_blocks: 2}"
RECIPES = {
    "controls": f"""
prune: {{shape: {{ffn: 64}}, repair: none}}
distill: {TRAINING}
controls:
  - {{label: other-neurons, prune: random}}
  - {{label: text-alone, objective: ce}}
  - {{label: fresh, init: random}}
""",
    "search, rounds": f"""
search:
  budget: {{target: 80%, tolerance: 0.1}}
  space: {{layer: [], ffn: []}}
  candidates: 2
  score_blocks: 4
  retrain: {{top: 2, tokens: 64, rungs: 1, batch_size: 2, micro_batch_size: 2}}
prune: {{repair: none}}
sparsify: {{metric: wanda, pattern: 2:4, samples: 8, rounds: 2, round_tokens: 64}}
distill: {TRAINING}
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_commands_of_a_recipes_card_write_the_same_bytes(
    run: Run, places: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the evaluation of controls, which have other labels without a recipe, and the same figures."""
    source = f"{{kind: files, paths: [{places['TEXT']}]}}"
    Path("small.yaml").write_text(
        f"model: {places['MODEL']}\ndata: {{sources: [{source}], sequence_length: 16}}\n"
        f"importance: {{samples: 8, layer_removal: false}}\nevaluate: {{blocks: 4}}\n{RECIPES[name]}"
    )
    result = invoke("run", "small.yaml")
    assert result.exit_code == 0, result.stderr
    workspace = Workspace(Path("runs/small").absolute())
    Path("again").mkdir()
    monkeypatch.chdir("again")
    run_again(in_card(workspace), places)
    again = Workspace(next(path for path in Path("runs").iterdir() if path.is_dir()))
    for stage in ("importance", "search", "prune", "sparsify", "distill"):
        check_alike(workspace, again, stage)
    assert figures(workspace) == figures(again)


def figures(workspace: Workspace) -> dict[str, Any]:
    """Results of each model that was evaluated, by its fingerprint."""
    made = workspace.current("evaluate")
    assert made is not None
    return {found.fingerprint: found.results for found in made.result(EvaluationResult).models.values()}
