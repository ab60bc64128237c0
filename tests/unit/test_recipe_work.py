"""Work of a recipe as a dry run sees it: what the stages will do with the same settings."""

import pytest

from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.price import subject
from minitron_cli.price.work import Work
from minitron_cli.recipe import Recipe
from minitron_cli.recipe_work import RecipeWork
from tests.tiny import tiny_config


def works(
    shapes: list[dict[str, int]], targets: dict[str, list[dict[str, int]]] | None = None, **sections: object
) -> dict[str, Work]:
    """Stage -> its work, for a tiny model and children of these sizes."""
    recipe = Recipe.model_validate(
        {"model": "m", "data": {"sources": [{"kind": "python_help"}], "sequence_length": 8_192}, **sections}
    )
    typed = tiny_config("llama")
    model = subject.of_config(typed.to_dict(), Shape.of(family_of(typed), typed), "float32")
    children = [model.shape.resize(**sizes) for sizes in shapes]
    own = {label: [model.shape.resize(**sizes) for sizes in some] for label, some in (targets or {}).items()}
    return dict(RecipeWork(recipe, model, model, children, "cpu", targets=own).stages())


@pytest.mark.parametrize(("asked", "samples"), [({}, 2), ({"repair_samples": 5}, 5)])
def test_a_repair_is_priced_on_the_samples_that_it_takes(asked: dict[str, int], samples: int) -> None:
    """16,384 tokens of long blocks unless a number is set, not 128 blocks."""
    found = works([{"ffn": 32}], prune={"shape": {"ffn": 32}, **asked})
    assert f"on {samples} samples of 8,192 tokens" in found["prune"].what


def test_each_target_is_priced_by_candidates_of_its_own() -> None:
    large, small = [{"ffn": 40}, {"ffn": 36}], [{"ffn": 20}, {"ffn": 16}]
    found = works(
        [*large, *small],
        {"75%": large, "50%": small},
        prune={"repair": "none", "size": "75%"},
        search={
            "budget": {"target": "75%"},
            "targets": ["50%"],
            "objective": "winogrande:5",
            "retrain": {"tokens": 49_152, "top": 1, "batch_size": 2, "warmup_steps": 0},
        },
    )["search"]
    assert found.left_out == ("task winogrande:5 acc of each candidate",)
    first, second = [one for one in found.passes if one.work == "training"]
    neurons = (40 - 20) * 3 * 32 * 4  # weights of four layers, of two FLOPs each forward and four backward
    assert first.decoder - second.decoder == 6 * neurons * 3 * 2 * 8_192
