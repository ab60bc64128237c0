"""Prune stage: reads a parent and its scores, writes a smaller checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from minitron_cli import methods, progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.cost.compute import model_size
from minitron_cli.cost.parts import parts
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.data.split import SplitName
from minitron_cli.errors import InputError
from minitron_cli.evaluate import beside_parent
from minitron_cli.importance import layer_removal
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.importance.rescore import rescore
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.inputs.token_blocks import blocks_of, given_texts
from minitron_cli.layerwise.calibration_errors import check_samples
from minitron_cli.layerwise.resume import discard_damaged
from minitron_cli.model.serving import deriving_head_size
from minitron_cli.model.shape import Shape
from minitron_cli.price import prune as work_of
from minitron_cli.price import subject
from minitron_cli.price.offer import offered
from minitron_cli.prune import limits, stream, written_child
from minitron_cli.prune.child_builder import ChildBuilder, read_scores
from minitron_cli.prune.child_config import implied_lists
from minitron_cli.prune.config import PruneConfig
from minitron_cli.prune.iterative_pruning import plan_in_rounds, shapes_between
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.repair import expert_sums, repaired_plan
from minitron_cli.repair.acceptance import EFFECT_BLOCKS
from minitron_cli.results.price import Price
from minitron_cli.results.prune import PruneResult, RoundResult
from minitron_cli.results.search import CandidateResult
from minitron_cli.search import rank, retained_importance
from minitron_cli.search.candidates import candidate_result
from minitron_cli.search.child_shapes import candidates_of
from minitron_cli.search.feasible import WITH_HIDDEN, Candidate, heads_with_hidden
from minitron_cli.search.rank import RankedCandidate
from minitron_cli.sparse.mask_file import MASKS

STAGE, VERSION = "prune", 8

ROUNDS = "scored by their own layers' kinds, heads in whole groups"
"""Input of rounds over layers of several kinds, which were scored wrongly before, and of rounds that prune heads, which
went through other shapes; the results of others stay."""
HEADS = ("head", "kv_head", "mamba_head")


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
    given, parent = parent.shape, config.prepared(parent)
    original, plain = replace(parent.shape, kinds=given.kinds), parent
    if config.adds_biases:
        parent = parent.with_biases()
    builder = ChildBuilder(context, parent, read_scores(scores, parent), config.ranking)
    candidates = candidates_of(builder, config, search)
    if data is None and config.repair == "auto":
        progress.say("skipping repair: it needs calibration text (--data)")
        config = config.model_copy(update={"repair": "none"})
    asked = config
    if data is not None:
        config = config.fitted(data.sequence_length)
    texts = _texts(context, parent, data, config, is_choice=len(candidates) > 1)
    if config.repairs:
        repaired_plan.check_enough_text(asked, texts["train"])
    inputs = {"model": parent.fingerprint, "scores": scores.fingerprint}
    is_coupled = config.budget and config.serving_lint == "refuse" and heads_with_hidden(original, config.axes)
    if is_coupled and (readers := deriving_head_size(candidates[0].shape)):  # else none with fewer heads was feasible
        inputs["heads"] = WITH_HIDDEN
        progress.say(
            f"a budget prunes heads with hidden, because {' and '.join(readers)} would not run the child otherwise; "
            "--serving-lint warn prunes hidden alone"
        )
    if config.shape is None and config.budget is None and search is not None and not config.drop_layers:
        inputs["search"] = search.fingerprint
    if config.rounds > 1 and (len(set(parent.family.layers)) > 1 or _prunes(parent.shape, candidates, *HEADS)):
        inputs["rounds"] = ROUNDS
    if _prunes(parent.shape, candidates, "layer") and implied_lists(parent.checkpoint.config, parent.family):
        inputs["kinds of layers"] = "stated"
    if config.budget:
        inputs |= retained_importance.inputs(parent.shape)
    if config.repairs:
        inputs |= beside_parent.inputs(texts["validation"].has_loss_mask)
    if "least_squares" in config.repairs:
        inputs |= expert_sums.inputs(parent.family)
    if texts:  # scores and repairs that are measured on text depend on the dtype
        inputs |= {split: blocks.fingerprint for split, blocks in texts.items()} | {"dtype": context.dtype}
    calibration = ImportanceConfig(**scores.manifest.config)
    if config.rounds > 1:
        check_samples(calibration.samples, texts["train"], "importance.samples")
        removed = [1] if config.ranking.layers == "perplexity" else []
        inputs |= layer_removal.inputs(removed, calibration.removal_positions, texts["train"].sequence_length)
    pruning = _Pruning(builder, config, candidates, calibration, texts, given, original, plain)
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
        given=lambda: given_texts(data, texts.values()),
    )


def _prunes(parent: Shape, candidates: Sequence[Candidate], *axes: str) -> bool:
    """Whether a candidate is smaller in one of the axes, as far as the parent has them."""
    found = [axis for axis in axes if axis in parent.sizes]
    return any(one.shape.sizes[axis] != parent.sizes[axis] for one in candidates for axis in found)


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
    given: Shape
    """Shape of the model as it was given."""
    original: Shape
    """Shape of the parent with the pattern of its layers, which the builder's lacks if it need not be kept."""
    plain: SourceModel
    """Parent without the biases that the builder's has for a repair."""

    @property
    def is_choice(self) -> bool:
        """Whether the shape is chosen among several candidates."""
        return len(self.candidates) > 1

    @cached_property
    def _plans(self) -> list[PrunePlan]:
        """Plan of every candidate, without repair."""
        return [self.builder.plan(candidate.shape, self.config.drop_layers) for candidate in self.candidates]

    def check(self) -> None:
        """Refuse a shape, a round or a repair that is impossible, before anything is written."""
        for plan in self._plans:
            repaired_plan.applicable(plan, self.config)
            self._shapes_of_rounds(plan)
        if self.config.ranking.head_residual != "none" and not any(plan.merges_heads for plan in self._plans):
            progress.warn(
                "ranking.head_residual has no effect: no group of query heads is left with fewer of them; leave it out"
            )

    def _shapes_of_rounds(self, plan: PrunePlan) -> Sequence[Shape]:
        """Shape after each round; none for a single one."""
        rounds = self.config.rounds
        return shapes_between(plan.parent, plan.child, rounds) if rounds > 1 else ()

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
            parent=subject.of_source(self.builder.parent, self.builder.dtype),
            given=self.given,
            candidates=[plan.child for plan in plans],
            score_repairs=[repaired_plan.of_candidate(plan, config, config.score_repair) for plan in plans],
            repairs=[repaired_plan.applicable(plan, config) for plan in plans],
            length=self.sequence_length,
            repair_samples=min(config.repair_samples, len(self.texts["train"])) if config.repairs else 0,
            score_blocks=self._score_blocks if self.is_choice else 0,
            effect_blocks=self._held_out(EFFECT_BLOCKS) if config.repairs and is_resident else 0,
            rounds=self._shapes_of_rounds(plans[0]),
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
        discard_damaged(work.scratch / "repair")
        candidates = self._ranked(work) if self.is_choice else ()
        shape = candidates[0].candidate.shape if candidates else self.candidates[0].shape
        plan, rounds = self._plan(work, shape)
        repair = None
        if self.config.repairs:
            plan, repair = repaired_plan.repaired(
                work, self.builder, plan, self.config, self.calibration, self.texts["train"], self.texts["validation"]
            )
        parent = self.builder.parent
        if self.config.adds_biases and not (repair and "bias" in repair.repairs):
            parent, plan = self.plain, replace(plan, parent=self.plain.shape)
        self._warn_off_pattern(plan)
        written_child.write(work, parent, plan)
        return PruneResult(
            parent=model_size(self.given, self.sequence_length),
            child=model_size(plan.child, self.sequence_length),
            parts=(parts(self.given), parts(plan.child)),
            checks=tuple(written_child.check(work, parent, plan)),
            serving=tuple(written_child.serving_findings(work, plan)),
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
