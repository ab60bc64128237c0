"""`minitron eval`: measure models beside their parent, and hold them to bounds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from minitron_cli.checkpoint.workspace import Workspace, last_used, slug
from minitron_cli.cli import session, show
from minitron_cli.cli.options import How, RecipeOption, Text
from minitron_cli.document import Place
from minitron_cli.errors import InputError


def evaluate(
    how: How,
    text: Text,
    words: Annotated[
        list[str] | None,
        Argument(
            metavar="MODEL|KEY=VALUE",
            help="Directories of checkpoints; and changes to the stage's settings.",
            show_default=False,
        ),
    ] = None,
    recipe: RecipeOption = None,
    tasks: Annotated[
        list[str] | None,
        Option(metavar="TASK[:SHOTS]", help="An lm-eval task, such as winogrande:5. Repeat for several."),
    ] = None,
    include_path: Annotated[
        Path | None, Option(help="A directory of further task YAMLs. They can run Python: name only what you trust.")
    ] = None,
    minimum: Annotated[
        list[str] | None, Option("--min", metavar="TASK.METRIC=VALUE", help="Exit with 4 if a value is below this.")
    ] = None,
    maximum: Annotated[
        list[str] | None, Option("--max", metavar="TASK.METRIC=VALUE", help="Exit with 4 if a value is above this.")
    ] = None,
    perplexity: Annotated[bool | None, Option(help="Measure loss and KL on held-out text.", show_default="yes")] = None,
    batch_size: Annotated[int | None, Option(min=1, help="Sequences per forward pass.", show_default="8")] = None,
) -> None:
    """Measure models beside their parent; without any named, what the workspace has made.

    For example: minitron eval --tasks winogrande:5 --max perplexity.loss=2.5
    """
    flags: dict[Place, Any] = {
        ("tasks",): [task for some in tasks for task in some.split(",")] if tasks else None,
        ("include_path",): str(include_path) if include_path else None,
        ("perplexity",): perplexity,
        ("batch_size",): batch_size,
        ("gates",): _gates(minimum, maximum) if minimum or maximum else None,
    }
    models, changes = session.split(words or ())
    parent = [] if how.run or recipe or last_used(how.runs_dir) else models[:1]  # nowhere yet: measure the model itself
    with session.opened(how, "evaluate", [*parent, *changes], recipe=recipe, text=text, flags=flags) as at:
        from minitron_cli.evaluate.config import EvaluateConfig
        from minitron_cli.stages import evaluate as stage

        config = at.section(EvaluateConfig, "evaluate")
        named = _named(models[len(parent) :]) if models else _made(at.workspace)
        data = at.data() if config.perplexity or config.cloze else None
        artifact = stage.run(at.context, named, at.parent(), data, config)
    show.artifact(artifact, how)
    stage.check_gates(artifact, config.gates, named[-1][0] if named else stage.PARENT)


def _named(models: Sequence[str]) -> list[tuple[str, Path]]:
    """(label, directory) of each model, the label being the directory's name."""
    if absent := [model for model in models if not Path(model).is_dir()]:
        raise InputError(f"{absent[0]} is not a directory: give checkpoints made from the workspace's model")
    labels = [slug(model) for model in models]
    return [
        (label if labels.count(label) == 1 else f"{label}-{i + 1}", Path(model))
        for i, (label, model) in enumerate(zip(labels, models, strict=True))
    ]


def _made(workspace: Workspace) -> list[tuple[str, Path]]:
    """The workspace's current results."""
    made = {"pruned": workspace.current("prune"), "distilled": workspace.current("distill")}
    return [(label, artifact.path) for label, artifact in made.items() if artifact]


def _gates(minimum: Sequence[str] | None, maximum: Sequence[str] | None) -> dict[str, Any]:
    from minitron_cli.evaluate.config import Gates

    return Gates.parse(minimum or (), maximum or ()).model_dump()
