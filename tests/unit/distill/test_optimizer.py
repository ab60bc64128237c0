"""AdamW whose moments are in 8 bits or in the host's memory: what it takes, what it learns, and that it resumes."""

import signal
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch._subclasses import FakeTensorMode
from transformers import CONFIG_MAPPING

from minitron_cli import progress
from minitron_cli.checkpoint.aliases import aliases
from minitron_cli.data.batches import batch
from minitron_cli.distill import checkpoints, model_pair, optimizer_kinds, sharding
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.model_pair import ModelPair
from minitron_cli.distill.optimizer import Optimizer
from minitron_cli.distill.optimizer_kinds import OptimizerKind, check, trained_bytes
from minitron_cli.errors import Interrupted, RecipeError
from minitron_cli.model.families import family_of
from minitron_cli.model.lm_head import Head
from minitron_cli.model.shape import Shape
from tests.unit.distill import small
from tests.unit.distill.small import AfterStep, configured, run
from tests.unit.distill.test_trainer import HIDDEN, PAIRS

GPU = 80e9
GENTLE = {"learning_rate": 1e-3, "min_learning_rate": 1e-4}


@pytest.fixture(params=["adamw", "adamw_offload", "adamw_8bit"])
def kind(request: pytest.FixtureRequest) -> OptimizerKind:
    if request.param == "adamw_8bit":
        pytest.importorskip("torchao")
    found: OptimizerKind = request.param
    return found


def llama_8b() -> Shape:
    fields = dict(aliases()["llama-3.1-8b"].config)
    config = CONFIG_MAPPING[fields.pop("model_type")](**fields)
    return Shape.of(family_of(config), config)


def bytes_of(tensors: list[torch.Tensor]) -> int:
    """Bytes of plain tensors, and of codes, scales and tables of those in 8 bits."""
    parts = [[t.codes, t.scale, t.qmap] if hasattr(t, "codes") else [t] for t in tensors]
    return sum(t.numel() * t.itemsize for part in parts for t in part)


def stepped(kind: OptimizerKind, parameters: dict[str, nn.Parameter]) -> tuple[Optimizer, list[torch.Tensor]]:
    """The optimizer after one step, and the gradients of that step."""
    optimizer = Optimizer(parameters, configured(optimizer=kind))
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    gradients = optimizer.gradients
    optimizer.step_(1e-3)
    return optimizer, gradients


def test_an_8b_teacher_and_its_student_of_4_5b_fit_one_gpu_if_told_to(kind: OptimizerKind) -> None:
    """What a step takes is counted on one layer and both embeddings of the student, none of which is allocated."""
    teacher = llama_8b()
    student = teacher.resize(hidden=3072, ffn=9216)  # 4.5B (Sreenivas et al. 2024)
    one_layer = student.resize(layer=1)
    stepped(kind, {"a": nn.Parameter(torch.ones(64, 64))})  # torchao makes its tables at the first step
    with FakeTensorMode():
        parameters = {name: nn.Parameter(torch.empty(shape)) for name, shape in one_layer.tensors().items()}
        optimizer, gradients = stepped(kind, parameters)
        on_device = bytes_of([*parameters.values(), *gradients])
        states = [optimizer._adamw.state[p] for p in optimizer._updated.values()]
        moments = bytes_of([state[moment] for state in states for moment in ("exp_avg", "exp_avg_sq")])
    is_offloaded = kind == "adamw_offload"
    said, counted = trained_bytes(kind), one_layer.parameters()
    assert on_device + (0 if is_offloaded else moments) == pytest.approx(said.device * counted, rel=1e-3)
    assert (on_device + moments if is_offloaded else 0) == pytest.approx(said.host * counted, rel=1e-3)
    assert (said.device * student.parameters() + 2 * teacher.parameters() < 0.8 * GPU) == (kind != "adamw")


def interrupted_and_resumed(scratch: Path, kind: OptimizerKind) -> None:
    progress.show_on(AfterStep(3, lambda: progress.request_stop(signal.SIGTERM)))
    with pytest.raises(Interrupted):
        trained(scratch, kind)
    progress.request_stop(None)
    progress.show_on(None)


def trained(scratch: Path | None, kind: OptimizerKind) -> tuple[nn.Module, list[dict[str, float]]]:
    student, result = run(scratch, configured(optimizer=kind, **GENTLE), student=small.student(hidden=256))
    return student, result.metrics


