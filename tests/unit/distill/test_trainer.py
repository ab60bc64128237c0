"""The loop: exact to resume, exact in its averages, and stopped before it does harm."""

import math
import shutil
import signal
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from minitron_cli import progress
from minitron_cli.data.batches import training_ids
from minitron_cli.distill import checkpoints
from minitron_cli.distill.config import OBJECTIVES, CorrectConfig, DistillConfig, HiddenLosses
from minitron_cli.distill.hidden_state_losses import Norms, state_pairs
from minitron_cli.distill.schedule import step_seed
from minitron_cli.distill.trainer import TrainResult, train
from minitron_cli.errors import ArtifactError, CheckpointError, DataError, Interrupted, RecipeError, RunFailed
from minitron_cli.retraining import RetrainingConfig
from minitron_cli.search.config import Retrain
from tests.quick import first_quick
from tests.unit.distill import small
from tests.unit.distill.small import CONFIG, AfterStep, TinyBlocks, configured, run

HIDDEN = HiddenLosses(states=("block_output", "mlp_input", "embedding"))
NORMS = Norms("model.layers.{layer}.input_layernorm", "model.layers.{layer}.post_attention_layernorm", "model.norm")
PAIRS = state_pairs(HIDDEN, NORMS, teacher_layers=3, student_layers=2)

# Dropout, tied heads and a learned projection: everything that a resumed run could forget.
FULL = configured(hidden=HIDDEN.model_dump(), losses=[{"kind": "forward_kl"}, {"kind": "cross_entropy", "weight": 0.3}])
ONE_STEP = configured(steps=1, warmup_steps=0)


def full_run(scratch: Path | None, **options: Any) -> tuple[LlamaForCausalLM, TrainResult]:
    student = small.student(attention_dropout=0.3, tie_word_embeddings=True)
    return run(scratch, options.pop("config", FULL), student=student, pairs=PAIRS, **options)


def figures(result: TrainResult) -> tuple[Any, ...]:
    return result.steps, result.tokens, result.metrics, result.validation


def assert_same_bits(ours: tuple[LlamaForCausalLM, TrainResult], theirs: tuple[LlamaForCausalLM, TrainResult]) -> None:
    assert figures(ours[1]) == figures(theirs[1])
    a, b = small.state(ours[0]), small.state(theirs[0])
    assert all(torch.equal(a[name], b[name]) for name in b)


def stopping_after(step: int) -> AfterStep:
    display = AfterStep(step, lambda: progress.request_stop(signal.SIGTERM))
    progress.show_on(display)
    return display


def interrupt_after(step: int, go: Callable[[], Any]) -> None:
    stopping_after(step)
    with pytest.raises(Interrupted) as interrupted:
        go()
    assert interrupted.value.exit_code == 143
    progress.request_stop(None)
    progress.show_on(None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, TrainResult, list[int], bytes]:
    scratch, blocks = tmp_path_factory.mktemp("undisturbed"), TinyBlocks()
    student, result = full_run(scratch, blocks=blocks)
    return student, result, blocks.seen, (scratch / "step-000006/state.safetensors").read_bytes()


@pytest.mark.parametrize("cuts", first_quick([(2, 4), (1,), (3,), (6,), (1, 2, 3), (3, 4, 5)]))
def test_an_interrupted_run_ends_like_an_undisturbed_one(
    tmp_path: Path, undisturbed: Any, cuts: tuple[int, ...]
) -> None:
    """Weights, moments, projection, figures, and the order of the data, to the last bit."""
    seen: list[int] = []
    for cut in cuts:
        blocks = TinyBlocks()
        interrupt_after(cut, lambda blocks=blocks: full_run(tmp_path, blocks=blocks))
        seen += blocks.seen
        assert checkpoints.load(tmp_path, cut).step == cut, "saved at the step that it stopped after"
    blocks = TinyBlocks()
    resumed = full_run(tmp_path, blocks=blocks)
    assert_same_bits(resumed, undisturbed[:2])
    assert seen + blocks.seen == undisturbed[2]
    assert (tmp_path / "step-000006/state.safetensors").read_bytes() == undisturbed[3]


