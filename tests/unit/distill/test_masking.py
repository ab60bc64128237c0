"""Sparse students: zeros stay zero to the last bit, in weights and moments, and only kept weights are trained."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minitron_cli import progress
from minitron_cli.checkpoint.safetensors_file import read_safetensors
from minitron_cli.data.batches import batch, training_ids
from minitron_cli.distill import checkpoints, sharding
from minitron_cli.distill.config import MaskRefresh
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.masking import Masking
from minitron_cli.distill.optimizer import Optimizer
from minitron_cli.distill.targets import targets
from minitron_cli.distill.trainer import Placement, TrainResult
from minitron_cli.errors import CheckpointError, Interrupted, RunFailed
from minitron_cli.sparse.parameter_masks import ParameterMasks
from minitron_cli.sparse.pattern import Pattern
from tests.processes import together
from tests.quick import slow
from tests.tiny import tiny_model
from tests.unit.distill import small
from tests.unit.distill.masked import lost, mask_
from tests.unit.distill.small import AfterStep, configured
from tests.unit.distill.test_optimizer import kind  # noqa: F401

ALONE = ProcessGroup("cpu", alone=True)
MOMENTS = ("exp_avg", "exp_avg_sq")
REFRESH = MaskRefresh(refresh=2)


def run(
    place: Path, scratch: Path | None = None, pattern: str = "2:4", model: Any = None, **changes: Any
) -> tuple[nn.Module, TrainResult, ParameterMasks]:
    """A masked student after its training, the figures, and its masks before."""
    student = model or small.student()
    masks = mask_(student, place, pattern)
    placement = changes.pop("placement", {})
    config = configured(**{"steps": 5, **changes})
    trained, result = small.run(scratch, config, student=student, masks=masks, **placement)
    return trained, result, masks


def is_zero(weights: Tensor) -> bool:
    """Whether every weight is +0, in every bit."""
    return not weights.contiguous().view(torch.int32).count_nonzero()


def assert_zeros_stayed(student: nn.Module, masks: ParameterMasks) -> None:
    parameters, expected = dict(student.named_parameters()), lost(masks, student)
    assert len(expected) == 14, "seven linear layers of two blocks"
    for name, gone in expected.items():
        p = parameters[name].data
        assert is_zero(p[gone]), name
        assert p[~gone].count_nonzero() == (~gone).sum(), name


@pytest.mark.parametrize(
    ("precision", "pattern"), [("fp32", "2:4"), ("bf16", "50%"), slow("fp32", "50%"), slow("bf16", "2:4")]
)
def test_zeros_stay_zero_and_all_else_is_trained(tmp_path: Path, precision: str, pattern: str) -> None:
    before = small.state(small.student())
    student, _, masks = run(tmp_path / "masks", tmp_path / "run", pattern, precision=precision, micro_batch_size=1)
    assert_zeros_stayed(student, masks)
    for name, p in student.named_parameters():
        gone = lost(masks, student).get(name, torch.zeros(p.shape, dtype=torch.bool))
        assert not torch.equal(p[~gone], before[name][~gone]), name


@pytest.mark.slow
def test_moments_of_lost_weights_are_zero_however_they_are_held(tmp_path: Path, kind: Any) -> None:  # noqa: F811
    model = small.student(hidden=256)  # from 4,096 values moments are in 8 bits
    student, _, masks = run(tmp_path / "masks", tmp_path / "run", model=model, optimizer=kind, weight_decay=0.5)
    assert_zeros_stayed(student, masks)
    optimizer = Optimizer({f"student.{name}": p for name, p in student.named_parameters()}, configured(optimizer=kind))
    optimizer.load_(checkpoints.load(tmp_path / "run", 5), ALONE)
    for name, gone in lost(masks, student).items():
        for moment in MOMENTS:
            values = optimizer._adamw.state[optimizer._updated[f"student.{name}"]][moment]
            values = values.dequantize() if hasattr(values, "dequantize") and kind == "adamw_8bit" else values
            assert not values[gone].count_nonzero(), name
            assert values[~gone].count_nonzero(), name


def interrupted_after(step: int, go: Any) -> None:
    progress.show_on(AfterStep(step, lambda: progress.request_stop(signal.SIGTERM)))
    with pytest.raises(Interrupted):
        go()
    progress.request_stop(None)
    progress.show_on(None)


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["frozen", REFRESH], ids=["frozen", "refreshed"])
def test_a_resumed_run_ends_like_an_undisturbed_one(tmp_path: Path, mask: Any, kind: Any) -> None:  # noqa: F811
    """To the last byte of the state: weights, moments and, if refreshed, the masks."""
    options = {"mask": mask, "optimizer": kind, "export": "best"}
    expected, undisturbed, _ = run(tmp_path / "masks", tmp_path / "whole", **options)
    for step in (1, 3):
        interrupted_after(step, lambda: run(tmp_path / "masks", tmp_path / "cut", **options))
    student, result, _ = run(tmp_path / "masks", tmp_path / "cut", **options)
    assert result.metrics == undisturbed.metrics
    assert result.validation == undisturbed.validation
    weights = small.state(expected)
    assert all(torch.equal(p, weights[name]) for name, p in small.state(student).items())
    ours, theirs = (tmp_path / name / "step-000005/state.safetensors" for name in ("cut", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()


# One optimizer by hand


class OneLinear:
    """One masked matrix of a student, its masks and a gradient per step."""

    name = "model.layers.0.mlp.up_proj.weight"

    def __init__(self, place: Path, **config: Any) -> None:
        model = small.student()
        self.masks = mask_(model, place)
        weight = dict(model.named_parameters())[self.name]
        self.p = nn.Parameter(weight.data.clone())
        self.dense = nn.Parameter(dict(model.named_parameters())["model.norm.weight"].data.clone())
        parameters = {f"student.{self.name}": self.p, "student.model.norm.weight": self.dense}
        self.config = configured(**config)
        refresh = self.config.mask if isinstance(self.config.mask, MaskRefresh) else None
        self.masking = Masking(parameters, self.masks, ALONE, refresh)
        self.optimizer = Optimizer(parameters, self.config, self.masking)
        draw = torch.Generator().manual_seed(0)
        self.gradients = [torch.randn(weight.shape, generator=draw) for _ in range(5)]

    @property
    def kept(self) -> Tensor:
        return ~self.masking.lost[f"student.{self.name}"]

    def step(self, gradient: Tensor, rate: float = 1e-2) -> float:
        """One step; the norm that clipping saw."""
        self.p.grad, self.dense.grad = gradient.clone(), torch.ones_like(self.dense)
        norm = float(self.optimizer.clip_())
        self.optimizer.step_(rate)
        return norm


def adamw(w: Tensor, g: Tensor, state: dict[str, Any], config: Any, rate: float) -> Tensor:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) in fp64."""
    t = state["t"] = state.get("t", 0) + 1
    state["m"] = config.betas[0] * state.get("m", 0) + (1 - config.betas[0]) * g
    state["v"] = config.betas[1] * state.get("v", 0) + (1 - config.betas[1]) * g**2
    m, v = state["m"] / (1 - config.betas[0] ** t), state["v"] / (1 - config.betas[1] ** t)
    return w - rate * config.weight_decay * w - rate * m / (v.sqrt() + 1e-8)


