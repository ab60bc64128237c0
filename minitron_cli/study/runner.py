"""Runs of a study: every arm with every seed, measured on held-out blocks that nothing was chosen by.

They run in a workspace of their own, `study/runs` of the user's, whose models and pointers stay as they are. Artifacts
that arms share, such as scores, are made once. Of a trained model only its figures are kept, in `study/NAME-KEY`, so
that an interrupted study continues and a disk does not fill.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli import canonical_json, dry_run, io, pipeline, progress
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import STUDY_RUNS
from minitron_cli.checkpoint import hf
from minitron_cli.data.batches import evenly_spaced
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.data.split import Split
from minitron_cli.distill import training_run
from minitron_cli.distill.config import DistillConfig
from minitron_cli.errors import InputError, RecipeError
from minitron_cli.evaluate import beside_parent
from minitron_cli.evaluate.beside_parent import POSITIONS, BesideParent
from minitron_cli.figures import duration
from minitron_cli.importance import layer_removal
from minitron_cli.inputs.source_model import SourceModel, open_source_model
from minitron_cli.inputs.token_blocks import blocks_of, text_identity
from minitron_cli.recipe import Recipe
from minitron_cli.repair import expert_sums
from minitron_cli.search import retained_importance
from minitron_cli.stages.prune import ROUNDS
from minitron_cli.study.definition import TRIAL_SEED, StudyDefinition, merged, named_models
from minitron_cli.study.quick import shortened
from minitron_cli.study.run_figures import Measured, ModelFigures, RunFigures, file_name, keep, kept

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FIGURES = "study"  # directory of the workspace
QUICK_SECONDS = 5.0  # of a stage that is over in seconds and not timed beforehand
SMALL_SHARE = 0.2  # of the parent's parameters, below which a shape was made for another model
NOTHING = {"evaluate": {"perplexity": False}}  # figures are measured here, on blocks of our own choice


@dataclass(frozen=True)
class _Run:
    """A run under the name that its figures are kept by."""

    name: str
    recipe: Recipe


def _with_rate(rate: float) -> dict[str, Any]:
    """Changes of a training's learning rate, which ends at a tenth of its peak."""
    return {"learning_rate": rate, "min_learning_rate": rate / 10}


def _last(recipe: Recipe) -> Recipe:
    """Recipe of the last step of a chain."""
    return recipe.at(recipe.steps[-1]) if recipe.steps else recipe


