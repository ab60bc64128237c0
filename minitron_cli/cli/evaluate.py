"""`minitron eval`: evaluate models against their parent, and check gates."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from minitron_cli.cli import output_file
from minitron_cli.cli.options import ComputeOptions, DataOptions, RecipeOption
from minitron_cli.errors import InputError

if TYPE_CHECKING:
    from minitron_cli.artifacts.artifact import Artifact
    from minitron_cli.artifacts.workspace import Workspace
    from minitron_cli.evaluate.config import Gates
    from minitron_cli.evaluate.gate import Outcome
    from minitron_cli.yaml_document import KeyPath

GATES = "Gates"


def evaluate(
    how: ComputeOptions,
    text: DataOptions,
    words: Annotated[
        list[str] | None,
        Argument(
            metavar="MODEL|KEY=VALUE",
            help="Checkpoint directories, and changes to the stage's settings.",
            show_default=False,
        ),
    ] = None,
    recipe: RecipeOption = None,
    suite: Annotated[
        Literal["minitron"] | None, Option(help="The nine benchmark tasks of the Minitron papers, with their shots.")
    ] = None,
    tasks: Annotated[
        list[str] | None,
        Option(metavar="TASK[:SHOTS]", help="An lm-eval task, e.g. winogrande:5. Repeat for several."),
    ] = None,
    task_data: Annotated[
        Path | None,
        Option(help="Directory of task data, e.g. winogrande/validation.jsonl. Missing data is downloaded."),
    ] = None,
    include_path: Annotated[
        Path | None,
        Option(help="Directory of additional task YAML files. Code in them runs only with --allow-code-execution."),
    ] = None,
    allow_code_execution: Annotated[
        bool,
        Option(
            "--allow-code-execution",
            help="Run code: that in task files, and what models write for coding tasks. It is not sandboxed.",
        ),
    ] = False,
    apply_chat_template: Annotated[
        bool | None,
        Option(
            "--apply-chat-template",
            help="Ask the tasks through the tokenizer's chat template, as instruct models expect it.",
        ),
    ] = None,
    fewshot_as_multiturn: Annotated[
        bool | None,
        Option("--fewshot-as-multiturn", help="With --apply-chat-template: each solved example is a turn of its own."),
    ] = None,
    perplexity: Annotated[
        bool | None, Option(help="Measure loss, perplexity and KL to the parent on held-out text.", show_default="yes")
    ] = None,
    cloze: Annotated[
        bool | None,
        Option(help="Measure accuracy at picking the true continuation of held-out text."),
    ] = None,
    speed: Annotated[
        bool | None,
        Option(help="Measure generation speed and memory; configured by speed.batch_size=N etc."),
    ] = None,
    batch_size: Annotated[int | None, Option(min=1, help="Sequences per forward pass.", show_default="8")] = None,
    minimum: Annotated[
        list[str] | None,
        Option(
            "--min",
            metavar="TASK.METRIC=VALUE",
            help="Exit with code 4 if the value is below this.",
            rich_help_panel=GATES,
        ),
    ] = None,
    maximum: Annotated[
        list[str] | None,
        Option(
            "--max",
            metavar="TASK.METRIC=VALUE",
            help="Exit with code 4 if the value is above this.",
            rich_help_panel=GATES,
        ),
    ] = None,
    other: Annotated[
        list[str] | None,
        Option(
            metavar="NAME=FILE",
            help="Show a model measured elsewhere beside these: results of lm-eval or minitron. Repeat for several.",
        ),
    ] = None,
    gate: Annotated[
        list[Path] | None,
        Option(help="YAML file of gates, which may compare with the parent or a baseline.", rich_help_panel=GATES),
    ] = None,
    junit: Annotated[
        Path | None, Option(metavar="FILE", help="Write the outcome of the gates as JUnit XML.", rich_help_panel=GATES)
    ] = None,
    summary: Annotated[
        Path | None,
        Option(metavar="FILE", help="Append the results and the gates to this Markdown file.", rich_help_panel=GATES),
    ] = None,
) -> None:
    """Evaluate models against their parent and each other (default: the models in the current workspace).

    For example: minitron eval --tasks winogrande:5 --max perplexity.loss=2.5
    """
    from minitron_cli.cli import sessions

    for file in (junit, summary):
        output_file.check(file)
    output_file.check_distinct(junit, summary)
    wanted = _gates(minimum or (), maximum or (), gate or ())
    flags: dict[KeyPath, Any] = {
        ("suite",): suite,
        ("tasks",): [task for some in tasks for task in some.split(",")] if tasks else None,
        ("task_data",): str(task_data) if task_data else None,
        ("include_path",): str(include_path) if include_path else None,
        ("apply_chat_template",): apply_chat_template,
        ("fewshot_as_multiturn",): fewshot_as_multiturn,
        ("perplexity",): perplexity,
        ("cloze",): _section(cloze),
        ("speed",): _section(speed),
        ("batch_size",): batch_size,
        ("others",): other,
    }
    models, changes = sessions.split(words or ())
    known = _known_parent(how)
    parent = models[:1] if known is None and not recipe else []  # new workspace: the first model is the parent
    is_known = bool(models) and sessions.absolute(models[0]) == known
    if len(models) > 1 and text.data and not (parent or is_known or how.run or recipe):
        _check_made_here(how, models)
    others = models[1:] if parent or is_known else models
    with sessions.opened(how, "evaluate", [*parent, *changes], recipe=recipe, text=text, flags=flags) as session:
        from minitron_cli import api
        from minitron_cli.evaluate.config import EvaluateConfig
        from minitron_cli.results.evaluation import PARENT

        config = session.section(EvaluateConfig, "evaluate")
        gates = config.gates.joined(wanted)
        _check_original(gates, session.parent().path)
        named = _named(others) if models else _made(session.workspace)
        data = session.data() if config.perplexity or config.cloze else None
        artifact = api.evaluate(
            session.context, dict(named), session.parent(), data, config, allow_code=allow_code_execution
        )
    label = named[-1][0] if named else PARENT
    found = _judged(artifact, gates, label, how)
    _write(artifact, found, label, junit, summary)
    _require(found)


def _known_parent(how: ComputeOptions) -> str | None:
    """Model stored in the workspace's settings; None in a new workspace."""
    from minitron_cli.artifacts.workspace import Workspace, last_used

    name = how.run or last_used(how.runs_dir)
    return Workspace(how.runs_dir / name).settings.get("model") if name else None


