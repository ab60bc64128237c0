"""`minitron push`: upload the result and its model card to the Hugging Face Hub."""

from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from minitron_cli.cli.options import WorkspaceOptions
from minitron_cli.errors import InputError

if TYPE_CHECKING:
    from minitron_cli.artifacts.artifact import Artifact
    from minitron_cli.artifacts.workspace import Workspace

CARD = "README.md"


def push(
    where: WorkspaceOptions,
    repo: Annotated[str, Argument(metavar="OWNER/NAME", help="Repository on the hub.", show_default=False)],
    stage: Annotated[
        Literal["prune", "sparsify", "distill"] | None,
        Option(help="Push the current result of this stage.", show_default="distill, else sparsify, else prune"),
    ] = None,
    private: Annotated[
        bool, Option("--private", help="Create the repository as private if it does not exist.")
    ] = False,
    allow_worse: Annotated[
        bool, Option("--allow-worse", help="Push a distilled model even if training made it worse on held-out text.")
    ] = False,
    message: Annotated[str, Option(help="Commit message.")] = "Upload model",
    dry_run: Annotated[bool, Option("--dry-run", help="List the files that would be uploaded and exit.")] = False,
) -> None:
    """Upload the workspace's model to the Hugging Face Hub with a generated model card.

    For example: minitron push me/llama-3.1-4b --private --dry-run
    """
    from minitron_cli.artifacts.workspace import open_workspace
    from minitron_cli.checkpoint import hub
    from minitron_cli.cli import console

    hub.check_name(repo)
    workspace = open_workspace(where.runs_dir, where.run)
    made = _made(workspace, stage)
    if not allow_worse:
        _refuse_worse(made)
    from minitron_cli.stages import report

    card = report.card(workspace, made, repo).encode()
    sizes = {name: record.size_bytes for name, record in made.manifest.files.items()} | {CARD: len(card)}
    facts = {"repo": repo, "private": private, "from": str(made.path), "files": sizes, "bytes": sum(sizes.values())}
    if not dry_run:
        from minitron_cli.artifacts.artifact import Artifact

        Artifact.open(made.path, verify=True)
        files = {name: made.path / name for name in made.manifest.files} | {CARD: card}
        facts["url"] = hub.upload(repo, files, private=private, message=message)
    if where.json:
        console.data(facts)
        return
    from minitron_cli.cli import tables

    console.table(tables.file_table(f"{'Would push' if dry_run else 'Pushed'} {made.path} to {repo}", sizes))
    if not dry_run:
        console.note(f"see {facts['url']}")


def _made(workspace: "Workspace", stage: str | None) -> "Artifact":
    """Artifact to push. ArtifactError if there is none."""
    from minitron_cli.cli.models import made_last

    models = [workspace.current(stage)] if stage else [*made_last(workspace).values()]
    if models and (artifact := models[-1]):
        return artifact
    raise workspace.lacks(f"{stage or 'pruned'} model to push", f"minitron {stage or 'prune'}")


def _refuse_worse(made: "Artifact") -> None:
    from minitron_cli.results.training import TrainingResult

    worse = made.result(TrainingResult).worse if made.stage == "distill" else None
    if worse:
        than = "before its training" if worse.is_above_start else "at an earlier evaluation"
        raise InputError(
            f"{made.path} is worse than {than} ({worse}): train it again with a lower --lr, "
            "push the pruned model with --stage prune, or add --allow-worse"
        )
