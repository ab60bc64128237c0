"""The report stage: one product of a workspace and all that it was made from, as an HTML page and a model card."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli import io
from minitron_cli.artifacts import fingerprint
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.artifacts.manifest import MANIFEST
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.cost.lineage import accelerator_hours, lineage, spent
from minitron_cli.distill.curves import HELD_OUT, training_figures
from minitron_cli.errors import ArtifactError
from minitron_cli.evaluate.config import CODE_TASKS
from minitron_cli.evaluate.gate import PARENT
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.report.card import HubFacts, model_card
from minitron_cli.report.data import ReportData
from minitron_cli.report.evaluation import KINDS, Evaluated, Kind, in_order
from minitron_cli.report.page import render
from minitron_cli.report.sections import view
from minitron_cli.scores.scores import Scores
from minitron_cli.spec import Spec
from minitron_cli.stages import correct

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
    config = _config(context.workspace)

    def build(work: StageBuild) -> None:
        content = product.data(config)
        io.write_new(work.path / PAGE, render(view(content)).encode())
        io.write_new(work.path / CARD, model_card(content, name=config.title, hub=HubFacts(**config.hub)).encode())

    return produce(context, stage=STAGE, version=VERSION, config=config, inputs=product.fingerprints(), build=build)


def card(workspace: Workspace, model: Artifact, name: str) -> str:
    """Model card of one artifact of the workspace, under the name that it will have on the hub."""
    config = _config(workspace)
    return model_card(Product(workspace, model).data(config), name=name, hub=HubFacts(**config.hub))


def _config(workspace: Workspace) -> ReportConfig:
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
