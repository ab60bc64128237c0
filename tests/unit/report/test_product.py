"""A card and a page show what belongs to one model: figures, cost and commands are joined to it by fingerprint."""

import html
import shlex
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from minitron_cli import io
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.manifest import RUN
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.evaluate.config import Speed
from minitron_cli.report.data import ReportData
from minitron_cli.report.headline import lead
from minitron_cli.report.markdown import inline
from minitron_cli.report.product import Product
from minitron_cli.results.base import RESULT
from minitron_cli.results.run_record import ModelSpeed, SpeedRecord
from minitron_cli.results.training import CorrectionResult, TeacherResult, TrainingResult, Worsening
from minitron_cli.stages import report
from tests.unit.artifacts.test_artifact import RECORD
from tests.unit.report.sample import evaluated, pruned, repair
from tests.unit.report.written import (
    BIG,
    CURVES,
    TRAINED,
    chain,
    distill,
    evaluate,
    importance,
    model_of,
    prune,
    rewrite,
    write,
)


def write_tokenizer(directory: Path) -> None:
    """A tokenizer that writes a bos before a text."""
    raw = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "?": 2}, "?"))
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", bos_token="<s>").save_pretrained(directory)


@pytest.fixture(autouse=True)
def _without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.Importance, "of", lambda *_: report.Importance())


def card(workspace: Workspace, made: Artifact) -> str:
    return report.card(workspace, made, "me/small")


def commands(text: str) -> list[list[str]]:
    """Words of the commands that make the model again."""
    return [shlex.split(line) for line in text.split("## Reproduce")[1].split("```")[1].splitlines()[1:]]


@pytest.mark.slow
def test_a_model_that_was_not_evaluated_is_not_given_the_figures_of_another(tmp_path: Path) -> None:
    workspace, (_, narrow, student, _) = chain(tmp_path)
    assert "2.500" in card(workspace, student)
    again = distill(workspace, BIG, narrow, steps=9)
    text = card(workspace, again)
    assert "This model has not been evaluated." in text
    assert "```sh\nminitron eval\n```" in text
    assert not {"2.000", "2.500", "3.000"} & set(text.replace("|", " ").split())
    assert "eval" not in {words[1] for words in commands(text)}
    assert commands(text)[-1][-1] == "steps=9"
    page = (report.run(Context(workspace)).path / report.PAGE).read_text()
    assert "This model has not been evaluated." in page
    assert ">2.500" not in page
    assert f"minitron eval runs/small/distill/{student.path.name}" not in card(workspace, student)


@pytest.mark.slow
def test_a_model_that_is_not_the_current_one_is_evaluated_by_its_path(tmp_path: Path) -> None:
    workspace, (_, narrow, *_) = chain(tmp_path)
    older = distill(workspace, BIG, narrow, steps=9)
    distill(workspace, BIG, narrow, steps=10)
    assert f"minitron eval runs/small/distill/{older.path.name}\n" in card(workspace, older)


def test_the_card_of_a_chain_names_the_original_and_every_step_and_command(tmp_path: Path) -> None:
    workspace, (wide, _, student, _) = chain(tmp_path)
    text = card(workspace, student)
    assert "org/Big-8B was pruned in 2 steps from 8.00 B to 6.00 B to 4.00 B parameters, 50 % of its size." in text
    assert ModelCard(text).data.base_model == "org/Big-8B"
    verbs = ["importance", "prune", "distill", "importance", "prune", "distill", "eval"]
    assert [words[1] for words in commands(text)] == verbs
    first, second = (words for words in commands(text) if words[1] == "importance")
    assert first[2:] == ["org/Big-8B", "--run", "small"]
    assert second[2:] == [f"runs/small/distill/{wide.path.name}", "--run", "small"]
    assert "org/Big-8B after step 1, pruned" in text
    assert "org/Big-8B: small" in (report.run(Context(workspace)).path / report.PAGE).read_text()


def test_a_step_that_starts_from_a_pruned_model_names_it_as_the_prune_command_writes_it(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "runs" / "small")
    wide = prune(workspace, BIG, importance(workspace, BIG), 1, label="big")
    narrow = prune(workspace, model_of(wide), importance(workspace, model_of(wide)), 2, label="small")
    _, second = (words for words in commands(card(workspace, narrow)) if words[1] == "importance")
    assert wide.path.name == f"big-{wide.key[:8]}"
    assert second[2] == f"runs/small/prune/{wide.key[:8]}", "minitron prune gives no label"


