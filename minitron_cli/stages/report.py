"""The report stage: one product of a workspace and all that it was made from, as an HTML page and a model card."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from minitron_cli import io
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.wrappers import WRAPPERS
from minitron_cli.cost.lineage import accelerator_hours
from minitron_cli.distill.config import CorrectConfig, DistillConfig
from minitron_cli.distill.curves import training_figures
from minitron_cli.inputs.document_ends import document_ends
from minitron_cli.prune.written_child import PLAN
from minitron_cli.report import beside
from minitron_cli.report.candidates import Ranking
from minitron_cli.report.card import HubFacts, model_card
from minitron_cli.report.data import ReportData
from minitron_cli.report.importance import Importance
from minitron_cli.report.kept import kept_plot
from minitron_cli.report.page import render
from minitron_cli.report.product import Product, place, without_directories
from minitron_cli.report.provenance import commands, cost_rows
from minitron_cli.report.scratch import arms
from minitron_cli.report.sections import view
from minitron_cli.report.training import TrainingRun
from minitron_cli.report.view import Plot
from minitron_cli.results.prune import PruneResult
from minitron_cli.results.report import ReportResult
from minitron_cli.results.run_record import SpeedRecord
from minitron_cli.results.sparsify import SparsifyResult
from minitron_cli.results.training import TrainingResult, read_curves
from minitron_cli.spec import Spec
from minitron_cli.stages import correct

STAGE, VERSION = "report", 8
PAGE, CARD = "report.html", "model-card.md"
MAX_CARD = 1 << 20  # characters read of a parent's card


class ReportConfig(Spec):
    """Title of the page and facts about the original model."""

    title: str
    given: Mapping[str, Any] = {}
    """What the user gave for the inputs of all artifacts, by fingerprint: names of models and settings of text."""
    hub: HubFacts = HubFacts()
    """Hub metadata of the original model: its id, license and languages."""
    others: Mapping[str, Any] = Field({}, exclude_if=lambda others: not others)
    """What is known of models that were measured elsewhere, by name."""
    speed: SpeedRecord | None = Field(None, exclude_if=lambda speed: speed is None)
    """Generation speeds that the evaluation measured, which are no part of its identity."""
    device_hours: Mapping[str, float] = Field({}, exclude_if=lambda hours: not hours)
    """Accelerator -> hours of the stages that made the product, which are no part of theirs."""


def run(context: Context) -> Artifact:
    """Write the page and the card of the workspace's product. ArtifactError if there is nothing to show."""
    product = Product.current(context.workspace)
    config = report_config(product)

    def build(work: StageBuild) -> ReportResult:
        content = report_data(product, config)
        text = model_card(content, name=config.title, loaded_as=place(product.artifact.path), hub=config.hub)
        io.write_new(work.path / PAGE, render(view(content)).encode())
        io.write_new(work.path / CARD, text.encode())
        return ReportResult(product=product.artifact.fingerprint)

    inputs = {
        " ".join(filter(None, (made.stage, made.label, made.key[:8]))): made.fingerprint for made in product.artifacts
    }
    return produce(context, stage=STAGE, version=VERSION, config=config, inputs=inputs, build=build)


def card(workspace: Workspace, model: Artifact, name: str) -> str:
    """Model card of one artifact of the workspace, under the name that it will have on the hub."""
    product = Product(workspace, model)
    config = report_config(product)
    return model_card(report_data(product, config), name=name, loaded_as=name, hub=config.hub)


def report_config(product: Product) -> ReportConfig:
    """Title of the page and facts about the original model, from its own card."""
    title, given = product.title or "the parent", without_directories(product.given)
    elsewhere = beside.elsewhere(product.evaluation) if product.evaluation else ()
    return ReportConfig(
        title=f"{title}: {product.workspace.name}",
        given=given,
        hub=_hub_facts(product),
        others={model.label: model.found.model_dump(mode="json") for model in elsewhere},
        speed=product.evaluation.run.speed if product.evaluation and product.evaluation.run else None,
        device_hours=accelerator_hours(product.lineage),
    )


