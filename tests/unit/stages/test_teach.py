"""The teach stage, and distillation from what it stores."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minitron_cli import progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.cost import derive
from minitron_cli.data.batches import batch
from minitron_cli.data.sources import DataConfig, TextFiles
from minitron_cli.distill import teacher_signals, teaching
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.targets import targets
from minitron_cli.distill.teacher_signals import Student, TeacherSignals
from minitron_cli.errors import ArtifactError, DryRunStop, InputError, RecipeError
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.results.teach import TeachResult
from minitron_cli.results.training import METRICS, TrainingResult
from minitron_cli.signals.config import TeachConfig
from minitron_cli.signals.shards import Visit
from minitron_cli.stages import distill, teach
from tests.processes import together
from tests.tiny import write_tiny
from tests.unit.distill.small import AfterStep
from tests.unit.stages.place import context, write_place
from tests.unit.stages.test_masked_training import checked, sparse

TRAINING: dict[str, Any] = {
    "steps": 3,
    "batch_size": 4,
    "micro_batch_size": 2,
    "warmup_steps": 1,
    "learning_rate": 1e-2,
    "eval_blocks": 2,
    "precision": "fp32",
}
ALL = {"kind": "top_k", "k": 300, "allow_small_k": True}
"""Every id of the vocabulary: signals that are the whole distribution."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    write_place(root)
    write_tiny(root / "student", "llama", vocab_size=300, hidden_size=16)
    for file in (root / "tokenizer").iterdir():
        shutil.copy(file, root / "student")
    return root


def data(root: Path, length: int = 16) -> DataConfig:
    """A part of the place's text: about 70 blocks."""
    source = TextFiles(paths=(str(root / "text" / "1*.txt"),))
    return DataConfig(sources=(source,), sequence_length=length, validation_fraction=0.2)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one block or two, so that there are many."""
    monkeypatch.setattr(teaching, "MIN_SHARD_TOKENS", 16)


@pytest.fixture(scope="module")
def made(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Signals of a few blocks, at a temperature of 1."""
    return taught(place, tmp_path_factory.mktemp("made"), tokens=192)


def taught(place: Path, root: Path, *, text: DataConfig | None = None, **changes: Any) -> Artifact:
    config = TeachConfig(**{"eval_blocks": 2, "precision": "fp32", **changes})
    return teach.run(context(root), open_source_model(place / "model"), text or data(place), config)


def distilled(place: Path, root: Path, student: str = "student", **changes: Any) -> Artifact:
    config = DistillConfig(**{**TRAINING, **changes})
    return distill.run(context(root), open_source_model(place / "model"), place / student, data(place), config)


def curve(made: Artifact) -> list[dict[str, float]]:
    return [json.loads(line) for line in (made.path / METRICS).read_text().splitlines()]


def content(made: Artifact) -> dict[str, bytes]:
    return {name: (made.path / name).read_bytes() for name in sorted(made.manifest.files)}


def said(action: Callable[[], object]) -> str:
    display = AfterStep()
    progress.show_on(display)
    action()
    progress.show_on(None)
    return " ".join(display.messages + display.warned)