@pytest.mark.parametrize("killed_in", first_quick([3, 1, 6]))
def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path: Path, undisturbed: Any, killed_in: int) -> None:
    """Nothing is saved at the kill: steps since the last checkpoint are done again."""

    class Kill(BaseException):
        pass

    def kill() -> None:
        raise Kill

    progress.show_on(AfterStep(killed_in, kill))
    with pytest.raises(Kill):
        full_run(tmp_path)
    progress.show_on(None)
    assert_same_bits(full_run(tmp_path), undisturbed[:2])


@pytest.mark.slow
def test_a_stop_during_an_evaluation_saves_too(tmp_path: Path, undisturbed: Any) -> None:
    class StopInside(TinyBlocks):
        def tokens(self, i: int) -> torch.Tensor:
            if len(self.seen) == 7:  # five blocks before step 1, the second one after step 3
                progress.request_stop(signal.SIGINT)
            return super().tokens(i)

    with pytest.raises(Interrupted) as interrupted:
        full_run(tmp_path, held_out=StopInside(5, seed=1))
    assert interrupted.value.exit_code == 130
    progress.request_stop(None)
    assert checkpoints.load(tmp_path, 3).record["validation"][-1]["step"] == 0
    assert_same_bits(full_run(tmp_path), undisturbed[:2])


@pytest.mark.parametrize("place", first_quick(["backward", "forward", "second micro-batch"]))
def test_a_stop_inside_a_step_drops_the_step(tmp_path: Path, undisturbed: Any, place: str) -> None:
    """In step 3, each of two micro-batches: the state after step 2 is saved, and nothing of step 3 is in it."""
    student, passes = small.student(attention_dropout=0.3, tie_word_embeddings=True), []

    def ask(*_: Any) -> None:
        if student.training:
            passes.append(1)
        if len(passes) == 5 + (place == "second micro-batch"):
            progress.request_stop(signal.SIGTERM)

    def ask_in_backward(module: Any, inputs: Any, output: Any) -> None:
        if output.requires_grad:
            output.register_hook(ask)

    layer = student.model.layers[1]
    layer.register_forward_hook(ask_in_backward if place == "backward" else ask)
    with pytest.raises(Interrupted):
        run(tmp_path, FULL, student=student, pairs=PAIRS)
    assert all(p.grad is None for p in student.parameters())
    progress.request_stop(None)
    assert checkpoints.load(tmp_path, 2).step == 2
    assert_same_bits(full_run(tmp_path), undisturbed[:2])


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path: Path, undisturbed: Any) -> None:
    interrupt_after(5, lambda: full_run(tmp_path))
    with open(tmp_path / "step-000005/state.safetensors", "r+b") as file:
        file.seek(-3, 2)
        file.write(b"\xff")
    display = AfterStep()
    progress.show_on(display)
    assert_same_bits(full_run(tmp_path), undisturbed[:2])
    assert "step-000005 is damaged" in display.warned[0]
    assert "continuing after step 4" in display.messages[0]


def test_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    run(tmp_path, configured(save_every=1, keep_last=3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000004", "step-000005", "step-000006"]


@pytest.mark.slow
def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path, undisturbed: Any) -> None:
    full_run(tmp_path)
    blocks = TinyBlocks()
    again = full_run(tmp_path, blocks=blocks)
    assert_same_bits(again, undisturbed[:2])
    assert blocks.seen == []
    assert again[1].throughput["steps"] == 0


@pytest.mark.slow
def test_without_resume_it_starts_over(tmp_path: Path, undisturbed: Any) -> None:
    interrupt_after(3, lambda: full_run(tmp_path))
    blocks = TinyBlocks()
    assert_same_bits(full_run(tmp_path, blocks=blocks, resume=False), undisturbed[:2])
    assert blocks.seen == undisturbed[2]


@pytest.mark.slow
def test_another_runs_checkpoints_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ArtifactError, match="another run"):
        run(tmp_path, configured(learning_rate=2e-2))
    with pytest.raises(ArtifactError, match="another run"):
        run(tmp_path, blocks=TinyBlocks(seed=5))
    run(tmp_path, configured(save_every=1, keep_last=5))  # which changes no number


