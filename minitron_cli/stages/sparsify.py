"""Sparsify stage: reads a model, writes one of the same shape in which weights of decoder blocks are zero."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch

from minitron_cli import io, progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.cost.compute import model_size
from minitron_cli.data.batches import Batches, calibration_ids, evenly_spaced
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.data.split import SplitName
from minitron_cli.errors import InputError
from minitron_cli.evaluate import beside_parent
from minitron_cli.evaluate.beside_parent import BesideParent
from minitron_cli.evaluate.statistics import compare
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.inputs.token_blocks import blocks_of, given_texts
from minitron_cli.layerwise.activation_store import ActivationStore
from minitron_cli.layerwise.calibration_errors import check_samples
from minitron_cli.layerwise.layer_loop import LayerTask, run_layers
from minitron_cli.layerwise.resume import FILE, SavedState, discard_damaged
from minitron_cli.memory import fits
from minitron_cli.model.linear_layers import input_groups
from minitron_cli.price import sparsify as work_of
from minitron_cli.price import subject
from minitron_cli.price.offer import offered
from minitron_cli.prune import export_check
from minitron_cli.prune.child_config import child_config, child_file
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.repair import expert_sums
from minitron_cli.results.price import Price
from minitron_cli.results.run_record import ExportCheck
from minitron_cli.results.search import CalibrationUse
from minitron_cli.results.sparsify import SparsifyResult, SparsityEffect
from minitron_cli.sparse import refusals
from minitron_cli.sparse.amounts import Owl, by_outliers
from minitron_cli.sparse.config import SparsifyConfig
from minitron_cli.sparse.layer_pass import Method, SparsifyPass, mask_specs
from minitron_cli.sparse.mask_file import MASKS, MaskFile, MaskSpec
from minitron_cli.sparse.outliers import OutlierPass
from minitron_cli.sparse.parameter_masks import ParameterMasks
from minitron_cli.sparse.pattern import Pattern
from minitron_cli.sparse.result_parts import serving_findings, share, sparse_matrix
from minitron_cli.sparse.store import LayerStore, MadeMatrix
from minitron_cli.sparse.write import SparseCheckpoint, by_magnitude, write_sparse

STAGE, VERSION = "sparsify", 5

AnyTask = TypeVar("AnyTask", bound=LayerTask)


def run(
    context: Context,
    parent: SourceModel,
    config: SparsifyConfig,
    data: DataConfig | None = None,
    *,
    label: str = "",
    first: Artifact | None = None,
) -> Artifact:
    """Make the weights of a model's decoder blocks sparse. InputError if that needs text and `data` is None.

    `first`: result of the first of several rounds, if this is a later one.
    """
    assert config.rounds == 1, "rounds are stages of their own, see sparsify_rounds"
    parent = parent.written_as(config.write_as)
    masks = ParameterMasks.of(parent)
    texts: dict[SplitName, Blocks] = {}
    if config.needs_text:
        if data is None:
            raise InputError(refusals.text_is_missing(config))
        wanted: tuple[SplitName, ...] = ("train", "validation") if config.effect_blocks else ("train",)
        texts = {split: blocks_of(context, data, split, parent.path) for split in wanted}
        config = config.fitted(texts["train"].sequence_length, len(texts["train"]))
        check_samples(config.samples, texts["train"], "sparsify.samples")
    outliers = first.result(SparsifyResult).layer_outliers if first else ()
    patterns = config.patterns(parent.shape.sizes["layer"])
    making = _Making(context, parent, config, texts, patterns, masks.file if masks else None, outliers)
    making.check()
    inputs = {"model": parent.fingerprint} | {split: blocks.fingerprint for split, blocks in texts.items()}
    if of_experts := expert_sums.inputs(parent.family) if texts else {}:
        inputs |= of_experts | {"experts of few tokens": "by magnitude among what the metric compares"}
    inputs |= beside_parent.inputs(texts["validation"].has_loss_mask) if "validation" in texts else {}
    inputs |= {"outliers": first.fingerprint} if first and outliers else {}
    return produce(
        context,
        stage=STAGE,
        version=VERSION,
        config=config,
        inputs=inputs | ({"dtype": context.dtype} if texts else {}),
        build=making.build,
        label=label,
        forecast=making.forecast,
        price=making.price,
        given=lambda: {parent.fingerprint: parent.name, **given_texts(data, texts.values())},
    )


@dataclass(frozen=True)
class _Making:
    """Making one model sparse."""

    context: Context
    parent: SourceModel
    config: SparsifyConfig
    texts: Mapping[SplitName, Blocks]
    patterns: tuple[Pattern, ...]
    """Of each layer; where amounts depend on outliers, that of all until these were measured."""
    masks: MaskFile | None = None
    """Masks of the parent, if it is sparse; they lose further weights."""
    outliers: tuple[float, ...] = ()
    """Share of outliers of each layer, if amounts depend on them: here, or in the first of several rounds."""

    @cached_property
    def _specs(self) -> dict[str, MaskSpec]:
        """Masks by the stored names of their matrices."""
        return mask_specs(self.parent.shape, self.config.metric, self.patterns)

    @property
    def _scope(self) -> tuple[str, ...]:
        """Templates of these matrices: a family may have others, which no layer of the parent holds."""
        held = {self.parent.family.match(name).template for name in self._specs}
        templates = (template for group in input_groups(self.parent.shape) for template in group.templates)
        return tuple(template for template in templates if template in held)

    def _layer(self, name: str) -> int:
        return self.parent.family.match(name).at["layer"]

    def check(self) -> None:
        """Refuse a pattern that a matrix cannot have, or that cannot keep what the parent's masks have pruned."""
        refusals.check_sizes(self._specs)
        if self.masks:
            refusals.check_continued(self.parent.name, self.config, self.masks, self._specs)

    def forecast(self) -> dict[str, Any]:
        """Pattern and zeros, for a dry run."""
        weights = sum(spec.weights for spec in self._specs.values())
        return {
            "pattern": "by layer" if self.config.amounts == "list" else self.config.pattern,
            "metric": self.config.metric.kind,
            "matrices": len(self._specs),
            "weights": weights,
            "zeros": sum(spec.zeros for spec in self._specs.values()),
        }

    def price(self) -> Price:
        """What it takes."""
        length = self._length
        making = work_of.Sparsifying(
            parent=subject.of_source(self.parent, self.parent.dtype_in(self.context)),
            config=self.config,
            length=length,
            effect_blocks=self._effect_blocks,
        )
        return offered(self.context, STAGE, work_of.work(making))

    @property
    def _length(self) -> int:
        return next((blocks.sequence_length for blocks in self.texts.values()), 0)

    @property
    def _effect_blocks(self) -> int:
        """Held-out blocks on which the effect is measured."""
        if "validation" not in self.texts or not self._both_fit:
            return 0
        return min(self.config.effect_blocks, len(self.texts["validation"]))

    @cached_property
    def _both_fit(self) -> bool:
        both = 2 * self.parent.size_bytes(self.parent.dtype_in(self.context))
        return fits(both, self.config.activation_budget, self.context.device)

    def build(self, work: StageBuild) -> SparsifyResult:
        """Choose the layers' amounts, make them sparse, write and check the checkpoint, and measure what it lost."""
        discard_damaged(work.scratch)
        return self._with_amounts(work)._build(work)

    def _with_amounts(self, work: StageBuild) -> "_Making":
        """The same with the patterns of the layers, for which their outliers may have to be measured."""
        owl = self.config.owl
        if owl is None:
            return self
        shares = work.remember("outliers", lambda: {"shares": self._outliers(work, owl)})["shares"]
        weights = [0] * len(self.patterns)
        for name, spec in self._specs.items():
            weights[self._layer(name)] += spec.weights
        patterns = by_outliers(Pattern.parse(self.config.pattern), owl, shares, weights)
        found = replace(self, patterns=patterns, outliers=tuple(shares))
        found.check()
        return found

    def _build(self, work: StageBuild) -> SparsifyResult:
        store = LayerStore(work.scratch / "layers", self.parent.checkpoint)
        if self.texts:
            self._pass(work, store)
        view = self._view(store)
        _write(work, self.parent, view, self._specs)
        checks = _check(work, self.parent, view)
        return self._result(store, checks, self._effect(store, view))

    def _outliers(self, work: StageBuild, owl: Owl) -> list[float]:
        """Share of outliers of every layer of the parent."""
        task = partial(OutlierPass, outlier=owl.outlier, parent=self.parent.checkpoint)
        return self._layer_by_layer(work, "outliers", 1, task).shares

    def _pass(self, work: StageBuild, store: LayerStore) -> None:
        """Make every layer sparse, one after the other, on calibration text."""
        method = Method(self.config.metric, self.patterns, self.config.repair != "none", self.masks)
        self._layer_by_layer(work, "states", 2, partial(SparsifyPass, method=method, store=store))

    def _layer_by_layer(self, work: StageBuild, name: str, passes: int, task: Callable[..., AnyTask]) -> AnyTask:
        """A task that was taken through all layers on the calibration text, and resumes from scratch `name`."""
        config, blocks, shape = self.config, self.texts["train"], self.parent.shape
        ids = calibration_ids(config.seed, config.samples, len(blocks))
        batches = list(Batches(blocks, ids, config.batch_size))
        layers, scratch = shape.sizes["layer"], work.scratch / name
        io.make_dirs(scratch)
        model = hf.empty_model(self.parent.path, device=self.context.device, dtype=self.parent.dtype_in(self.context))
        title = "sparsify layer by layer" if passes > 1 else "measure outliers layer by layer"
        with torch.inference_mode(), progress.track(title, passes * layers * len(batches), "batches") as step:
            states = ActivationStore(scratch, config.activation_budget)
            made = task(model, shape, batches, states=states, device=self.context.device, step=step)
            run_layers(made, {"hidden": states}, SavedState(scratch / FILE, 30), layers, resume=work.resume)
        return made

    def _view(self, store: LayerStore, *, repaired: bool = True) -> SparseCheckpoint:
        """The parent's checkpoint as it reads with zeros."""
        parent = self.parent.checkpoint
        made = by_magnitude(parent, self._specs, self.masks)
        if self.texts:

            def made(name: str) -> Iterable[MadeMatrix]:
                return [store.made(self._layer(name), name, repaired=repaired)]

        return SparseCheckpoint(
            parent.path,
            parent.config,
            parent.tensors,
            parent.remarks,
            parent.wrapper,
            made=made,
            sparse=frozenset(self._specs),
        )

    def _effect(self, store: LayerStore, view: SparseCheckpoint) -> SparsityEffect | None:
        """Loss and KL on held-out blocks; None if there are none or the models do not fit."""
        if "validation" in self.texts and not self._both_fit:
            progress.warn("parent and child do not fit into memory together: the effect is not measured")
        if not self._effect_blocks:
            return None
        blocks = self.texts["validation"]
        parent = hf.load_model(self.parent.path, device=self.context.device, dtype=self.parent.dtype_in(self.context))
        beside = BesideParent(parent, blocks, evenly_spaced(len(blocks), self._effect_blocks))
        after = beside.of(self._model(view))
        before = beside.of(self._model(self._view(store, repaired=False))) if self.config.repair != "none" else after
        return SparsityEffect(
            parent_loss=beside.parent_loss().mean,
            before=before.held_out,
            after=after.held_out,
            kl_difference_stderr=compare(after.kl, before.kl).stderr if before is not after else None,
            tokens=beside.tokens,
            read=beside.read,
        )

    def _model(self, view: SparseCheckpoint) -> Any:
        state = {name: view.read(name) for name in _names(self.parent)}
        config = child_config(view.config, PrunePlan(self.parent.shape, {}))
        return hf.model_of(config, state, device=self.context.device, dtype=self.parent.dtype_in(self.context))

    def _result(self, store: LayerStore, checks: list[str], effect: SparsityEffect | None) -> SparsifyResult:
        config, shape = self.config, self.parent.shape
        figures = (lambda name: store.figures(self._layer(name), name)) if self.texts else None
        found = {
            name: sparse_matrix(spec, config.metric, figures and figures(name)) for name, spec in self._specs.items()
        }
        layers = [[m for name, m in found.items() if self._layer(name) == i] for i in range(shape.sizes["layer"])]
        length = self._length
        return SparsifyResult(
            model=model_size(shape, length),
            pattern=config.pattern,
            metric=config.metric.kind,
            scope=self._scope,
            sparsity=share(found.values()),
            layer_sparsity=tuple(map(share, layers)),
            amounts="owl" if self.outliers else config.amounts,
            outliers_are_given=bool(self.outliers) and not config.owl,
            layer_patterns=tuple(map(str, self.patterns)),
            layer_outliers=self.outliers,
            matrices=found,
            repair=config.repair,
            calibration=CalibrationUse(samples=config.samples, sequence_length=length) if self.texts else None,
            checks=tuple(checks),
            serving=tuple(serving_findings(shape, self.patterns)),
            effect=effect,
        )


