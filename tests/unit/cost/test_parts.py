"""Parameters of a model by part, against the sums of its tensors."""

import math
import re

import pytest

from minitron_cli.cost.parts import parts
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
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
    assert found.cache_bytes == shape.kv_cache_bytes(1, 1)
