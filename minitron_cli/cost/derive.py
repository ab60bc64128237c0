"""Cost of a result, derived from its fields: of a finished one, or of one that is still to be made."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.cost import compute
from minitron_cli.cost.compute import Entry, Pass, Removal
from minitron_cli.results.base import Result
from minitron_cli.results.evaluation import ORIGINAL, PARENT, EvaluationResult
from minitron_cli.results.importance import ImportanceResult
from minitron_cli.results.of_stage import RESULTS
from minitron_cli.results.prune import PruneResult
from minitron_cli.results.search import CandidateResult, SearchResult
from minitron_cli.results.sparsify import SparsifyResult
from minitron_cli.results.teach import TeachResult
from minitron_cli.results.training import CorrectionResult, TrainingResult


def spent(artifact: Artifact) -> list[Entry]:
    """Tokens and FLOPs that a stage spent on an artifact, by kind of work."""
    kind = RESULTS[artifact.stage]
    return compute.merged(passes(artifact.result(kind))) if kind in _DERIVE else []


def passes(result: Result) -> Iterator[Pass]:
    """Work that makes a result: what the models compute, in the order in which it is counted."""
    return _DERIVE[type(result)](result)


def _importance(result: ImportanceResult) -> Iterator[Pass]:
    on = Removal.of(result.samples, result.sequence_length, result.removal_samples, result.removal_positions)
    yield from compute.calibration(result.model, result.tokens, result.removed, on)


def _search(result: SearchResult) -> Iterator[Pass]:
    candidates = _distinct(result.candidates)
    for candidate in candidates:
        yield from _on_candidate(result, candidate)
    if result.repair:
        repaired = [(candidate.model, {*candidate.repairs, *candidate.retrained_repairs}) for candidate in candidates]
        yield from compute.repair(result.parent, repaired, result.repair.tokens)


def _on_candidate(result: SearchResult, candidate: CandidateResult) -> Iterator[Pass]:
    """Evaluations zero-shot and at each rung, and retraining up to the last rung reached."""
    rungs = len(candidate.rungs)
    if result.score_tokens:
        is_kl = result.objective.name == "kl"
        readers = [candidate.model, *([result.teacher] if is_kl else [])]
        yield compute.held_out(readers, (1 + rungs) * result.score_tokens, "kl" if is_kl else "loss")
    if rungs:
        teacher = None if result.signals else result.teacher
        yield from compute.training(candidate.model, teacher, result.rung_tokens[rungs - 1])


def _distinct(candidates: tuple[CandidateResult, ...]) -> list[CandidateResult]:
    """Candidates by shape: one that competes for several targets was trained once, as far as for the one it got
    farthest for."""
    return list({candidate.key: candidate for candidate in sorted(candidates, key=lambda c: len(c.rungs))}.values())


def _prune(result: PruneResult) -> Iterator[Pass]:
    for candidate in result.candidates:
        yield compute.held_out([candidate.model], result.score_tokens)
    for before, scored in pairwise(result.rounds):
        tokens = scored.samples_scored * result.sequence_length
        on = Removal.of(scored.samples_scored, result.sequence_length, result.removal_samples, result.removal_positions)
        yield from compute.calibration(before.model, tokens, [1] if result.rounds_remove_layers else [], on)
    if result.calibration:
        own = (*result.repair.repairs, *result.repair.left_out) if result.repair else ()
        repaired = [(result.child, own), *((c.model, c.repairs) for c in result.candidates)]
        yield from compute.repair(result.parent, repaired, result.calibration.tokens)
    if result.repair and (effect := result.repair.effect):
        yield compute.held_out([result.parent, *[result.child] * effect.children], effect.read, "kl")


def _sparsify(result: SparsifyResult) -> Iterator[Pass]:
    """Every layer reads the text twice: as it was, and sparse. The last one does so once, which is not told apart.

    Outliers take a pass of their own before.
    """
    if result.calibration:
        measures = result.amounts == "owl" and not result.outliers_are_given
        yield compute.layerwise(result.model, (2 + measures) * result.calibration.tokens)
    if effect := result.effect:
        children = 2 if effect.kl_difference_stderr is not None else 1
        yield compute.held_out([result.model] * (1 + children), effect.read, "kl")


def _teach(result: TeachResult) -> Iterator[Pass]:
    yield compute.teacher(result.teacher, result.tokens_read)


def _training(result: TrainingResult) -> Iterator[Pass]:
    teacher = None if result.signals else result.teacher
    yield from compute.training(result.student, teacher if result.uses_teacher else None, result.tokens)
    readers = [result.student, *([teacher] if teacher else [])]
    yield compute.held_out(readers, result.validations * result.validation_tokens, "kl" if teacher else "loss")


def _evaluate(result: EvaluationResult) -> Iterator[Pass]:
    """KL of each model from the parent and the original, and loss of the models that are not known already.

    For each KL both models read the text again, and the loss comes with the first one. If a model has another tokenizer
    than the parent, its loss is measured per byte alone and that of the others per byte too, which is one more pass:
    that model reads other tokens of the same text, taken for as many.
    """
    sizes = {label: evaluated.model for label, evaluated in result.models.items()}
    foreign = {label for label, evaluated in result.models.items() if evaluated.other_tokenizer}
    pairs = [
        (label, reference)
        for label in sizes
        for reference in (PARENT, ORIGINAL)
        if reference in sizes and label not in (ORIGINAL, reference) and not foreign & {label, reference}
    ]
    known = {*result.reused, *foreign, *(label for label, _ in pairs)}
    alone = [size for label, size in sizes.items() if label not in known]
    if foreign:
        alone += [size for label, size in sizes.items() if label not in result.reused]
    yield compute.held_out(alone, result.loss_tokens)
    yield compute.held_out([sizes[label] for pair in pairs for label in pair], result.loss_tokens, "kl")


_DERIVE: dict[type[Result], Callable[[Any], Iterator[Pass]]] = {
    ImportanceResult: _importance,
    SearchResult: _search,
    PruneResult: _prune,
    SparsifyResult: _sparsify,
    TeachResult: _teach,
    CorrectionResult: _training,
    TrainingResult: _training,
    EvaluationResult: _evaluate,
}
