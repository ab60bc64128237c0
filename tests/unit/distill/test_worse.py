"""A training that makes the model worse on held-out text: found, said, kept, and not passed on."""

from pathlib import Path
from typing import Any

import pytest

from minitron_cli import pipeline
from minitron_cli.checkpoint import model_names
from minitron_cli.distill import training_run
from minitron_cli.distill.config import CorrectConfig, DistillConfig
from minitron_cli.errors import RunFailed
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.prune.config import PruneConfig
from minitron_cli.recipe import Step
from minitron_cli.results.training import MAX_RISE, CorrectionResult, TrainingResult, ValidationPoint, Worsening
from minitron_cli.stages import correct, distill
from tests.unit.distill.test_training_run import place, student_of
from tests.unit.stages.place import context, data
from tests.unit.test_chain import recipe

__all__ = ["place"]

SHORT: dict[str, Any] = {
    "steps": 4,
    "batch_size": 2,
    "micro_batch_size": 2,
    "warmup_steps": 0,
    "min_learning_rate": 0,
    "eval_every": 1,
    "eval_blocks": 2,
    "precision": "fp32",
}
DIVERGING = DistillConfig(**SHORT, learning_rate=5)
CE = CorrectConfig().losses


def points(*values: float) -> list[ValidationPoint]:
    """Evaluations with these KLs, and losses that always fall."""
    return [ValidationPoint(step=i, tokens=i, loss=9 - i, kl=value) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "is_worse", "is_above_start"),
    [
        ((2.0, 1.0), False, False),
        ((2.0, 2.0), False, False),
        ((2.0, 2.000001), True, True),
        ((2.0, 9.0, 1.0), False, False),
        ((2.0, 1.0, 1 + MAX_RISE), False, False),
        ((2.0, 1.0, 1.001 + MAX_RISE), True, False),
        ((2.0, 1.0, 58.0), True, True),
        ((0.0, 1e-6), True, True),
        ((2.0,), False, False),
        ((4e-4, -1e-3, -2e-3), False, False),  # an unbiased estimate of a KL may be below 0
        ((4e-4, -2e-3, -1.7e-3), True, False),
    ],
)
def test_worse_is_above_the_start_or_far_above_the_lowest(
    values: tuple[float, ...], is_worse: bool, is_above_start: bool
) -> None:
    made = points(*values)
    found = Worsening.of(made, made[-1], "kl")
    assert (found is not None) == is_worse
    if found:
        assert (found.before, found.lowest, found.after) == (values[0], min(values), values[-1])
        assert found.is_above_start == is_above_start
    assert Worsening.of(made, made[-1], "loss") is None, "only the objective counts"


def test_exported_weights_count_and_not_the_last_ones() -> None:
    made = points(2.0, 1.0, 58.0)
    assert Worsening.of(made, made[1], "kl") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("losses", "init"),
    [
        (DistillConfig().losses, "student"),
        pytest.param(CE, "student", marks=pytest.mark.slow),
        pytest.param(DistillConfig().losses, "random", marks=pytest.mark.slow),
        pytest.param(CE, "random", marks=pytest.mark.slow),
    ],
    ids=["kl", "ce", "kl-random", "ce-random"],
)
def test_a_training_is_judged_by_its_own_objective_and_its_own_start(
    place: Path, tmp_path: Path, losses: Any, init: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr("minitron_cli.progress.warn", warned.append)
    config = DIVERGING.model_copy(update={"losses": losses, "init": init})
    run = context(tmp_path), open_source_model(place / "model"), student_of(place), data(place)
    result = distill.run(*run, config).result(TrainingResult)
    assert result.worse
    assert result.worse.measure == ("kl" if config.needs_teacher else "loss")
    assert result.before
    assert result.worse.before == getattr(result.before, result.worse.measure)
    assert result.worse.after > result.worse.before
    assert [text.startswith("distill: held-out ") for text in warned] == [True]
    with pytest.raises(RunFailed, match=r"^distill: held-out .* nats per token, from .* before: lower distill\."):
        training_run.check_not_worse(result, "distill")
    distill.run(*run, config)
    assert len(warned) == 2, "said again of a result that is up to date"
    sound = distill.run(*run, config.model_copy(update={"learning_rate": 1e-3})).result(TrainingResult)
    assert sound.worse is None
    training_run.check_not_worse(sound, "distill")


def test_without_held_out_text_nothing_is_claimed() -> None:
    blind = TrainingResult.model_construct(after=None, worse=None)
    with pytest.raises(RunFailed, match="no held-out text tells whether the training made it worse"):
        training_run.check_not_worse(blind, "distill")


@pytest.mark.slow
def test_a_teacher_that_correction_made_worse_does_not_teach(place: Path, tmp_path: Path) -> None:
    here, parent = context(tmp_path), open_source_model(place / "model")
    worse = correct.run(here, parent, data(place), CorrectConfig(**SHORT, learning_rate=5))
    assert worse.result(CorrectionResult).worse
    assert correct.of(here, parent) is None
    better = correct.run(here, parent, data(place), CorrectConfig(**SHORT, learning_rate=1e-3))
    assert correct.of(here, parent) == better


@pytest.mark.slow
@pytest.mark.parametrize("learning_rate", [5, 1e-4])
def test_a_chain_goes_on_from_the_better_of_the_two(place: Path, tmp_path: Path, learning_rate: float) -> None:
    steps = tuple(Step(label=f"ffn-{n}", prune=PruneConfig(shape={"ffn": n}, repair="none")) for n in (32, 16))
    config = DistillConfig(**SHORT, learning_rate=learning_rate)
    asked = recipe(place / "model", data(place), steps=steps, distill=config)
    first, second = pipeline.run(asked, context(tmp_path / "run"))
    is_worse = learning_rate == 5
    assert first.product == (first.prune if is_worse else first.distilled["distilled"])
    assert second.prune.manifest.inputs["model"] == model_names.resolve(str(first.product.path)).fingerprint()
    if is_worse:
        with pytest.raises(RunFailed, match=r"lower distill\.learning_rate, or train without --fail-if-worse"):
            pipeline.run(asked, context(tmp_path / "run"), fail_if_worse=True)