@pytest.mark.slow
def test_a_resumed_run_ends_like_an_undisturbed_one(tmp_path: Path, kind: OptimizerKind) -> None:
    interrupted_and_resumed(tmp_path, kind)
    (student, metrics), (expected, undisturbed) = trained(tmp_path, kind), trained(None, kind)
    assert metrics == undisturbed
    weights = small.state(expected)
    assert all(torch.equal(p, weights[name]) for name, p in small.state(student).items())
    saved = checkpoints.load(tmp_path, 6)
    for moment in ("exp_avg", "exp_avg_sq"):
        name = f"{moment}.student.model.embed_tokens.weight"
        in_8bit = kind == "adamw_8bit"
        assert saved.rows(name).dtype == (torch.uint8 if in_8bit else torch.float32)
        assert (f"scale.{name}" in saved) == in_8bit


@pytest.mark.slow
def test_where_and_how_moments_are_held_changes_little(kind: OptimizerKind) -> None:
    if kind == "adamw":
        return
    (student, metrics), (expected, exact) = trained(None, kind), trained(None, "adamw")
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    for row, wanted in zip(metrics, exact, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=0.02 if kind == "adamw_8bit" else 0)
    weights = small.state(expected)
    equal = [torch.equal(p, weights[name]) for name, p in small.state(student).items()]
    assert all(equal) == (kind != "adamw_8bit"), "8 bits are in use"


@pytest.mark.slow
def test_moments_elsewhere_continue_a_run_with_moments_here(tmp_path: Path) -> None:
    """They are the same numbers, so it is the same run; of 8 bits it is another."""
    interrupted_and_resumed(tmp_path, "adamw")
    assert trained(tmp_path, "adamw_offload")[1] == trained(None, "adamw")[1]
    assert "optimizer" not in configured(optimizer="adamw_offload").model_dump()
    assert configured(optimizer="adamw_8bit").model_dump()["optimizer"] == "adamw_8bit"


def test_a_missing_package_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer_kinds, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"^correct\.optimizer=adamw_8bit needs torchao: run `pip install") as refused:
        check("adamw_8bit", "correct")
    assert refused.value.exit_code == 2
    check("adamw_offload", "correct")


@pytest.mark.parametrize("setting", [{"optimizer": "adamw_8bit"}, {"teacher_device": "cpu"}], ids=str)
def test_what_is_kept_whole_is_not_sharded(setting: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match=r"sharding=full does not go with (optimizer|teacher_device)=.*drop one"):
        configured(sharding="full", **setting)
    group = ProcessGroup("cpu", alone=True)
    monkeypatch.setattr(group, "size", 2)
    monkeypatch.setattr(group, "any", bool)
    monkeypatch.setattr(sharding.memory, "fits", lambda *_: False)
    assert sharding.is_wanted(configured(), group, 1, 1)
    assert not sharding.is_wanted(configured(**setting), group, 1, 1)


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> ModelPair:
    """A pair whose student is on the meta device, and whose teacher stays on the CPU."""
    group = ProcessGroup("cpu", alone=True)
    monkeypatch.setattr(group, "device", torch.device("meta"))
    monkeypatch.setattr(model_pair, "is_finite", lambda tensor: True)
    monkeypatch.setattr(model_pair, "head_of", lambda model: Head(model.get_output_embeddings().weight))
    config = configured(teacher_device="cpu", hidden=HIDDEN.model_dump())
    return ModelPair(small.student(), small.teacher(), config, PAIRS, group, "fp32")


def test_of_a_teacher_on_the_cpu_only_what_the_losses_compare_moves(apart: ModelPair) -> None:
    states = [pair.teacher for pair in PAIRS]
    hidden_BTD, seen = apart._decode(apart._teacher, batch(small.TinyBlocks(), [0, 1]), states)
    assert {p.device.type for p in apart.teacher.parameters()} == {"cpu"}
    assert {p.device.type for p in apart.student.parameters()} == {"meta"}
    assert {tensor.device.type for tensor in (hidden_BTD, *seen.values())} == {"meta"}
    assert apart._teacher_head.weight_VD.is_meta
    assert apart._teacher_head.weight_VD is apart._teacher_head.weight_VD, "copied once"
