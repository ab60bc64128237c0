"""Names of published methods: what they stand for, and what may stand beside them."""

from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from minitron_cli import choices, methods
from minitron_cli.prune.config import PruneConfig, Ranking
from minitron_cli.sparse.config import SparsifyConfig

SECTIONS = {"prune": (PruneConfig, choices.PruneMethod), "sparsify": (SparsifyConfig, choices.SparseMethod)}
EVERY = pytest.mark.parametrize("name", methods.METHODS)


def nested(keys):
    found = {}
    for key, value in keys.items():
        *path, last = key.split(".")
        inner = found
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return found


@pytest.mark.parametrize("section", SECTIONS)
def test_help_lists_the_methods_of_the_table(section):
    assert list(get_args(SECTIONS[section][1])) == methods.names(section)


@EVERY
def test_a_name_is_the_same_configuration_as_its_keys(name):
    method = methods.METHODS[name]
    kind = SECTIONS[method.section][0]
    config = kind(method=name)
    spelled = kind(**nested({**method.keys, **method.defaults}))
    assert config.model_dump(mode="json") == spelled.model_dump(mode="json")  # so they have one artifact
    assert kind.model_validate(config.model_dump(mode="json")) == spelled


@EVERY
def test_what_is_printed_names_every_key(name):
    method = methods.METHODS[name]
    said = methods.explained(name, SECTIONS[method.section][0](method=name))
    for key, value in {**method.keys, **method.defaults}.items():
        shown = f"[{','.join(value)}]" if isinstance(value, list) else value
        assert f"{method.section}.{key}={shown}" in said
    assert method.source in said
    assert "given" not in said


def test_two_methods_do_not_stand_for_the_same_unless_they_say_so():
    spelled = {}
    for name, method in methods.METHODS.items():
        if not method.differs.startswith("as "):
            spelled.setdefault(repr((method.section, {**method.keys, **method.defaults})), []).append(name)
    assert all(len(names) == 1 for names in spelled.values()), spelled


@pytest.mark.parametrize(
    ("section", "given", "says"),
    [
        ("prune", {"method": "shortgpt", "axes": ("ffn",)}, r"shortgpt stands for axes=\[layer\], and axes is \[ffn\]"),
        ("prune", {"method": "shortgpt", "ranking": {"layers": "perplexity"}}, "and ranking.layers is perplexity"),
        ("prune", {"method": "minitron-width", "ranking": Ranking(width={"kind": "magnitude"})}, "kind is magnitude"),
        ("prune", {"method": "flap", "shape": {"hidden": 8}}, r"ranking\.width flap does not score hidden: prune head"),
        ("prune", {"method": "wanda"}, "wanda is a method of sparsify: give it as sparsify.method"),
        ("prune", {"method": "taylor"}, "'minitron-width', 'minitron-depth'"),
        ("prune", {"method": "minitron-width", "ranking": "good"}, "valid dictionary or instance of Ranking"),
        ("sparsify", {"method": "wanda", "metric": "sparsegpt"}, "metric.kind=wanda, and metric.kind is sparsegpt"),
        ("sparsify", {"method": "shortgpt"}, "shortgpt is a method of prune: give it as prune.method"),
    ],
)
def test_what_makes_another_method_is_refused(section, given, says):
    with pytest.raises(ValidationError, match=says):
        SECTIONS[section][0](**given)


def test_other_keys_may_be_given_and_that_is_said():
    config = PruneConfig(method="minitron-width", repair="all", ranking={"invert": True, "width": {"batch": "mean"}})
    assert (config.repair, config.ranking.invert, config.ranking.width.batch) == ("all", True, "mean")
    said = methods.explained("minitron-width", config)
    assert "prune.repair=all (given; its own is none)" in said
    assert "prune.ranking.width.batch=mean (given; its own is l2)" in said
    assert SparsifyConfig(method="wanda", metric="wanda", repair="least_squares").repair == "least_squares"


@EVERY
def test_the_page_has_a_row_for_each(name):
    rows = (Path(__file__).parents[2] / "docs/methods.md").read_text().splitlines()
    (row,) = [row for row in rows if row.startswith(f"| `{name}` |")]
    method = methods.METHODS[name]
    assert [cell.strip() for cell in row.split("|")][2::2][:2] == [method.section, method.source]
    if not method.differs.startswith("as "):
        bold = {part for part in row.split("**") if part.startswith("`")}
        expected = {f"`{key.removesuffix('.kind')}: " for key in method.keys if "width" not in key}
        assert all(any(part.startswith(start) for part in bold) for start in expected), (bold, expected)
