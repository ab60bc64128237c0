"""Settings that a result was made with, as arguments of the command that makes it again."""

import json
import shlex
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from minitron_cli.data.sources import DataConfig, as_stored
from minitron_cli.distill.config import CorrectConfig, DistillConfig
from minitron_cli.evaluate.config import CODE_TASKS, EvaluateConfig
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.landscape.config import LandscapeConfig
from minitron_cli.prune.config import PruneConfig
from minitron_cli.search.config import SearchConfig
from minitron_cli.signals.config import TeachConfig
from minitron_cli.sparse.config import SparsifyConfig
from minitron_cli.spec import Spec
from minitron_cli.ticket.config import SupermaskConfig, TicketConfig, TransferConfig

CONFIGS: Mapping[str, type[Spec]] = {
    "importance": ImportanceConfig,
    "search": SearchConfig,
    "prune": PruneConfig,
    "sparsify": SparsifyConfig,
    "correct": CorrectConfig,
    "teach": TeachConfig,
    "distill": DistillConfig,
    "evaluate": EvaluateConfig,
    "landscape": LandscapeConfig,
    "ticket": TicketConfig,
    "transfer": TransferConfig,
    "supermask": SupermaskConfig,
}
"""Stage -> its settings, which say what an absent one stands for."""


def stage_settings(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> Iterator[str]:
    """Arguments with every setting of a stage, those of other sections that it read, and the permission it needs."""
    if stage == "search":
        yield from _of_pruning(inputs)
    yield from _arguments(config, "", CONFIGS.get(stage))
    if any(task["name"] in CODE_TASKS for task in config.get("tasks", ())):
        yield "--allow-code-execution"


def text_settings(text: Mapping[str, Any]) -> Iterator[str]:
    """Arguments with every setting of the data."""
    yield from _arguments(as_stored(text), "data.", DataConfig)


def _arguments(values: Mapping[str, Any], prefix: str, kind: type[Spec] | None) -> Iterator[str]:
    """Settings as arguments KEY=VALUE, quoted for a shell. `kind`: what they are of, if it is known.

    One that is empty, and is so if it is left out, is left out: `shape=null` of a pruning, not `retrain=null` of a
    search, which would retrain without it.
    """
    for name, value in values.items():
        field = kind.model_fields.get(name) if kind else None
        default = field.get_default(call_default_factory=True) if field else None
        if isinstance(value, Mapping) and value:
            yield from _arguments(value, f"{prefix}{name}.", _only_kind(field.annotation) if field else None)
        elif not (_is_empty(value) and _is_empty(default) and (field or value is None)):
            text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            yield f"{prefix}{name}={shlex.quote(text)}"


def _of_pruning(inputs: Mapping[str, str]) -> Iterator[str]:
    """What a search read of the section `prune`, by its inputs: what it did to candidates before they were scored."""
    repair, _, samples = inputs.get("repair", "none").removesuffix(" samples").partition(" on ")
    if repair == "none" and "biases" in inputs:  # zeros for now: candidates were scored without a repair
        repair = "bias"
    yield f"prune.repair={repair}"
    yield from [f"prune.repair_samples={samples}"] * bool(samples)
    yield from ["prune.untie=true"] * ("head" in inputs)
    yield from ["prune.serving_lint=warn"] * ("serving_lint" in inputs)
    yield from [f"prune.write_as={form}" for form in (inputs.get("write_as"),) if form]


def _is_empty(value: object) -> bool:
    return value is None or value in ((), [], {})


def _only_kind(annotation: Any) -> type[Spec] | None:
    """The kind of section that an annotation admits; None if there are several, or none."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return annotation
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType, Annotated) else ()
    kinds = {kind for part in parts if (kind := _only_kind(part))}
    return kinds.pop() if len(kinds) == 1 else None
