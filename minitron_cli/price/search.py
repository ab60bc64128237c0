"""Work of a search: scores of all candidates, and the retraining of the best from rung to rung."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from minitron_cli.cost import derive
from minitron_cli.cost.compute import model_size
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.optimizer_kinds import saved_bytes
from minitron_cli.model.shape import Shape
from minitron_cli.price import fit, training
from minitron_cli.price.evaluation import logits_bytes
from minitron_cli.price.subject import child_of
from minitron_cli.price.work import Moved, Subject, Work
from minitron_cli.results.search import CalibrationUse, CandidateResult, ObjectiveResult, SearchResult
from minitron_cli.search import halving
from minitron_cli.search.config import SearchConfig, TaskObjective

SCORE_BATCH = 8  # blocks that a candidate reads at once


@dataclass(frozen=True)
class Searching:
    """What the price of a search depends on."""

    parent: Subject
    teacher: Subject
    targets: Mapping[str, Sequence[Shape]]
    """Label of a target -> the shapes that are scored for it."""
    config: SearchConfig
    length: int
    """Tokens of a block."""
    score_blocks: int
    """Held-out blocks of one score."""
    retraining: DistillConfig | None
    """Settings of the training loop; None without retraining."""
    repairs: Mapping[str, Collection[str]] = field(default_factory=dict)
    """A shape as text -> the names of the repairs that it gets before it is scored; none where it is missing."""
    retrained_repairs: Mapping[str, Collection[str]] = field(default_factory=dict)
    """The same before it is retrained, if it is."""
    repair_samples: int = 0
    processes: int = 1
    compute_dtype: str = "float32"
    signals: str | None = None
    """What is read of the teacher's stored signals; None if it runs."""

    @property
    def shapes(self) -> list[Shape]:
        """Shapes of all targets, each once."""
        return list({str(shape): shape for some in self.targets.values() for shape in some}.values())


def work(searching: Searching) -> Work:
    """Work of a search. Which candidates are retrained is not known: the largest are taken to be."""
    shapes, parent, teacher = searching.shapes, searching.parent, searching.teacher
    largest = child_of(parent, max(shapes, key=Shape.parameters))
    result = _result(searching)
    fitted = _fitted(searching, result)
    tokens = searching.repair_samples * searching.length
    retraining = searching.retraining
    micro = retraining.micro_batch_size if retraining else 1
    run = parent.runs(SCORE_BATCH, searching.length)
    is_read = searching.config.objective == "kl" or (retraining is not None and searching.signals is None)
    loaded = teacher if is_read else None
    held = training.held(largest.shape.parameters(), loaded, searching.compute_dtype) if retraining else {}
    objective = searching.config.objective
    return Work(
        what=f"{len(shapes)} shapes on {searching.score_blocks:,} blocks{_retrained(searching)}",
        passes=(*derive.passes(result), *fit.passes_again(fitted, tokens, searching.length)),
        model=run,
        student=largest.runs(micro, searching.length, "float32") if retraining else None,
        training=retraining,
        moved={
            "read the parent": Moved(read=len(shapes) * parent.weights_bytes),
            "statistics": fit.statistics(parent.shape, fitted, tokens),
            **({"optimizer": Moved(updates=_updates(searching))} if retraining else {}),
        },
        certain=held or {"candidate": largest.weights_bytes} | ({"teacher": loaded.weights_bytes} if loaded else {}),
        transient={"activations": run.layer_bytes(), "logits": logits_bytes(run)},
        disk={"checkpoints": int(saved_bytes(retraining.optimizer) * _running(searching))} if retraining else {},
        remedies=("search.retrain.micro_batch_size=1",) if micro > 1 else (),
        left_out=(f"task {objective.name} of each candidate",) if isinstance(objective, TaskObjective) else (),
        processes=searching.processes,
    )


def _fitted(searching: Searching, result: SearchResult) -> fit.Fitted:
    """Shapes and the repairs that each gets in all, as far as it comes."""
    shapes = {tuple(shape.prunable.items()): shape for shape in searching.shapes}
    every = ((shapes[tuple(c.shape.items())], {*c.repairs, *c.retrained_repairs}) for c in result.candidates)
    return list(every)


def _retrained(searching: Searching) -> str:
    if not searching.retraining or not searching.config.retrain:
        return ""
    return f", the best {_top(searching)} retrained on up to {searching.config.retrain.tokens:,} tokens"


def _top(searching: Searching) -> int:
    """Candidates of a target that are retrained at first."""
    assert searching.config.retrain
    return min(searching.config.retrain.top, max(map(len, searching.targets.values())))


def _rungs(searching: Searching) -> list[int]:
    """Steps at each rung."""
    retrain, training_of = searching.config.retrain, searching.retraining
    if not retrain or not training_of:
        return []
    return halving.rung_steps(training_of.total_steps(searching.length), retrain.rungs, retrain.keep)


def _reached(searching: Searching, count: int) -> list[int]:
    """Rungs that each of `count` candidates of one target reaches, in any order."""
    retrain, steps = searching.config.retrain, _rungs(searching)
    if not steps or retrain is None or count < 2:
        return [0] * count
    reached, running = [0] * count, min(retrain.top, count)
    for rung in range(len(steps)):
        reached[:running] = [rung + 1] * running
        running = halving.survivors(running, retrain.keep)
    return reached


def _updates(searching: Searching) -> int:
    """Parameters that are updated, over the steps of all candidates."""
    steps = [0, *_rungs(searching)]
    return sum(
        shape.parameters() * steps[rungs]
        for some in searching.targets.values()
        for shape, rungs in zip(_by_size(some), _reached(searching, len(some)), strict=True)
    )


def _running(searching: Searching) -> int:
    """Parameters of all candidates that have a training state at once."""
    top = _top(searching)
    return sum(shape.parameters() for some in searching.targets.values() for shape in _by_size(some)[:top])


def _by_size(shapes: Sequence[Shape]) -> list[Shape]:
    return sorted(shapes, key=Shape.parameters, reverse=True)


def _result(searching: Searching) -> SearchResult:
    """What the search will have taken, with nothing measured yet."""
    retraining, length = searching.retraining, searching.length
    per_step = retraining.batch_size * length if retraining else 0
    is_task = isinstance(searching.config.objective, TaskObjective)
    name = "task" if is_task else str(searching.config.objective)
    return SearchResult(
        objective=ObjectiveResult(name=name),
        rung_tokens=tuple(steps * per_step for steps in _rungs(searching)),
        candidates=tuple(
            CandidateResult(
                target=label,
                shape=shape.prunable,
                parameters=shape.parameters(),
                zero_shot=0,
                rungs=(0.0,) * rungs,
                model=model_size(shape, length),
                repairs=tuple(searching.repairs.get(str(shape), ())),
                retrained_repairs=tuple(searching.retrained_repairs.get(str(shape), ())) if rungs else (),
            )
            for label, some in searching.targets.items()
            for shape, rungs in zip(_by_size(some), _reached(searching, len(some)), strict=True)
        ),
        winners={},
        parent=model_size(searching.parent.shape, length),
        teacher=model_size(searching.teacher.shape, length),
        score_tokens=0 if is_task else searching.score_blocks * length,
        sequence_length=length,
        repair=CalibrationUse(samples=searching.repair_samples, sequence_length=length)
        if searching.repair_samples
        else None,
        signals=searching.signals,
    )
