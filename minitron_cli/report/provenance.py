"""Provenance of a result: inputs, cost, and the commands that make it again."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.cost.derive import spent
from minitron_cli.evaluate.config import CODE_TASKS
from minitron_cli.figures import NOTHING, Figure
from minitron_cli.report.text import clean
from minitron_cli.report.view import Section, Table

STAGE = Figure("stage")
TOKENS = Figure("tokens", style="short")
FLOPS = Figure("FLOPs", style="power")


class CostRow(NamedTuple):
    """Cost of one kind of work in one stage."""

    stage: str
    work: str
    tokens: int | None
    flops: float | None
    is_needed: bool = True
    """False for controls and measurements, without which the product could be made."""


class LineageRow(NamedTuple):
    """One artifact and the names of its inputs."""

    stage: str
    key8: str
    label: str
    inputs: tuple[str, ...]

    @classmethod
    def of(cls, artifact: Artifact) -> "LineageRow":
        """Row of an artifact, from its manifest."""
        return cls(artifact.stage, artifact.key[:8], artifact.label, tuple(sorted(artifact.manifest.inputs)))


def cost_rows(artifact: Artifact, *, is_needed: bool) -> Iterator[CostRow]:
    """Costs of an artifact by kind of work."""
    stage = " ".join(filter(None, (artifact.stage, artifact.label)))
    for entry in spent(artifact):
        yield CostRow(stage, entry.work, entry.tokens, entry.flops, is_needed)


def cost_table(title: str, costs: Sequence[CostRow], *, has_total: bool = True) -> Table:
    """Tokens and FLOPs by stage and kind of work."""
    rows = [(row.stage, row.work, row.tokens, row.flops) for row in costs]
    if has_total:
        rows.append(("total", "", sum(row.tokens or 0 for row in costs), sum(row.flops or 0 for row in costs)))
    return Table(title, (STAGE, Figure("work"), TOKENS, FLOPS), tuple(rows), [len(costs)] if has_total else ())


def hours(by_device: Mapping[str, float]) -> str:
    """Sentence on the hours of each device; empty if none are known."""
    found = ", ".join(f"{spent:,.3g} hours of {clean(device)}" for device, spent in by_device.items())
    return f"It took {found}." if found else ""


def needed(costs: Sequence[CostRow]) -> list[CostRow]:
    """Costs without which the product could not be made."""
    return [row for row in costs if row.is_needed]


def cost_section(costs: Sequence[CostRow], device_hours: Mapping[str, float]) -> Section | None:
    """Section on cost; None if nothing is known."""
    if not costs:
        return None
    tables = [cost_table("Cost", needed(costs))]
    if other := [row for row in costs if not row.is_needed]:
        tables.append(cost_table("Controls and measurements, not needed for the result", other, has_total=False))
    text = (
        "Work for the result, stage by stage, back to the original model. A forward pass counts two FLOPs per "
        "multiplying weight and four per head channel and position attended to, a backward pass twice that."
    )
    return Section("cost", "Cost", " ".join(filter(None, (text, hours(device_hours)))), tuple(tables))


def lineage_section(lineage: Sequence[LineageRow]) -> Section | None:
    """Section on artifacts and their inputs; None without artifacts."""
    if not lineage:
        return None
    rows = tuple((row.stage, row.label, row.key8, ", ".join(row.inputs) or NOTHING) for row in lineage)
    text = "Artifacts and what each was made from. A key is a hash of a stage's settings and of all its inputs."
    columns = tuple(map(Figure, ("stage", "label", "key", "made from")))
    return Section("lineage", "Lineage", text, (Table("Lineage", columns, rows),))


def commands_section(commands: Sequence[str]) -> Section | None:
    """Section with the shell commands; None without any."""
    text = "These commands make the same results again; on a CPU, byte for byte."
    return Section("reproduce", "Reproduce", text, code="\n".join(commands)) if commands else None


def command(artifact: Artifact, model: str, data: Mapping[str, Any]) -> str:
    """Shell command with every setting of the artifact's stage; the first stage also names the model and the data."""
    verb = "eval" if artifact.stage == "evaluate" else artifact.stage
    named = [shlex.quote(model), *settings({"data": data})] if verb == "importance" else []
    words = ["minitron", verb, *named, *settings(artifact.manifest.config)]
    if any(task["name"] in CODE_TASKS for task in artifact.manifest.config.get("tasks", ())):
        words.append("--allow-code-execution")
    return " ".join(words)


def settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Settings as arguments KEY=VALUE, quoted for a shell."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from settings(value, f"{prefix}{name}.")
        elif value is not None and value != {} and value != []:
            text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            yield f"{prefix}{name}={shlex.quote(text)}"
