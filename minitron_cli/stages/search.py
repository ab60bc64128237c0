"""The search stage: a parent, its scores and constraints in, ranked candidate shapes out, for each size asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from minitron_cli import io
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.cost import compute
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.trainer import train
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.layerwise.processes import join_processes
from minitron_cli.prune.child_builder import ChildBuilder, read_scores
from minitron_cli.prune.config import PruneConfig
from minitron_cli.repair import repaired_plan
from minitron_cli.search import feasible, halving, rank
from minitron_cli.search.candidates import CANDIDATES, MEASURED, key
from minitron_cli.search.config import Objective, Retrain, SearchConfig, TaskObjective, objective_figure
from minitron_cli.search.constraints.base import Timed
from minitron_cli.search.feasible import Candidate
from minitron_cli.search.latency_probe import LatencyProbe
from minitron_cli.search.rank import Ranked
from minitron_cli.search.retained_importance import RetainedImportance
from minitron_cli.search.search_objective import SearchObjective, sign
from minitron_cli.search.work_sharing import WorkerGroup
from minitron_cli.stages.prune import row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STAGE, VERSION = "search", 3

Found = Mapping[str, Sequence[Ranked]]  # what a winner goes by -> its candidates, best first


def run(
    context: Context,
    parent: SourceModel,
    scores: Artifact,
    data: DataConfig,
    config: SearchConfig,
    *,
    teacher: SourceModel | None = None,
    cut: PruneConfig | None = None,
) -> Artifact:
    """Score the feasible shapes zero-shot, retrain the best few, and save the order. Each result survives a kill.

    `teacher` is whose predictions candidates are retrained on; the parent, if no other is named. `cut` is how the
    winner will be cut: where that mends it, candidates are mended before they are scored.
    """
    if cut and cut.untie:
        parent = parent.untied()
    processes, device = join_processes(context.device)
    here = replace(context, device=device)
    builder = ChildBuilder(here, parent, read_scores(scores, parent), config.ranking)
    shapes = {
        label: feasible.admitted(parent.shape, config.axes, config.constraints_of(label)) for label in config.labels
    }
    train_blocks = blocks_of(context, data, "train", parent.path)
    validation = blocks_of(context, data, "validation", parent.path)
    judge = SearchObjective(parent, teacher or parent, here, validation, config)
    mending = _Mending(builder, cut, ImportanceConfig(**scores.manifest.config), train_blocks) if cut else None
    inputs = {
        "model": parent.fingerprint,
        "scores": scores.fingerprint,
        "train": train_blocks.fingerprint,
        "validation": validation.fingerprint,
        **({} if context.dtype == "auto" else {"dtype": context.dtype}),
        **({"head": "its own"} if cut and cut.untie else {}),
        **judge.inputs(),
        **(mending.inputs() if mending else {}),
    }

    def build(work: StageBuild) -> None:
        crew = WorkerGroup(work, processes)
        crew.meet()
        judged = mending.builder_at(work.scratch / f"repair-{processes.rank}") if mending else builder
        search = _Search(judged, judge, train_blocks, config, crew)
        found = search.run({label: search.chosen(label, some) for label, some in shapes.items()})
        _write(work, config, found, {label: len(some) for label, some in shapes.items()}, search.rung_tokens())
        entries = [*search.spent(found), *(mending.spent(found) if mending else ())]
        work.summary["ledger"] = compute.as_json(compute.merged(entries))
        crew.meet()

    return produce(
        context, stage=STAGE, version=VERSION, config=_identity(config), inputs=inputs, build=build, together=True
    )


def _identity(config: SearchConfig) -> SearchConfig:
    """Of a task that decides, what it is counts, not where it is looked up."""
    if not isinstance(config.objective, TaskObjective):
        return config
    return config.model_copy(update={"objective": config.objective.model_copy(update={"path": None})})


@dataclass(frozen=True)
class _Mending:
    """What is done to candidates before they are scored, as the winner will be cut. With no repairs, nothing."""

    builder: ChildBuilder
    cut: PruneConfig
    calibration: ImportanceConfig
    train_blocks: Blocks

    def inputs(self) -> dict[str, str]:
        """DataError if there is too little text for the repairs."""
        if not self.cut.repairs:
            return {}
        repaired_plan.check_enough_text(self.cut, self.train_blocks)
        return {"repair": f"{self.cut.repair} on {self.cut.repair_samples} samples"}

    def builder_at(self, scratch: Path) -> ChildBuilder:
        if not self.cut.repairs:
            return self.builder
        return repaired_plan.with_repair(self.builder, self.cut, self.calibration, self.train_blocks, scratch)

    def spent(self, found: Found) -> list[compute.Entry]:
        """On every candidate once."""
        if not self.cut.repairs:
            return []
        shapes = [entry.candidate.shape for entry in _each_once(found)]
        mended = [
            (shape, repaired_plan.applicable(self.builder.plan(shape), self.cut) - {"rescale"}) for shape in shapes
        ]
        return compute.repair(
            self.builder.parent.shape, mended, *repaired_plan.calibration_tokens(self.cut, self.train_blocks)
        )


@dataclass(frozen=True)
class _Search:
    """One process's part of the work."""

    builder: ChildBuilder
    judge: SearchObjective
    train_blocks: Blocks
    config: SearchConfig
    crew: WorkerGroup

    def chosen(self, label: str, admitted: Sequence[Candidate]) -> list[Candidate]:
        """Those that keep most importance; where a constraint is measured, of those that meet it."""
        mass = RetainedImportance(self.builder.parent.shape, self.builder.scores, self.config.ranking)
        by_mass = sorted(
            (replace(c, costs=dict(c.costs) | {"mass": mass(c.shape)}) for c in admitted),
            key=lambda c: (-c.costs["mass"], c.name),
        )
        constraints, most = self.config.constraints_of(label), self.config.candidates
        if not any(isinstance(constraint, Timed) for constraint in constraints):
            return by_mass[:most]

        def timed() -> dict[str, Any]:
            stopwatch = LatencyProbe(self.builder)
            found = feasible.timed(self.builder.parent.shape, by_mass, constraints, most, stopwatch)
            return {"chosen": [[c.name, dict(c.costs)] for c in found]}

        by_name = {c.name: c for c in by_mass}
        chosen = self.crew.first(f"chosen-{label}", timed)["chosen"]
        return [replace(by_name[name], costs=costs) for name, costs in chosen]

    def run(self, chosen: Mapping[str, Sequence[Candidate]]) -> dict[str, list[Ranked]]:
        """All zero-shot scores first, so that no score depends on what was trained before it."""
        every = {c.name: c for some in chosen.values() for c in some}
        scores = self.crew.each(
            "score candidates", [f"zero-shot-{n}" for n in every], partial(self._score, list(every.values()))
        )
        score_of = dict(zip(every, scores, strict=True))
        ranked = {label: rank.by_zero_shot(some, lambda c: score_of[c.name]) for label, some in chosen.items()}
        retrain = self.config.retrain
        if retrain is None:
            return ranked
        return {label: self._retrained(some, retrain) if len(some) > 1 else some for label, some in ranked.items()}

    def _score(self, candidates: Sequence[Candidate], i: int) -> float:
        return self.judge(self._cut(candidates[i]))

    def _cut(self, candidate: Candidate) -> "PreTrainedModel":
        return self.builder.candidate(candidate.shape)

    def rung_tokens(self) -> list[int]:
        """Tokens that a candidate has seen at each rung."""
        retrain = self.config.retrain
        if retrain is None:
            return []
        per_step = retrain.batch_size * self.train_blocks.sequence_length
        return [steps * per_step for steps in self._rungs(retrain)]

    def _rungs(self, retrain: Retrain) -> list[int]:
        total = training(retrain, self.config.seed).total_steps(self.train_blocks.sequence_length)
        return halving.rung_steps(total, retrain.rungs, retrain.keep)

    def _retrained(self, ranked: Sequence[Ranked], retrain: Retrain) -> list[Ranked]:
        settings, steps = training(retrain, self.config.seed), self._rungs(retrain)

        def to_rung(running: Sequence[Ranked], i: int) -> list[float]:
            names = [f"rung-{i + 1}-{entry.candidate.name}" for entry in running]
            title = f"retrain to step {steps[i]:,} of {steps[-1]:,}"
            return self.crew.each(title, names, lambda k: self._train(running[k].candidate, settings, steps[i]))

        return halving.halve(ranked, retrain.top, len(steps), retrain.keep, to_rung, self._forget)

    def _train(self, candidate: Candidate, settings: DistillConfig, until: int) -> float:
        """The score after step `until` of a candidate's one training, from wherever that was left."""
        student = self._cut(candidate)
        train(
            student,
            self.judge.teacher_model,
            self.train_blocks,
            None,
            settings,
            self._checkpoints(candidate),
            device=self.builder.context.device,
            until=until,
            alone=True,
        )
        return self.judge(student)

    def spent(self, found: Found) -> list[compute.Entry]:
        """On candidates, each once whatever sizes it is a candidate for; not on tasks."""
        teacher, length = self.judge.teacher.shape, self.train_blocks.sequence_length
        entries = []
        for entry in _each_once(found):
            shape, rungs = entry.candidate.shape, len(entry.rungs)
            if judges := self.judge.reading(shape):
                entries.append(compute.held_out(judges, (1 + rungs) * self.judge.tokens, length))
            if rungs:
                entries += compute.training(shape, teacher, self.rung_tokens()[rungs - 1], length)
        return compute.merged(entries)

    def _forget(self, dropped: Sequence[Ranked]) -> None:
        """The training state of those that go no further: it is three times their weights in fp32."""
        if self.crew.processes.rank == 0:
            for entry in dropped:
                io.remove_tree(self._checkpoints(entry.candidate))

    def _checkpoints(self, candidate: Candidate) -> Path:
        return self.crew.work.scratch / f"retrain-{candidate.name}"


