"""Search stage: reads a parent, its scores and constraints, stores ranked candidate shapes for each target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from minitron_cli import io
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.cost.compute import model_size
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.trainer import train
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.layerwise.processes import join_processes
from minitron_cli.model.shape import Shape
from minitron_cli.prune.child_builder import ChildBuilder, read_scores
from minitron_cli.prune.config import PruneConfig
from minitron_cli.repair import repaired_plan
from minitron_cli.results.search import CalibrationUse, SearchResult, StabilityResult, WinnerResult, shape_key
from minitron_cli.search import feasible, halving, rank
from minitron_cli.search.candidates import candidate_result, objective_result
from minitron_cli.search.config import Retrain, SearchConfig, TaskObjective
from minitron_cli.search.constraints.base import Timed
from minitron_cli.search.feasible import Candidate
from minitron_cli.search.latency_probe import LatencyProbe
from minitron_cli.search.rank import RankedCandidate
from minitron_cli.search.retained_importance import RetainedImportance
from minitron_cli.search.search_objective import SearchObjective, sign
from minitron_cli.search.work_sharing import WorkerGroup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STAGE, VERSION = "search", 3

Found = Mapping[str, Sequence[RankedCandidate]]  # target -> its candidates, best first


def run(
    context: Context,
    parent: SourceModel,
    scores: Artifact,
    data: DataConfig,
    config: SearchConfig,
    *,
    teacher: SourceModel | None = None,
    prune: PruneConfig | None = None,
) -> Artifact:
    """Score feasible shapes zero-shot, retrain the best few, and store the ranking. A resumed search keeps its scores.

    `teacher` predicts what candidates are retrained on; the parent by default. `prune` is the configuration that the
    winner will be pruned with: if it repairs the child, candidates are repaired before they are scored.
    """
    if prune and prune.untie:
        parent = parent.untied()
    processes, device = join_processes(context.device)
    here = replace(context, device=device)
    builder = ChildBuilder(here, parent, read_scores(scores, parent), config.ranking)
    shapes = {
        label: feasible.admitted(parent.shape, config.axes, config.constraints_of(label)) for label in config.labels
    }
    train_blocks = blocks_of(context, data, "train", parent.path)
    validation = blocks_of(context, data, "validation", parent.path)
    objective = SearchObjective(parent, teacher or parent, here, validation, config)
    calibration = ImportanceConfig(**scores.manifest.config)
    repair = _Repair(builder, prune, calibration, train_blocks) if prune and prune.repairs else None
    inputs = {
        "model": parent.fingerprint,
        "scores": scores.fingerprint,
        "train": train_blocks.fingerprint,
        "validation": validation.fingerprint,
        **({} if context.dtype == "auto" else {"dtype": context.dtype}),
        **({"head": "its own"} if prune and prune.untie else {}),
        **objective.inputs(),
        **(repair.inputs() if repair else {}),
    }

    def build(work: StageBuild) -> SearchResult:
        workers = WorkerGroup(work, processes)
        workers.barrier()
        scored = repair.builder_at(work.scratch / f"repair-{processes.rank}") if repair else builder
        search = _Search(scored, objective, train_blocks, config, workers)
        found = search.run({label: search.chosen(label, some) for label, some in shapes.items()})
        workers.barrier()
        work.measured.candidates = _measured(config, found)
        return _result(search, found, {label: len(some) for label, some in shapes.items()}, repair)

    return produce(context, stage=STAGE, version=VERSION, config=config, inputs=inputs, build=build, together=True)


@dataclass(frozen=True)
class _Repair:
    """Repair of candidates before they are scored, as the winner will be repaired."""

    builder: ChildBuilder
    prune: PruneConfig
    calibration: ImportanceConfig
    train_blocks: Blocks

    def inputs(self) -> dict[str, str]:
        """Identity of the repair. DataError if there is too little text to fit it on."""
        repaired_plan.check_enough_text(self.prune, self.train_blocks)
        return {"repair": f"{self.prune.repair} on {self.prune.repair_samples} samples"}

    def builder_at(self, scratch: Path) -> ChildBuilder:
        """Builder of repaired candidates, whose statistics are kept in `scratch`."""
        return repaired_plan.with_repair(self.builder, self.prune, self.calibration, self.train_blocks, scratch)

    def applied(self, shape: Shape) -> frozenset[str]:
        """Names of the repairs that a candidate of this shape gets."""
        return repaired_plan.applicable(self.builder.plan(shape), self.prune) - {"rescale"}

    def calibration_use(self) -> CalibrationUse:
        """Text that the repairs are fitted on."""
        return repaired_plan.calibration_use(self.prune, self.train_blocks)


@dataclass(frozen=True)
class _Search:
    """One process's share of a search."""

    builder: ChildBuilder
    objective: SearchObjective
    train_blocks: Blocks
    config: SearchConfig
    workers: WorkerGroup

    def chosen(self, label: str, admitted: Sequence[Candidate]) -> list[Candidate]:
        """Candidates that retain most importance, among the shapes that meet the constraints that are timed, if any."""
        mass = RetainedImportance(self.builder.parent.shape, self.builder.scores, self.config.ranking)
        by_mass = sorted(
            (replace(c, costs=dict(c.costs) | {"mass": mass(c.shape)}) for c in admitted),
            key=lambda c: (-c.costs["mass"], c.name),
        )
        constraints, most = self.config.constraints_of(label), self.config.candidates
        if not any(isinstance(constraint, Timed) for constraint in constraints):
            return by_mass[:most]

        def timed() -> dict[str, Any]:
            probe = LatencyProbe(self.builder)
            found = feasible.timed(self.builder.parent.shape, by_mass, constraints, most, probe)
            return {"chosen": [[c.name, dict(c.costs)] for c in found]}

        by_name = {c.name: c for c in by_mass}
        chosen = self.workers.from_rank0(f"chosen-{label}", timed)["chosen"]
        return [replace(by_name[name], costs=costs) for name, costs in chosen]

    def run(self, chosen: Mapping[str, Sequence[Candidate]]) -> dict[str, list[RankedCandidate]]:
        """Ranked candidates by target. All zero-shot scores come first, so that none depends on earlier training."""
        every = {c.name: c for some in chosen.values() for c in some}
        scores = self.workers.map(
            "score candidates", [f"zero-shot-{n}" for n in every], partial(self._score, list(every.values()))
        )
        score_of = dict(zip(every, scores, strict=True))
        ranked = {label: rank.by_zero_shot(some, lambda c: score_of[c.name]) for label, some in chosen.items()}
        retrain = self.config.retrain
        if retrain is None:
            return ranked
        return {label: self._retrained(some, retrain) if len(some) > 1 else some for label, some in ranked.items()}

    def _score(self, candidates: Sequence[Candidate], i: int) -> float:
        return self.objective(self._child(candidates[i]))

    def _child(self, candidate: Candidate) -> "PreTrainedModel":
        return self.builder.candidate(candidate.shape)

    def rung_tokens(self) -> list[int]:
        """Tokens that a candidate was trained on by each rung."""
        retrain = self.config.retrain
        if retrain is None:
            return []
        per_step = retrain.batch_size * self.train_blocks.sequence_length
        return [steps * per_step for steps in self._rungs(retrain)]

    def _rungs(self, retrain: Retrain) -> list[int]:
        total = training(retrain, self.config.seed).total_steps(self.train_blocks.sequence_length)
        return halving.rung_steps(total, retrain.rungs, retrain.keep)

    def _retrained(self, ranked: Sequence[RankedCandidate], retrain: Retrain) -> list[RankedCandidate]:
        settings, steps = training(retrain, self.config.seed), self._rungs(retrain)

        def to_rung(running: Sequence[RankedCandidate], i: int) -> list[float]:
            names = [f"rung-{i + 1}-{entry.candidate.name}" for entry in running]
            title = f"retrain to step {steps[i]:,} of {steps[-1]:,}"
            return self.workers.map(title, names, lambda k: self._train(running[k].candidate, settings, steps[i]))

        return halving.halve(ranked, retrain.top, len(steps), retrain.keep, to_rung, self._forget)

    def _train(self, candidate: Candidate, settings: DistillConfig, until: int) -> float:
        """Score after step `until` of a candidate's training, which continues from its last checkpoint."""
        student = self._child(candidate)
        train(
            student,
            self.objective.teacher_model,
            self.train_blocks,
            None,
            settings,
            self._checkpoints(candidate),
            device=self.builder.context.device,
            until=until,
            alone=True,
        )
        return self.objective(student)

    def _forget(self, dropped: Sequence[RankedCandidate]) -> None:
        """Remove the training state of dropped candidates: it takes three times their weights in fp32."""
        if self.workers.processes.rank == 0:
            for entry in dropped:
                io.remove_tree(self._checkpoints(entry.candidate))

    def _checkpoints(self, candidate: Candidate) -> Path:
        return self.workers.work.scratch / f"retrain-{candidate.name}"