@pytest.mark.slow
def test_without_a_directory_nothing_is_saved_and_the_numbers_are_the_same(undisturbed: Any) -> None:
    assert_same_bits(full_run(None), undisturbed[:2])


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path) -> None:
    student, teacher = small.student(), small.teacher()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    run(None, ONE_STEP, student=student, teacher=teacher)
    assert torch.equal(torch.rand(3), expected)


def test_blocks_come_in_the_order_of_the_seed() -> None:
    for seed in (0, 1):
        blocks = TinyBlocks()
        run(None, configured(seed=seed, steps=3, batch_size=8, micro_batch_size=8), blocks=blocks, held_out=None)
        assert blocks.seen == training_ids(seed, 0, 24, 10)


def test_dropout_is_on_in_training_and_off_in_evaluation() -> None:
    sober, dropping = (run(None, ONE_STEP, student=small.student(attention_dropout=p))[1] for p in (0.0, 0.3))
    assert dropping.metrics[0]["loss"] != pytest.approx(sober.metrics[0]["loss"], rel=1e-4)
    assert dropping.validation[0] == sober.validation[0]


def test_every_step_has_dropout_of_its_own() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(5) for step in range(50) for rank in range(5)}
    assert len(seeds) == 5 * 50 * 5


def test_a_step_seeds_its_dropout_by_its_number_and_so_does_a_resumed_one(tmp_path: Path) -> None:
    seeds: list[int] = []

    def note(module: torch.nn.Module, inputs: object) -> None:
        if module.training:
            seeds.append(torch.initial_seed())

    config = configured(seed=3, micro_batch_size=4)
    for until in (2, None):
        student = small.student()
        student.model.layers[0].register_forward_pre_hook(note)
        run(tmp_path, config, student=student, until=until)
    assert seeds == [step_seed(3, step, rank=0) for step in range(config.steps or 0)]


# Averages


@pytest.mark.parametrize("micro_batch_size", first_quick([3, 1, 5]))
def test_how_a_batch_is_divided_changes_rounding_only(micro_batch_size: int) -> None:
    """Blocks have unequal numbers of counted tokens, so a mean of means would be off by far more than fp32 rounding.

    Without dropout, whose random numbers are drawn per part.
    """
    options = {"batch_size": 8, "steps": 3, "clip": 1e9}
    whole, parts = (
        run(None, configured(**{**FULL.model_dump(), **options, "micro_batch_size": size}), pairs=PAIRS)
        for size in (8, micro_batch_size)
    )
    for a, b in zip(whole[1].metrics, parts[1].metrics, strict=True):
        assert a == pytest.approx(b, rel=2e-5)
    for name, parameter in small.state(whole[0]).items():
        torch.testing.assert_close(parameter, small.state(parts[0])[name], rtol=1e-3, atol=1e-5)


