"""The picture of what pruning kept."""

import math
import re

import pytest

from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.report.kept import Parts, kept_plot, parts
from minitron_cli.report.view import KeptBars
from tests.tiny import tiny_config


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_parts_are_the_sums_of_the_tensors_of_each_layer(model_type: str) -> None:
    config = tiny_config(model_type)
    shape = Shape.of(family_of(config), config)
    found = parts(shape)
    sizes = {name: math.prod(dims) for name, dims in shape.tensors().items()}
    for layer in range(shape.sizes["layer"]):
        mine = {name: size for name, size in sizes.items() if f"layers.{layer}." in name}
        ffn = sum(size for name, size in mine.items() if re.search("mlp|moe", name))
        assert (found.mixer[layer], found.ffn[layer]) == (sum(mine.values()) - ffn, ffn)
    assert found.embeddings == sum(size for name, size in sizes.items() if "embed" in name or "lm_head" in name)


def test_a_layer_that_was_dropped_keeps_nothing_and_the_others_their_places() -> None:
    plot = kept_plot(Parts(9, (4, 4, 4), (8, 8, 8)), Parts(7, (3, 2), (6, 5)), [0, 2])
    assert isinstance(plot.drawing, KeptBars)
    bars = [[(bar.before, bar.after) for bar in row] for row in plot.drawing.rows]
    assert bars == [[(9, 7)], [(4, 3), (8, 6)], [(4, 0), (8, 0)], [(4, 2), (8, 5)]]
