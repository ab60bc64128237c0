"""The same work on an accelerator in bf16 and on the CPU in fp32: what differs is rounding."""

from pathlib import Path

import pytest
import torch

from minitron_cli import api
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.distill.config import DistillConfig
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.prune.config import PruneConfig
from minitron_cli.results.training import TrainingResult
from minitron_cli.scores.scores import Scores
from tests.unit.stages.place import data, write_place

pytestmark = pytest.mark.gpu

TRAINING = {"steps": 1, "batch_size": 4, "micro_batch_size": 4, "warmup_steps": 0, "eval_blocks": 2}
ROUNDING = 2**-7  # of a value in bf16, two of its last bits


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    write_place(root)
    return root


def made_on(
    device: str, dtype: str, precision: str, place: Path, root: Path, **settings: str
) -> tuple[Artifact, Artifact, Artifact]:
    """Scores, pruned model and trained model."""
    text, model = data(place), place / "model"
    with api.workspace(root / device, device=device, dtype=dtype) as context:
        scores = api.importance(context, model, text, ImportanceConfig(samples=8, batch_size=4))
        plain = PruneConfig(shape={"hidden": 24, "ffn": 32}, repair="none")
        child = api.prune(context, model, plain, scores=scores)
        config = DistillConfig(**TRAINING, precision=precision, **settings)
        return scores, child, api.distill(context, child, model, text, config)


def test_scores_a_pruned_model_and_a_training_step_are_those_of_the_cpu(place: Path, tmp_path: Path) -> None:
    on_gpu = made_on("cuda", "bfloat16", "bf16", place, tmp_path)
    on_cpu = made_on("cpu", "float32", "fp32", place, tmp_path)
    assert_close_scores(Scores.load(on_gpu[0].path), Scores.load(on_cpu[0].path))
    assert_slices_of(Checkpoint.open(place / "model"), on_gpu[1])
    found, expected = (artifact.result(TrainingResult) for artifact in (on_gpu[2], on_cpu[2]))
    assert found.steps == expected.steps == 1
    assert on_gpu[0].run is not None
    assert on_gpu[0].run.device == torch.cuda.get_device_name()
    trained, start = (Checkpoint.open(artifact.path) for artifact in (on_gpu[2], on_gpu[1]))
    assert any(not torch.equal(trained.read(name), start.read(name)) for name in start.tensors)
    assert all(trained.read(name).isfinite().all() for name in trained.tensors)


def assert_close_scores(found: Scores, expected: Scores) -> None:
    assert found.by_name.keys() == expected.by_name.keys()
    for name, tensor in expected.by_name.items():
        apart = (found.by_name[name].double() - tensor.double()).norm()
        assert apart <= 8 * ROUNDING * tensor.double().norm(), name


def assert_slices_of(parent: Checkpoint, child: Artifact) -> None:
    """Pruning copies rows and columns: no weight of the embedding is rounded, whatever device scored it."""
    pruned, name = Checkpoint.open(child.path), "model.embed_tokens.weight"
    kept = torch.tensor(child.read_json("plan.json")["hidden"])
    assert torch.equal(pruned.read(name), parent.read(name)[:, kept])


def test_a_training_step_in_fp32_is_that_of_the_cpu(place: Path, tmp_path: Path) -> None:
    found, expected = (update_on(device, place, tmp_path) for device in ("cuda", "cpu"))
    assert expected.norm() > 0
    assert (found - expected).norm() <= 0.05 * expected.norm()  # Adam's first step is the sign of each gradient


@pytest.mark.parametrize(
    "settings", [{"optimizer": "adamw_8bit"}, {"optimizer": "adamw_offload"}, {"teacher_device": "cpu"}], ids=str
)
def test_a_training_step_with_less_memory_is_that_of_the_gpu(
    place: Path, tmp_path: Path, settings: dict[str, str]
) -> None:
    found = update_on("cuda", place, tmp_path / "less", **settings)
    expected = update_on("cuda", place, tmp_path / "more")
    assert expected.norm() > 0
    assert (found - expected).norm() <= 0.05 * expected.norm()


def update_on(device: str, place: Path, root: Path, **settings: str) -> torch.Tensor:
    """What training in fp32 adds to all weights."""
    _, child, trained = made_on(device, "float32", "fp32", place, root, **settings)
    before, after = Checkpoint.open(child.path), Checkpoint.open(trained.path)
    return torch.cat([(after.read(name) - before.read(name)).flatten() for name in sorted(before.tensors)])
