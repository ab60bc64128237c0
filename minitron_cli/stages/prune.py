"""Prune stage: reads a parent and its scores, writes a smaller checkpoint."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from minitron_cli import methods, progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.cost.compute import model_size
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.data.split import SplitName
from minitron_cli.errors import ArtifactError, InputError
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.importance.rescore import rescore
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.model import serving
from minitron_cli.model.axes import PRUNABLE, Axis
from minitron_cli.model.shape import Shape
from minitron_cli.price import prune as work_of
from minitron_cli.price import subject
from minitron_cli.price.offer import offered
from minitron_cli.prune import export_check, limits, stream
from minitron_cli.prune.child_builder import ChildBuilder, read_scores
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.config import PruneConfig
from minitron_cli.prune.iterative_pruning import plan_in_rounds, shapes_between
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.repair import repaired_plan
from minitron_cli.repair.acceptance import EFFECT_BLOCKS
from minitron_cli.results.price import Price
from minitron_cli.results.prune import PruneResult, RoundResult, ServingFinding
from minitron_cli.results.run_record import ExportCheck
from minitron_cli.results.search import CandidateResult, SearchResult
from minitron_cli.scores.metric import Random
from minitron_cli.search import rank, space
from minitron_cli.search.candidates import candidate_result
from minitron_cli.search.feasible import Candidate, feasible
from minitron_cli.search.rank import RankedCandidate
from minitron_cli.search.retained_importance import RetainedImportance
from minitron_cli.sparse.mask_file import MASKS
from minitron_cli.spec import Amount

STAGE, VERSION = "prune", 6
PLAN = "plan.json"


def run(
    context: Context,
    parent: SourceModel,
    config: PruneConfig,
    *,
    scores: Artifact,
    data: DataConfig | None = None,
    search: Artifact | None = None,
    label: str = "",
) -> Artifact:
    """Prune `parent` to the config's shape, to the best shape within its budget, or to the winner of the search.

    InputError if a choice, a repair or a round needs text and `data` is None.
    """
    if config.method:
        progress.say(methods.explained(config.method, config))
    if (parent.path / MASKS).is_file():
        progress.warn(
            f"{parent.name} is sparse, and pruning breaks its pattern of zeros: the child is dense and has no masks; "
            "sparsify it after pruning"
        )
    if config.untie:
        parent = parent.untied()
    original = parent.shape
    if config.serving_lint == "warn":
        parent = parent.without_pattern()
    builder = ChildBuilder(context, parent, read_scores(scores, parent), config.ranking)
    candidates = _candidates(builder, config, search)
    if data is None and config.repair == "auto":
        progress.say("skipping repair: it needs calibration text (--data)")
        config = config.model_copy(update={"repair": "none"})
    if data is not None:
        config = config.fitted(data.sequence_length)
    texts = _texts(context, parent, data, config, is_choice=len(candidates) > 1)
    if config.repairs:
        repaired_plan.check_enough_text(config, texts["train"])
    inputs = {"model": parent.fingerprint, "scores": scores.fingerprint}
    if config.shape is None and config.budget is None and search is not None and not config.drop_layers:
        inputs["search"] = search.fingerprint
    if texts:  # scores and repairs that are measured on text depend on the dtype
        inputs |= {split: blocks.fingerprint for split, blocks in texts.items()} | {"dtype": context.dtype}
    pruning = _Pruning(builder, config, candidates, ImportanceConfig(**scores.manifest.config), texts, original)
    pruning.check()
    return produce(
        context,
        stage=STAGE,
        version=VERSION,
        config=config,
        inputs=inputs,
        build=pruning.build,
        label=label,
        forecast=pruning.forecast,
        price=pruning.price,
    )


def _texts(
    context: Context, parent: SourceModel, data: DataConfig | None, config: PruneConfig, *, is_choice: bool
) -> dict[SplitName, Blocks]:
    """Blocks of each split that is needed. InputError if one is needed and `data` is None."""
    needs: tuple[tuple[bool, str, tuple[SplitName, ...]], ...] = (
        (is_choice, "choosing a shape for a target needs text to score candidates on", ("validation",)),
        (config.rounds > 1, "iterative pruning needs text to score on before each round", ("train",)),
        (bool(config.repairs), "a repair needs calibration text", ("train", "validation")),
    )
    texts: dict[SplitName, Blocks] = {}
    for is_needed, why, splits in needs:
        if not is_needed:
            continue
        if data is None:
            raise InputError(f"{why}: give some with --data")
        texts |= {split: blocks_of(context, data, split, parent.path) for split in splits if split not in texts}
    return texts


@dataclass(frozen=True)
class _Pruning:
    """Pruning of one parent to the best of the candidates."""

    builder: ChildBuilder
    config: PruneConfig
    candidates: Sequence[Candidate]
    calibration: ImportanceConfig
    texts: Mapping[SplitName, Blocks]
    original: Shape
    """Shape of the parent with the pattern of its layers, which the builder's lacks if it need not be kept."""

    @property
    def is_choice(self) -> bool:
        """Whether the shape is chosen among several candidates."""
        return len(self.candidates) > 1

    @cached_property
    def _plans(self) -> list[PrunePlan]:
        """Plan of every candidate, without repair."""
        return [self.builder.plan(candidate.shape, self.config.drop_layers) for candidate in self.candidates]

    def check(self) -> None:
        """Refuse a shape or repair that is impossible, before anything is written."""
        for plan in self._plans:
            repaired_plan.applicable(plan, self.config)

    def forecast(self) -> dict[str, Any]:
        """Candidates, or sizes and tensors of the child, for a dry run."""
        if self.is_choice:
            named = {f"candidate {i + 1}": c for i, c in enumerate(self.candidates)}
            scores = {"score": f"each on {self._score_blocks} validation blocks; the best is pruned"}
            return {name: f"{c.shape}: {c.parameters:,} parameters" for name, c in named.items()} | scores
        return stream.forecast(self.builder.parent.checkpoint, self._plans[0])

    def price(self) -> Price:
        """What the pruning takes."""
        plans, config, calibration = self._plans, self.config, self.calibration
        is_resident = repaired_plan.is_resident(self.builder, calibration)
        pruning = work_of.Pruning(
            parent=subject.of_source(self.builder.parent, self.builder.context.dtype),
            candidates=[plan.child for plan in plans],
            score_repairs=[repaired_plan.of_candidate(plan, config, config.score_repair) for plan in plans],
            repairs=[repaired_plan.applicable(plan, config) for plan in plans],
            length=self.sequence_length,
            repair_samples=min(config.repair_samples, len(self.texts["train"])) if config.repairs else 0,
            score_blocks=self._score_blocks if self.is_choice else 0,
            effect_blocks=self._held_out(EFFECT_BLOCKS) if config.repairs and is_resident else 0,
            rounds=shapes_between(plans[0].parent, plans[0].child, config.rounds) if config.rounds > 1 else (),
            round_samples=calibration.samples,
            rounds_remove_layers=config.ranking.layers == "perplexity",
            batch_size=calibration.batch_size,
            activation_budget=calibration.activation_budget,
            is_resident=is_resident,
        )
        return offered(self.builder.context, STAGE, work_of.work(pruning))

    def _held_out(self, most: int) -> int:
        """Number of held-out blocks that are read where at most so many are."""
        return min(most, len(self.texts["validation"]))

    def build(self, work: StageBuild) -> PruneResult:
        """Choose the shape, plan, repair, write and check the child."""
        candidates = self._ranked(work) if self.is_choice else ()
        shape = candidates[0].candidate.shape if candidates else self.candidates[0].shape
        plan, rounds = self._plan(work, shape)
        repair = None
        if self.config.repairs:
            plan, repair = repaired_plan.repaired(
                work, self.builder, plan, self.config, self.calibration, self.texts["train"], self.texts["validation"]
            )
        self._warn_off_pattern(plan)
        _write(work, self.builder.parent, plan)
        return PruneResult(
            parent=model_size(plan.parent, self.sequence_length),
            child=model_size(plan.child, self.sequence_length),
            checks=tuple(_check(work, self.builder.parent, plan)),
            serving=tuple(_serving(work, plan)),
            candidates=tuple(self._candidate_result(entry) for entry in candidates),
            score_tokens=self._score_blocks * self.sequence_length if candidates else 0,
            sequence_length=self.sequence_length,
            rounds=tuple(self._round_results(rounds)),
            rounds_remove_layers=bool(rounds) and self.config.ranking.layers == "perplexity",
            removal_samples=self.calibration.removal_samples,
            removal_positions=self.calibration.removal_positions,
            calibration=repaired_plan.calibration_use(self.config, self.texts["train"])
            if self.config.repairs
            else None,
            repair=repair,
        )

    def _warn_off_pattern(self, plan: PrunePlan) -> None:
        if "layer" in plan.kept and not limits.keeps_pattern(self.original, plan.kept["layer"].tolist()):
            progress.warn(limits.off_pattern(self.original))

    @property
    def sequence_length(self) -> int:
        """Tokens per block of the text that is used; 0 if none is."""
        return next((blocks.sequence_length for blocks in self.texts.values()), 0)

    @property
    def _score_blocks(self) -> int:
        """Validation blocks on which each candidate is scored."""
        return self._held_out(self.config.score_blocks)

    def _candidate_result(self, entry: RankedCandidate) -> CandidateResult:
        plan = self.builder.plan(entry.candidate.shape)
        repairs = repaired_plan.of_candidate(plan, self.config, self.config.score_repair)
        return candidate_result(entry, self.sequence_length, repairs=repairs)

    def _round_results(self, shapes: Sequence[Shape]) -> Iterator[RoundResult]:
        for i, shape in enumerate(shapes):
            yield RoundResult(
                sizes=dict(shape.sizes),
                samples_scored=self.calibration.samples if i else 0,
                model=model_size(shape, self.sequence_length),
            )

    def _ranked(self, work: StageBuild) -> Sequence[RankedCandidate]:
        """Candidates by zero-shot loss on few blocks, best first. A resumed stage keeps the scores."""
        builder, config, scratch = self.builder, self.config, work.scratch / "repair"
        if config.repairs:  # the second moments that a rotation needs stay there for the child
            train = self.texts["train"]
            builder = repaired_plan.with_repair(builder, config, config.score_repair, self.calibration, train, scratch)

        def loss(candidate: Candidate) -> float:
            return builder.zero_shot_loss(candidate.shape, self.texts["validation"], self._score_blocks)

        with progress.track("score candidates", len(self.candidates), "candidates") as step:

            def score(candidate: Candidate) -> float:
                found = work.remember(f"zero-shot-{candidate.name}", lambda: {"loss": loss(candidate)})
                step(1, **found)
                return float(found["loss"])

            return rank.by_zero_shot(self.candidates, score)

    def _plan(self, work: StageBuild, shape: Shape) -> tuple[PrunePlan, list[Shape]]:
        """Plan to the shape, and the shape after each round if there are several."""
        if self.config.rounds == 1:
            return self.builder.plan(shape, self.config.drop_layers), []
        again = partial(rescore, self.builder, blocks=self.texts["train"], config=self.calibration)
        return plan_in_rounds(work, self.builder, shape, self.config.rounds, again)


