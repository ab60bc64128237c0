"""Training stages: in one process or several, with weights that no process ever has all of."""

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from minitron_cli.artifacts.fingerprint import TOKENIZER_FILES
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.distill import training_run
from minitron_cli.distill.config import CorrectConfig, DistillConfig
from minitron_cli.errors import EnvironmentFault, RecipeError
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.results.training import TrainingResult
from minitron_cli.stages import correct, distill
from tests.processes import together
from tests.tiny import tiny_model, write_tiny
from tests.unit.stages.place import context, data, write_place

TRAINING: dict[str, Any] = {
    "steps": 3,
    "batch_size": 4,
    "micro_batch_size": 2,
    "warmup_steps": 1,
    "learning_rate": 1e-2,
    "eval_every": 2,
    "eval_blocks": 4,
    "save_every": 2,
    "precision": "fp32",
}
SHARDED = DistillConfig(**TRAINING, sharding="full")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    write_place(root)
    return root


def student_of(place: Path, model_type: str = "llama", **options: Any) -> Path:
    """A narrower model of the same vocabulary and tokenizer, in bf16 and two shards."""
    path = place / f"student-{model_type}"
    if not path.exists():
        model = tiny_model(model_type, vocab_size=300, **{"hidden_size": 16, "intermediate_size": 32, **options})
        model.to(torch.bfloat16).save_pretrained(path, max_shard_size="20KB")
        for name in TOKENIZER_FILES:
            if (place / "model" / name).exists():
                shutil.copy(place / "model" / name, path)
    return path


def rows_of(artifact: Path) -> list[dict[str, float]]:
    return [json.loads(line) for name in ("metrics", "validation") for line in open(artifact / f"{name}.jsonl")]