def test_frozen_training_is_adamw_of_the_masked_gradient_and_clips_its_norm(tmp_path: Path) -> None:
    one = OneLinear(tmp_path)
    w, state = one.p.data.double(), dict[str, Any]()
    for gradient in one.gradients:
        g = one.kept * gradient.double()
        norm = (g.square().sum() + one.dense.numel()).sqrt()
        assert one.step(gradient) == pytest.approx(float(norm), rel=1e-6)
        w = one.kept * adamw(w, g / max(1, norm / one.config.clip), state, one.config, 1e-2)
        torch.testing.assert_close(one.p.data.double(), w, rtol=0, atol=1e-6)
        assert is_zero(one.p.data[~one.kept])


def test_refreshed_training_is_adamw_of_a_dense_copy_with_decay_of_lost_weights(tmp_path: Path) -> None:
    """SR-STE: the gradient of the masked weights, plus the decay of lost ones (Zhou et al. 2021)."""
    one = OneLinear(tmp_path, mask={"refresh": 2, "decay": 3.0})
    w, state, first = one.p.data.double(), dict[str, Any](), one.kept
    for i, gradient in enumerate(one.gradients):
        g = gradient.double() + 3.0 * ~one.kept * w
        norm = (g.square().sum() + one.dense.numel()).sqrt()
        assert one.step(gradient) == pytest.approx(float(norm), rel=1e-6)
        w = adamw(w, g / max(1, norm / one.config.clip), state, one.config, 1e-2)
        if i % 2:
            one.optimizer.refresh_masks_()
            assert torch.equal(one.kept, Pattern.parse("2:4").keep(w.abs()))
        torch.testing.assert_close(one.p.data.double(), one.kept * w, rtol=0, atol=1e-6)
    assert w[~one.kept].count_nonzero() == (~one.kept).sum(), "lost weights are trained all the same"
    assert not torch.equal(one.kept, first)


