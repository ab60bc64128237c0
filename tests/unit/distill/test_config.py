"""What a user may say about a training run, and what is told to one who may not."""

import pytest
from pydantic import ValidationError

from minitron_cli.distill.config import OBJECTIVES, CorrectConfig, DistillConfig, HiddenLosses
from minitron_cli.distill.control import Control
from minitron_cli.errors import RecipeError
from minitron_cli.ticket.config import TicketTraining


def test_defaults_are_the_papers() -> None:
    config = DistillConfig()
    assert (config.learning_rate, config.min_learning_rate, config.warmup_steps) == (1e-4, 1e-5, 40)
    assert config.batch_size == 1152
    assert [loss.kind for loss in config.losses] == ["forward_kl"]
    assert config.hidden is None


def test_tokens_are_rounded_up_to_whole_steps() -> None:
    config = DistillConfig(tokens=1001, batch_size=10)
    assert config.total_steps(sequence_length=50) == 3
    assert config.total_steps(sequence_length=100) == 2
    assert DistillConfig(steps=7).total_steps(sequence_length=50) == 7


def test_an_unsaid_length_is_asked_for() -> None:
    with pytest.raises(RecipeError, match=r"set distill\.tokens or distill\.steps"):
        DistillConfig().total_steps(50)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 5, "steps": 5}, "keep one of them"),
        ({"learning_rate": 1e-5, "min_learning_rate": 1e-4}, "is above learning_rate"),
        ({"losses": []}, "at least 1 item"),
        ({"losses": [{"kind": "forward_kl"}, {"kind": "forward_kl", "temperature": 2}]}, "forward_kl is given twice"),
        ({"losses": [{"kind": "klx"}]}, "'klx' found using 'kind' does not match"),
        ({"losses": [{"kind": "cross_entropy", "temperature": 2}]}, "Extra inputs are not permitted"),
        ({"keep_last": 1}, "greater than or equal to 2"),
        ({"low_memory": True, "losses": [{"kind": "jsd"}]}, "low_memory does not support jsd"),
        ({"losses": [{"kind": "jsd", "beta": 1}]}, "less than 1"),
        ({"hidden": {"weight": 0}}, "above 0, or 'dynamic'"),
        ({"hidden": {"states": ["attention"]}}, "Input should be"),
        (
            {"losses": [{"kind": "cross_entropy"}], "signals": "/gone"},
            "signals=/gone .* no loss needs one; drop signals",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DistillConfig.model_validate(fields)


@pytest.mark.parametrize("kind", [CorrectConfig, TicketTraining])
def test_a_training_without_a_teacher_refuses_what_stands_for_one_or_moves_it(kind: type[DistillConfig]) -> None:
    with pytest.raises(ValidationError, match=r"signals=/gone stand for a teacher.*; drop signals"):
        kind(signals="/gone")
    with pytest.raises(ValidationError, match=r"drop .*teacher_device"):
        kind(teacher_device="cpu")
    assert kind(signals="never").teacher_device == "auto"


def test_a_control_without_a_teacher_leaves_the_named_signals_to_the_others() -> None:
    distill = DistillConfig(steps=1, signals="/signals")
    assert not Control(label="text", objective="ce").applied_to(distill).needs_teacher


def test_who_needs_a_teacher() -> None:
    assert DistillConfig(losses=OBJECTIVES["kl"]).needs_teacher
    assert not DistillConfig(losses=OBJECTIVES["ce"]).needs_teacher
    assert DistillConfig(losses=OBJECTIVES["ce"], hidden=HiddenLosses()).needs_teacher


def test_survives_json() -> None:
    config = DistillConfig(
        steps=3, losses=(*OBJECTIVES["kl"], *OBJECTIVES["ce"]), hidden=HiddenLosses(layers=((3, 1),))
    )
    assert DistillConfig.model_validate_json(config.model_dump_json()) == config


def test_every_option_is_described() -> None:
    for spec in (DistillConfig, HiddenLosses, *(type(loss) for losses in OBJECTIVES.values() for loss in losses)):
        for name, field in spec.model_fields.items():
            assert field.description or name == "kind", f"{spec.__name__}.{name}"