class Retraining(DistillConfig):
    """Retraining of a candidate, as a configuration of the training loop."""

    section: ClassVar[str] = "search.retrain"


def training(retrain: Retrain, seed: int) -> Retraining:
    return Retraining(
        tokens=retrain.tokens,
        batch_size=retrain.batch_size,
        micro_batch_size=retrain.micro_batch_size,
        learning_rate=retrain.learning_rate,
        min_learning_rate=retrain.learning_rate / 10,
        warmup_steps=retrain.warmup_steps,
        eval_every=10**9,
        save_every=retrain.save_every,
        seed=seed,
    )


def _result(search: _Search, found: Found, counts: Mapping[str, int], repair: _Repair | None) -> SearchResult:
    config, objective = search.config, search.objective
    length, factor = search.train_blocks.sequence_length, sign(config.objective)
    candidates = [
        candidate_result(
            entry,
            length,
            factor=factor,
            target=label,
            repairs=repair.applied(entry.candidate.shape) if repair else (),
            measured=_timed(config),
        )
        for label, ranked in found.items()
        for entry in ranked
    ]
    return SearchResult(
        objective=objective_result(config),
        rung_tokens=tuple(search.rung_tokens()),
        candidates=tuple(candidates),
        winners={label: _winner(config, ranked, counts[label]) for label, ranked in found.items()},
        parent=model_size(search.builder.parent.shape, length),
        teacher=model_size(objective.teacher.shape, length),
        score_tokens=0 if isinstance(config.objective, TaskObjective) else objective.tokens,
        sequence_length=length,
        repair=repair.calibration_use() if repair else None,
    )


def _winner(config: SearchConfig, ranked: Sequence[RankedCandidate], count: int) -> WinnerResult:
    best = ranked[0].candidate
    return WinnerResult(
        sizes={axis: best.shape.sizes[axis] for axis in config.axes},
        parameters=best.parameters,
        feasible=count,
        stability=tuple(
            StabilityResult(before=row["from"], after=row["to"], candidates=row["candidates"], tau=row["tau"])
            for row in rank.stability(ranked)
        ),
    )


def _timed(config: SearchConfig) -> list[str]:
    """Kinds of the constraints that are measured by a clock."""
    return sorted({constraint.kind for constraint in config.constraints if isinstance(constraint, Timed)})


def _measured(config: SearchConfig, found: Found) -> dict[str, dict[str, float]]:
    """Shape of a candidate -> kind of constraint -> measured cost."""
    if not (timed := _timed(config)):
        return {}
    candidates = (entry.candidate for ranked in found.values() for entry in ranked)
    return {shape_key(c.shape.prunable): {kind: c.costs[kind] for kind in timed} for c in candidates}
