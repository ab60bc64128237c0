"""Models of a workspace that a verb works on when none is named."""

from typing import TYPE_CHECKING

from minitron_cli import progress

if TYPE_CHECKING:
    from minitron_cli.artifacts.artifact import Artifact
    from minitron_cli.artifacts.workspace import Workspace


def made_last(workspace: "Workspace") -> "dict[str, Artifact]":
    """Stage -> current model, of `prune`, `sparsify` and `distill` in this order.

    Without a model that was made from another one than the current model of the stage before, which is said.
    """
    from minitron_cli.report.product import current_models

    found = current_models(workspace)
    for stage in ("sparsify", "distill"):
        path = workspace.current_path(stage)
        if path and stage not in found:
            progress.warn(
                f"{path} is left out, because it was not made from the current pruned model: run `minitron {stage}` "
                "again, or name it"
            )
    return found
