"""docs/reference is what scripts/reference.py writes: every verb with its options, every key of a recipe."""

import json
import re
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from minitron_cli import recipe
from minitron_cli.cli.app import COMMANDS, GROUPS
from minitron_cli.spec import Quantity
from scripts import reference
from tests.cli.program import invoke


@cache
def written() -> dict[str, str]:
    """The pages that the script writes; not at import, which every worker does."""
    return reference.pages()


def test_the_pages_are_those_that_the_script_writes() -> None:
    committed = {path.name: path.read_text() for path in reference.DIRECTORY.iterdir()}
    stale = {name for name in committed.keys() | written().keys() if committed.get(name) != written().get(name)}
    assert not stale, f"run `make reference`: {', '.join(sorted(stale))}"


@pytest.mark.slow
def test_the_pages_do_not_depend_on_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    elsewhere = written()
    monkeypatch.setenv("MINITRON_RUNS", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.chdir(tmp_path)
    assert reference.pages() == elsewhere
    assert str(Path.home()) not in "".join(elsewhere.values())


def leaves(schema: object) -> set[str]:
    """The names of all keys in a recipe's schema, however deep."""
    if isinstance(schema, list):
        return {name for one in schema for name in leaves(one)}
    if not isinstance(schema, dict):
        return set()
    own = schema.get("properties", {}).keys()
    return {*own, *(name for one in schema.values() for name in leaves(one))}


@pytest.mark.slow
def test_every_key_of_a_recipe_is_on_a_page() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|", "\n".join(written().values()), re.MULTILINE)
    assert leaves(recipe.schema()) - {row.rpartition(".")[2] for row in rows} == {"kind"}
    kinds = re.findall(r'"const": "(\w+)"', json.dumps(recipe.schema()["$defs"]))
    headings = {
        line.rpartition(": ")[2] for text in written().values() for line in text.splitlines() if line[:3] == "###"
    }
    assert set(kinds) - headings <= {
        "random",
        "dynamic",
        "minitron",
        "auto",
        "student_entropy",
        "original",
        "none",
        "hidden",
    }, "kinds have headings; other constants have not"


@pytest.mark.parametrize(
    "words",
    [*([name] for name in COMMANDS), *([group, name] for group, (bodies, _) in GROUPS.items() for name in bodies)],
)
def test_every_option_is_on_its_verbs_page(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", invoke(*words, "--help").stdout)) - {"--help"}
    listed = set(re.findall(r"`(--[a-z-]+)`", written()[f"{words[0]}.md"]))
    assert shown <= listed, f"not on the page: {shown - listed}"


SAID_OTHERWISE = {
    "--layer-removal": "only if the recipe prunes layers",
    "--layer-major": "depends on memory",
    "--objective": "kl",
    "--metric": "wanda",
    "--axes": "hidden,ffn",
    "--kind": "sampled",
    "--draws": "50",
    "--tokens": "all of the text, once",
    "--epochs": "as many as --tokens make",
    "--as": "wrapper, if MODEL is one",
}


@pytest.mark.parametrize(
    "page", [page for page in reference.PAGES if page.section and page.name in COMMANDS], ids=lambda page: page.name
)
def test_the_default_that_help_states_is_that_of_the_key(page: reference.Page) -> None:
    rows = [*cells(written()["distill.md"] if page.name == "correct" else ""), *cells(written()[page.file])]
    defaults = {row[0].strip("`"): row[2].strip("`") for row in rows if len(row) == 4}
    options = [row for row in rows if len(row) == 5 and row[3] and row[2] not in ("-", "off", "")]
    stated = {(row[0], row[3].strip("`")): row[2] for row in options}
    assert stated
    for (name, key), default in stated.items():
        option = name.partition(",")[0].strip("`")
        assert plain(default) == plain(defaults[key]) or SAID_OTHERWISE.get(option) == default, (page.name, name)


def cells(text: str) -> list[list[str]]:
    """The rows of all tables on a page."""
    lines = (line for line in text.splitlines() if line.startswith("| `"))
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]


def plain(text: str) -> object:
    value = {"yes": True, "no": False, "true": True, "false": False}.get(text, text)
    for kind in (Quantity, float):
        with suppress(ValidationError):
            return TypeAdapter(kind).validate_python(value)
    return value


@pytest.mark.parametrize(
    ("verb", "option", "key"),
    [
        ("distill", "learning_rate", "learning_rate"),
        ("distill", "steps", "steps"),  # and tokens, which it takes the place of
        ("search", "top", "retrain.top"),
        ("search", "target", "budget.target"),
        ("importance", "layer_major", "mode"),
        ("prune", "depth", "axes"),
        ("prune", "output", None),
        ("eval", "minimum", None),
    ],
)
def test_an_option_is_listed_with_the_key_that_it_sets(verb: str, option: str, key: str | None) -> None:
    assert reference.keys_set(verb).get(option) == key


def test_a_key_without_a_docstring_is_refused() -> None:
    with pytest.raises(AssertionError, match="without a docstring"):
        reference._meaning({"type": "integer", "default": 3})


@pytest.mark.parametrize(("heading", "place"), [("Execution", "execution"), ("losses: mse", "losses-mse")])
def test_headings_are_found_where_github_puts_them(heading: str, place: str) -> None:
    assert reference.anchor(heading) == place
