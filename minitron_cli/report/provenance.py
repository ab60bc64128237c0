"""Provenance of a result: inputs, cost, and the commands that make it again."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minitron_cli.artifacts import manifest
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.cost.compute import Entry, total
from minitron_cli.cost.derive import spent
from minitron_cli.figures import Figure
from minitron_cli.report.evaluation import LABELS
from minitron_cli.report.price import FLOPS, TOKENS
from minitron_cli.report.product import Product, place_of_verb, without_directories
from minitron_cli.report.settings import stage_settings, text_settings
from minitron_cli.report.text import clean
from minitron_cli.report.view import Section, Table
from minitron_cli.results.evaluation import OWN_TASKS, PARENT, TASK_DATA

CostRow = tuple[str, Entry]
"""Stage, with its label if it has one, and the cost of one kind of its work."""


def cost_rows(artifact: Artifact, step: str = "") -> list[CostRow]:
    """Costs of an artifact by kind of work. `step`: the step of a chain that it belongs to, which precedes its name.

    A label that only says what the stage makes, such as `distilled`, is left out.
    """
    label = artifact.label if artifact.label not in (step, *LABELS) else ""
    name = " ".join(filter(None, (artifact.stage, label)))
    return [(f"{step}: {name}" if step else name, entry) for entry in spent(artifact)]


def cost_table(title: str, costs: Sequence[CostRow], *, has_total: bool = True) -> Table:
    """Tokens and FLOPs by stage and kind of work."""
    columns = (Figure("stage"), Figure("work"), TOKENS, FLOPS)
    rows = [(stage, *entry) for stage, entry in costs]
    if has_total and costs:
        rows.append(("total", "", *total(entry for _, entry in costs)[1:]))
    return Table(title, columns, rows, [len(costs)] if has_total else ())


def cost_section(costs: Sequence[CostRow], others: Sequence[CostRow], device_hours: Mapping[str, float]) -> Section:
    """Section on the cost of the result, and on that of `others`: controls and measurements."""
    title = "Controls and measurements, not needed for the result"
    text = (
        "Work for the result, stage by stage, back to the original model. A forward pass counts two FLOPs per "
        "multiplying weight and two per channel of a head's key and of its value and position attended to, a backward "
        "pass twice that."
    )
    if device_hours:
        hours = ", ".join(f"{spent:,.3g} hours of {clean(device)}" for device, spent in device_hours.items())
        text += f" It took {hours}."
    return Section("cost", "Cost", text, (cost_table("Cost", costs), cost_table(title, others, has_total=False)))


def lineage_section(rows: Sequence[tuple[str, ...]]) -> Section:
    """Section on artifacts and their inputs."""
    text = "Artifacts and what each was made from. A key is a hash of a stage's settings and of all its inputs."
    table = Table.of_words("Lineage", ("stage", "label", "key", "made from"), rows)
    return Section("lineage", "Lineage", text, (table,))


def commands(product: Product) -> Iterator[str]:
    """Shell commands with every setting that make the product, its controls and its evaluation again."""
    last: object = None
    is_named = False  # whether a command has named the model that later ones work on
    for made in product.artifacts:
        config, inputs = made.manifest.config, made.manifest.inputs
        words = [manifest.command_of(made.stage), *_models(product, made, is_named=is_named)]
        is_named = True
        text = given_text(inputs, product.given)
        if text and text != last:
            words += text_settings(without_directories(text))
            last = text
        settings = (*stage_settings(made.stage, config, inputs), *_task_settings(inputs, product.given))
        yield " ".join([*words, *settings])


def _models(product: Product, made: Artifact, *, is_named: bool) -> Iterator[str]:
    """Words that say what models a stage works on, as far as its verb would take others without them."""
    inputs = made.manifest.inputs
    start = inputs.get("model") or inputs.get(f"model {PARENT}") or inputs.get("teacher", "")
    if made.stage == "importance" or _is_further(product, made) or not (is_named or start in product.made):
        yield shlex.quote(_parent(product, start))
        if _are_paths_named(product):
            yield from ("--run", made.path.parent.parent.name)
    if made.stage == "evaluate":
        yield from map(shlex.quote, product.named_for(made))
    if made.stage in ("distill", "teach") and (teacher := product.teacher(made)):
        yield from ("--teacher", shlex.quote(teacher))
    if made.stage == "distill" and (student := product.student(made)):
        yield from ("--student", shlex.quote(student))


def _is_further(product: Product, made: Artifact) -> bool:
    """Whether an artifact is a model that was made sparse again, after a round."""
    source = product.made.get(made.manifest.inputs.get("model", ""))
    return made.stage == "sparsify" and source is not None and source.stage != "prune"


def _are_paths_named(product: Product) -> bool:
    """Whether a command names a model by a path in its workspace, which then has to have this name."""
    measured = product.named_for(product.evaluation) if product.evaluation else ()
    return len(product.steps) > 1 or bool(measured) or any(_is_further(product, one) for one in product.lineage)


def given_text(inputs: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings of the text among the inputs of a result, as far as they are known."""
    names = [fingerprint for name, fingerprint in inputs.items() if not _is_of_tasks(name)]
    return next((text for name in names if isinstance(text := given.get(name), dict)), None)


def _task_settings(inputs: Mapping[str, str], given: Mapping[str, Any]) -> Iterator[str]:
    """Arguments that name the directories of an evaluation's own tasks and of their data."""
    of_tasks = [given.get(fingerprint) for name, fingerprint in inputs.items() if _is_of_tasks(name)]
    settings = {name: path for one in of_tasks if one for name, path in without_directories(one).items()}
    yield from (f"{name}={shlex.quote(path)}" for name, path in settings.items())


def _is_of_tasks(name: str) -> bool:
    """Whether an input with this name is a directory of tasks, or of a task's data."""
    return name == OWN_TASKS or name.startswith(f"{TASK_DATA} ")


def _parent(product: Product, model: str) -> str:
    """Name of a model that a stage starts from; of one that was made here the path that its verb gives it."""
    made = product.made.get(model)
    return place_of_verb(made) if made else product.name(model) or "MODEL"
