"""The report stage: one product of a workspace and all that it was made from, as an HTML page and a model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitron_cli import io
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.artifacts.manifest import MANIFEST
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.cost.lineage import accelerator_hours
from minitron_cli.distill.config import CorrectConfig, DistillConfig
from minitron_cli.distill.curves import training_figures
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.report.candidates import Ranking
from minitron_cli.report.card import HubFacts, model_card
from minitron_cli.report.data import ReportData
from minitron_cli.report.importance import Importance
from minitron_cli.report.page import render
from minitron_cli.report.product import Product
from minitron_cli.report.provenance import command, cost_rows, lineage_row
from minitron_cli.report.sections import view
from minitron_cli.report.training import TrainingRun
from minitron_cli.results.prune import PruneResult
from minitron_cli.results.report import ReportResult
from minitron_cli.results.training import read_curves
from minitron_cli.spec import Spec
from minitron_cli.stages import correct
from minitron_cli.stages.prune import PLAN

STAGE, VERSION = "report", 4
PAGE, CARD = "report.html", "model-card.md"
MAX_CARD = 1 << 20  # characters read of a parent's card


class ReportConfig(Spec):
    """Title of the page and facts about the parent."""

    title: str
    model: str
    """The parent's name."""
    data: Mapping[str, Any] = {}
    """Requested text; local files go by their names without directories, as the parent does."""
    hub: HubFacts = HubFacts()
    """Hub metadata of the parent: its id, license and languages."""


def run(context: Context) -> Artifact:
    """Write the page and the card of the workspace's product. ArtifactError if there is nothing to show."""
    product = Product.current(context.workspace)
    config = report_config(context.workspace)

    def build(work: StageBuild) -> ReportResult:
        content = report_data(product, config)
        io.write_new(work.path / PAGE, render(view(content)).encode())
        io.write_new(work.path / CARD, model_card(content, name=config.title, hub=config.hub).encode())
        return ReportResult(product=product.artifact.fingerprint)

    inputs = {
        " ".join(filter(None, (made.stage, made.label, made.key[:8]))): made.fingerprint for made in product.artifacts
    }
    return produce(context, stage=STAGE, version=VERSION, config=config, inputs=inputs, build=build)


def card(workspace: Workspace, model: Artifact, name: str) -> str:
    """Model card of one artifact of the workspace, under the name that it will have on the hub."""
    config = report_config(workspace)
    return model_card(report_data(Product(workspace, model), config), name=name, hub=config.hub)


def report_config(workspace: Workspace) -> ReportConfig:
    """Title of the page and facts about the parent, from the workspace's settings and the parent's own card."""
    model = str(workspace.settings.get("model") or "the parent")
    name = _name(model)
    data = _without_directories(workspace.settings.get("data") or {})
    return ReportConfig(title=f"{name}: {workspace.name}", model=name, data=data, hub=_hub_facts(model))


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
    scored, ranked = product.made_from("importance"), product.made_from("search") or product.prune
    plan = product.prune.read_json(PLAN) if product.prune else {}
    prune = product.prune.result(PruneResult) if product.prune else None
    run = product.evaluation[0].run if product.evaluation else None
    needed = {made.key for made in product.lineage}
    others = [made for made in product.artifacts if made.key not in needed]
    return ReportData(
        title=config.title,
        model=config.model,
        models=tuple(product.models()),
        speed=run.speed if run else None,
        importance=Importance.of(scored, plan) if scored else Importance(),
        ranking=Ranking.of(ranked, prune.child.sizes if prune else None) if ranked else None,
        prune=prune,
        cache_bytes=_cache_bytes(product.prune, prune) if product.prune and prune else (),
        runs=tuple(map(_training, filter(None, (product.made_from(correct.STAGE), *product.trained)))),
        costs=tuple(row for made in product.lineage for row in cost_rows(made)),
        other_costs=tuple(row for made in others for row in cost_rows(made)),
        device_hours=accelerator_hours(product.lineage),
        lineage=tuple(map(lineage_row, product.artifacts)),
        commands=tuple(command(made, config.model, config.data) for made in product.step),
    )


def _cache_bytes(pruned: Artifact, result: PruneResult) -> tuple[int, int]:
    """KV cache of one token of the parent and of the pruned model."""
    child = open_source_model(pruned.path).shape
    return child.resize(**result.parent.sizes).kv_cache_bytes(1, 1), child.kv_cache_bytes(1, 1)


def _training(made: Artifact) -> TrainingRun:
    """Curves of one training, with a figure for every loss that it used."""
    steps, points = read_curves(made.path)
    config = CorrectConfig if made.stage == correct.STAGE else DistillConfig
    losses = training_figures(config.model_validate(made.manifest.config))
    validation = [point.model_dump(exclude_none=True) for point in points]
    return TrainingRun(made.label, [step.model_dump() for step in steps], losses, validation)