def at_random(config: PruneConfig, like: Artifact) -> PruneConfig:
    """Configuration of pruning to the shape of `like`, with random channels, heads and neurons and no repair.

    The same layers are removed: the control compares choices of width only.
    """
    ranking = config.ranking.model_copy(update={"width": Random(), "head_residual": "none"})
    return PruneConfig(
        shape=_sizes_of(like, config),
        drop_layers=config.drop_layers,
        ranking=ranking,
        repair="none",
        untie=config.untie,
        serving_lint=config.serving_lint,
    )


def unrepaired(config: PruneConfig, like: Artifact) -> PruneConfig:
    """Configuration of pruning to the shape of `like` by the same scores, without repair."""
    return config.model_copy(update={"shape": _sizes_of(like, config), "budget": None, "size": None, "repair": "none"})


def _sizes_of(like: Artifact, config: PruneConfig) -> dict[Axis, int] | None:
    """Sizes of a pruned model that differ from its parent's, beside the layers that the configuration removes."""
    result = like.result(PruneResult)
    before, after = result.parent.sizes, result.child.sizes
    changed = {axis: after[axis] for axis in PRUNABLE if after.get(axis) != before.get(axis)}
    if config.drop_layers:
        changed.pop("layer", None)
    return changed or None


def at_once(config: PruneConfig, original: SourceModel, like: Shape) -> PruneConfig:
    """Configuration of pruning the original of a chain to the shape `like`, ranked and repaired as by `config`."""
    before = original.shape.sizes
    changed = {axis: like.sizes[axis] for axis in PRUNABLE if like.sizes.get(axis) != before.get(axis)}
    untie = original.shape.is_tied and not like.is_tied
    given = {"shape": changed, "drop_layers": (), "budget": None, "size": None, "untie": untie}
    return config.model_copy(update=given)


