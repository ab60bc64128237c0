"""The prune stage: a parent and its scores in, a smaller checkpoint out."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from minitron_cli import progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.cost import compute
from minitron_cli.cost.compute import Entry
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.data.split import SplitName
from minitron_cli.errors import ArtifactError, InputError
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.importance.rescore import rescore
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.model import serving
from minitron_cli.model.axes import PRUNABLE
from minitron_cli.model.shape import Shape
from minitron_cli.prune import export_check, stream
from minitron_cli.prune.child_builder import ChildBuilder, read_scores
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.config import PruneConfig
from minitron_cli.prune.iterative_pruning import plan_in_rounds
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.repair import repaired_plan
from minitron_cli.scores.metric import Random
from minitron_cli.search import rank, space
from minitron_cli.search.candidates import CANDIDATES
from minitron_cli.search.feasible import Candidate, feasible
from minitron_cli.search.rank import RankedCandidate
from minitron_cli.spec import Amount

STAGE, VERSION = "prune", 4
SCORE_BLOCKS = 64  # validation blocks that tell candidates apart when a budget chooses the shape
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
    """Cut `parent` to the config's shape, to the best shape within its budget, or to the search's winner."""
    if config.untie:
        parent = parent.untied()
    builder = ChildBuilder(context, parent, read_scores(scores, parent), config.ranking)
    candidates = _candidates(parent, config, search)
    if data is None and config.repair == "auto":
        progress.say("the cut is not mended: that needs text to be fitted on, which --data names")
        config = config.model_copy(update={"repair": "none"})
    texts = _texts(context, parent, data, config, is_choice=len(candidates) > 1)
    if config.repairs:
        repaired_plan.check_enough_text(config, texts["train"])
    inputs = {"model": parent.fingerprint, "scores": scores.fingerprint}
    if config.shape is None and config.budget is None and search is not None and not config.drop_layers:
        inputs["search"] = search.fingerprint
    if texts:  # what is scored or fitted on them depends on the dtype, too
        inputs |= {split: blocks.fingerprint for split, blocks in texts.items()} | {"dtype": context.dtype}
    cut = _Cut(builder, config, candidates, ImportanceConfig(**scores.manifest.config), texts)
    cut.check()
    return produce(
        context,
        stage=STAGE,
        version=VERSION,
        config=config,
        inputs=inputs,
        build=cut.build,
        label=label,
        forecast=cut.forecast,
    )


def _texts(
    context: Context, parent: SourceModel, data: DataConfig | None, config: PruneConfig, *, is_choice: bool
) -> dict[SplitName, Blocks]:
    """The blocks of each split that the cut needs. InputError if it needs one and no text is named."""
    needs: tuple[tuple[bool, str, tuple[SplitName, ...]], ...] = (
        (is_choice, "choosing a shape for a target needs text to score it on", ("validation",)),
        (config.rounds > 1, "scoring again before each round needs text to score on", ("train",)),
        (bool(config.repairs), "a repair needs text to be fitted on", ("train", "validation")),
    )
    texts: dict[SplitName, Blocks] = {}
    for is_needed, why, splits in needs:
        if not is_needed:
            continue
        if data is None:
            raise InputError(f"{why}: name some with --data")
        texts |= {split: blocks_of(context, data, split, parent.path) for split in splits if split not in texts}
    return texts


@dataclass(frozen=True)
class _Cut:
    """One cut: to which of the candidates, in how many rounds, and mended how."""

    builder: ChildBuilder
    config: PruneConfig
    candidates: Sequence[Candidate]
    calibration: ImportanceConfig
    texts: Mapping[SplitName, Blocks]

    @property
    def is_choice(self) -> bool:
        return len(self.candidates) > 1

    def check(self) -> None:
        """Refuse what cannot be cut before anything is written."""
        for candidate in self.candidates:
            plan = self.builder.plan(candidate.shape, self.config.drop_layers)
            repaired_plan.applicable(plan, self.config)

    def forecast(self) -> dict[str, Any]:
        if self.is_choice:
            named = {f"candidate {i + 1}": c for i, c in enumerate(self.candidates)}
            return {name: f"{c.shape}: {c.parameters:,} parameters" for name, c in named.items()}
        plan = self.builder.plan(self.candidates[0].shape, self.config.drop_layers)
        return stream.forecast(self.builder.parent.checkpoint, plan)

    def build(self, work: StageBuild) -> None:
        plan = self._plan(work, self._chosen(work) if self.is_choice else self.candidates[0].shape)
        if self.config.repairs:
            plan = repaired_plan.repaired(
                work, self.builder, plan, self.config, self.calibration, self.texts["train"], self.texts["validation"]
            )
        _write(work, self.builder.parent, plan)
        work.summary["ledger"] = compute.as_json(compute.merged(self._spent(work, plan)))

    def _chosen(self, work: StageBuild) -> Shape:
        """The candidate that loses least, as it will be cut."""
        judged = self.builder
        if self.config.repairs:
            scratch = work.scratch / "repair"
            judged = repaired_plan.with_repair(
                self.builder, self.config, self.calibration, self.texts["train"], scratch
            )
        with progress.track("score candidates", len(self.candidates), "candidates") as step:

            def score(candidate: Candidate) -> float:
                loss = judged.zero_shot_loss(candidate.shape, self.texts["validation"], SCORE_BLOCKS)
                step(1, loss=loss)
                return loss

            ranked = rank.by_zero_shot(self.candidates, score)
        work.write_json(CANDIDATES, {"candidates": [row(entry) for entry in ranked]})
        return ranked[0].candidate.shape

    def _plan(self, work: StageBuild, shape: Shape) -> PrunePlan:
        if self.config.rounds == 1:
            return self.builder.plan(shape, self.config.drop_layers)
        again = partial(rescore, self.builder, blocks=self.texts["train"], calibration=self.calibration)
        return plan_in_rounds(work, self.builder, shape, self.config.rounds, self.calibration.samples, again)

    def _spent(self, work: StageBuild, plan: PrunePlan) -> Iterator[Entry]:
        if self.is_choice:
            yield from _on_candidates(self.candidates, self.texts["validation"])
        if self.config.rounds > 1:
            yield from _on_rounds(work.summary["rounds"], plan, self.config, self.texts["train"].sequence_length)
        if self.config.repairs:
            cuts = [plan, *(self.builder.plan(c.shape) for c in self.candidates if self.is_choice)]
            mended = [(cut.child, repaired_plan.applicable(cut, self.config)) for cut in cuts]
            text = repaired_plan.calibration_tokens(self.config, self.texts["train"])
            yield from compute.repair(self.builder.parent.shape, mended, *text)
        if "after" in work.summary.get("repair", {}):
            yield _on_what_it_is_worth(plan, self.texts["validation"])


def at_random(config: PruneConfig, like: Artifact) -> PruneConfig:
    """A cut to the shape of another, with channels, heads and neurons chosen at random, and nothing mended.

    Layers are the same ones: to leave out others is another question.
    """
    before, after = like.summary["parent"]["sizes"], like.summary["child"]["sizes"]
    changed = {axis: after[axis] for axis in PRUNABLE if after.get(axis) != before.get(axis)}
    if config.drop_layers:
        changed.pop("layer", None)
    ranking = config.ranking.model_copy(update={"width": Random(), "head_residual": "none"})
    return PruneConfig(
        shape=changed or None, drop_layers=config.drop_layers, ranking=ranking, repair="none", untie=config.untie
    )


def _candidates(parent: SourceModel, config: PruneConfig, search: Artifact | None) -> list[Candidate]:
    if config.budget:
        return feasible(parent.shape, dict.fromkeys(config.axes, ()), config.budget, config.candidates)
    sizes = {str(axis): size for axis, size in (config.shape or {}).items()}
    if not sizes and not config.drop_layers:
        sizes = _winner(parent, search, config.size)
    shape = space.named(parent.shape, sizes, config.drop_layers)
    return [Candidate(shape, shape.parameters(), 0.0)]


def _winner(parent: SourceModel, search: Artifact | None, size: Amount | None) -> dict[str, int]:
    """The shape that the search found best, of the size asked for."""
    if search is None:
        raise ArtifactError("there is no shape to cut to: give --target or --shape, or run `minitron search` first")
    if search.manifest.inputs["model"] != parent.fingerprint:
        raise ArtifactError(f"{search.path} searched another model than {parent.name}: run `minitron search` again")
    winners = search.summary["winners"]
    if size is None and len(winners) > 1:
        raise InputError(f"the search has a winner for each of {', '.join(winners)}: say which to cut with --size")
    if size is not None and str(size) not in winners:
        raise InputError(f"the search has no winner for {size}: choose among {', '.join(winners) or 'none'}")
    label = next(iter(winners)) if size is None else str(size)
    return {axis: int(n) for axis, n in winners[label]["sizes"].items()}


def row(entry: RankedCandidate, sign: int = 1, target: str = "") -> dict[str, Any]:
    """A ranked candidate as a JSON object, for candidates.json; scores times `sign`, as the objective has them."""
    candidate = entry.candidate
    return {
        "target": target,
        "shape": candidate.shape.prunable,
        "parameters": candidate.parameters,
        "error": candidate.error,
        "costs": dict(candidate.costs),
        "zero_shot": sign * entry.zero_shot,
        "rungs": [sign * score for score in entry.rungs],
        "retrained": None if entry.retrained is None else sign * entry.retrained,
    }


def _on_candidates(candidates: Sequence[Candidate], blocks: Blocks) -> list[Entry]:
    length = blocks.sequence_length
    return [compute.held_out([c.shape], min(SCORE_BLOCKS, len(blocks)) * length, length) for c in candidates]


def _on_rounds(rounds: list[dict[str, Any]], plan: PrunePlan, config: PruneConfig, length: int) -> Iterator[Entry]:
    """Every round but the first scores what the one before it left."""
    removed = [1] if config.ranking.layers == "perplexity" else []
    for before, scored in pairwise(rounds):
        tokens = scored["samples_scored"] * length
        yield from compute.calibration(plan.parent.resize(**before["sizes"]), tokens, length, removed)


def _on_what_it_is_worth(plan: PrunePlan, held_out: Blocks) -> Entry:
    """The parent's loss, and loss and KL of the child before and after."""
    length = held_out.sequence_length
    both = [plan.child, plan.child, plan.parent]  # the loss, and the KL
    tokens = min(repaired_plan.SCORE_BLOCKS, len(held_out)) * length
    return compute.held_out([plan.parent, *both, *both], tokens, length)


