"""Stages on a sparse model: what they train, write and say."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from minitron_cli import progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.fingerprint import TOKENIZER_FILES, of_directory, of_model
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.cli import tables
from minitron_cli.distill import training_run
from minitron_cli.distill.config import CorrectConfig, DistillConfig
from minitron_cli.errors import CheckpointError, InputError
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.price import offer
from minitron_cli.prune.config import PruneConfig
from minitron_cli.results.training import TrainingResult
from minitron_cli.sparse.mask_file import MASKS, MaskFile
from minitron_cli.stages import correct, distill, prune
from tests.tiny import tiny_model
from tests.unit.distill.masked import mask_
from tests.unit.distill.small import AfterStep
from tests.unit.stages.place import context, data, write_place
from tests.unit.stages.test_prune import made_up_scores

TRAINING: dict[str, Any] = {
    "steps": 3,
    "batch_size": 2,
    "micro_batch_size": 2,
    "warmup_steps": 1,
    "learning_rate": 1e-2,
    "eval_blocks": 2,
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    write_place(root)
    return root


def sparse(place: Path, name: str = "sparse", model_type: str = "llama", **options: Any) -> Path:
    """A model in bf16 with 2:4 masks."""
    path = place / f"{name}-{model_type}"
    if not path.exists():
        model = tiny_model(model_type, vocab_size=300, **options).to(torch.bfloat16)
        mask_(model, path)
        model.save_pretrained(path)
        for file in TOKENIZER_FILES:
            if (place / "model" / file).exists():
                shutil.copy(place / "model" / file, path)
    return path


def distilled(place: Path, root: Path, student: Path, **changes: Any) -> Artifact:
    config = DistillConfig(**{**TRAINING, **changes})
    return distill.run(context(root), open_source_model(place / "model"), student, data(place), config)


def checked(directory: Path) -> MaskFile:
    """The masks of a model, every weight of which was compared with them."""
    found = MaskFile.beside(directory)
    assert found is not None
    found.check(Checkpoint.open(directory).read)
    return found


@pytest.mark.parametrize("model_type", ["llama", pytest.param("qwen3_moe", marks=pytest.mark.slow)])
def test_a_sparse_student_keeps_its_zeros_and_its_masks(place: Path, tmp_path: Path, model_type: str) -> None:
    student = sparse(place, model_type=model_type)
    made = distilled(place, tmp_path, student)
    checked(made.path)
    assert (made.path / MASKS).read_bytes() == (student / MASKS).read_bytes()
    before, after = Checkpoint.open(student), Checkpoint.open(made.path)
    for name in after.tensors:
        assert "self_attn" not in name or not torch.equal(after.read(name), before.read(name)), name
    mask = made.result(TrainingResult).mask
    assert mask is not None
    assert (mask.kind, mask.patterns, mask.sparsity) == ("frozen", ("2:4",), 0.5)
    assert f"2:4 mask frozen (50.0% zeros in {mask.tensors} tensors)" in next(tables.tables(made)).title
    assert of_directory(made.path) == of_model(made.manifest)
    assert [path.name for path in made.path.glob("**/*.safetensors")] == ["model.safetensors"], "what servers load"
    _, info = AutoModelForCausalLM.from_pretrained(made.path, output_loading_info=True)
    assert not any(info.values())


@pytest.mark.slow
def test_refreshed_masks_are_those_of_the_written_weights(place: Path, tmp_path: Path) -> None:
    student = sparse(place)
    made = distilled(place, tmp_path, student, mask={"refresh": 1}, learning_rate=0.1)
    after, before = checked(made.path), checked(student)
    assert dict(after.specs) == dict(before.specs)
    assert any(not torch.equal(after.read(name), before.read(name)) for name in after.specs)
    mask = made.result(TrainingResult).mask
    assert mask is not None
    assert mask.kind == "refreshed"
    assert made.run
    assert made.run.price
    assert made.run.price.memory["masks"] == 5 * after.weights, "a byte of each weight, and a copy in fp32"


def test_masks_count_where_it_is_chosen_whether_to_shard(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, asked = open_source_model(sparse(place)), list[int]()
    monkeypatch.setattr(training_run.sharding, "is_wanted", lambda *arguments: bool(asked.append(arguments[-1])))
    monkeypatch.setattr(offer.sharding, "fits_replicated", lambda *arguments: bool(asked.append(arguments[-1])) or True)
    config, weights = DistillConfig(**TRAINING | {"mask": {"refresh": 1}}), checked(student.path).weights
    training_run.load(context(tmp_path), student, student, config)
    blocks = blocks_of(context(tmp_path), data(place), "train", student.path)
    offer.offered_training(context(tmp_path), student, student, config, blocks, 2)
    assert asked == [4 * student.shape.parameters() + 5 * weights] * 2


@pytest.mark.slow
def test_without_masks_the_zeros_are_lost_and_it_is_said(place: Path, tmp_path: Path) -> None:
    display = AfterStep()
    progress.show_on(display)
    made = distilled(place, tmp_path, sparse(place), mask="none")
    progress.show_on(None)
    assert any("mask=none: all weights are trained, and the zeros of" in said for said in display.messages)
    assert MaskFile.beside(made.path) is None
    assert made.result(TrainingResult).mask is None
    assert Checkpoint.open(made.path).read("model.layers.0.mlp.up_proj.weight").count_nonzero() > 0.9 * 48 * 32


@pytest.mark.slow
def test_a_teacher_is_corrected_with_its_zeros(place: Path, tmp_path: Path) -> None:
    parent = sparse(place)
    made = correct.run(context(tmp_path), open_source_model(parent), data(place), CorrectConfig(**TRAINING))
    checked(made.path)
    assert (made.path / MASKS).read_bytes() == (parent / MASKS).read_bytes()


def test_masks_are_a_part_of_the_model(place: Path, tmp_path: Path) -> None:
    shutil.copytree(sparse(place), tmp_path / "dense")
    (tmp_path / "dense" / MASKS).unlink()
    assert of_directory(tmp_path / "dense") != of_directory(sparse(place))


@pytest.mark.slow
def test_masks_of_another_model_are_refused(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "model", tmp_path / "other")
    shutil.copy(sparse(place, "narrow", intermediate_size=24) / MASKS, tmp_path / "other")
    with pytest.raises(
        CheckpointError, match=r"is of another model, which has .*down_proj.*: sparsify the model again"
    ):
        distilled(place, tmp_path / "run", tmp_path / "other")
    shutil.copy(sparse(place) / MASKS, tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"pruned weights of .* are not zero: sparsify the model again"):
        distilled(place, tmp_path / "run", tmp_path / "other")


def test_masks_of_tied_weights_are_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.distill.masked.is_linear", lambda name: "embed" in name)
    student = sparse(place, "tied", tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"masks 'model.embed_tokens.weight', which is tied"):
        distilled(place, tmp_path / "run", student)


@pytest.mark.parametrize("run", [distilled, None], ids=["distill", "correct"])
def test_no_masks_cannot_be_refreshed(place: Path, tmp_path: Path, run: Any) -> None:
    config = CorrectConfig(**TRAINING, mask={"refresh": 1})
    go = partial(run, place, tmp_path, place / "model", mask={"refresh": 1}) if run else None
    go = go or partial(correct.run, context(tmp_path), open_source_model(place / "model"), data(place), config)
    with pytest.raises(InputError, match=r"\.mask: .*model has no masks to refresh: run `minitron sparsify` first"):
        go()


def test_a_pruned_sparse_model_is_dense_and_it_is_said(place: Path, tmp_path: Path) -> None:
    parent = open_source_model(sparse(place))
    display = AfterStep()
    progress.show_on(display)
    scores = made_up_scores(tmp_path, parent)
    made = prune.run(context(tmp_path / "run"), parent, PruneConfig(shape={"ffn": 24}), scores=scores)
    progress.show_on(None)
    assert any("the child is dense and has no masks; sparsify it after pruning" in said for said in display.warned)
    assert MaskFile.beside(made.path) is None