def test_weights_are_masked_after_the_step_whatever_the_optimizer_did(tmp_path: Path) -> None:
    one = OneLinear(tmp_path)
    one.optimizer._updated[f"student.{one.name}"].data[~one.kept] = -1.0
    one.step(one.gradients[0])
    assert is_zero(one.p.data[~one.kept])


# The whole run


def test_the_whole_gradient_s_norm_counts_kept_weights_only(tmp_path: Path) -> None:
    """Against the gradients of one backward pass over the whole batch, masked by hand."""
    _, result, masks = run(tmp_path, steps=1, losses=[{"kind": "cross_entropy"}], warmup_steps=0)
    student = small.student()
    mask_(student, tmp_path)
    blocks = small.TinyBlocks()
    part = batch(blocks, training_ids(0, 0, 4, len(blocks)))
    aim = targets(part)
    inputs = {"input_ids": part.input_ids_BT, "position_ids": part.position_ids_BT}
    logits = student(**inputs, use_cache=False).logits.flatten(0, 1)[aim.rows_N]
    nn.functional.cross_entropy(logits, aim.labels_N).backward()
    gone = lost(masks, student)
    squares = [
        p.grad.masked_fill(gone.get(name, torch.zeros(p.shape, dtype=torch.bool)), 0).square().sum()
        for name, p in student.named_parameters()
    ]
    assert result.metrics[0]["grad_norm"] == pytest.approx(float(torch.stack(squares).sum().sqrt()), rel=1e-5)


@pytest.mark.slow
def test_a_refreshed_run_changes_the_mask_and_keeps_the_pattern(tmp_path: Path) -> None:
    student, _, masks = run(tmp_path / "masks", tmp_path / "run", mask=REFRESH)
    before, changed = lost(masks, student), 0
    state = read_safetensors(tmp_path / "run/step-000005/state.safetensors")
    for name, p in student.named_parameters():
        if name in before:
            gone = state[f"lost.student.{name}"]
            assert Pattern.parse("2:4").holds(~gone)
            assert is_zero(p.data[gone])
            dense = state[f"parameter.student.{name}"]
            assert torch.equal(dense[~gone], p.data[~gone])
            assert dense[gone].count_nonzero(), "the state to resume from is dense"
            changed += int((gone != before[name]).sum())
    assert changed


def test_the_mask_is_not_chosen_again_after_the_last_step(tmp_path: Path) -> None:
    student, _, masks = run(tmp_path, mask={"refresh": 5}, steps=5)
    assert_zeros_stayed(student, masks)


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["frozen", REFRESH], ids=["frozen", "refreshed"])
def test_a_mask_that_keeps_all_changes_no_bit(tmp_path: Path, mask: Any) -> None:
    student, result, _ = run(tmp_path, pattern="4:4", mask=mask)
    expected, wanted = small.run(None, configured(steps=5))
    assert result.metrics == wanted.metrics
    weights = small.state(expected)
    assert all(torch.equal(p, weights[name]) for name, p in small.state(student).items())


def test_a_random_start_has_the_zeros_too(tmp_path: Path) -> None:
    masks = mask_(small.student(), tmp_path)
    student, _ = small.run(None, configured(steps=2, init="random"), student=small.llama(7), masks=masks)
    assert_zeros_stayed(student, masks)