def test_the_first_step_is_adamw_on_the_mean_over_all_tokens() -> None:
    """Against HF's full logits, torch's KL and a plain AdamW."""
    config = configured(steps=1, warmup_steps=0, clip=0.05, weight_decay=20.0)
    ours, result = run(None, config)
    student, teacher, blocks = small.student(), small.teacher(), TinyBlocks()
    ids = torch.stack([blocks.ids[i] for i in _first_ids(config)])
    positions = torch.stack([blocks.positions(i) for i in _first_ids(config)])
    counted = positions[:, 1:] != 0
    logits = student(ids, position_ids=positions, use_cache=False).logits[:, :-1][counted]
    with torch.no_grad():
        expected = teacher(ids, position_ids=positions, use_cache=False).logits[:, :-1][counted]
    loss = F.kl_div(logits.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean")
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), config.clip)
    matrices = [p for p in student.parameters() if p.ndim > 1]
    norms = [p for p in student.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 20.0}, {"params": norms, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=config.min_learning_rate, betas=config.betas, fused=False).step()
    assert result.metrics[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert result.metrics[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert result.metrics[0]["grad_norm"] > config.clip, "so that clipping is tested"
    for name, parameter in small.state(student).items():
        torch.testing.assert_close(small.state(ours)[name], parameter, rtol=1e-4, atol=1e-6)


def _first_ids(config: DistillConfig) -> list[int]:
    blocks = TinyBlocks()
    train(small.student(), small.teacher(), blocks, None, config, None)
    return blocks.seen


@pytest.mark.slow
def test_the_dynamic_weight_makes_hidden_states_count_as_much_as_logits() -> None:
    _, result = run(None, FULL, pairs=PAIRS)
    assert result.metrics[0]["hidden_weight"] == 0
    for before, row in pairwise(result.metrics):
        on_logits = before["forward_kl"] + 0.3 * before["cross_entropy"]
        assert row["hidden_weight"] == pytest.approx(on_logits / before["hidden"])
        assert row["loss"] == pytest.approx(
            row["forward_kl"] + 0.3 * row["cross_entropy"] + row["hidden_weight"] * row["hidden"]
        )


@pytest.mark.slow
def test_hidden_losses_bring_hidden_states_closer() -> None:
    fixed = configured(hidden={**HIDDEN.model_dump(), "weight": 10.0}, steps=12, learning_rate=2e-2)
    metrics = run(None, fixed, pairs=PAIRS)[1].metrics
    assert metrics[-1]["hidden"] < 0.7 * metrics[0]["hidden"]


# What is learned, and how it is measured


def test_the_student_gets_closer_to_its_teacher() -> None:
    held_out = TinyBlocks(5, seed=1)
    _, result = run(
        None, configured(steps=16, eval_every=4, learning_rate=2e-2), blocks=TinyBlocks(64), held_out=held_out
    )
    kl = [row["kl"] for row in result.validation]
    assert [row["step"] for row in result.validation] == [0, 4, 8, 12, 16]
    assert kl[-1] < 0.8 * kl[0]


def test_held_out_figures_against_full_logits() -> None:
    student, teacher, blocks = small.student(), small.teacher(), TinyBlocks(5, seed=1)
    ids, positions = blocks.ids, torch.stack([blocks.positions(i) for i in range(5)])
    counted = positions[:, 1:] != 0
    with torch.no_grad():
        logits, expected = (
            model(ids, position_ids=positions, use_cache=False).logits[:, :-1][counted] for model in (student, teacher)
        )
    row = run(None, ONE_STEP, held_out=blocks)[1].validation[0]
    assert row["loss"] == pytest.approx(F.cross_entropy(logits, ids[:, 1:][counted]).item(), rel=1e-5)
    kl = F.kl_div(logits.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean")
    assert row["kl"] == pytest.approx(kl.item(), rel=1e-5)


def test_a_copy_of_the_teacher_has_nothing_to_learn() -> None:
    result = run(None, configured(steps=1), student=small.teacher())[1]
    assert result.validation[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert result.metrics[0]["loss"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_evaluating_more_often_changes_no_step() -> None:
    often, seldom = (run(None, configured(eval_every=n)) for n in (1, 100))
    assert often[1].metrics == seldom[1].metrics
    assert [row["step"] for row in often[1].validation] == [0, 1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in seldom[1].validation] == [0, 6]


def test_evaluation_blocks_are_spread_over_all_of_them() -> None:
    held_out = TinyBlocks(9, seed=1)
    run(None, configured(steps=1, eval_blocks=3), held_out=held_out)
    assert held_out.seen == [0, 3, 6] * 2


@pytest.mark.slow
def test_cross_entropy_alone_needs_no_teacher_but_is_compared_with_one() -> None:
    config = configured(losses=[loss.model_dump() for loss in OBJECTIVES["ce"]])
    with_teacher = run(None, config)
    assert with_teacher[1].validation[0]["kl"] > 0
    student = small.student()
    result = train(student, None, TinyBlocks(), TinyBlocks(5, seed=1), config, None)
    assert result.metrics == with_teacher[1].metrics
    assert result.validation[0].keys() == {"step", "tokens", "loss"}


@pytest.mark.slow
def test_figures_are_told_by_step_and_tokens() -> None:
    result = run(None)[1]
    assert [row["step"] for row in result.metrics] == [1, 2, 3, 4, 5, 6]
    assert [row["tokens"] for row in result.metrics] == [4 * 12 * step for step in range(1, 7)]
    assert result.metrics[1]["learning_rate"] == CONFIG.learning_rate
    assert result.metrics[-1]["learning_rate"] == pytest.approx(CONFIG.min_learning_rate)
    assert result.throughput["tokens"] == result.tokens == 4 * 12 * 6


@pytest.mark.slow
def test_teacher_and_rotary_frequencies_stay_as_they_are_in_bf16() -> None:
    student, teacher = small.student(), small.teacher()
    before = small.state(teacher)
    exact = run(None, student=small.student())[1]
    products = set()
    student.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda module, inputs, output: products.add((module.training, output.dtype))
    )
    rounded = run(None, configured(precision="bf16"), student=student, teacher=teacher)[1]
    assert all(p.dtype == torch.float32 for p in student.parameters())
    before_it_all = (False, torch.float32)  # the check of the head
    assert products == {before_it_all, (False, torch.bfloat16), (True, torch.bfloat16)}
    assert teacher.model.rotary_emb.inv_freq.dtype == torch.float32
    assert all(torch.equal(p, before[name].bfloat16()) for name, p in small.state(teacher).items())
    # bf16 keeps 8 bits: per cents of the loss of a single step, not of its course.
    for a, b in zip(rounded.metrics, exact.metrics, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.05)


@pytest.mark.slow
def test_a_bf16_student_is_trained_in_fp32() -> None:
    student = small.student().bfloat16()
    run(None, student=student)
    assert all(p.dtype == torch.float32 for p in student.parameters())
    assert not student.training


# Which weights come out


BEST = configured(steps=12, eval_every=2, save_every=5, export="best", learning_rate=0.3, min_learning_rate=0.3)


def lowest(result: TrainResult) -> int:
    return int(min(result.validation, key=lambda row: row["loss"])["step"])


@pytest.mark.slow
def test_the_best_weights_are_those_of_the_lowest_held_out_loss(tmp_path: Path) -> None:
    """So large a step makes the student worse in the end."""
    student, result = run(tmp_path, BEST)
    assert 0 < lowest(result) < 12
    assert result.exported == lowest(result)
    assert sorted(path.name for path in tmp_path.iterdir() if "best" in path.name) == [f"best-{result.exported:06d}"]
    again = configured(**{**BEST.model_dump(), "steps": 1, "learning_rate": 1e-12, "min_learning_rate": 0.0})
    found = run(None, again, student=student)[1].validation[0]["loss"]
    assert found == pytest.approx(min(row["loss"] for row in result.validation), rel=1e-6)
    last, result = run(None, configured(**{**BEST.model_dump(), "export": "last"}))
    assert result.exported == 12
    assert not torch.equal(small.state(last)["model.norm.weight"], small.state(student)["model.norm.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("cut", [7, 2, 3, 12])
def test_a_resumed_run_has_the_same_best(tmp_path: Path, cut: int) -> None:
    undisturbed = run(tmp_path / "a", BEST)
    interrupt_after(cut, lambda: run(tmp_path / "b", BEST))
    resumed = run(tmp_path / "b", BEST)
    assert_same_bits(resumed, undisturbed)
    assert resumed[1].exported == undisturbed[1].exported


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "again", "best"),
    [((4, 3, 2), (3, 3.5, 3.5), 2), ((3, 4, 2), (4, 3.5, 3.5), 1)],
    ids=["evaluated as it was saved", "evaluated before"],
)
def test_the_best_of_steps_that_are_done_again_does_not_take_the_place_of_an_earlier_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: Sequence[float], again: Sequence[float], best: int
) -> None:
    """As on an accelerator, where a resumed run is the same but for rounding: now step 3 is no longer the best."""
    config = configured(steps=4, warmup_steps=0, eval_every=1, save_every=2, export="best")

    def dies(row: dict[str, float]) -> None:
        if row["step"] == 4 and "loss" in row:
            raise KeyboardInterrupt

    def losses(*values: float) -> None:
        left = iter(values)
        monkeypatch.setattr("minitron_cli.distill.trainer.evaluate", lambda *_: {"loss": next(left)})

    losses(5, *before)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, config, log=dies)
    assert {"step-000002", "best-000003"} <= {path.name for path in tmp_path.iterdir()}
    losses(*again)
    monkeypatch.setattr(progress, "warn", lambda text: pytest.fail(text))
    assert run(tmp_path, config)[1].exported == best
    assert [path.name for path in tmp_path.iterdir() if "best" in path.name] == [f"best-{best:06d}"]


@pytest.mark.parametrize("export", ["last", "best"])
def test_a_stop_in_the_step_after_an_evaluation_does_not_repeat_it(tmp_path: Path, export: str) -> None:
    """The state that is saved then holds the evaluation, of a step that was not saved before."""
    config = configured(steps=4, warmup_steps=0, eval_every=2, save_every=100, export=export)
    undisturbed = run(tmp_path / "a", config)

    def stops(row: dict[str, float]) -> None:
        if row["step"] == 2 and "held_out/loss" in row:
            progress.request_stop(signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(tmp_path / "b", config, log=stops)
    progress.request_stop(None)
    assert checkpoints.load(tmp_path / "b", 2).record["validation"][-1]["step"] == 2
    resumed = run(tmp_path / "b", config)
    assert_same_bits(resumed, undisturbed)
    assert [row["step"] for row in resumed[1].validation] == [0, 2, 4]
    assert resumed[1].exported == undisturbed[1].exported


@pytest.mark.slow
def test_best_weights_that_were_lost_give_way_to_the_last(tmp_path: Path) -> None:
    undisturbed = run(None, configured(**{**BEST.model_dump(), "export": "last"}))
    best = lowest(run(tmp_path, BEST)[1])
    (tmp_path / f"best-{best:06d}" / "state.safetensors").unlink()
    display = AfterStep()
    progress.show_on(display)
    found = run(tmp_path, BEST)
    assert "are missing or damaged" in display.warned[0]
    assert_same_bits(found, undisturbed)


# What is told on the way


@pytest.mark.slow
def test_the_progress_line_tells_speed_and_how_much_of_the_device_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, Any]] = []

    class Kept(AfterStep):
        def start(self, title: str, total: int | None, unit: str) -> progress.Step:
            return lambda n=1, **figures: shown.append(figures)

    monkeypatch.setattr("minitron_cli.distill.trainer.peak_flops", lambda device, precision: 1e9)
    progress.show_on(Kept())
    throughput = run(None)[1].throughput
    assert shown[-1].keys() == {"loss", "tokens/s", "MFU"}
    tokens_per_second = float(throughput["tokens_per_second"])
    # Two FLOPs per weight and token, the embedding aside, and four per head channel and position: 6 of 12 on average.
    student, teacher = (2 * weights + 4 * layers * 16 * 6 for weights, layers in ((STUDENT, 2), (TEACHER, 3)))
    assert throughput["flops_per_step"] == 4 * 12 * (3 * student + teacher)
    assert throughput["mfu"] == pytest.approx(tokens_per_second * (3 * student + teacher) / 1e9, rel=1e-2)
    assert throughput["training_seconds"] <= throughput["seconds"]


# Matrices of the two models: q, k, v, o, three of the MLP, and the head.
STUDENT = 2 * (16 * 16 * 2 + 16 * 8 * 2 + 16 * 24 * 3) + 61 * 16
TEACHER = 3 * (24 * 16 * 2 + 24 * 8 * 2 + 24 * 24 * 3) + 61 * 24


def test_every_row_is_logged_as_it_comes() -> None:
    rows: list[dict[str, float]] = []
    result = run(None, log=rows.append)[1]
    assert [row for row in rows if "grad_norm" in row] == result.metrics
    assert [row["held_out/loss"] for row in rows if "held_out/loss" in row] == [r["loss"] for r in result.validation]


# What stops it


def nan_teacher_after(step: int, teacher: LlamaForCausalLM) -> None:
    def poison() -> None:
        teacher.model.norm.weight.data[0] = math.nan

    progress.show_on(AfterStep(step, poison))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path: Path) -> None:
    student, teacher, blocks = small.student(), small.teacher(), TinyBlocks()
    nan_teacher_after(3, teacher)
    with pytest.raises(
        RunFailed, match=r"loss is nan in step 4, on samples .*the state after step 2 is kept.*lower"
    ) as e:
        run(tmp_path, configured(eval_every=100), student=student, teacher=teacher, blocks=blocks)
    assert f"samples {', '.join(map(str, blocks.seen[-4:]))} (" in str(e.value)
    assert checkpoints.newest(tmp_path, _identity_of(tmp_path)) == 2
    progress.show_on(None)
    expected = small.student()
    shutil.rmtree(tmp_path)
    interrupt_after(3, lambda: run(tmp_path, configured(eval_every=100), student=expected))
    for name, parameter in small.state(expected).items():
        assert torch.equal(small.state(student)[name], parameter), "as after step 3"
    assert all(p.grad is None for p in student.parameters())


