"""Search stage: reads a parent, its scores and constraints, stores ranked candidate shapes for each target."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from minitron_cli import io, progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.cost.compute import model_size
from minitron_cli.data.sources import DataConfig
from minitron_cli.distill import short_runs, training_run
from minitron_cli.distill.trainer import train
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs import tokenizers
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.inputs.token_blocks import blocks_of, given_texts
from minitron_cli.layerwise.processes import join_processes
from minitron_cli.layerwise.resume import discard_damaged
from minitron_cli.price import search as work_of
from minitron_cli.price import subject
from minitron_cli.price.offer import compute_dtype, offered
from minitron_cli.price.search import Searching
from minitron_cli.prune.child_builder import ChildBuilder, read_scores
from minitron_cli.prune.config import PruneConfig
from minitron_cli.repair import repaired_plan
from minitron_cli.results.price import Price
from minitron_cli.results.search import CandidateResult, SearchResult, WinnerResult, shape_key
from minitron_cli.results.training import MAX_RISE
from minitron_cli.retraining import Retraining
from minitron_cli.search import halving, rank, retained_importance
from minitron_cli.search.candidate_repair import CandidateRepair
from minitron_cli.search.candidates import candidate_result, objective_result
from minitron_cli.search.config import SearchConfig
from minitron_cli.search.constraints import cost_names
from minitron_cli.search.constraints.base import Timed
from minitron_cli.search.feasible import WITH_HIDDEN, Candidate
from minitron_cli.search.rank import RankedCandidate
from minitron_cli.search.search_objective import SearchObjective, sign
from minitron_cli.search.target import Target
from minitron_cli.search.work_sharing import WorkerGroup

STAGE, VERSION = "search", 5

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
    winner will be pruned with: candidates are repaired in the same way before they are retrained, and before they are
    scored as far as `score_repair` says.
    """
    asked, prune = prune, prune and prune.fitted(data.sequence_length)
    parent = plain = prune.prepared(parent) if prune else parent
    teacher = teacher or parent
    if prune and prune.adds_biases:
        parent = parent.with_biases()
    tokenizers.require_same(parent, teacher)
    processes, device = join_processes(context.device)
    here = replace(context, device=device)
    builder = ChildBuilder(here, parent, read_scores(scores, parent), config.ranking)
    lint = prune.serving_lint if prune else "refuse"
    targets = [Target.of(config, label, parent.shape, lint) for label in config.labels]
    train_blocks = blocks_of(context, data, "train", parent.path)
    length = train_blocks.sequence_length
    if config.retrain:
        fitted = short_runs.fit(config.retrain, length, len(train_blocks), parent.shape.parameters())
        config = config.model_copy(update={"retrain": fitted})
    validation = blocks_of(context, data, "validation", parent.path)
    objective = SearchObjective(config.objective, config.score_blocks, validation, teacher, parent.path, here)
    calibration = ImportanceConfig(**scores.manifest.config)
    repair = CandidateRepair.of(config, prune, calibration, train_blocks)
    if repair and asked:
        repaired_plan.check_enough_text(asked, train_blocks)
    retraining = Retraining.of(config.retrain, config.seed, train_blocks) if config.retrain else None
    if retraining:
        retraining = retraining.with_signals(context, teacher, parent.shape.sizes["vocab"])
    inputs = {
        "model": parent.fingerprint,
        "scores": scores.fingerprint,
        "train": train_blocks.fingerprint,
        "validation": validation.fingerprint,
        **retained_importance.inputs(parent.shape),
        **_optional_inputs(context, parent, teacher, prune),
        **({} if parent.shape == plain.shape else {"biases": "added"}),
        **({"heads": WITH_HIDDEN} if any("head" in t.space.keys() - config.axes.keys() for t in targets) else {}),
        **objective.inputs(),
        **({"signals": signals.fingerprint} if (signals := retraining and retraining.signals) else {}),
        **(training_run.key_inputs(retraining.config, parent.shape) if retraining else {}),
        **(repair.inputs(parent.family) if repair else {}),
    }
    timed = sorted(set(cost_names([one for one in config.constraints if isinstance(one, Timed)])))

    def stored(label: str, entry: RankedCandidate) -> CandidateResult:
        repairs = repair.applied(builder.plan(entry.candidate.shape), bool(entry.rungs)) if repair else {}
        return candidate_result(entry, length, factor=sign(config.objective), target=label, measured=timed, **repairs)

    def build(work: StageBuild) -> SearchResult:
        workers = WorkerGroup(work, processes)
        workers.barrier()
        chosen = {target.label: target.chosen(builder, config.candidates, workers) for target in targets}
        scratch = work.scratch / f"repair-{processes.rank}"
        discard_damaged(scratch)
        scored, retrained = repair.builders(builder, scratch) if repair else (builder, builder)
        found = _Search(scored, retrained, objective, retraining, workers).run(chosen)
        workers.barrier()
        work.measured.candidates = _measured(timed, found)
        return SearchResult(
            objective=objective_result(config),
            rung_tokens=retraining.rung_tokens if retraining else (),
            candidates=tuple(stored(label, entry) for label, ranked in found.items() for entry in ranked),
            winners={t.label: _winner(found[t.label], t.space, len(t.admitted)) for t in targets},
            parent=model_size(parent.shape, length),
            teacher=model_size(teacher.shape, length),
            score_tokens=objective.tokens,
            sequence_length=length,
            repair=repair.calibration_use() if repair else None,
            signals=signals.result.what if signals else None,
        )

    def price() -> Price:
        # Those that the search scores, as far as no measurement leaves some of them out.
        shapes = {t.label: [c.shape for c in t.ordered(builder)[: config.candidates]] for t in targets}
        plans = {str(shape): builder.plan(shape) for some in shapes.values() for shape in some}
        applied = {name: repair.applied(plan, is_retrained=True) for name, plan in plans.items()} if repair else {}
        searching = Searching(
            parent=subject.of_source(parent, parent.dtype_in(context)),
            teacher=subject.of_source(teacher, teacher.dtype_in(context)),
            targets=shapes,
            config=config,
            length=length,
            score_blocks=min(config.score_blocks, len(validation)),
            retraining=retraining.config if retraining else None,
            repairs={name: found["repairs"] for name, found in applied.items()},
            retrained_repairs={name: found["retrained_repairs"] for name, found in applied.items()},
            repair_samples=repair.calibration_use().samples if repair else 0,
            processes=processes.size,
            compute_dtype=compute_dtype(retraining.config, device) if retraining else "float32",
            signals=signals.result.what if signals else None,
        )
        return offered(context, STAGE, work_of.work(searching))

    made = produce(
        context,
        stage=STAGE,
        version=VERSION,
        config=config,
        inputs=inputs,
        build=build,
        price=price,
        given=lambda: {
            **(signals.given(context.workspace) if signals else {}),
            **given_texts(data, (train_blocks, validation)),
        },
        together=True,
    )
    _warn_if_worse(made.result(SearchResult))
    return made