@pytest.mark.slow
def test_another_teacher_than_the_parent_is_named(tmp_path: Path) -> None:
    workspace, (_, _, student, _) = chain(tmp_path)
    text = card(workspace, student)
    assert "The teacher was org/Big-8B." in text
    first, second = (words for words in commands(text) if words[1] == "distill")
    assert "--teacher" not in first, "the first step's teacher is its parent"
    assert second[2:4] == ["--teacher", "org/Big-8B"]
    assert "The teacher was" not in card(workspace, student).split("## Use")[1]


def test_a_local_model_goes_by_the_name_of_its_directory_and_text_by_what_was_asked_for(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "runs" / "small")
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "README.md").write_text("---\nlicense: mit\n---\n")
    student = distill(workspace, "c0ffee", prune(workspace, "c0ffee", importance(workspace, "c0ffee"), 1))
    workspace.save_settings(model="/elsewhere/another", data={"sources": "of another model"})
    context = Context(workspace)
    context.record({"c0ffee": str(tmp_path / "big"), "text": {"sequence_length": 16, "path": "/data/rows.jsonl"}})
    text = card(workspace, student)
    first, *others = commands(text)
    assert first[2:] == ["big", "data.path=rows.jsonl", "data.sequence_length=16"]
    assert not [word for words in others for word in words if word.startswith("data.")], "the first command says it"
    assert "another" not in text
    assert ModelCard(text).data.license == "mit"
    assert str(tmp_path) not in text


@pytest.mark.slow
def test_an_original_that_minitron_made_is_titled_by_its_stage_and_loaded_by_its_path(tmp_path: Path) -> None:
    """As in the demo, whose cost does not count the training of its teacher."""
    workspace = Workspace(tmp_path / "runs" / "demo")
    found = TeacherResult(**TRAINED)
    teacher = write(workspace, "teacher", {"text": "text"}, found, files={"config.json": "{}"})
    student = distill(workspace, "x", prune(workspace, model_of(teacher), importance(workspace, model_of(teacher)), 1))
    Context(workspace).record({model_of(teacher): str(teacher.path)})
    text = card(workspace, student)
    assert "teacher was pruned from 8.00 B" in text
    assert commands(text)[0][2] == f"runs/demo/teacher/{teacher.path.name}"
    assert "teacher: demo" in (report.run(Context(workspace)).path / report.CARD).read_text()


@pytest.mark.parametrize(("bos", "begin"), [("auto", "<s>"), ("never", "nothing")])
def test_what_the_texts_began_with_is_named_in_page_and_card(bos: str, begin: str, tmp_path: Path) -> None:
    """Also for scores alone, which bring no tokenizer: the original model's is asked."""
    workspace = Workspace(tmp_path / "runs" / "small")
    write_tokenizer(tmp_path / "big")
    scores = importance(workspace, "c0ffee")
    Context(workspace).record({"c0ffee": str(tmp_path / "big"), "text": {"bos": bos}})
    said = f"Texts begin with {begin} and end with </s> (data.bos={bos})."
    product = Product(workspace, scores)
    assert said in report.report_data(product, report.report_config(product)).texts
    made = report.run(Context(workspace)).path
    assert html.escape(said) in (made / report.PAGE).read_text()
    assert inline(said) in (made / report.CARD).read_text()


@pytest.mark.slow
def test_a_training_that_made_it_worse_is_marked_in_page_and_card(tmp_path: Path) -> None:
    workspace, (_, _, student, _) = chain(tmp_path)
    assert "worse" not in card(workspace, student)
    worse = Worsening(measure="kl", before=0.5, lowest=0.5, after=2.0)
    found = TrainingResult(**TRAINED, worse=worse)
    inputs = student.manifest.inputs | {"train": "other"}
    diverged = write(workspace, "distill", inputs, found, files={**CURVES, "config.json": '{"of": "diverged"}'})
    sentence = "Training made it worse: held-out KL to the teacher ended at 2 nats per token, from 0.5 before."
    assert sentence in card(workspace, diverged)
    assert sentence in (report.run(Context(workspace)).path / report.PAGE).read_text()