def _check_made_here(how: ComputeOptions, models: Sequence[str]) -> None:
    """Refuse models on a text of their own, whose first may be meant as the parent, in a workspace about another one.

    The workspace is the one that was used last.
    """
    from minitron_cli.artifacts.workspace import open_workspace
    from minitron_cli.cost.lineage import is_made_in
    from minitron_cli.inputs.source_model import open_source_model

    workspace = open_workspace(how.runs_dir, None)
    if not is_made_in(workspace, open_source_model(models[0], offline=how.offline).fingerprint):
        raise InputError(
            f"{models[0]} was not made in {workspace.root}, which is about {workspace.settings.get('model')}: add "
            f"--run with a new name to compare with {models[0]}, or --run {workspace.name} to compare all with that"
        )


def _section(wanted: bool | None) -> Any:
    """Value of a recipe section for a flag: defaults if on, null if off, None if not given."""
    from minitron_cli.cli.sessions import NULL

    return {} if wanted else NULL if wanted is False else None


def _gates(minimum: Sequence[str], maximum: Sequence[str], files: Sequence[Path]) -> "Gates":
    """Gates of the command line. Raises RecipeError for invalid ones before anything is measured."""
    from minitron_cli import yaml_document
    from minitron_cli.evaluate.config import Gates

    gates = Gates()
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} is not a file: write gates in YAML, e.g. `minimum: {{winogrande.acc: 0.7}}`")
        gates = gates.joined(yaml_document.check(Gates, yaml_document.read(file)).beside(file.parent))
    gates = gates.joined(Gates.parse(minimum, maximum))
    if gates.all():
        from minitron_cli.evaluate import gate

        gate.check(gates)
    return gates


