"""Price of storing signals: bytes, memory, and when it pays."""

import pytest

from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.price import subject
from minitron_cli.price import teach as work_of
from minitron_cli.recipe import Recipe
from minitron_cli.recipe_work import RecipeWork
from minitron_cli.results.price import Part, Price
from minitron_cli.signals.config import Sampled, TeachConfig, TopK
from tests.tiny import tiny_config

ONCE = TeachConfig()


def making(config: TeachConfig = ONCE, **more: int | str) -> work_of.Teaching:
    typed = tiny_config("llama", vocab_size=151_936)
    teacher = subject.of_config(typed.to_dict(), Shape.of(family_of(typed), typed), "bfloat16")
    return work_of.Teaching(teacher, config, 1024, blocks=1000, held_out_blocks=10, **more)


def test_bytes_are_those_of_what_is_stored() -> None:
    """50 bits of flags, 20 ids of 18 bits and an entropy; or 128 ids with their probabilities."""
    assert making().token_bytes == pytest.approx(50 / 8 + 20 * 18 / 8 + 2 + 32 / 1024)
    assert making(epochs=3).token_bytes == pytest.approx(3 * (50 / 8 + 20 * 18 / 8) + 2 + 64 / 1024)
    top = making(TeachConfig(signals=TopK()))
    assert top.token_bytes == pytest.approx(128 * (18 / 8 + 2) + 32 / 1024)
    assert top.size_bytes == pytest.approx(1010 * 1024 * top.token_bytes, rel=1e-3)


def test_more_draws_have_more_ids_but_never_more_than_draws() -> None:
    ids = [making(TeachConfig(signals=Sampled(draws=n))).ids for n in (1, 10, 50, 200)]
    assert ids == sorted(ids)
    assert ids[0] == 1
    assert ids[2] == work_of.IDS_OF_50


def test_the_teacher_is_held_as_it_computes() -> None:
    held = [work_of.work(making(compute_dtype=name)).certain["teacher"] for name in ("bfloat16", "float32")]
    assert held[1] == 2 * held[0]
    passes = work_of.work(making()).passes
    assert [(one.work, one.tokens) for one in passes] == [("teacher", 1010 * 1024)]


@pytest.mark.parametrize(("beside", "count"), [(0.0, 2), (50.0, 2), (250.0, 4), (None, 2)])
def test_it_pays_once_live_passes_take_longer(beside: float | None, count: int) -> None:
    """A live pass takes 100 seconds: signals take these once, and what is beside them."""
    parts = [Part(name="teacher", flops=1, seconds=90.0), Part(name="teacher, head", flops=1, seconds=10.0)]
    price = Price(what="", parts=(*parts, Part(name="write the signals", seconds=beside)))
    assert work_of.pays_from(price) == count


def test_a_control_without_a_loss_of_the_teacher_is_evaluated_beside_it_although_signals_are_stored() -> None:
    recipe = Recipe.model_validate(
        {
            "model": "m",
            "data": {"sources": [{"kind": "python_help"}], "sequence_length": 16},
            "prune": {"shape": {"ffn": 32}, "repair": "none"},
            "distill": {"steps": 2, "batch_size": 2, "warmup_steps": 0, "precision": "fp32"},
            "teach": {},
            "controls": [
                {"label": "text", "objective": "ce"},
                {"label": "random", "init": "random", "equal": "flops"},
            ],
        }
    )
    typed = tiny_config("llama")
    model = subject.of_config(typed.to_dict(), Shape.of(family_of(typed), typed), "float32")
    works = dict(RecipeWork(recipe, model, model, [model.shape.resize(ffn=32)], "cpu").stages())
    assert "teacher" not in works["distill"].certain
    assert works["distill text"].certain["teacher"] == 4 * model.shape.parameters()
    assert works["distill random"].passes[0] == works["distill"].passes[0]