def _names(parent: SourceModel) -> list[str]:
    """Tensors that the checkpoint has to store, in the parent's order: no buffers, and no copy of a tied head."""
    return list(PrunePlan(parent.shape, {}).sources(parent.checkpoint.tensors))


def _write(work: StageBuild, parent: SourceModel, view: SparseCheckpoint, masks: Mapping[str, MaskSpec]) -> None:
    write_sparse(view, masks, _names(parent), work.path)
    work.write_json("config.json", child_file(view, PrunePlan(parent.shape, {})))
    hf.copy_files(parent.path, work.path, hf.side_files(parent.checkpoint))


def _check(work: StageBuild, parent: SourceModel, view: SparseCheckpoint) -> list[str]:
    """Checks that the written checkpoint passed; one that fails raises, and it is never committed."""
    started, written = time.monotonic(), Checkpoint.open(work.path).named(parent.shape.tensors())
    mode = export_check.mode_for(written.size_bytes)
    child = export_check.WrittenChild(work.path, view, PrunePlan(parent.shape, {}), mode, frozenset({MASKS}))
    with work.hashing():
        passed = export_check.check_child(child)
        if mode == "whole":  # the writer has put both from the same matrix, which is enough for a large one
            MaskFile.open(work.path / MASKS).check(written.read)
            passed.append("zeros")
    work.measured.export_check = ExportCheck(compared=mode, seconds=round(time.monotonic() - started, 3))
    return passed
