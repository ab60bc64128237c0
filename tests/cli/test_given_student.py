"""`distill --student`: a model that was not pruned in the workspace learns from the workspace's model."""

import json
import re
import shutil
from pathlib import Path

import pytest

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.fingerprint import of_directory
from minitron_cli.data.tokenizer import train_bpe
from tests.cli.program import Run
from tests.tiny import write_tiny

TRAINING = ("--steps", 2, "--batch-size", 2, "--micro-batch-size", 2, "--warmup-steps", 1, "eval_blocks=2")


def words(tiny: Path, student: object) -> tuple[object, ...]:
    text = ("--data", tiny / "text.jsonl", "--sequence-length", 16)
    return ("distill", tiny / "model", "--student", student, *text, *TRAINING)


@pytest.fixture
def student(tiny: Path, tmp_path: Path) -> Path:
    """A model of another shape with the tokenizer of the tiny model, and more rows than tokens."""
    write_tiny(tmp_path / "own", vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=3)
    for file in (tiny / "tokenizer").iterdir():
        shutil.copy(file, tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.slow
def test_a_given_student_is_trained_measured_and_reported(run: Run, tiny: Path, student: Path, tmp_path: Path) -> None:
    made = run(*words(tiny, student), "--json")
    assert made.exit_code == 0, made.stderr
    distilled = Artifact.open(tmp_path / json.loads(made.stdout)["path"])
    assert distilled.manifest.inputs["student"] == of_directory(student)
    config = json.loads((distilled.path / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (32, 3, 320)

    measured = run("eval", "blocks=2", "--json")
    assert measured.exit_code == 0, measured.stderr
    models = json.loads(measured.stdout)["result"]["models"]
    assert list(models) == ["parent", "student", "distilled"]
    assert models["student"]["fingerprint"] == of_directory(student)
    assert run("report", "-o", "page.html").exit_code == 0
    page = (tmp_path / "page.html").read_text()
    assert all(f">{name}<" in page for name in ("parent", "student", "distilled", "distilled - student"))
    losses = [models[name]["results"]["perplexity"]["loss"]["value"] for name in ("student", "distilled")]
    lead = re.search('<p class="lead">(.*)</p>', page)[1]
    assert "the student&#39;s loss from {:.3f} to {:.3f}".format(*losses) in lead
    assert "damage by pruning" not in page
    assert "after pruning" not in page
    assert re.search(r"minitron distill model --student own ", page)


def test_a_student_with_another_tokenizer_is_refused(run: Run, tiny: Path, student: Path) -> None:
    for file in (tiny / "tokenizer").iterdir():
        (student / file.name).unlink()
    train_bpe(["zyx wvu " * 50, "qrs tuv " * 50], 265, student)
    refused = run(*words(tiny, student))
    assert refused.exit_code == 2
    assert re.search(
        r"error: the student's tokenizer has \d+ tokens and the teacher's 300, not '.+' in both: distill from the "
        "model that the student was pruned from, or from one with the student's tokenizer\n$",
        refused.stderr,
    )


def test_a_teacher_with_fewer_rows_than_the_student_has_tokens_is_refused(
    run: Run, tiny: Path, student: Path, tmp_path: Path
) -> None:
    small = tmp_path / "teacher"
    write_tiny(small, vocab_size=280, hidden_size=32, intermediate_size=48)
    for file in (tiny / "tokenizer").iterdir():
        shutil.copy(file, small)
    refused = run(*words(tiny, student), "--teacher", small)
    assert refused.exit_code == 2
    assert refused.stderr.count("error: ") == 1
    assert "has the id 299 and the teacher's embedding 280 rows" in refused.stderr


def test_a_student_that_does_not_exist_is_refused(run: Run, tiny: Path) -> None:
    refused = run(*words(tiny, "./nowhere"))
    assert refused.exit_code == 2
    assert "nowhere does not exist: give the directory of a checkpoint" in refused.stderr