def _each_once(found: Found) -> list[Ranked]:
    """The candidates, whatever sizes they are candidates for."""
    return list({entry.candidate.name: entry for ranked in found.values() for entry in ranked}.values())


class Retraining(DistillConfig):
    """A candidate's lightweight retraining as the training loop takes it."""

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


def _write(
    work: StageBuild,
    config: SearchConfig,
    found: Found,
    counts: Mapping[str, int],
    rung_tokens: Sequence[int],
) -> None:
    factor, timed = sign(config.objective), {c.kind for c in config.constraints if isinstance(c, Timed)}
    rows = [row(entry, factor, target=label) for label, ranked in found.items() for entry in ranked]
    measured = {
        key(entry.candidate.shape.prunable): {kind: entry.candidate.costs[kind] for kind in sorted(timed)}
        for ranked in found.values()
        for entry in ranked
    }
    for one in rows:
        for kind in timed:  # a clock's word is kept outside identity
            one["costs"].pop(kind)
    objective = _described(config.objective)
    work.write_json(CANDIDATES, {"objective": objective, "rung_tokens": rung_tokens, "candidates": rows})
    if timed:
        work.run[MEASURED] = measured
    winners = {label: ranked[0].candidate for label, ranked in found.items()}
    first = winners[config.labels[0]]
    work.summary |= {
        "best": {axis: first.shape.sizes[axis] for axis in config.axes},
        "parameters": first.parameters,
        "feasible": counts[config.labels[0]],
        "winners": {
            label: {
                "sizes": {axis: candidate.shape.sizes[axis] for axis in config.axes},
                "parameters": candidate.parameters,
                "feasible": counts[label],
                "stability": rank.stability(found[label]),
            }
            for label, candidate in winners.items()
        },
    }


def _described(objective: Objective) -> dict[str, Any]:
    name = objective.name if isinstance(objective, TaskObjective) else objective
    return {"name": name, "better": objective_figure(objective).better}
