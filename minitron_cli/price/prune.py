"""Work of pruning: scores before each round, scored candidates, repair, the child's files."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from minitron_cli.cost import derive
from minitron_cli.cost.compute import model_size
from minitron_cli.evaluate.beside_parent import read_of
from minitron_cli.model.shape import Shape
from minitron_cli.price import fit
from minitron_cli.price.evaluation import logits_bytes
from minitron_cli.price.work import ITEM_BYTES, Moved, Subject, Work
from minitron_cli.prune.stream import BLOCK_BYTES, MAX_WORKERS
from minitron_cli.results.prune import HeldOut, PruneResult, RepairEffect, RepairResult, RoundResult
from minitron_cli.results.search import CalibrationUse, CandidateResult

UNKNOWN = HeldOut(loss=0, kl=0)


@dataclass(frozen=True)
class Pruning:
    """What the price of a pruning depends on."""

    parent: Subject
    """The model that is pruned, with an untied head or biases if these were added to it."""
    given: Shape
    """Shape of the model as it was given."""
    candidates: Sequence[Shape]
    """Shapes of which one is chosen, or the one that is given."""
    score_repairs: Sequence[Collection[str]]
    """Names of the repairs that each of them gets before it is scored."""
    repairs: Sequence[Collection[str]]
    """Names of the repairs that each of them gets if it is the child."""
    length: int
    """Tokens of a block of the text; 0 without any."""
    repair_samples: int = 0
    score_blocks: int = 0
    """Held-out blocks that each candidate is scored on."""
    effect_blocks: int = 0
    """Held-out blocks by which parts of a repair are kept, and its effect measured; 0 if it is not."""
    rounds: Sequence[Shape] = ()
    """Shapes after each round, if there are several."""
    round_samples: int = 0
    rounds_remove_layers: bool = False
    batch_size: int = 8
    activation_budget: int = 0
    is_resident: bool = True
    """Whether parent and child are in memory together while a repair is fitted."""

    @property
    def is_choice(self) -> bool:
        """Whether the shape is chosen among several."""
        return len(self.candidates) > 1

    @property
    def fit_tokens(self) -> int:
        """Tokens that repairs are fitted on."""
        return self.repair_samples * self.length


def work(pruning: Pruning) -> Work:
    """Work of a pruning. A chosen shape is taken to be the largest of the candidates."""
    parent, number = pruning.parent, _largest(pruning)
    child, repairs = pruning.candidates[number], pruning.repairs[number]
    child_bytes = child.parameters() * ITEM_BYTES[parent.dtype]
    result = _result(pruning, number)
    scored = zip(pruning.candidates, pruning.score_repairs, strict=True) if pruning.is_choice else ()
    fitted = [*scored, (child, repairs)]
    reads_text = pruning.length > 0
    return Work(
        what=_what(pruning, child),
        passes=(*derive.passes(result), *fit.passes_again(fitted, pruning.fit_tokens, pruning.length)),
        model=parent.runs(pruning.batch_size, max(pruning.length, 2)),
        moved={
            "read the parent": Moved(starts=int(reads_text), read=parent.weights_bytes),
            "statistics": fit.statistics(parent.shape, fitted, pruning.fit_tokens),
            "write and check the child": Moved(starts=int(not reads_text), read=child_bytes, written=child_bytes),
        },
        certain=_certain(pruning, child_bytes),
        transient=_transient(pruning, child),
        disk={"child": child_bytes} | ({"repair": fit.stored_bytes(parent.shape, child, repairs)} if repairs else {}),
        remedies=("--repair none",) if any(pruning.repairs) else (),
        weight_remedies=("--repair none",) if any(pruning.repairs) else (),
    )


def _largest(pruning: Pruning) -> int:
    sizes = [shape.parameters() for shape in pruning.candidates]
    return sizes.index(max(sizes))


def _what(pruning: Pruning, child: Shape) -> str:
    one = f"{pruning.given.parameters():,} to {child.parameters():,} parameters"
    texts = [one if not pruning.is_choice else f"{len(pruning.candidates)} shapes on {pruning.score_blocks:,} blocks"]
    texts += [f"{len(pruning.rounds)} rounds"] if pruning.rounds else []
    texts += [f"repair on {pruning.repair_samples:,} samples of {pruning.length:,} tokens"] * any(pruning.repairs)
    return ", ".join(texts)


def _result(pruning: Pruning, number: int) -> PruneResult:
    """What the pruning will have taken if the candidate of this number is chosen, with nothing measured yet."""
    own = tuple(pruning.repairs[number])
    read = pruning.effect_blocks * read_of(pruning.length)
    effect = RepairEffect(parent_loss=0, before=UNKNOWN, after=UNKNOWN, tokens=read, read=read, children=1 + len(own))
    return PruneResult(
        parent=model_size(pruning.parent.shape, pruning.length),
        child=model_size(pruning.candidates[number], pruning.length),
        checks=(),
        serving=(),
        candidates=tuple(_candidates(pruning)) if pruning.is_choice else (),
        score_tokens=pruning.score_blocks * pruning.length,
        sequence_length=pruning.length,
        rounds=tuple(_rounds(pruning)),
        rounds_remove_layers=pruning.rounds_remove_layers,
        calibration=CalibrationUse(samples=pruning.repair_samples, sequence_length=pruning.length)
        if pruning.repair_samples
        else None,
        repair=RepairResult(repairs=own, effect=effect if pruning.effect_blocks else None) if own else None,
    )


def _candidates(pruning: Pruning) -> Iterator[CandidateResult]:
    for shape, repairs in zip(pruning.candidates, pruning.score_repairs, strict=True):
        yield CandidateResult(
            shape=shape.prunable,
            parameters=shape.parameters(),
            zero_shot=0,
            model=model_size(shape, pruning.length),
            repairs=tuple(repairs),
        )


def _rounds(pruning: Pruning) -> Iterator[RoundResult]:
    for i, shape in enumerate(pruning.rounds):
        yield RoundResult(
            sizes=dict(shape.sizes),
            samples_scored=pruning.round_samples if i else 0,
            model=model_size(shape, pruning.length),
        )


def _certain(pruning: Pruning, child_bytes: int) -> dict[str, int]:
    """Weights that are in memory together."""
    if any(pruning.repairs) and pruning.is_resident:
        return {"parent": pruning.parent.weights_bytes, "child": child_bytes}
    if pruning.rounds or (pruning.is_choice and not any(pruning.repairs)):
        return {"child": child_bytes}
    return {}


def _transient(pruning: Pruning, child: Shape) -> dict[str, int]:
    found = {"blocks of tensors": 2 * BLOCK_BYTES * MAX_WORKERS}
    run = pruning.parent.runs(pruning.batch_size, pruning.length)
    if any(pruning.repairs):
        found |= fit.memory(run, child, pruning.fit_tokens, pruning.activation_budget)
    if pruning.effect_blocks or pruning.score_blocks:
        found["logits"] = logits_bytes(run)
    return found
