"""Shapes that a pruning may make: the one that is given, the winner of a search, or the best within a budget."""

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.errors import ArtifactError, InputError
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.prune.child_builder import ChildBuilder
from minitron_cli.prune.config import PruneConfig
from minitron_cli.results.search import SearchResult
from minitron_cli.search import space
from minitron_cli.search.feasible import Candidate, within_budget
from minitron_cli.search.retained_importance import RetainedImportance
from minitron_cli.spec import Amount


def candidates_of(builder: ChildBuilder, config: PruneConfig, search: Artifact | None) -> list[Candidate]:
    """Shapes that the child may have: one, or those within the budget that retain most importance."""
    parent = builder.parent
    if config.budget:
        admitted = within_budget(parent.shape, config)
        return RetainedImportance(parent.shape, builder.scores, config.ranking).order(admitted)[: config.candidates]
    sizes = {str(axis): size for axis, size in (config.shape or {}).items()}
    if not sizes and not config.drop_layers:
        sizes = _winner(parent, search, config.size)
    shape = space.named(parent.shape, sizes, config.drop_layers)
    return [Candidate(shape, shape.parameters(), 0.0)]


def _winner(parent: SourceModel, search: Artifact | None, size: Amount | None) -> dict[str, int]:
    """Sizes of the search's winner for target `size`. ArtifactError or InputError if there is no single one."""
    if search is None:
        raise ArtifactError("no shape to prune to: give --target or --shape, or run `minitron search` first")
    if search.manifest.inputs["model"] != parent.fingerprint:
        raise ArtifactError(f"{search.path} searched another model than {parent.name}: run `minitron search` again")
    winners = search.result(SearchResult).winners
    if size is None and len(winners) > 1:
        raise InputError(f"the search has winners for {', '.join(winners)}: choose one with --size")
    if size is not None and str(size) not in winners:
        raise InputError(f"the search has no winner for {size}: choose among {', '.join(winners) or 'none'}")
    label = next(iter(winners)) if size is None else str(size)
    return {axis: int(n) for axis, n in winners[label].sizes.items()}