def _candidates(builder: ChildBuilder, config: PruneConfig, search: Artifact | None) -> list[Candidate]:
    """Shapes that the child may have: one, or those within the budget that retain most importance."""
    parent = builder.parent
    if config.budget:
        admitted = feasible(parent.shape, dict.fromkeys(config.axes, ()), config.budget)
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


def _write(work: StageBuild, parent: SourceModel, plan: PrunePlan) -> None:
    stream.write_child(parent.checkpoint, plan, work.path)
    work.write_json("config.json", child_config(parent.checkpoint.config, plan))
    hf.copy_files(parent.path, work.path, hf.side_files(parent.path))
    work.write_json(PLAN, {axis: kept.tolist() for axis, kept in plan.kept.items()})


def _check(work: StageBuild, parent: SourceModel, plan: PrunePlan) -> list[str]:
    """Export checks that the written child passed; one that fails raises, and the child is never committed."""
    started = time.monotonic()
    mode = export_check.mode_for(Checkpoint.open(work.path).size_bytes)
    written = export_check.WrittenChild(work.path, parent.checkpoint, plan, mode, frozenset({PLAN}))
    with work.hashing():
        passed = export_check.check_child(written)
    work.measured.export_check = ExportCheck(compared=mode, seconds=round(time.monotonic() - started, 3))
    return passed


def _serving(work: StageBuild, plan: PrunePlan) -> Iterator[ServingFinding]:
    layer_types = getattr(hf.load_config(work.path), "layer_types", None)
    for found in serving.findings(plan.child, layer_types, plan.parent):
        yield ServingFinding(reader=found.reader, level=found.level, reason=found.reason, nearest=dict(found.nearest))
