"""Landscape stage: reads models and held-out text, measures the loss around and between them. Writes no model."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minitron_cli import io, progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.checkpoint import hf
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.errors import DataError, InputError
from minitron_cli.inputs import tokenizers
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.inputs.token_blocks import blocks_of, given_texts
from minitron_cli.landscape import directions, measure
from minitron_cli.landscape.config import LandscapeConfig
from minitron_cli.landscape.directions import Coordinates
from minitron_cli.landscape.loss import FixedLoss
from minitron_cli.landscape.plane import Plane
from minitron_cli.landscape.plane import shares as plane_shares
from minitron_cli.landscape.volume import ENOUGH_DIRECTIONS, Volume, require_same_dimension
from minitron_cli.model.taps import layer_module
from minitron_cli.price import landscape as work_of
from minitron_cli.price import subject
from minitron_cli.price.offer import offered
from minitron_cli.report import landscape as report
from minitron_cli.report import plots
from minitron_cli.results.landscape import LandscapeResult, LineLosses, ModelLandscape, PlaneLosses
from minitron_cli.results.price import Price
from minitron_cli.sparse.parameter_masks import ParameterMasks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STAGE, VERSION = "landscape", 2
PLOT, RADII = "landscape.svg", "radii.json"
PART = 10  # directions that a killed run does not measure again


def run(
    context: Context, models: Mapping[str, SourceModel], data: DataConfig, config: LandscapeConfig | None = None
) -> Artifact:
    """Measure models, by label, on held-out text that all of them read in the same tokens.

    InputError unless all have as many free weights and, for lines, the same tensors.
    """
    config = config or LandscapeConfig()
    _require_alike(models, config)
    if config.plane and len(models) < 3:
        raise InputError(f"a plane goes through three models, not {len(models)}: give three, or leave --plane out")
    first = next(iter(models.values()))
    blocks = blocks_of(context, data, "validation", first.path)
    if not len(blocks):
        raise DataError("the held-out data do not fill a block: hold out more text, or lower --sequence-length")
    measuring = _Measuring(context, models, config, blocks)
    # Numbered, since lines and planes begin at the first.
    numbered = enumerate(models.items())
    fingerprints = {f"model {number} {label}": model.fingerprint for number, (label, model) in numbered}
    named = {model.fingerprint: model.name for model in models.values()}
    made = produce(
        context,
        stage=STAGE,
        version=VERSION,
        config=config,
        inputs={**fingerprints, "validation": blocks.fingerprint},
        build=measuring.build,
        forecast=measuring.forecast,
        price=measuring.price,
        given=lambda: {**named, **given_texts(data, [blocks])},
    )
    _warn(made.result(LandscapeResult), config)
    return made


def _require_alike(models: Mapping[str, SourceModel], config: LandscapeConfig) -> None:
    """Raise InputError for models that cannot stand beside each other."""
    (label, first), *others = models.items()
    for name, other in others:
        if first.shape.tensors() != other.shape.tensors():
            raise InputError(f"{label} and {name} are of unlike shape: give models of one shape, or one at a time")
        if why := tokenizers.difference(first, other, (label, name)):
            raise InputError(f"{why}: give models that read the same tokens")
    if config.subspace == "all" and config.scale != "filter":  # else it takes the weights to tell
        require_same_dimension({name: _free_weights(model) for name, model in models.items()})


def _free_weights(model: SourceModel) -> int:
    masks = ParameterMasks.of(model)
    zeros = sum(spec.zeros for spec in masks.file.specs.values()) if masks else 0
    return model.shape.parameters() - zeros


def _warn(found: LandscapeResult, config: LandscapeConfig) -> None:
    last, curvature = "--subspace last, " * (config.subspace == "all"), "--scale curvature, " * (config.scale == "none")
    for label, one in found.models.items():
        if not one.is_trusted:
            progress.warn(
                f"{label}: {one.effective_directions:.1f} of {found.directions:,} directions carry the volume, fewer "
                f"than {ENOUGH_DIRECTIONS}: it is a lower bound, far too low, and compares with nothing; use "
                f"{last}{curvature}more --directions, or compare radii and sharpness"
            )


@dataclass(frozen=True)
class _Measuring:
    """Measuring models on the same blocks."""

    context: Context
    models: Mapping[str, SourceModel]
    config: LandscapeConfig
    blocks: Blocks

    def forecast(self) -> dict[str, Any]:
        """What a dry run says of the work."""
        return {"models": len(self.models), "directions": self.config.directions}

    def price(self) -> Price:
        """What the work is going to take."""
        models = [subject.of_source(model) for model in self.models.values()]
        length = self.blocks.sequence_length
        return offered(self.context, STAGE, work_of.work(models, self.config, length, len(self.blocks)))

    def build(self, work: StageBuild) -> LandscapeResult:
        found, radii, dimensions, tokens = dict[str, ModelLandscape](), dict[str, list[float]](), dict[str, int](), 0
        for number, label in enumerate(self.models):
            one = self._open(label)
            dimensions[label], tokens = one.at.dimension, one.loss.tokens
            require_same_dimension(dimensions)
            radii[label] = self._radii(work, number, one)
            found[label] = self._measured(one, radii[label])
        result = LandscapeResult(
            cutoff=self.config.cutoff,
            directions=self.config.directions,
            scale=self.config.scale,
            sharpness_radius=self.config.sharpness_radius,
            tokens=tokens,
            models=found,
            lines=tuple(self._lines()),
            plane=self._plane(work, self.config.plane) if self.config.plane else None,
        )
        work.write_json(RADII, radii)
        io.write_new(work.path / PLOT, plots.sheet(report.plots(result, radii)).encode())
        return result

    def _open(self, label: str) -> "_Opened":
        """A loaded model and its coordinates, in the configured subspace."""
        source, subspace = self.models[label], self.config.subspace
        model = self._load(label)
        weights = {name: p for name, p in model.named_parameters() if _moves(source, name, subspace)}
        kept = _kept_by_all(self.models.values() if subspace == "kept" else (source,), weights)
        return self._coordinates(model, weights, kept)

    def _coordinates(
        self, model: "PreTrainedModel", weights: Mapping[str, Tensor], kept: Mapping[str, Tensor]
    ) -> "_Opened":
        """A loaded model with some of its weights, of which those move that masks, by name, keep."""
        loss = FixedLoss(model, self.blocks, self.config.blocks, self.context.device)
        scale = directions.plain_scale(weights, kept)
        if self.config.scale == "filter":
            modules = {name: model.get_submodule(name.rpartition(".")[0]) for name in weights}
            rows = {name: directions.row_dims(modules[name], weight) for name, weight in weights.items()}
            scale = directions.filter_scale(weights, scale, rows)
        if self.config.scale == "curvature":
            scale = directions.curvature_scale(loss.squared_gradients(weights), scale)
        return _Opened(loss, Coordinates(weights, scale))

    def _radii(self, work: StageBuild, model: int, one: "_Opened") -> list[float]:
        """Radii along every direction, of which an interrupted run keeps whole parts."""
        config, found = self.config, list[float]()
        for start in range(0, config.directions, PART):
            numbers = range(start, min(start + PART, config.directions))

            def compute(numbers: range = numbers) -> dict[str, Any]:
                return {"radii": measure.radii(one.loss, one.at, config.cutoff, numbers, config.seed)}

            found += work.remember(f"radii-{model}-{start:06d}", compute)["radii"]
        return found

    def _measured(self, one: "_Opened", radii: list[float]) -> ModelLandscape:
        is_in_own_units = self.config.scale == "filter"
        volume = Volume.of(radii, one.at.dimension, 0.0 if is_in_own_units else one.at.log_scale)
        weights = dict(one.at.weights)
        gradient = {name: g * (one.at.scale[name] != 0) for name, g in one.loss.gradient(weights).items()}
        return ModelLandscape(
            loss=one.loss(),
            **volume._asdict(),
            is_trusted=volume.is_trusted,
            sharpness=measure.sharpness(one.loss, weights, gradient, self.config.sharpness_radius),
        )

    def _lines(self) -> list[LineLosses]:
        """Lines from the first model to each other one, all weights included."""
        if len(self.models) == 1:
            return []
        start, *ends = self.models
        model = self._load(start)
        loss = FixedLoss(model, self.blocks, self.config.blocks, self.context.device)
        weights = _stored(model)
        return [self._line(loss, weights, start, end) for end in ends]

    def _plane(self, work: StageBuild, points: int) -> PlaneLosses:
        """The plane through the first three models, all weights included; an interrupted run keeps whole rows.

        Weights that a mask of one of them has pruned count as others do: models differ in them.
        """
        first, second, third = tuple(self.models)[:3]
        model = self._load(first)
        one = self._coordinates(model, _stored(model), {})
        plane = Plane.through(one.at.weights, *(_stored(self._load(label)) for label in (second, third)))
        corners, shares = plane.corners(one.at.scale), plane_shares(points)
        rows = []
        for number, b in enumerate(shares):

            def compute(b: float = b) -> dict[str, Any]:
                row = measure.plane_row(one.loss, one.at.weights, plane, b, shares)
                return {"losses": [x if math.isfinite(x) else None for x in row]}

            rows.append(tuple(work.remember(f"plane-{number:03d}", compute)["losses"]))
        return PlaneLosses(models=(first, second, third), corners=corners, shares=shares, losses=tuple(rows))

    def _load(self, label: str) -> "PreTrainedModel":
        return hf.load_model(self.models[label].path, device=self.context.device, dtype=torch.float32)

    def _line(self, loss: FixedLoss, weights: dict[str, Tensor], start: str, end: str) -> LineLosses:
        losses = measure.line(loss, weights, _stored(self._load(end)), self.config.line_points)
        barrier = measure.barrier(losses)
        return LineLosses(
            start=start,
            end=end,
            losses=tuple(x if math.isfinite(x) else None for x in losses),
            barrier=barrier if math.isfinite(barrier) else None,
        )


def _stored(model: "PreTrainedModel") -> dict[str, Tensor]:
    """All weights of a model: its parameters, and buffers that a checkpoint stores, such as the bias of a router."""
    stored = model.state_dict().keys()
    buffers = {name: b for name, b in model.named_buffers() if name in stored and b.is_floating_point()}
    return {**dict(model.named_parameters()), **buffers}


def _moves(source: SourceModel, name: str, subspace: str) -> bool:
    last = layer_module(source.family).format(layer=source.shape.sizes["layer"] - 1)
    return subspace != "last" or name.startswith(f"{last}.")


def _kept_by_all(models: Iterable[SourceModel], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name of each masked weight -> bool mask of what every model keeps of it."""
    found: dict[str, Tensor] = {}
    for masks in filter(None, map(ParameterMasks.of, models)):
        for name in filter(masks.covers, weights):
            kept = masks.kept(name, weights[name].shape)
            found[name] = found[name] & kept if name in found else kept
    return found


@dataclass(frozen=True)
class _Opened:
    """A loaded model: its loss, and the weights that are moved."""

    loss: FixedLoss
    at: Coordinates
