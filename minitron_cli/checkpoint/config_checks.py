"""What a config.json may say before transformers reads it: models that it knows, sizes in bounds, and no code."""

import math
from collections.abc import Mapping
from typing import Any

from minitron_cli.errors import CheckpointError, shown

MAX_LAYERS = 1_000
MAX_EXPERTS = 10_000
MAX_LABELS = 10_000  # transformers makes a name of each, several times
MAX_WIDTH = 1_000_000  # of any dimension; building a larger model would take minutes before it fails
LIMITS = {"num_hidden_layers": MAX_LAYERS, "num_labels": MAX_LABELS}


def refuse(raw: dict[str, Any], where: str) -> None:
    """Raise CheckpointError, which begins with `where`, for a config that is unsupported or asks for too much."""
    from transformers import CONFIG_MAPPING

    if raw.get("quantization_config"):
        raise CheckpointError(
            f"{where}: the checkpoint is quantized, and pruning needs the original weights; give those"
        )
    if not isinstance(raw.get("model_type"), str) or raw["model_type"] not in CONFIG_MAPPING:
        custom = " and its own code is not run" if raw.get("auto_map") else ""
        raise CheckpointError(
            f"{where}: model type {shown(raw.get('model_type'))} is not part of transformers{custom}; "
            "give a supported model"
        )
    _refuse_sizes(raw, where)


def _refuse_sizes(raw: dict[str, Any], where: str) -> None:
    """Raise CheckpointError for a count or size for which transformers would build lists until memory ends."""
    for key, value in raw.items():
        name = str(key)  # a config that was parsed before has numbers for keys
        if isinstance(value, dict):
            _refuse_sizes(value, where)
        limit = LIMITS.get(name, MAX_EXPERTS if name.endswith("_experts") else MAX_WIDTH)
        is_size = name.startswith("num_") or name.endswith(("_size", "_layers", "_heads", "_experts", "_dim"))
        if is_size and type(value) is int and not 0 <= value <= limit:
            raise CheckpointError(f"{where}: {shown(name)} is {shown(value)}, outside 0 to {limit:,}; fix the field")


def trusted(raw: dict[str, Any]) -> dict[str, Any]:
    """Config without the fields that could choose code, kernels or files, or what a forward pass returns.

    With infinities and NaN as numbers.
    """
    unsafe = (
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "auto_map",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "_name_or_path",
    )
    return {name: _with_floats(value) for name, value in raw.items() if name not in unsafe}


UNBOUNDED = ("time_step_limit",)
"""Fields in which a published config says Infinity where there is no limit."""


def tagged(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Config whose unbounded limits are written as transformers 5 writes them, in JSON: {"__float__": "Infinity"}."""
    limits = {name: raw[name] for name in UNBOUNDED if isinstance(raw.get(name), list)}
    return {**raw, **{name: [_tag(one) for one in values] for name, values in limits.items()}}


def _tag(value: Any) -> Any:
    return {"__float__": "Infinity"} if value == math.inf else value


def _with_floats(value: Any) -> Any:
    """A config's value with the numbers that JSON lacks, which transformers writes as {"__float__": "Infinity"}."""
    if isinstance(value, list):
        return [_with_floats(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
        return float(value["__float__"])
    return {name: _with_floats(one) for name, one in value.items()}
