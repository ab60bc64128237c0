"""The report stage: one product of a workspace and all that it was made from, as an HTML page and a model card."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli import io
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.artifacts.manifest import MANIFEST
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.cost.lineage import accelerator_hours
from minitron_cli.distill.config import CorrectConfig, DistillConfig
from minitron_cli.distill.curves import HELD_OUT, training_figures
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.report.candidates import Ranking
from minitron_cli.report.card import HubFacts, model_card
from minitron_cli.report.data import ReportData
from minitron_cli.report.evaluation import Evaluated
from minitron_cli.report.importance import Importance, layer_scores
from minitron_cli.report.page import render
from minitron_cli.report.product import Product
from minitron_cli.report.provenance import LineageRow, command, cost_rows
from minitron_cli.report.sections import view
from minitron_cli.report.shapes import Sizes
from minitron_cli.report.training import Curves, TrainingRun
from minitron_cli.results.importance import ImportanceResult
from minitron_cli.results.prune import PruneResult
from minitron_cli.results.report import ReportResult
from minitron_cli.results.run_record import SpeedRecord
from minitron_cli.results.training import CorrectionResult, TrainingResult, read_curves
from minitron_cli.scores.metric import Activation
from minitron_cli.scores.scores import Scores
from minitron_cli.spec import Spec
from minitron_cli.stages import correct
from minitron_cli.stages.prune import PLAN

STAGE, VERSION = "report", 3
PAGE, CARD = "report.html", "model-card.md"
MAX_CARD = 1 << 20  # characters read of a parent's card


class ReportConfig(Spec):
    """Title of the page and facts about the parent."""

    title: str
    model: str
    """The parent's name."""
    data: Mapping[str, Any] = {}
    """Requested text; local files go by their names without directories, as the parent does."""
    hub: Mapping[str, Any] = {}
    """Hub metadata of the parent: its id, license and languages."""


def run(context: Context) -> Artifact:
    """Write the page and the card of the workspace's product. ArtifactError if there is nothing to show."""
    product = Product.current(context.workspace)
    config = report_config(context.workspace)

    def build(work: StageBuild) -> ReportResult:
        content = report_data(product, config)
        io.write_new(work.path / PAGE, render(view(content)).encode())
        io.write_new(work.path / CARD, model_card(content, name=config.title, hub=HubFacts(**config.hub)).encode())
        return ReportResult(product=product.artifact.fingerprint)

    names = {
        made.fingerprint: " ".join(filter(None, (made.stage, made.label, made.key[:8]))) for made in product.artifacts
    }
    inputs = {name: known for known, name in names.items()}
    return produce(context, stage=STAGE, version=VERSION, config=config, inputs=inputs, build=build)


def card(workspace: Workspace, model: Artifact, name: str) -> str:
    """Model card of one artifact of the workspace, under the name that it will have on the hub."""
    config = report_config(workspace)
    return model_card(report_data(Product(workspace, model), config), name=name, hub=HubFacts(**config.hub))


def report_config(workspace: Workspace) -> ReportConfig:
    """Title of the page and facts about the parent, from the workspace's settings and the parent's own card."""
    model = str(workspace.settings.get("model") or "the parent")
    name = _name(model)
    known = {key: value for key, value in asdict(_hub_facts(model)).items() if value}
    data = _without_directories(workspace.settings.get("data") or {})
    return ReportConfig(title=f"{name}: {workspace.name}", model=name, data=data, hub=known)


def _hub_facts(model: str) -> HubFacts:
    """Metadata in the parent's own card, if it is on this machine."""
    is_local = Path(model).is_dir()
    path = Path(model) if is_local else hf.cached(model)
    base_model = None if is_local else hf.hub_id(model)
    readme = path / "README.md" if path else None
    text = readme.read_text(errors="replace")[:MAX_CARD] if readme and readme.is_file() else ""
    return HubFacts.of_card(text, base_model)