def _identity_of(scratch: Path) -> str:
    from minitron_cli import strict_json

    return str(strict_json.load(next(scratch.glob("step-*")) / "state.json")["content"]["run"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_too(value: float) -> None:
    student = small.student()
    student.model.layers[0].mlp.up_proj.weight.register_hook(lambda gradient: gradient * value)
    before = small.state(student)
    with pytest.raises(RunFailed, match=r"gradient norm is (nan|inf) in step 1.*no state was saved yet"):
        run(None, student=student)
    assert all(torch.equal(p, before[name]) for name, p in small.state(student).items())


@pytest.mark.parametrize(
    ("config", "section"),
    [
        (CONFIG, "distill"),
        (CorrectConfig(steps=2, batch_size=4, warmup_steps=0), "correct"),
        (RetrainingConfig.of(Retrain(tokens=96, batch_size=4, warmup_steps=0), seed=0), "search.retrain"),
    ],
)
def test_what_is_to_be_lowered_is_named_as_a_recipe_has_it(config: DistillConfig, section: str) -> None:
    student = small.student()
    student.model.layers[0].mlp.up_proj.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(RunFailed, match=rf"^{section}: gradient norm .*: lower {section}\.learning_rate"):
        run(None, config, student=student)


def test_held_out_figures_that_are_not_finite_stop_too(tmp_path: Path) -> None:
    teacher = small.teacher()
    nan_teacher_after(3, teacher)
    with pytest.raises(RunFailed, match="held-out KL to the teacher is nan in step 3, on held-out text"):
        run(tmp_path, configured(save_every=3), teacher=teacher)
    assert checkpoints.load(tmp_path, 3).step == 3


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_damaged_model_is_refused_by_the_name_of_its_tensor(role: str) -> None:
    model = small.student() if role == "student" else small.teacher()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = math.inf
    with pytest.raises(CheckpointError, match=rf"the {role}'s model.layers.1.mlp.up_proj.weight holds NaN or inf"):
        run(None, **{role: model})


def test_a_stop_before_the_first_step_changes_nothing(tmp_path: Path) -> None:
    progress.request_stop(signal.SIGINT)
    student = small.student()
    before = small.state(student)
    with pytest.raises(Interrupted):
        train(student, small.teacher(), TinyBlocks(), TinyBlocks(5, seed=1), CONFIG, tmp_path)
    assert all(torch.equal(p, before[name]) for name, p in small.state(student).items())
    assert list(tmp_path.iterdir()) == []


def test_no_blocks_are_refused() -> None:
    with pytest.raises(DataError, match="do not fill a block: add text"):
        run(None, blocks=_Empty())


class _Empty(TinyBlocks):
    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize(("config", "section"), [(configured(steps=None), "distill"), (CorrectConfig(), "correct")])
def test_an_unsaid_length_is_refused(config: DistillConfig, section: str) -> None:
    with pytest.raises(RecipeError, match=rf"^{section}: .*set {section}\.tokens or {section}\.steps"):
        run(None, config)


def test_what_has_no_effect_is_said() -> None:
    display = AfterStep()
    progress.show_on(display)
    run(None, configured(hidden=HIDDEN.model_dump(), steps=1, warmup_steps=1))
    run(None, ONE_STEP, held_out=_Empty())
    assert "the learning rate only rises" in display.warned[0]
    assert "distill.hidden has no effect" in display.warned[1]
    assert "nothing is evaluated" in display.warned[2]
    assert len(display.warned) == 3
