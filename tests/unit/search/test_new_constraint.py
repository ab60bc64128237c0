"""A constraint is added by one file and one name: a toy one goes through a search, its errors and its list."""

import json

import pytest

from tests.extended_package import ExtendedPackage

NAME = "kv_cache_tokens"

CONSTRAINT = '''
"""Constraint on the sequences' tokens that fit into the KV cache."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from minitron_cli.figures import Figure
from minitron_cli.search.constraints.base import Between, Counted
from minitron_cli.spec import Amount

if TYPE_CHECKING:
    from minitron_cli.model.shape import Shape


class KVCacheTokens(Between, Counted):
    """Thousands of tokens whose keys and values fit into a cache of a given size."""

    figure: ClassVar[Figure] = Figure("KV cache", "ktokens", better="higher")

    kind: Literal["kv_cache_tokens"] = "kv_cache_tokens"
    size_bytes: int = Field(2**20, ge=1)
    """Size of the cache."""
    at_least: Amount | None = None
    """Lower limit."""
    at_most: Amount | None = None
    """Upper limit."""

    def cost(self, shape: "Shape") -> float:
        return self.size_bytes / shape.kv_cache_bytes(1, 1, dtype_bytes=2) / 1000
'''

SEARCH = """
import json, sys
from pathlib import Path

from minitron_cli.errors import InfeasibleError
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.search.config import SearchConfig
from minitron_cli.search.constraints import figure_of
from minitron_cli.stages import importance, search
from tests.unit.stages.place import context, data, write_place

root = Path(sys.argv[1])
write_place(root)
parent = open_source_model(root / "model")
config = ImportanceConfig(samples=4, batch_size=2, layer_removal=False)
scores = importance.run(context(root / "run"), parent, data(root), config)
space = {"layer": (2, 3, 4), "ffn": (32,)}

def run(at_least):
    constraint = {"kind": "kv_cache_tokens", "at_least": at_least}
    asked = SearchConfig(constraints=(constraint,), space=space, score_blocks=1, retrain=None)
    return search.run(context(root / "run"), parent, scores, data(root), asked)

found = run("130%")
stored = next(path for path in (found.path / "result.json", found.path / "candidates.json") if path.is_file())
try:
    run("300%")
    refusal = ""
except InfeasibleError as e:
    refusal = str(e)
figure = figure_of("kv_cache_tokens")
costs = {row["shape"]["layer"]: row["costs"]["kv_cache_tokens"] for row in json.loads(stored.read_text())["candidates"]}
shown = {layers: figure.text(cost) for layers, cost in costs.items()}
print(json.dumps({"costs": costs, "shown": shown, "heading": figure.heading, "refusal": refusal}))
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """What a search prints in a copy of the package with one more file, and one more name in the union."""
    package = ExtendedPackage(tmp_path_factory.mktemp("copy"))
    package.add(f"minitron_cli/search/constraints/{NAME}.py", CONSTRAINT)
    before = "from minitron_cli.search.constraints.latency"
    package.name(
        "minitron_cli/search/constraints/__init__.py",
        {
            before: f"from minitron_cli.search.constraints.{NAME} import KVCacheTokens\n{before}",
            "Parameters | Memory": "KVCacheTokens | Parameters | Memory",
        },
    )
    return json.loads(package.run(SEARCH, str(package.root / "place")).splitlines()[-1])


@pytest.mark.slow
def test_shapes_are_admitted_by_the_new_cost_and_listed_with_it(searched):
    # A layer of the tiny Llama caches 2 x 2 heads x 8 x 2 bytes a token.
    expected = {layers: 2**20 / (layers * 2 * 2 * 8 * 2) / 1000 for layers in (2, 3)}
    assert {int(layers): cost for layers, cost in searched["costs"].items()} == pytest.approx(expected)


@pytest.mark.slow
def test_the_new_cost_is_shown_with_its_own_title_and_unit(searched):
    assert searched["heading"] == "KV cache (ktokens)"
    assert searched["shown"]["2"].endswith(" ktokens")


@pytest.mark.slow
def test_a_refusal_names_the_new_cost_and_the_nearest_shape(searched):
    assert "at least 300% of the parent's KV cache" in searched["refusal"]
    assert "nearest layer=2," in searched["refusal"]
    assert "ktokens (-" in searched["refusal"]