def _without_directories(value: Any) -> Any:
    """Settings with absolute paths shortened to file names: a published card must not show this machine's layout."""
    if isinstance(value, dict):
        return {name: _without_directories(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_directories(one) for one in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _name(model: str) -> str:
    """Name of the parent: the stage that made it, its directory's name, or its id on the hub."""
    path = Path(model)
    if (path / MANIFEST).is_file():
        return path.parent.name
    return path.name if path.is_dir() else model


def report_data(product: Product, config: ReportConfig) -> ReportData:
    """Everything that the view shows of a product."""
    prune = product.prune.result(PruneResult) if product.prune else None
    child = open_source_model(product.prune.path).shape if product.prune else None
    parent = child.resize(**prune.parent.sizes) if prune and child else None
    ranked = product.search or product.prune
    needed = {made.key for made in product.lineage}
    return ReportData(
        title=config.title,
        model=config.model,
        parent=Sizes.of(parent) if parent else None,
        child=Sizes.of(child) if child else None,
        models=tuple(_models(product)),
        speed=_speed(product),
        importance=_importance(product.importance, product.prune, prune),
        ranking=Ranking.of(ranked, child.sizes if child else None) if ranked else None,
        prune=prune,
        runs=tuple(map(_training, filter(None, (product.correct, *product.trained)))),
        costs=tuple(cost for made in product.artifacts for cost in cost_rows(made, is_needed=made.key in needed)),
        device_hours=accelerator_hours(product.lineage),
        lineage=tuple(map(LineageRow.of, product.artifacts)),
        commands=tuple(command(made, config.model, config.data) for made in product.step),
    )


def _speed(product: Product) -> SpeedRecord | None:
    run = product.evaluation[0].run if product.evaluation else None
    return run.speed if run else None


def _models(product: Product) -> Iterator[Evaluated]:
    for label, kind, made in product.models():
        found = product.evaluation[1].models[label] if product.evaluation else None
        is_trained = made is not None and made.stage in (correct.STAGE, "distill")
        if found:
            yield Evaluated(label, kind, found, _result(made).tokens if made and is_trained else None)


def _result(made: Artifact) -> TrainingResult:
    return made.result(CorrectionResult if made.stage == correct.STAGE else TrainingResult)


def _importance(scored: Artifact | None, pruned: Artifact | None, result: PruneResult | None) -> Importance:
    """Scores that were measured, and the channels and layers that pruning kept."""
    if scored is None:
        return Importance()
    scores, sizes = Scores.load(scored.path), scored.result(ImportanceResult).model.sizes
    plan = pruned.read_json(PLAN) if pruned and result else {}
    kept = {axis: np.asarray(indices) for axis, indices in plan.items()}
    if "expert" in sizes and kept.keys() & {"expert", "ffn"}:
        kept["ffn"] = _neurons_of_all_experts(kept, sizes)
    axes = ("hidden", "head", *["expert"] * scores.has_experts, "ffn")
    return Importance(
        {axis: scores.by_layer(axis).numpy() for axis in axes},
        Activation().figure.title,
        kept,
        layer_scores(scores),
        tuple(sorted(set(range(sizes["layer"])) - set(kept.get("layer", np.arange(sizes["layer"])).tolist()))),
    )


def _neurons_of_all_experts(kept: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> np.ndarray:
    """[layer, kept]: neurons that are kept in any expert, numbered through all experts of the layer."""
    shape_LEF = sizes["layer"], sizes["expert"], sizes["ffn"]
    expert_LK = kept.get("expert", np.broadcast_to(np.arange(shape_LEF[1]), shape_LEF[:2]))[:, :, None]
    neuron_LEK = kept.get("ffn", np.broadcast_to(np.arange(shape_LEF[2]), shape_LEF))
    neuron_LEK = np.take_along_axis(neuron_LEK, expert_LK, axis=1)
    return (expert_LK * shape_LEF[2] + neuron_LEK).reshape(shape_LEF[0], -1)


def _training(made: Artifact) -> TrainingRun:
    """Curves of one training, with a figure for every loss that it used."""
    steps, points = read_curves(made.path)
    config = CorrectConfig if made.stage == correct.STAGE else DistillConfig
    figures = training_figures(config.model_validate(made.manifest.config))
    return TrainingRun(
        made.label,
        Curves([step.model_dump() for step in steps], figures),
        Curves([point.model_dump(exclude_none=True) for point in points], HELD_OUT),
    )
