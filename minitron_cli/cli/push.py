"""`minitron push`: the result and its card to the hub."""

from typing import Annotated, Literal

from typer import Argument, Option

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.workspace import Workspace, open_workspace
from minitron_cli.checkpoint import hub
from minitron_cli.cli import console, tables
from minitron_cli.cli.options import WorkspaceOptions
from minitron_cli.errors import ArtifactError

CARD = "README.md"


def push(
    where: WorkspaceOptions,
    repo: Annotated[str, Argument(metavar="OWNER/NAME", help="The model's name on the hub.", show_default=False)],
    stage: Annotated[
        Literal["prune", "distill"] | None,
        Option(help="Push what this stage made last.", show_default="distill, else prune"),
    ] = None,
    private: Annotated[bool, Option("--private", help="Make the repository private, if it is new.")] = False,
    message: Annotated[str, Option(help="The commit's message.")] = "Upload model",
    dry_run: Annotated[bool, Option("--dry-run", help="List what would be uploaded, and stop.")] = False,
) -> None:
    """Upload the workspace's model to the hub, with a model card that says how it was made and what it is worth.

    For example: minitron push me/llama-3.1-4b --private --dry-run
    """
    hub.check_name(repo)
    workspace = open_workspace(where.runs_dir, where.run)
    made = _made(workspace, stage)
    from minitron_cli.stages import report

    card = report.card(workspace, repo).encode()
    sizes = {name: record.size_bytes for name, record in made.manifest.files.items()} | {CARD: len(card)}
    facts = {"repo": repo, "private": private, "from": str(made.path), "files": sizes, "bytes": sum(sizes.values())}
    if not dry_run:
        Artifact.open(made.path, verify=True)
        files = {name: made.path / name for name in made.manifest.files} | {CARD: card}
        facts["url"] = hub.upload(repo, files, private=private, message=message)
    if where.json:
        console.data(facts)
        return
    console.sheet(tables.file_sheet(f"{'would push' if dry_run else 'pushed'} {made.path} to {repo}", sizes))
    if not dry_run:
        console.note(f"see {facts['url']}")


def _made(workspace: Workspace, stage: str | None) -> Artifact:
    """The result to push."""
    for name in [stage] if stage else ["distill", "prune"]:
        if artifact := workspace.current(name):
            return artifact
    raise ArtifactError(
        f"workspace {workspace.root} has no {stage or 'pruned'} model to push: run `minitron {stage or 'prune'}` first"
    )