def _write(work: StageBuild, parent: SourceModel, plan: PrunePlan) -> None:
    stream.write_child(parent.checkpoint, plan, work.path)
    work.write_json("config.json", child_config(parent.checkpoint.config, plan))
    hf.copy_files(parent.path, work.path, export_check.COPIED)
    work.write_json(PLAN, {axis: kept.tolist() for axis, kept in plan.kept.items()})
    with work.hashing():
        _check(work, parent, plan)
    layer_types = getattr(hf.load_config(work.path), "layer_types", None)
    work.summary |= {
        "serving": [finding._asdict() for finding in serving.findings(plan.child, layer_types, plan.parent)],
        "parent": {"sizes": dict(plan.parent.sizes), "parameters": plan.parent.parameters()},
        "child": {"sizes": dict(plan.child.sizes), "parameters": plan.child.parameters()},
        "non_embedding": plan.child.parameters("non_embedding"),
    }


def _check(work: StageBuild, parent: SourceModel, plan: PrunePlan) -> None:
    """The export guard: a child that fails is never committed."""
    started = time.monotonic()
    others = {PLAN} | ({CANDIDATES} & {path.name for path in work.path.iterdir()})
    mode = export_check.mode_for(Checkpoint.open(work.path).size_bytes)
    written = export_check.WrittenChild(work.path, parent.checkpoint, plan, mode, frozenset(others))
    work.summary["checks"] = export_check.check_child(written)
    work.run["export_check"] = {"compared": mode, "seconds": round(time.monotonic() - started, 3)}
