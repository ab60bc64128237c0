"""Option groups shared by commands. A parameter annotated with a group adds all options of that group."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from minitron_cli.choices import CheckpointForm, FormatName
from minitron_cli.data.document_frame import Bos
from minitron_cli.model import axes

SHOWN = "Output"
RUN = "Execution"
TEXT = "Data"

Json = Annotated[bool, Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=SHOWN)]


@dataclass(frozen=True)
class Show:
    """Options on what is printed."""

    json: Json = False
    quiet: Annotated[
        bool,
        Option("--quiet", "-q", help="Print results and errors only, no progress.", rich_help_panel=SHOWN),
    ] = False
    verbose: Annotated[
        bool,
        Option(
            "--verbose",
            "-v",
            help="Also show the price by part before the work, and log output from libraries.",
            rich_help_panel=SHOWN,
        ),
    ] = False
    debug: Annotated[bool, Option("--debug", help="Print the full traceback of an error.", rich_help_panel=SHOWN)] = (
        False
    )


@dataclass(frozen=True)
class WorkspaceOptions(Show):
    """`Show`, and the options that choose a workspace."""

    run: Annotated[
        str | None,
        Option(
            help="Workspace name. Default: named after the model or recipe, else the one used last.",
            rich_help_panel=RUN,
        ),
    ] = None
    runs_dir: Annotated[
        Path, Option(envvar="MINITRON_RUNS", help="Directory that holds the workspaces.", rich_help_panel=RUN)
    ] = Path("runs")


@dataclass(frozen=True)
class BuildOptions(WorkspaceOptions):
    """`WorkspaceOptions`, and the options on whether a stage runs."""

    dry_run: Annotated[bool, Option("--dry-run", help="Print what would be done and exit.", rich_help_panel=RUN)] = (
        False
    )
    overwrite: Annotated[
        bool, Option("--overwrite", help="Recompute the result even if it exists.", rich_help_panel=RUN)
    ] = False


@dataclass(frozen=True)
class ComputeOptions(BuildOptions):
    """`BuildOptions`, and the options on how a stage computes. None but the dtype changes which result is requested."""

    device: Annotated[
        str,
        Option(
            help="Device: cpu, cuda, cuda:1, ... (with float64, except for eval). auto uses the first accelerator.",
            rich_help_panel=RUN,
        ),
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Option(
            help="Dtype to run models in; auto: the stored dtype, or float32 on a CPU that has no instructions for it.",
            rich_help_panel=RUN,
        ),
    ] = "auto"
    threads: Annotated[
        int | None, Option(min=1, help="Number of CPU threads. Default: torch decides.", rich_help_panel=RUN)
    ] = None
    resume: Annotated[
        bool, Option(help="Continue an interrupted run from its last saved state.", rich_help_panel=RUN)
    ] = True
    offline: Annotated[
        bool, Option("--offline", help="Use only files that are already on this machine.", rich_help_panel=RUN)
    ] = False


@dataclass(frozen=True)
class DataOptions:
    """Options that name the text to read. The workspace stores them for later commands."""

    data: Annotated[
        list[str] | None,
        Option(
            help="A file or pattern (.txt .jsonl .parquet ...), hub:NAME, ids:PATTERN (token ids), python_stdlib or "
            "python_help. Repeat for several.",
            rich_help_panel=TEXT,
        ),
    ] = None
    validation: Annotated[
        list[str] | None,
        Option(help="Held-out text, in the same forms. Default: a part of --data.", rich_help_panel=TEXT),
    ] = None
    column: Annotated[str | None, Option(help="Column that holds the text or the token ids.", rich_help_panel=TEXT)] = (
        None
    )
    format: Annotated[
        FormatName | None,
        Option(
            help="Row format. For chat and completion data only the answers are scored and trained on.",
            rich_help_panel=TEXT,
        ),
    ] = None
    sequence_length: Annotated[int | None, Option(min=2, help="Tokens per sequence.", rich_help_panel=TEXT)] = None
    bos: Annotated[
        Bos | None,
        Option(
            help="What documents begin with. auto: what the tokenizer writes before a text; always: its bos; never: "
            "nothing.",
            rich_help_panel=TEXT,
        ),
    ] = None


Arguments = Annotated[
    list[str] | None,
    Argument(
        metavar="MODEL|KEY=VALUE",
        help="A model (directory, hub id or alias such as llama-3.1-8b) and changes to the stage's settings.",
        show_default=False,
    ),
]
Changes = Annotated[
    list[str] | None,
    Argument(metavar="KEY=VALUE", help="Changes to the recipe, e.g. distill.tokens=1000000.", show_default=False),
]
RecipeOption = Annotated[
    str | None,
    Option("--recipe", metavar="RECIPE", help="Take the model, data and settings of the stage from this recipe."),
]
Form = Annotated[
    CheckpointForm | None,
    Option(
        "--as",
        help="Of a multimodal wrapper (Gemma 3, Qwen-VL, ...), write the wrapper with its vision tower, or the text "
        "model alone.",
        show_default="wrapper, if MODEL is one",
    ),
]
Output = Annotated[
    Path | None,
    Option("--output", "-o", metavar="DIR", help="Also copy the resulting checkpoint to this new directory."),
]
Seed = Annotated[int | None, Option(min=0, help="Seed of all random numbers.")]
Target = Annotated[
    str | None, Option(metavar="COUNT", help="Parameters of the child, e.g. 4B, or 50% of the parent's.")
]
Count = Annotated[axes.Count | None, Option(help="Which parameters count toward the target.")]
Tolerance = Annotated[
    float | None, Option(help="Allowed deviation from the target, as a fraction of it.", show_default="0.05")
]


def flat(command: Callable[..., Any]) -> inspect.Signature:
    """Signature of a command with each option group replaced by its options, as Typer requires."""
    own = [p.replace(kind=p.KEYWORD_ONLY) for p in _parameters(command) if not _is_group(p)]
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for group in filter(_is_group, _parameters(command))
        for f in dataclasses.fields(group.annotation)
    ]
    return inspect.Signature(own + shared)


def grouped(command: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a command from the values of its flat signature, collected into option groups."""
    arguments = dict(values)
    for group in filter(_is_group, _parameters(command)):
        names = [f.name for f in dataclasses.fields(group.annotation)]
        arguments[group.name] = group.annotation(**{name: arguments.pop(name) for name in names})
    return arguments


def _parameters(command: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(command).parameters.values())


def _is_group(parameter: inspect.Parameter) -> bool:
    return dataclasses.is_dataclass(parameter.annotation)