def distilled(rank: int, place: Path, root: Path, student: Path, config: DistillConfig) -> tuple[Path, TrainingResult]:
    artifact = distill.run(context(root), open_source_model(place / "model"), student, data(place), config)
    return artifact.path, artifact.result(TrainingResult)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [("llama", {}), ("llama", {"tie_word_embeddings": True}), ("qwen3_moe", {"moe_intermediate_size": 24})],
    ids=["llama", "tied", "experts"],
)
@pytest.mark.slow
def test_two_processes_with_one_copy_write_what_one_process_writes(
    place: Path, tmp_path: Path, model_type: str, options: dict[str, Any]
) -> None:
    student = student_of(place, model_type, **options) if not options.get("tie_word_embeddings") else tied(place)
    alone, _ = distilled(0, place, tmp_path / "alone", student, SHARDED)
    (both, summary), _ = together(2, distilled, place, tmp_path / "both", student, SHARDED)
    assert both.name == alone.name, "the same artifact: in how many processes it was made is not identity"
    for ours, theirs in zip(rows_of(both), rows_of(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert summary.weights_of_step == 3
    before, after, expected = (Checkpoint.open(path) for path in (student, both, alone))
    assert list(after.tensors) == list(before.tensors)
    for name, info in after.tensors.items():
        assert info.dtype == "BF16"
        torch.testing.assert_close(after.read(name), expected.read(name), rtol=0.02, atol=1e-3)  # bf16's last bit
    changed = [name for name in after.tensors if not torch.equal(after.read(name), before.read(name))]
    assert {"model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"} <= set(changed)
    _, info = AutoModelForCausalLM.from_pretrained(both, output_loading_info=True)
    assert not any(info.values())
    assert json.loads((both / "run.json").read_text())["training"]["sharded"] is True


def tied(place: Path) -> Path:
    """A tied model whose checkpoint stores its head all the same, as some do."""
    path = place / "student-tied"
    if not path.exists():
        shutil.copytree(student_of(place), path)
        (path / "config.json").write_text(
            json.dumps(json.loads((path / "config.json").read_text()) | {"tie_word_embeddings": True})
        )
        index = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
        from safetensors.torch import save_file

        file = path / index["lm_head.weight"]
        embedding = load_file(path / index["model.embed_tokens.weight"])["model.embed_tokens.weight"]
        save_file(load_file(file) | {"lm_head.weight": embedding.clone()}, file, {"format": "pt"})
    return path


@pytest.mark.slow
def test_a_random_start_and_a_control_without_a_teacher_are_sharded_too(place: Path, tmp_path: Path) -> None:
    config = SHARDED.model_copy(update={"init": "random", "losses": CorrectConfig().losses})
    alone, _ = distilled(0, place, tmp_path / "alone", student_of(place), config)
    (both, _), _ = together(2, distilled, place, tmp_path / "both", student_of(place), config)
    for ours, theirs in zip(rows_of(both), rows_of(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def corrected(rank: int, place: Path, root: Path, sharding: str) -> Path:
    config = CorrectConfig(**TRAINING | {"learning_rate": 1e-3, "sharding": sharding})
    return correct.run(context(root), open_source_model(place / "model"), data(place), config).path


@pytest.mark.slow
def test_a_corrected_teacher_is_the_parent_trained_on_the_text(place: Path, tmp_path: Path) -> None:
    path = corrected(0, place, tmp_path, "none")
    parent, found = open_source_model(place / "model"), open_source_model(path)
    assert found.shape == parent.shape
    losses = [row["loss"] for row in rows_of(path) if "grad_norm" not in row]
    assert losses[-1] < losses[0]
    assert (path / "tokenizer.json").read_bytes() == (place / "model" / "tokenizer.json").read_bytes()
    assert correct.of(context(tmp_path), parent) is not None
    assert correct.of(context(tmp_path), open_source_model(student_of(place))) is None, "that is another model"


@pytest.mark.slow
def test_a_teacher_is_corrected_by_several_processes(place: Path, tmp_path: Path) -> None:
    alone = corrected(0, place, tmp_path / "alone", "none")
    both, _ = together(2, corrected, place, tmp_path / "both", "full")
    for ours, theirs in zip(rows_of(both), rows_of(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_teacher_has_no_teacher() -> None:
    from minitron_cli.distill.config import OBJECTIVES

    with pytest.raises(ValueError, match="correction has no teacher"):
        CorrectConfig(losses=OBJECTIVES["kl"])
    with pytest.raises(ValueError, match="drop init"):
        CorrectConfig(init="random")


def test_how_it_is_run_is_not_what_is_made(place: Path, tmp_path: Path) -> None:
    """Sharding and trackers are no part of an artifact's identity, or a killed run could not go on elsewhere."""
    plain = DistillConfig(**TRAINING)
    other = DistillConfig(**TRAINING, sharding="full", activation_checkpointing=True, trackers=("wandb",))
    assert plain.model_dump() == other.model_dump()
    assert plain.model_dump() != plain.model_copy(update={"export": "best"}).model_dump()


@pytest.mark.parametrize(
    ("precision", "dtype", "each"), [("fp32", "auto", 4), ("bf16", "auto", 2), ("bf16", "float32", 4)]
)
def test_a_teacher_takes_what_it_is_computed_with_takes_or_what_it_is_loaded_in(
    place: Path, monkeypatch: pytest.MonkeyPatch, precision: str, dtype: str, each: int
) -> None:
    asked = []
    monkeypatch.setattr(training_run.sharding, "is_wanted", lambda *arguments: bool(asked.append(arguments[-1])))
    teacher = open_source_model(student_of(place))  # bf16 as it is stored
    config = DistillConfig(**TRAINING | {"precision": precision})
    training_run.load(context(place, dtype=dtype), teacher, teacher, config)
    assert asked == [each * teacher.shape.parameters()]


# Trackers


class Kept:
    """A tracker that keeps what it is told."""

    requires_logging_directory = True
    made: ClassVar[list["Kept"]] = []

    def __init__(self, run: str, logging_dir: Path) -> None:
        self.run, self.rows, self.settings, self.is_finished = run, [], {}, False
        assert logging_dir.is_dir()
        Kept.made.append(self)

    def start(self) -> None:
        pass

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.is_finished = True


@pytest.mark.slow
def test_trackers_are_told_what_the_curves_tell(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import tracking

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "kept", Kept)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["kept"])
    config = DistillConfig(**TRAINING, trackers=("kept",))
    path, _ = distilled(0, place, tmp_path / "run", student_of(place), config)
    (tracker,) = Kept.made
    assert tracker.run == "run-distilled"
    assert tracker.settings["learning_rate"] == 1e-2
    assert tracker.is_finished
    training_rows = [row for row in rows_of(path) if "grad_norm" in row]
    told = [(step, values["loss"]) for step, values in tracker.rows if "grad_norm" in values]
    assert told == [(row["step"], row["loss"]) for row in training_rows]
    assert [step for step, values in tracker.rows if "held_out/kl" in values] == [0, 2, 3]


@pytest.mark.parametrize(
    ("name", "message"),
    [("nosuch", "tracker 'nosuch' is unknown: choose from aim,"), ("comet_ml", "pip install comet-ml")],
)
def test_a_tracker_that_is_not_there_is_refused_before_any_work(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    from accelerate import tracking

    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(RecipeError, match=message):
        distilled(0, place, tmp_path / "run", student_of(place), DistillConfig(**TRAINING, trackers=(name,)))
    assert not (tmp_path / "run").exists()


# A teacher that exceeds one accelerator


def test_layers_of_a_large_teacher_stay_whole_and_what_fits_nowhere_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "model")
    size = Checkpoint.open(path).size_bytes
    placed = hf.spread(path, {0: int(size * 0.6), 1: size})
    assert set(placed.values()) == {0, 1}
    assert not any(".self_attn" in module or ".mlp" in module for module in placed), "a layer is on one device"
    with pytest.raises(EnvironmentFault, match=r"does not fit on the 2 accelerators.*--gpus"):
        hf.spread(path, {0: size // 4, 1: size // 4})


def test_a_teacher_moves_to_several_accelerators_when_one_is_too_small(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(training_run.hf, "load_model", lambda path, **options: asked.append(options))
    teacher = open_source_model(place / "model")
    group = type("World", (), {"size": 1, "device": torch.device("cuda:0")})()
    size = teacher.size_bytes("auto")
    monkeypatch.setattr(training_run.memory, "available_bytes", lambda device: 1.3 * size + 1000)
    at = context(tmp_path, device="cuda")
    training_run._teacher(at, group, teacher, size, 1000)
    training_run._teacher(at, group, teacher, size, size // 2)
    assert asked[0]["device"] == "cuda"
    assert set(asked[1]["device_map"].values()) == {0, 1}
