"""Option groups shared by commands: a parameter annotated with a group adds all options of that group."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from minitron_cli.data.formats import FormatName
from minitron_cli.model import axes

SHOWN = "What is shown"
RUN = "How it is run"
TEXT = "Text"

Json = Annotated[bool, Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=SHOWN)]


@dataclass(frozen=True)
class Show:
    """What is shown."""

    json: Json = False
    quiet: Annotated[
        bool,
        Option("--quiet", "-q", help="No progress and no remarks; results and errors only.", rich_help_panel=SHOWN),
    ] = False
    verbose: Annotated[
        bool, Option("--verbose", "-v", help="What the libraries have to say, too.", rich_help_panel=SHOWN)
    ] = False
    debug: Annotated[
        bool, Option("--debug", help="The whole traceback of an unexpected error.", rich_help_panel=SHOWN)
    ] = False


@dataclass(frozen=True)
class WorkspaceOptions(Show):
    """Which workspace, in addition."""

    run: Annotated[
        str | None,
        Option(help="The workspace, by name; otherwise the model's or the one used last.", rich_help_panel=RUN),
    ] = None
    runs_dir: Annotated[Path, Option(envvar="MINITRON_RUNS", help="Where the workspaces are.", rich_help_panel=RUN)] = (
        Path("runs")
    )


@dataclass(frozen=True)
class BuildOptions(WorkspaceOptions):
    """Whether to make it, in addition."""

    dry_run: Annotated[bool, Option("--dry-run", help="Say what would be done, and stop.", rich_help_panel=RUN)] = False
    overwrite: Annotated[
        bool, Option("--overwrite", help="Make it again, even if it is there.", rich_help_panel=RUN)
    ] = False


@dataclass(frozen=True)
class ComputeOptions(BuildOptions):
    """How to compute it, in addition: nothing here changes what is asked for."""

    device: Annotated[
        str, Option(help="cpu, cuda, cuda:1, ... with fp64; or auto: the first accelerator.", rich_help_panel=RUN)
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Option(help="In which the parent is run; auto: as it is stored.", rich_help_panel=RUN),
    ] = "auto"
    threads: Annotated[int | None, Option(min=1, help="CPU threads; otherwise torch decides.", rich_help_panel=RUN)] = (
        None
    )
    resume: Annotated[bool, Option(help="Continue work that was stopped half-way.", rich_help_panel=RUN)] = True
    offline: Annotated[bool, Option("--offline", help="Download nothing.", rich_help_panel=RUN)] = False


@dataclass(frozen=True)
class DataOptions:
    """What to read. Said once; later commands in the workspace remember it."""

    data: Annotated[
        list[str] | None,
        Option(
            help="A file or pattern (.txt .jsonl .parquet ...), hub:NAME, ids:PATTERN (token ids) or python_stdlib. "
            "Repeat for several.",
            rich_help_panel=TEXT,
        ),
    ] = None
    validation: Annotated[
        list[str] | None, Option(help="The same, held out; otherwise a part of --data is.", rich_help_panel=TEXT)
    ] = None
    column: Annotated[str | None, Option(help="The column with the text or the ids.", rich_help_panel=TEXT)] = None
    format: Annotated[
        FormatName | None,
        Option(help="What the rows hold; of chats and completions the answers alone count.", rich_help_panel=TEXT),
    ] = None
    sequence_length: Annotated[int | None, Option(min=2, help="Tokens in a block.", rich_help_panel=TEXT)] = None


Arguments = Annotated[
    list[str] | None,
    Argument(
        metavar="MODEL|KEY=VALUE",
        help="A directory, a hub id or an alias such as llama-3.1-8b; and changes to the stage's settings.",
        show_default=False,
    ),
]
Changes = Annotated[
    list[str] | None,
    Argument(metavar="KEY=VALUE", help="Changes to the recipe, such as distill.tokens=1000000.", show_default=False),
]
RecipeOption = Annotated[
    str | None, Option("--recipe", metavar="RECIPE", help="Start from this recipe's section, model and data.")
]
Output = Annotated[
    Path | None,
    Option("--output", "-o", metavar="DIR", help="Copy the resulting checkpoint to this new directory too."),
]
Seed = Annotated[int | None, Option(min=0, help="Seed of everything random.")]
Target = Annotated[
    str | None, Option(metavar="COUNT", help="Parameters of the child, such as 4B, or 50% of the parent's.")
]
Count = Annotated[axes.Count | None, Option(help="Which parameters the target counts.")]
Tolerance = Annotated[float | None, Option(help="How far from the target, as a fraction of it.", show_default="0.05")]


def flat(command: Callable[..., Any]) -> inspect.Signature:
    """A command's signature with each option group replaced by its options, as Typer wants it."""
    own = [p.replace(kind=p.KEYWORD_ONLY) for p in _parameters(command) if not _is_group(p)]
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for group in filter(_is_group, _parameters(command))
        for f in dataclasses.fields(group.annotation)
    ]
    return inspect.Signature(own + shared)


def grouped(command: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values of a flat signature, put into the command's option groups."""
    arguments = dict(values)
    for group in filter(_is_group, _parameters(command)):
        names = [f.name for f in dataclasses.fields(group.annotation)]
        arguments[group.name] = group.annotation(**{name: arguments.pop(name) for name in names})
    return arguments


def _parameters(command: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(command).parameters.values())


def _is_group(parameter: inspect.Parameter) -> bool:
    return dataclasses.is_dataclass(parameter.annotation)