def test_a_repair_that_was_not_kept_is_not_said_to_have_raised_the_loss(tmp_path: Path) -> None:
    effect = repair(2.0, (3.0, 0.5), (4.0, 0.75))
    models = (evaluated("parent", "parent", 2.0), evaluated("pruned", "pruned", 3.0))
    dropped = pruned(effect.model_copy(update={"is_kept": False}))
    assert "Pruning raised the loss" in lead(ReportData(title="t", models=models, prune=dropped))
    assert "Pruning and repair raised the loss" in lead(ReportData(title="t", models=models, prune=pruned(effect)))


@pytest.mark.slow
def test_each_training_follows_the_pruning_that_it_starts_from_and_the_product_comes_last(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "runs" / "small")
    scores = importance(workspace, BIG)
    child, other = prune(workspace, BIG, scores, 1), prune(workspace, BIG, scores, 1, "random", at_random=7)
    control = distill(workspace, BIG, other, "random")
    distill(workspace, BIG, child, "ce", steps=3)
    student = distill(workspace, BIG, child)
    found = {"parent": (BIG, 2.0), "distilled": (model_of(student), 2.5), "random": (model_of(control), 2.9)}
    evaluate(workspace, **found)
    text = card(workspace, student)
    assert [words[1:] for words in commands(text)] == [
        ["importance", "org/Big-8B", "--run", "small"],
        ["prune", "at_random=7"],
        ["distill"],
        ["prune"],
        ["distill", "steps=3"],
        ["distill"],
        ["eval", *(f"runs/small/distill/distilled-{made.key[:8]}" for made in (student, control))],
    ]
    assert "random has 2.900" in text


@pytest.mark.slow
def test_an_old_control_is_left_out_with_a_remark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, (_, narrow, student, _) = chain(tmp_path)
    old = distill(workspace, BIG, narrow, "ce", steps=3)
    assert ["distill", "steps=3"] in [words[1:2] + words[4:] for words in commands(card(workspace, student))]
    result = (old.path / RESULT).read_text()
    rewrite(old, RESULT, result.replace("training/1", "training/0"))
    remarks: list[str] = []
    monkeypatch.setattr("minitron_cli.progress.warn", remarks.append)
    assert "steps=3" not in card(workspace, student)
    assert "has schema 'training/0'" in remarks[0]
    assert "run `minitron distill --overwrite`" in remarks[0]


@pytest.mark.slow
def test_a_card_in_the_workspace_loads_the_checkpoint_by_its_path(tmp_path: Path) -> None:
    workspace, (_, _, student, _) = chain(tmp_path)
    text = (report.run(Context(workspace)).path / report.CARD).read_text()
    assert f'from_pretrained("runs/small/distill/{student.path.name}")' in text
    assert 'from_pretrained("me/small")' in card(workspace, student)


def test_a_report_of_other_speeds_is_another_report(tmp_path: Path) -> None:
    """Speeds and hours are no part of what a stage is known by, and stand on the page."""
    workspace = Workspace(tmp_path / "runs" / "small")
    student = distill(workspace, BIG, prune(workspace, BIG, importance(workspace, BIG), 1))
    evaluation = evaluate(workspace, parent=(BIG, 2.0), distilled=(model_of(student), 2.1))
    first = report.run(Context(workspace))
    assert report.run(Context(workspace)) == first
    speed = ModelSpeed(prefill_tokens_per_second=9, decode_tokens_per_second=8, time_to_first_token_seconds=1)
    record = RECORD.model_copy(
        update={"speed": SpeedRecord(settings=Speed().model_dump(), device="cpu", models={"parent": speed})}
    )
    io.write_new_json(evaluation.path / RUN, record.model_dump(mode="json"))
    assert report.run(Context(workspace)).key != first.key


def test_a_corrected_model_is_one_of_the_workspace(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "runs" / "small")
    corrected = write(workspace, "correct", {"model": BIG}, CorrectionResult(**TRAINED), files={"config.json": "{}"})
    student = distill(workspace, BIG, prune(workspace, BIG, importance(workspace, BIG), 1))
    assert model_of(corrected) in Product(workspace, student)._made_here