@dataclass(frozen=True)
class Runner:
    """A study on a model and text."""

    name: str
    definition: StudyDefinition
    context: Context
    model: str
    data: DataConfig
    blocks: int
    """Held-out blocks, if there are so many: half of them choose, half are reported."""
    quick_steps: int | None = None
    """Steps of every training instead of the study's lengths, without a choice of learning rates."""

    @cached_property
    def directory(self) -> Path:
        """Directory of the figures, by everything that they depend on but the arm and the seed."""
        facts = {
            "stages": pipeline.VERSIONS,
            "dtype": self.context.dtype,
            "study": self.definition.model_dump(
                mode="json",
                exclude={"question", "source", "expected", "are_candidates", "seeds", "fewer_seeds", "sequence_length"},
            ),
            "parent": self.parent.fingerprint,
            "models": {name: self._fingerprint(name) for name in self._named_models()},
            "text": [text_identity(self.data, split, self.parent.path) for split in ("train", "validation")],
            "order": 0,  # of a former setting; without it, figures of earlier versions would be elsewhere
            "blocks": self.blocks,
            **beside_parent.inputs(Split.open(self.data, "validation").has_loss_mask),
            "rules": self._rules(),
            "quick_steps": self.quick_steps,
        }
        return self.context.workspace.root / FIGURES / f"{self.name}-{canonical_json.digest(facts)[:8]}"

    def _rules(self) -> dict[str, str]:
        """What stages name among their inputs, besides settings and files, as far as a run may need it."""
        shape = self.parent.shape
        return {
            **retained_importance.inputs(shape),
            **expert_sums.inputs(shape.family),
            **layer_removal.inputs([1], 1, self.data.sequence_length),
            **training_run.key_inputs(DistillConfig(), shape),
            "rounds": ROUNDS,
        }

    def _named_models(self) -> set[str]:
        """Models that recipes name besides the parent, such as a teacher."""
        return {name for arm in self.definition.arms for name in named_models(self._recipe(arm, 0, {}))}

    def _fingerprint(self, model: str) -> str:
        return open_source_model(model, offline=self.context.offline).fingerprint

    @property
    def _running(self) -> Context:
        """Context of the pipelines."""
        return replace(self.context, workspace=self.context.workspace.within(STUDY_RUNS))

    @cached_property
    def parent(self) -> SourceModel:
        """The model that is pruned."""
        return open_source_model(self.model, offline=self.context.offline)

    def results(self, seeds: int) -> dict[str, list[RunFigures]]:
        """Label of each arm -> figures of its runs, one for each of its seeds.

        InputError, before the first of them, if an arm's recipe is invalid or there are too few held-out blocks.
        """
        self._check()
        found: dict[str, list[RunFigures]] = {arm: [] for arm in self.definition.arms}
        runs = sorted(self._runs(seeds), key=lambda run: run[1])  # an interrupted study has all arms of the first seeds
        with progress.track(f"study {self.name}", len(runs), "runs") as step:
            for arm, seed in runs:
                found[arm].append(self._result(arm, seed))
                step()
        return found

    def _check(self) -> None:
        for arm in self.definition.arms:
            trials = (self._trial(arm, rate).recipe for rate in self._rates(arm))
            for recipe in (self._recipe(arm, 0, {}), *trials):
                self._plan(arm, recipe)
        self._shares_said()
        if (count := len(self._held_out_ids)) < self.blocks:
            progress.say(f"study {self.name}: the held-out text has {count:,} blocks, and --blocks is {self.blocks:,}")

    def _plan(self, arm: str, recipe: Recipe) -> dry_run.Plan:
        """Shapes and work of a recipe. RecipeError, which names the arm, if the model cannot be pruned so."""
        try:
            return dry_run.plan(recipe)
        except InputError as e:
            raise RecipeError(f"arm {arm}: {e}") from None

    def _runs(self, seeds: int) -> list[tuple[str, int]]:
        """Arm and seed of every run."""
        return [(arm, seed) for arm in self.definition.arms for seed in range(self.definition.seeds_of(arm, seeds))]

    def planned(self, seeds: int) -> str:
        """What would be run, and how long at most, in a sentence. RecipeError if a recipe is invalid."""
        arms = self.definition.arms
        fewer = sum(self.definition.seeds_of(arm, seeds) < seeds for arm in arms)
        runs = f"{len(arms)} arms with {seeds} seeds" + f" ({fewer} of them with fewer)" * bool(fewer)
        trials = {self._trial(arm, rate).name for arm in arms for rate in self._rates(arm)}
        short = f", after {len(trials)} short runs that choose learning rates" if trials else ""
        seconds = sum(self.definition.seeds_of(arm, seeds) * self._seconds(arm) for arm in arms)
        most = f"at most about {duration(seconds)} on {self.context.device}{' without the short ones' * bool(short)}"
        return (
            f"study {self.name}: {runs}{short}; children keep {self._shares_said()} of the parameters; {most}; "
            f"figures go to {self.directory}"
        )

    def _shares_said(self) -> str:
        """Smallest and largest share of the parent that a child keeps, after a warning if it is for smaller models."""
        shares = sorted(self._shares())
        least, most = (f"{100 * share:.2g} %" for share in (shares[0], shares[-1]))
        if shares[0] < SMALL_SHARE:
            progress.warn(
                f"study {self.name}: a child keeps {least} of the parameters: its shapes are those for a smaller "
                "model; copy a shipped study with `minitron recipes cp` and change them"
            )
        return least if least == most else f"{least} to {most}"

    def _shares(self) -> Iterator[float]:
        """Share of the parent's parameters that the child, or each candidate, of each arm keeps."""
        for arm in self.definition.arms:
            plan = self._plan(arm, self._recipe(arm, 0, {}))
            yield from (child.parameters() / plan.parent.parameters() for child in plan.children.values())

    def _seconds(self, arm: str) -> float:
        """Expected time of a run that shares no artifact with another."""
        plan = self._plan(arm, self._recipe(arm, 0, {}))
        prices = dry_run.prices(plan, self.context.device, self.context.workspace.root)
        return sum(QUICK_SECONDS if price.seconds is None else price.seconds for price in prices.values())

    def setting(self) -> str:
        """Model, text and held-out blocks, in a sentence."""
        lengths = f"{self.quick_steps} steps a run" if self.quick_steps else "lengths as in the study"
        return (
            f"{Path(self.model).name}: {self.parent.shape.parameters():,} parameters, blocks of "
            f"{self.data.sequence_length:,} tokens, {len(self._held_out_ids) // 2:,} of "
            f"{len(self._held_out_ids):,} held-out blocks reported with up to {POSITIONS} predictions of each, "
            f"{lengths}."
        )

    def parent_loss(self) -> float:
        """Loss of the parent on the blocks that are reported."""
        return self._beside[1].parent_loss().mean

    def _result(self, arm: str, seed: int) -> RunFigures:
        rate = min(self._rates(arm), key=lambda rate: self._end(arm, rate), default=None)
        name = f"{file_name(arm, self.definition.arms)}-{seed}"
        return self._remembered(_Run(name, self._recipe(arm, seed, _with_rate(rate) if rate else {})))

    def tried(self) -> dict[str, tuple[float, ...]]:
        """Learning rates that each arm tries in short runs."""
        return {arm: self._rates(arm) for arm in self.definition.arms}

    def _rates(self, arm: str) -> tuple[float, ...]:
        """Learning rates that an arm tries in short runs; none where none is chosen."""
        tuning = self.definition.tuning
        return () if tuning is None or self.quick_steps or not self.definition.trains(arm) else tuning.rates

    def _end(self, arm: str, rate: float) -> float:
        """Figure that a short run ends with."""
        after = self._remembered(self._trial(arm, rate)).after
        assert after
        return float(getattr(after.chosen_by, self.definition.figure))

    def _trial(self, arm: str, rate: float) -> "_Run":
        """Short run of a learning rate. Arms that differ in the length of their training alone share it.

        Its name is that of the sections, which the study's file states, and not of a recipe with all defaults, so that
        figures stay good when another setting comes to exist.
        """
        assert self.definition.tuning
        changes = _with_rate(rate) | {"tokens": self.definition.tuning.tokens, "steps": None}
        sections = merged(merged(self.definition.recipe, self.definition.arms[arm]), {"distill": changes})
        return _Run(f"trial-{canonical_json.digest(sections)[:16]}", self._recipe(arm, TRIAL_SEED, changes))

    def _recipe(self, arm: str, seed: int, distill: Mapping[str, Any]) -> Recipe:
        changes = NOTHING | ({"distill": dict(distill)} if distill else {})
        found = self.definition.recipe_of(arm, self.model, self.data, seed, changes)
        return shortened(found, self.quick_steps) if self.quick_steps else found

    def _remembered(self, run: "_Run") -> RunFigures:
        path = self.directory / f"{run.name}.json"
        if found := kept(path):
            return found
        figures = self._run(run.recipe)
        keep(path, figures)
        return figures

    def _run(self, recipe: Recipe) -> RunFigures:
        last = pipeline.run(recipe, self._running)[-1]
        trained = last.distilled.get(pipeline.DISTILLED)
        child = open_source_model(last.start.path)
        figures = RunFigures(
            parameters=child.shape.parameters(),
            non_embedding=child.shape.parameters("non_embedding"),
            learning_rate=trained.manifest.config["learning_rate"] if trained else None,  # as fitted to the run
            before=self._measured(self._untrained(child, _last(recipe).distill if trained else None)),
            after=self._measured(self._loaded(trained.path)) if trained else None,
        )
        if trained:
            io.remove_tree(trained.path)
        return figures

    def _untrained(self, child: SourceModel, distill: DistillConfig | None) -> "PreTrainedModel":
        """Model that the training begins with: the child, or random weights in its shape."""
        if distill is None or distill.init != "random":
            return self._loaded(child.path)
        return hf.new_model(child.config, seed=distill.seed).to(self.context.device)

    def _loaded(self, path: Path) -> "PreTrainedModel":
        return hf.load_model(path, device=self.context.device, dtype="float32")

    def _measured(self, model: "PreTrainedModel") -> Measured:
        chosen_by, reported = (beside.of(model) for beside in self._beside)
        return Measured(
            chosen_by=ModelFigures(loss=chosen_by.loss.mean, kl=chosen_by.kl.mean),
            reported=ModelFigures(loss=reported.loss.mean, kl=reported.kl.mean),
        )

    @cached_property
    def _beside(self) -> tuple[BesideParent, BesideParent]:
        """The parent on the blocks that choose, and on those that are reported."""
        model, ids = self._loaded(self.parent.path), self._held_out_ids
        return BesideParent(model, self._held_out, ids[::2]), BesideParent(model, self._held_out, ids[1::2])

    @cached_property
    def _held_out(self) -> Blocks:
        return blocks_of(self.context, self.data, "validation", self.parent.path)

    @cached_property
    def _held_out_ids(self) -> list[int]:
        """Blocks that choose, and in turn those that are reported. InputError if there are not two."""
        ids = evenly_spaced(len(self._held_out), self.blocks)
        if len(ids) < 2:
            raise InputError(
                f"there is one held-out block of {self.data.sequence_length:,} tokens, and a study chooses by half of "
                "them and reports the others: give more held-out text, or a lower --sequence-length"
            )
        return ids