def _warn_if_worse(found: SearchResult) -> None:
    """Warn if retraining made candidates clearly worse: their order then says nothing of the shapes."""
    factor = -1 if found.objective.better == "higher" else 1
    changes = [(c.zero_shot, factor * (c.retrained - c.zero_shot)) for c in found.candidates if c.retrained is not None]
    worse = [change for before, change in changes if change > MAX_RISE * abs(before)]
    if worse:
        progress.warn(
            f"search.retrain: {len(worse)} of {len(changes)} retrained candidates ended more than {MAX_RISE:.0%} worse "
            "than their zero-shot score: lower search.retrain.learning_rate"
        )


def _optional_inputs(
    context: Context, parent: SourceModel, teacher: SourceModel, prune: PruneConfig | None
) -> dict[str, str]:
    """Inputs that are named only where they are not the default, so that they change no other search's key."""
    return {
        **({} if context.dtype == "auto" else {"dtype": context.dtype}),
        **({"head": "its own"} if prune and prune.untie else {}),
        **({"write_as": prune.write_as} if prune and prune.write_as else {}),
        **({"serving_lint": "warn"} if prune and prune.serving_lint == "warn" else {}),
        **({} if teacher.fingerprint == parent.fingerprint else {"teacher": teacher.fingerprint}),
    }


@dataclass(frozen=True)
class _Search:
    """One process's share of the scoring and the retraining of candidates."""

    scored: ChildBuilder
    """Builder of the candidates that are scored zero-shot."""
    retrained: ChildBuilder
    """Builder of the candidates that are retrained."""
    objective: SearchObjective
    retraining: Retraining | None
    workers: WorkerGroup

    def run(self, chosen: Mapping[str, Sequence[Candidate]]) -> dict[str, list[RankedCandidate]]:
        """Ranked candidates by target. All zero-shot scores come first, so that none depends on earlier training."""
        every = {c.name: c for some in chosen.values() for c in some}
        scores = self.workers.map(
            "score candidates", [f"zero-shot-{n}" for n in every], partial(self._score, list(every.values()))
        )
        score_of = dict(zip(every, scores, strict=True))
        ranked = {label: rank.by_zero_shot(some, lambda c: score_of[c.name]) for label, some in chosen.items()}
        retraining = self.retraining
        if retraining is None:
            return ranked
        return {label: self._retrained(some, retraining) if len(some) > 1 else some for label, some in ranked.items()}

    def _score(self, candidates: Sequence[Candidate], i: int) -> float:
        return self.objective(self.scored.candidate(candidates[i].shape))

    def _retrained(self, ranked: Sequence[RankedCandidate], retraining: Retraining) -> list[RankedCandidate]:
        steps = retraining.steps

        def to_rung(running: Sequence[RankedCandidate], i: int) -> list[float]:
            names = [f"rung-{i + 1}-{entry.candidate.name}" for entry in running]
            title = f"retrain to step {steps[i]:,} of {steps[-1]:,}"
            return self.workers.map(title, names, lambda k: self._train(running[k].candidate, retraining, steps[i]))

        return halving.halve(ranked, retraining.retrain.top, len(steps), retraining.retrain.keep, to_rung, self._forget)

    def _train(self, candidate: Candidate, retraining: Retraining, until: int) -> float:
        """Score after step `until` of a candidate's training, which continues from its last checkpoint."""
        student = self.retrained.candidate(candidate.shape)
        train(
            student,
            None if retraining.signals else self.objective.teacher_model,
            retraining.blocks,
            None,
            retraining.config,
            self._checkpoints(candidate),
            device=self.retrained.context.device,
            signals=retraining.signals,
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


def _winner(ranked: Sequence[RankedCandidate], axes: Iterable[str], count: int) -> WinnerResult:
    best = ranked[0].candidate
    return WinnerResult(
        sizes={axis: best.shape.sizes[axis] for axis in sorted(axes)},  # as keys do not depend on the space's order
        parameters=best.parameters,
        feasible=count,
        stability=tuple(rank.stability(ranked)),
    )


def _measured(timed: Sequence[str], found: Found) -> dict[str, dict[str, float]]:
    """Shape of a candidate -> name of a timed constraint's cost -> cost; empty if nothing was timed."""
    if not timed:
        return {}
    candidates = (entry.candidate for ranked in found.values() for entry in ranked)
    return {shape_key(c.shape.prunable): {name: c.costs[name] for name in timed} for c in candidates}
