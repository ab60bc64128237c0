"""Cost of one artifact, derived from its result and its config."""

from collections.abc import Callable, Iterator
from itertools import pairwise

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.cost import compute
from minitron_cli.cost.compute import Entry, Removal
from minitron_cli.results.evaluation import EvaluationResult
from minitron_cli.results.importance import ImportanceResult
from minitron_cli.results.prune import PruneResult
from minitron_cli.results.search import CandidateResult, SearchResult
from minitron_cli.results.training import CorrectionResult, TrainingResult


def spent(artifact: Artifact) -> list[Entry]:
    """Tokens and FLOPs that a stage spent on an artifact, by kind of work."""
    derive = _DERIVE.get(artifact.stage)
    return compute.merged(derive(artifact)) if derive else []


def _importance(artifact: Artifact) -> Iterator[Entry]:
    result = artifact.result(ImportanceResult)
    on = Removal.of(result.samples, result.sequence_length, result.removal_samples, result.removal_positions)
    yield from compute.calibration(result.model, result.tokens, result.removed, on)


def _search(artifact: Artifact) -> Iterator[Entry]:
    result = artifact.result(SearchResult)
    candidates = _distinct(result.candidates)
    for candidate in candidates:
        yield from _on_candidate(result, candidate)
    if result.repair:
        repaired = [(candidate.model, candidate.repairs) for candidate in candidates]
        yield from compute.repair(result.parent, repaired, result.repair.tokens)


def _on_candidate(result: SearchResult, candidate: CandidateResult) -> Iterator[Entry]:
    """Evaluations zero-shot and at each rung, and retraining up to the last rung reached."""
    rungs = len(candidate.rungs)
    if result.score_tokens:
        readers = [candidate.model, *([result.teacher] if result.objective.name == "kl" else [])]
        yield compute.held_out(readers, (1 + rungs) * result.score_tokens)
    if rungs:
        yield from compute.training(candidate.model, result.teacher, result.rung_tokens[rungs - 1])


def _distinct(candidates: tuple[CandidateResult, ...]) -> list[CandidateResult]:
    """Candidates by shape: one that competes for several targets was scored and trained once."""
    return list({candidate.key: candidate for candidate in candidates}.values())


def _prune(artifact: Artifact) -> Iterator[Entry]:
    result = artifact.result(PruneResult)
    for candidate in result.candidates:
        yield compute.held_out([candidate.model], result.score_tokens)
    for before, scored in pairwise(result.rounds):
        tokens = scored.samples_scored * result.sequence_length
        on = Removal.of(scored.samples_scored, result.sequence_length, result.removal_samples, result.removal_positions)
        yield from compute.calibration(before.model, tokens, [1] if result.rounds_remove_layers else [], on)
    if result.calibration:
        own = result.repair.repairs if result.repair else ()
        repaired = [(result.child, own), *((c.model, c.repairs) for c in result.candidates)]
        yield from compute.repair(result.parent, repaired, result.calibration.tokens)
    if result.repair and (effect := result.repair.effect):
        both = [result.child, result.child, result.parent]  # loss of the child, and KL, which reads both models
        yield compute.held_out([result.parent, *both, *both], effect.tokens)


def _training(kind: type[TrainingResult]) -> Callable[[Artifact], Iterator[Entry]]:
    def derive(artifact: Artifact) -> Iterator[Entry]:
        result = artifact.result(kind)
        yield from compute.training(result.student, result.teacher if result.uses_teacher else None, result.tokens)
        readers = [result.student, *([result.teacher] if result.teacher else [])]
        yield compute.held_out(readers, result.validations * result.validation_tokens)

    return derive


def _evaluate(artifact: Artifact) -> Iterator[Entry]:
    """Loss of every model, and KL of all but the parent, for which the parent reads the text again."""
    result = artifact.result(EvaluationResult)
    parent, *others = (evaluated.model for evaluated in result.models.values())
    readers = [parent, *(reader for model in others for reader in (model, model, parent))]
    yield compute.held_out(readers, result.loss_tokens)


_DERIVE: dict[str, Callable[[Artifact], Iterator[Entry]]] = {
    "importance": _importance,
    "search": _search,
    "prune": _prune,
    "correct": _training(CorrectionResult),
    "distill": _training(TrainingResult),
    "evaluate": _evaluate,
}
