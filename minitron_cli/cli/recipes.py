"""`minitron recipes`: the recipes that ship, and their format."""

from pathlib import Path
from typing import Annotated

from typer import Argument

from minitron_cli import io
from minitron_cli import recipe as recipes
from minitron_cli.cli import console
from minitron_cli.cli.options import Show
from minitron_cli.cli.text_table import Sheet
from minitron_cli.errors import InputError

Name = Annotated[str, Argument(metavar="NAME", help="One of `minitron recipes ls`.")]


def list_recipes(shown: Show) -> None:
    """List the recipes, and what each does."""
    summaries = {name: _summary(path) for name, path in recipes.shipped().items()}
    if shown.json:
        console.data(summaries)
    else:
        console.sheet(Sheet("", ["recipe", "what it does"], list(summaries.items())))
        console.note(
            "minitron recipes cp NAME copies one to change; minitron run NAME --dry-run shows what it comes to"
        )


def show_recipe(name: Name) -> None:
    """Print a recipe as it is written."""
    console.result(recipes.find(name).read_text(encoding="utf-8").rstrip("\n"))


def copy_recipe(
    name: Name,
    destination: Annotated[
        Path | None,
        Argument(metavar="[FILE]", help="Where to; otherwise NAME.yaml in this directory.", show_default=False),
    ] = None,
) -> None:
    """Copy a recipe, to change it."""
    source = recipes.find(name)
    path = destination or Path(source.name)
    path = path / source.name if path.is_dir() else path
    if path.exists():
        raise InputError(f"{path} exists, and nothing is written over: choose another file")
    io.make_dirs(path.parent)
    io.write_new(path, source.read_bytes())
    console.note(f"wrote {path}; run it with: minitron run {path}")


def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    console.data(recipes.schema())


def _summary(path: Path) -> str:
    """The first sentence of the comment that a recipe begins with."""
    first = path.read_text(encoding="utf-8").partition("\n#\n")[0]
    return " ".join(line.lstrip("# ") for line in first.splitlines() if line.startswith("#"))