def _check_original(gates: "Gates", parent: Path) -> None:
    """Refuse a gate on the original of a chain where models are compared with a later member alone."""
    from minitron_cli.artifacts.artifact import Artifact
    from minitron_cli.artifacts.manifest import MANIFEST
    from minitron_cli.cost.lineage import GIVEN

    is_made = (parent / MANIFEST).is_file() and Artifact.open(parent).stage != GIVEN
    if gates.name_the_original and is_made:
        raise InputError(
            f"a gate is of: original, and {parent} was itself pruned or trained: run the recipe of the chain, which "
            "compares with both, or write of: step"
        )


def _judged(artifact: "Artifact", gates: "Gates", label: str, how: ComputeOptions) -> "list[Outcome]":
    """Show what was measured, and how it compares with what was demanded."""
    from minitron_cli.cli import console, printing, tables
    from minitron_cli.stages import evaluate as stage

    found = stage.gate_outcomes(artifact, gates, label)
    values, shown = tables.judged(found) if found else ({}, [])
    if how.json:
        console.data(tables.values(artifact) | values)
    else:
        printing.artifact(artifact, how)
        console.show(how, {}, shown)
    return found


def _write(
    artifact: "Artifact", found: "Sequence[Outcome]", label: str, junit: Path | None, summary: Path | None
) -> None:
    from minitron_cli.report import beside, gate_summary

    if junit:
        output_file.write(junit, gate_summary.junit(found, label))
    if summary:
        page = gate_summary.summary(beside.models(artifact), found, label)
        output_file.write(summary, page.encode(), append=True)  # the file may have other parts, as on GitHub


def _require(found: "Sequence[Outcome]") -> None:
    from minitron_cli.evaluate import gate

    gate.require(found)


def _named(models: Sequence[str]) -> list[tuple[str, Path]]:
    """(label, directory) of each model; the label is the directory's name."""
    if absent := [model for model in models if not Path(model).is_dir()]:
        raise InputError(f"{absent[0]} is not a directory: give checkpoints made from the workspace's model")
    return list(zip(labels(models), map(Path, models), strict=True))


def labels(models: Sequence[str]) -> list[str]:
    """Name of each model in tables: that of its directory, with a number where another has the same.

    What the models of a chain are compared with is called parent and original.
    """
    from minitron_cli.artifacts.workspace import slug
    from minitron_cli.results.evaluation import ORIGINAL, PARENT

    names = [slug(model) for model in models]
    taken = {PARENT, ORIGINAL, *names}
    return [
        name if names.count(name) == 1 and name not in (PARENT, ORIGINAL) else _numbered(name, i + 1, taken)
        for i, name in enumerate(names)
    ]


def _numbered(name: str, first: int, taken: set[str]) -> str:
    """The name with the first free number, which is then taken."""
    label = next(label for i in count(first) if (label := f"{name}-{i}") not in taken)
    taken.add(label)
    return label


def _made(workspace: "Workspace") -> list[tuple[str, Path]]:
    """(label, directory) of the workspace's current models, and of the student before training if it was given."""
    from minitron_cli.cli.models import made_last
    from minitron_cli.report.product import Product
    from minitron_cli.results.evaluation import STUDENT

    labels = {"prune": "pruned", "sparsify": "sparse", "distill": "distilled"}
    made = made_last(workspace)
    found = [(labels[stage], artifact.path) for stage, artifact in made.items()]
    if distilled := made.get("distill"):
        product, student = Product(workspace, distilled), distilled.manifest.inputs["student"]
        if product.student(distilled) and (path := product.directory(student)):
            found.insert(-1, (STUDENT, path))
    return found