def test_without_masks_all_is_trained(tmp_path: Path) -> None:
    student, _, masks = run(tmp_path, mask="none")
    parameters = dict(student.named_parameters())
    assert all(parameters[name].data[gone].count_nonzero() for name, gone in lost(masks, student).items())


def test_weights_that_should_be_zero_are_refused_before_the_first_step(tmp_path: Path) -> None:
    masks = mask_(small.student(), tmp_path)
    with pytest.raises(CheckpointError, match=r"pruned weights of .*q_proj.* are not zero: sparsify the model again"):
        small.run(None, configured(steps=1), student=small.student(), masks=masks)


def test_a_state_with_a_weight_that_should_be_zero_is_not_saved(tmp_path: Path) -> None:
    student = small.student()
    masks = mask_(student, tmp_path / "masks")

    def damage() -> None:
        student.model.layers[1].mlp.up_proj.weight.data[lost(masks, student)["model.layers.1.mlp.up_proj.weight"]] = 1

    progress.show_on(AfterStep(2, damage))
    with pytest.raises(RunFailed, match=r"layers.1.mlp.up_proj.weight are not zero after step 2, which is not saved"):
        small.run(tmp_path / "run", configured(steps=5), student=student, masks=masks)
    progress.show_on(None)
    assert not list((tmp_path / "run").glob("step-*"))


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["frozen", REFRESH], ids=["frozen", "refreshed"])
def test_joined_experts_are_masked_as_they_are_stored(tmp_path: Path, mask: Any) -> None:
    model = tiny_model("qwen3_moe", vocab_size=small.VOCAB)
    teacher = small.teacher()
    student, _, masks = run(tmp_path, model=model, mask=mask, placement={"teacher": teacher})
    assert any("experts" in name for name in lost(masks, student))
    for name, p in student.named_parameters():
        if masks.covers(name):
            kept = p.data != 0
            if mask == "frozen":
                assert torch.equal(~kept, lost(masks, student)[name])
            assert Pattern.parse("2:4").holds(kept)
    assert "model.layers.0.mlp.experts.0.up_proj.weight" in masks.file, "stored one by one"


def sharded(rank: int, place: Path, scratch: Path, mask: Any, is_sharded: bool) -> tuple[dict[str, Tensor], Any]:
    student, result, _ = run(
        place / str(rank),
        scratch,
        mask=mask,
        sharding="full" if is_sharded else "none",
        placement={"placement": Placement(is_sharded)},
    )
    return {name: p.clone() for name, p in sharding.parameters(student)}, result.metrics


@pytest.mark.slow
@pytest.mark.parametrize("is_sharded", [True, False], ids=["sharded", "replicated"])
@pytest.mark.parametrize("mask", ["frozen", REFRESH], ids=["frozen", "refreshed"])
def test_two_processes_keep_the_zeros_that_one_does(tmp_path: Path, mask: Any, is_sharded: bool) -> None:
    both = together(2, sharded, tmp_path / "masks", tmp_path / "run", mask, is_sharded)
    expected, wanted, _ = run(tmp_path / "masks" / "alone", mask=mask)
    for weights, metrics in both:
        for row, theirs in zip(metrics, wanted.metrics, strict=True):
            assert row == pytest.approx(theirs, rel=1e-5)
        for name, p in expected.named_parameters():
            torch.testing.assert_close(weights[name], p.data, rtol=1e-4, atol=1e-5)
            if name.endswith("proj.weight"):
                assert is_zero(weights[name][p == 0])
                assert torch.equal(weights[name] == 0, p == 0)
    again = together(2, sharded, tmp_path / "masks", tmp_path / "run", mask, is_sharded)
    assert all(torch.equal(again[0][0][name], p) for name, p in both[0][0].items()), "loaded from the saved state"


def test_runs_of_dense_models_have_the_identity_that_they_had() -> None:
    assert "mask" not in configured().model_dump()
    assert configured(mask={"refresh": 3}).model_dump()["mask"] == {"refresh": 3, "decay": 2e-4}
    assert configured(mask="none").model_dump()["mask"] == "none"