def _hub_facts(product: Product) -> HubFacts:
    """Metadata in the original model's own card, if it is on this machine."""
    hub_id, _, commit = product.original.partition("@")
    path = product.directory(product.original)
    readme = path / "README.md" if path else None
    text = readme.read_text(errors="replace")[:MAX_CARD] if readme and readme.is_file() else ""
    return HubFacts.of_card(text, hub_id if commit else None)


def report_data(product: Product, config: ReportConfig) -> ReportData:
    """Everything that the view shows of a product."""
    ranked, prune = product.search or product.prune, product.prune.result(PruneResult) if product.prune else None
    plan = product.prune.read_json(PLAN) if product.prune else {}
    needed = {made.key for made in product.lineage}
    others = [made for made in product.artifacts if made.key not in needed]
    distilled = product.artifact if product.artifact.stage == "distill" else None
    steps, labels = [made.result(PruneResult) for made in product.steps], product.step_labels
    return ReportData(
        title=config.title,
        model=product.title,
        sizes=(*(step.parent.parameters for step in steps[:1]), *(step.child.parameters for step in steps)),
        steps=tuple(made.label for made in product.steps),
        teacher=product.teacher(distilled) if distilled else "",
        signals=(distilled.result(TrainingResult).signals or "") if distilled else "",
        is_taught=distilled.result(TrainingResult).uses_teacher if distilled else None,
        wrapper=_wrapper(product.artifact),
        worse=distilled.result(TrainingResult).worse if distilled else None,
        to_evaluate=product.to_evaluate,
        models=(*product.models(), *(beside.elsewhere(product.evaluation) if product.evaluation else ())),
        scratch=tuple(arms(product)),
        speed=config.speed,
        importance=Importance.of(product.importance, plan) if product.importance else Importance(),
        ranking=Ranking.of(ranked, prune.child.sizes if prune else None) if ranked else None,
        prune=prune,
        sparsity=product.sparse.result(SparsifyResult) if product.sparse else None,
        kept=_kept(prune, plan) if prune else None,
        cache_bytes=tuple(part.cache_bytes for part in prune.parts) if prune and prune.parts else (),
        runs=tuple(map(_training, filter(None, (product.corrected, *product.trained)))),
        costs=tuple(row for made in product.lineage for row in cost_rows(made, labels.get(made.key, ""))),
        other_costs=tuple(row for made in others for row in cost_rows(made, labels.get(product.artifact.key, ""))),
        device_hours=config.device_hours,
        lineage=tuple((x.stage, x.label, x.key[:8], ", ".join(sorted(x.manifest.inputs))) for x in product.artifacts),
        texts=" ".join(_texts(product)),
        commands=tuple(commands(product)),
    )


def _wrapper(made: Artifact) -> str:
    """Model type of the wrapper that a model was written in; empty for a text model, and for no model."""
    if "config.json" not in made.manifest.files:
        return ""
    kind = str(made.read_json("config.json").get("model_type"))
    return kind if kind in WRAPPERS else ""


def _texts(product: Product) -> Iterator[str]:
    """Sentence on what texts begin and end with, for each setting of data.bos that the product was made under."""
    paths = product.artifact.path, product.directory(product.original)
    places = (path for path in paths if path and hf.has_tokenizer(path))
    if (model := next(places, None)) is None:
        return
    for bos in sorted({text["bos"] for text in product.given.values() if isinstance(text, dict) and "bos" in text}):
        if isinstance(ends := document_ends(model, bos), dict):
            yield f"Texts begin with {ends['begin_with']} and end with {ends['end_with']} (data.bos={bos})."


def _kept(result: PruneResult, plan: Mapping[str, Any]) -> Plot | None:
    """Picture of what pruning kept of the parent; None if an earlier version pruned it."""
    if result.parts is None:
        return None
    return kept_plot(*result.parts, plan.get("layer", range(result.child.sizes["layer"])))


def _training(made: Artifact) -> TrainingRun:
    """Curves of one training, with a figure for every loss that it used."""
    steps, points = read_curves(made.path)
    config = CorrectConfig if made.stage == correct.STAGE else DistillConfig
    losses = training_figures(config.model_validate(made.manifest.config))
    validation = [point.model_dump(exclude_none=True) for point in points]
    return TrainingRun(made.label, [step.model_dump() for step in steps], losses, validation)
