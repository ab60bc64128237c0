"""`minitron recipes`: the recipes that ship with the program, and their schema."""

from pathlib import Path
from typing import Annotated

from typer import Argument

from minitron_cli.cli import output_file
from minitron_cli.cli.options import Show

Name = Annotated[str, Argument(metavar="NAME", help="Name of a shipped recipe or study.")]


def list_recipes(shown: Show) -> None:
    """List the shipped recipes."""
    from minitron_cli import recipe as recipes
    from minitron_cli.cli import console
    from minitron_cli.report.view import Table

    summaries = {name: _summary(path) for name, path in recipes.shipped().items()}
    if shown.json:
        console.data(summaries)
    else:
        console.table(Table.of_words("", ("recipe", "summary"), summaries.items()))
        console.note(
            "copy one to edit it: minitron recipes cp NAME; see its shapes and steps: minitron run NAME --dry-run"
        )


def show_recipe(name: Name) -> None:
    """Print a recipe, or a study."""
    from minitron_cli.cli import console

    console.result(_file(name).read_text(encoding="utf-8").rstrip("\n"))


def copy_recipe(
    name: Name,
    destination: Annotated[
        Path | None,
        Argument(
            metavar="[FILE]", help="File to write. Default: NAME.yaml in the current directory.", show_default=False
        ),
    ] = None,
) -> None:
    """Copy a recipe, or a study, to a file that you can edit."""
    from minitron_cli.cli import console

    source = _file(name)
    path = destination or Path(source.name)
    path = path / source.name if path.is_dir() else path
    output_file.check(path, new=True)
    output_file.write(path, source.read_bytes())
    how = f"minitron study {path} MODEL --data TEXT" if _is_study(source) else f"minitron run {path}"
    console.note(f"wrote {path}; run it with: {how}")


def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from minitron_cli import recipe as recipes
    from minitron_cli.cli import console

    console.data(recipes.schema())


def _file(name: str) -> Path:
    """File of a recipe or study by its name, or at a path. RecipeError if there is none, or it is no YAML."""
    from minitron_cli import recipe as recipes
    from minitron_cli import yaml_document
    from minitron_cli.study import definition

    path = definition.shipped().get(name) or recipes.find(name)
    yaml_document.read(path)
    return path


def _is_study(path: Path) -> bool:
    from minitron_cli.study import definition

    return path in definition.shipped().values()


def _summary(path: Path) -> str:
    """Summary of a recipe: the first paragraph of its leading comment."""
    first = path.read_text(encoding="utf-8").partition("\n#\n")[0]
    return " ".join(line.lstrip("# ") for line in first.splitlines() if line.startswith("#"))