@pytest.fixture
def no_teacher(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the teacher is an error."""
    load = hf.load_model

    def student_alone(path: Path, **options: Any) -> Any:
        assert path != place / "model", "the teacher is loaded"
        return load(path, **options)

    monkeypatch.setattr(hf, "load_model", student_alone)


@pytest.mark.slow
def test_all_ids_train_as_the_live_teacher_does(place: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """But for rounded probabilities: curves, held-out KL and all."""
    live = distilled(place, tmp_path)
    taught(place, tmp_path, signals=ALL)
    request.getfixturevalue("no_teacher")
    stored = distilled(place, tmp_path)
    assert stored.path != live.path
    for ours, theirs in zip(curve(stored), curve(live), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    ours, theirs = stored.result(TrainingResult), live.result(TrainingResult)
    assert ours.after is not None
    assert theirs.after is not None
    assert ours.after.kl == pytest.approx(theirs.after.kl, rel=1e-4)
    assert ours.after.loss == pytest.approx(theirs.after.loss, rel=1e-4)
    assert (ours.signals, theirs.signals) == ("top 300", None)


@pytest.mark.slow
def test_the_teacher_is_paid_for_once(place: Path, tmp_path: Path) -> None:
    made = taught(place, tmp_path)
    result = made.result(TeachResult)
    (teaching_pass,) = derive.spent(made)
    assert teaching_pass.tokens == (result.train.blocks + 2) * 16
    assert teaching_pass.flops == teaching_pass.tokens * result.teacher.flops
    student = distilled(place, tmp_path)
    assert student.manifest.inputs["signals"] == made.fingerprint
    works = {entry.work: entry for entry in derive.spent(student)}
    read = student.result(TrainingResult)
    assert "teacher" not in works
    assert works["held-out text"].flops == read.validations * read.validation_tokens * read.student.flops


@pytest.mark.slow
def test_several_passes_have_draws_of_their_own(place: Path, tmp_path: Path) -> None:
    one, two = taught(place, tmp_path), taught(place, tmp_path, epochs=2)
    counted = [a.result(TeachResult) for a in (one, two)]
    assert counted[1].train.ids == pytest.approx(2 * counted[0].train.ids, rel=0.02)
    assert counted[1].train.ids != 2 * counted[0].train.ids
    steps = 2 * counted[0].train.blocks // 4
    text = said(lambda: distilled(place, tmp_path, steps=steps, signals=str(one.path)))
    assert "2 passes over the text repeat the draws of 1" in text
    assert "repeat" not in said(lambda: distilled(place, tmp_path, steps=steps, signals=str(two.path)))


@pytest.mark.slow
def test_only_the_blocks_of_the_training_are_stored(place: Path, tmp_path: Path) -> None:
    training = DistillConfig(**{**TRAINING, "seed": 5, "losses": [{"kind": "forward_kl", "temperature": 2.0}]})
    made = teach.run(
        context(tmp_path), open_source_model(place / "model"), data(place), TeachConfig(), training=training
    )
    assert made.result(TeachResult).train.blocks == 12
    student = distilled(place, tmp_path, seed=5, losses=training.losses)
    assert student.manifest.inputs["signals"] == made.fingerprint
    with pytest.raises(InputError, match=r"lack \d+ of the blocks that this run reads"):
        distilled(place, tmp_path, seed=6, losses=training.losses, signals=str(made.path))


@pytest.mark.slow
def test_a_length_in_tokens_is_rounded_as_that_of_a_training(place: Path, tmp_path: Path) -> None:
    """Both commands with the same --tokens, and nothing else."""
    made = taught(place, tmp_path, tokens=1001)
    config = DistillConfig(tokens=1001, eval_blocks=2, precision="fp32")
    student = distill.run(context(tmp_path), open_source_model(place / "model"), place / "student", data(place), config)
    assert student.manifest.inputs["signals"] == made.fingerprint
    assert student.result(TrainingResult).tokens > 1001


def test_a_length_below_one_step_of_the_training_is_refused_by_its_own_name(place: Path, tmp_path: Path) -> None:
    training, config = DistillConfig(steps=9, batch_size=4, warmup_steps=5), TeachConfig(tokens=63, precision="fp32")
    here, model = context(tmp_path), open_source_model(place / "model")
    with pytest.raises(RecipeError, match=r"^teach\.tokens 63 is less than one step of distill\.batch_size 4 x 16 "):
        teach.run(here, model, data(place), config, training=training)
    one_step = config.model_copy(update={"tokens": 64})
    with pytest.raises(DryRunStop):  # its warm-up is that of a longer training
        teach.run(replace(here, dry_run=True), model, data(place), one_step, training=training)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hidden": {}}, "hold no hidden states"),
        ({"losses": [{"kind": "reverse_kl"}]}, "reverse_kl needs all of it"),
        ({"losses": [{"kind": "forward_kl"}, {"kind": "mse"}]}, "mse needs all of it"),
        ({"losses": [{"kind": "jsd"}]}, "jsd needs all of it"),
        ({"losses": [{"kind": "cosine"}]}, "cosine needs all of it"),
        ({"losses": [{"kind": "forward_kl", "temperature": 3}]}, "are of temperature 1, and forward_kl has 3"),
        ({"eval_blocks": 3}, "are of other held-out blocks"),
    ],
)
def test_what_signals_cannot_stand_in_for_is_said(
    place: Path, made: Artifact, changes: dict[str, Any], problem: str
) -> None:
    root = made.path.parent.parent
    with pytest.raises(InputError, match=problem) as caught:
        distilled(place, root, signals=str(made.path), **changes)
    assert str(caught.value).startswith(f"distill.signals: the signals in {made.path} ")


def test_signals_of_another_version_are_not_read(place: Path, made: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their files may hold other numbers under other names."""
    monkeypatch.setattr(teacher_signals, "VERSION", teacher_signals.VERSION + 1)
    with pytest.raises(InputError, match="were made by another version of minitron: run `minitron teach` again"):
        distilled(place, made.path.parent.parent, signals=str(made.path))


@pytest.mark.slow
def test_other_texts_and_teachers_are_told_apart(place: Path, tmp_path: Path) -> None:
    made = taught(place, tmp_path, text=data(place, 20))
    assert "the teacher runs: the signals in" in (text := said(lambda: distilled(place, tmp_path)))
    assert "are of another training text, tokenizer, block length or loss mask" in text
    config = DistillConfig(**TRAINING, signals=str(made.path))
    other = open_source_model(place / "student")
    with pytest.raises(InputError, match="are of another teacher than"):
        distill.run(context(tmp_path), other, place / "student", data(place, 20), config)
    student = distilled(place, tmp_path, signals="never")
    assert student.result(TrainingResult).signals is None
    with pytest.raises(InputError, match="holds no signals: give a directory that `minitron teach` wrote"):
        distilled(place, tmp_path, signals=str(student.path))


def test_a_student_with_fewer_entries_is_told_apart(place: Path, made: Artifact) -> None:
    source, text = open_source_model(place / "model"), data(place)
    where = context(made.path.parent.parent)
    train, held_out = (blocks_of(where, text, split, place / "model") for split in ("train", "validation"))
    student = Student(DistillConfig(**TRAINING, signals=str(made.path)), source, 299, train, held_out)
    with pytest.raises(InputError, match="are of a vocabulary of 300 entries, and the student has 299"):
        student.signals(where.workspace)


@pytest.mark.slow
def test_masked_positions_take_no_bytes(place: Path, tmp_path: Path) -> None:
    """Answers of a few words: only they have signals, and a student learns from them."""
    rows = [{"prompt": "the cat sat on a mat", "completion": " and the dog ran" * (1 + i % 3)} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = TextFiles(paths=(str(tmp_path / "rows.jsonl"),), format="completion")
    text = DataConfig(sources=(source,), sequence_length=16, validation_fraction=0.1)
    result = taught(place, tmp_path, text=text).result(TeachResult)
    blocks = blocks_of(context(tmp_path), text, "train", place / "model")
    counted = [len(targets(batch(blocks, [i])).labels_N) for i in range(len(blocks))]
    assert result.train.positions == sum(counted) < 0.8 * 15 * len(blocks)
    config = DistillConfig(**TRAINING)
    made = distill.run(context(tmp_path), open_source_model(place / "model"), place / "student", text, config)
    assert made.result(TrainingResult).signals == "50 draws"


@pytest.mark.slow
def test_a_masked_student_learns_from_signals(place: Path, tmp_path: Path) -> None:
    taught(place, tmp_path)
    student = sparse(place)
    made = distill.run(
        context(tmp_path), open_source_model(place / "model"), student, data(place), DistillConfig(**TRAINING)
    )
    assert made.result(TrainingResult).signals == "50 draws"
    checked(made.path)
    assert (
        Checkpoint.open(made.path)
        .read("model.norm.weight")
        .ne(Checkpoint.open(student).read("model.norm.weight"))
        .any()
    )


class Kill(BaseException):
    pass


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = taught(place, tmp_path / "whole", epochs=2)
    put, done = teaching.ShardStore.put, list[str]()

    def dies(store: Any, piece: Any, *rest: Any) -> None:
        if len(done) == 5:
            raise Kill
        done.append(piece.name)
        put(store, piece, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(teaching.ShardStore, "put", dies)
        with pytest.raises(Kill):
            taught(place, tmp_path / "killed", epochs=2)
    shard = next((tmp_path / "killed").glob(f"teach/.scratch-*/shards/*/{done[2]}"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")  # what the kill left is damaged as well
    made_again = list[str]()
    monkeypatch.setattr(
        teaching.ShardStore,
        "put",
        lambda store, piece, *rest: (made_again.append(piece.name), put(store, piece, *rest)),
    )
    assert f"{done[2]} has changed since it was written, so it is made again" in said(
        lambda: taught(place, tmp_path / "killed", epochs=2)
    )
    resumed = taught(place, tmp_path / "killed", epochs=2)
    assert content(resumed) == content(whole)
    assert set(made_again) & set(done) == {done[2]}
    assert resumed.key == whole.key


@pytest.mark.slow
def test_a_damaged_shard_is_named_and_made_again(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = taught(place, tmp_path)
    before, name = content(made), made.result(TeachResult).train.shards[3]
    (made.path / name).write_bytes(before[name][:-1] + bytes([before[name][-1] ^ 1]))
    with pytest.raises(ArtifactError, match=f"{name} has changed since it was written; run `minitron teach`"):
        distilled(place, tmp_path)
    read = list[str]()
    signals = teaching.Teacher.signals
    monkeypatch.setattr(
        teaching.Teacher,
        "signals",
        lambda self, blocks, piece, *r: (read.append(piece.name), signals(self, blocks, piece, *r))[1],
    )
    assert content(taught(place, tmp_path)) == before
    assert read == [name]


def one_of_two(rank: int, place: Path, root: Path) -> None:
    taught(place, root, epochs=2)


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(place: Path, tmp_path: Path) -> None:
    alone = taught(place, tmp_path / "alone", epochs=2)
    together(2, one_of_two, place, tmp_path / "both")
    both = Artifact.open(tmp_path / "both" / "teach" / alone.path.name)
    assert content(both) == content(alone)


def test_a_dry_run_says_size_and_when_it_pays(place: Path, tmp_path: Path) -> None:
    with pytest.raises(DryRunStop) as caught:
        teach.run(
            context(tmp_path, dry_run=True), open_source_model(place / "model"), data(place), TeachConfig(eval_blocks=2)
        )
    forecast = caught.value.forecast
    assert forecast["signals"] == "50 draws"
    assert forecast["blocks"] == len(blocks_of(context(tmp_path), data(place), "train", place / "model"))
    assert forecast["cheaper than a live teacher from pass"] >= 2
    assert 0 < forecast["about bytes per token"] < 100


def test_signals_of_an_artifact_read_back(made: Artifact) -> None:
    found = TeacherSignals.of(made)
    assert len(found.train.blocks) == 12
    rows = found.train.rows([Visit(block, 0) for block in found.train.blocks])
    assert rows.tokens == found.result.train.positions
    assert rows.weights_NK.sum(-1).allclose(torch.ones(rows.tokens))
    assert (found.train.encoding.temperature, found.validation.encoding.temperature) == (1.0, 1.0)
