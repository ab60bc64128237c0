"""The child's config.json: the parent's, with the child's sizes and the fields that older readers look for."""

import math
from collections.abc import Mapping
from typing import Any

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.model.family import Family, RopeV4, at
from minitron_cli.prune.plan import PrunePlan

# These could choose code, kernels or a path, or name a library version that did not write the child.
DROPPED = ("auto_map", "attn_implementation", "_attn_implementation", "_name_or_path", "transformers_version")


def child_config(parent: Mapping[str, Any], plan: PrunePlan) -> dict[str, Any]:
    """Config of the plan's child, readable by transformers 4 and 5, vLLM and llama.cpp."""
    family, sizes = plan.parent.family, plan.child.sizes
    config = {name: value for name, value in parent.items() if name not in DROPPED}
    config |= {name: sizes[axis] for axis, name in family.sizes.items() if axis in sizes}
    config |= {**family.child_fields, **{name: _size(axes, sizes) for name, axes in family.totals.items()}}
    config |= {name: _size(above, sizes) // _size(below, sizes) for name, (above, below) in family.quotients.items()}
    config |= {other: config[name] for name, other in family.config_aliases.items()}
    config |= _version_4_fields(config, family.rope_v4)
    layers = plan.at("layer")
    if layers is not None:
        kept = layers.tolist()
        lists = {n: config[n] for n in family.layer_lists if isinstance(config.get(n), list)}
        lists |= implied_lists(parent, family)
        config |= {n: sum(i < config[n] for i in kept) for n in family.layer_marks if isinstance(config.get(n), int)}
        config |= _kinds_of_layers(plan.child.family)
        # in the parent's words for kinds: version 5 has renamed some ("mamba"), other readers have not
        config |= {n: [kinds[i] for i in kept] for n, kinds in lists.items()}
    return config


def implied_lists(parent: Mapping[str, Any], family: Family) -> dict[str, list[Any]]:
    """Lists with the kinds of the parent's layers that its config leaves to transformers, which would number the
    child's layers anew; empty where a pattern or another field says the kinds. A mark need not say them: below that of
    Qwen 2 MoE every other layer has a window."""
    wanted = [name for name in family.layer_lists if not isinstance(parent.get(name), list)]
    if not wanted or family.layer_pattern or (family.layer_kinds and not family.layer_marks):
        return {}
    from minitron_cli.checkpoint import hf

    config = hf.config_from_dict({**parent, "model_type": family.model_type}, "the parent's config.json")
    found = {name: getattr(config, name, None) for name in wanted}
    return {name: kinds for name, kinds in found.items() if isinstance(kinds, list) and len(set(kinds)) > 1}


def _size(axes: str, sizes: Mapping[str, int]) -> int:
    """Size of a product of axes."""
    return math.prod(sizes[axis] for axis in axes.split())


def child_file(parent: Checkpoint, plan: PrunePlan) -> dict[str, Any]:
    """What the config.json of the plan's child holds: its config, in the wrapper that the parent has, if any."""
    text, wrapping = child_config(parent.config, plan), plan.parent.family.wrapping
    if parent.wrapper is None or wrapping is None:
        return text
    whole = {name: value for name, value in parent.wrapper.config_of(text).items() if name not in DROPPED}
    for axis, path in wrapping.config.items():
        whole = _with_value(whole, path.split("."), plan.child.sizes[axis])
    return whole


def _with_value(config: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """Config with a value at a path."""
    name, *inner = path
    return {**config, name: _with_value(config.get(name) or {}, inner, value) if inner else value}


def _kinds_of_layers(child: Family) -> dict[str, Any]:
    """Fields that state the kinds of the child's layers, besides lists with one entry per layer."""
    fields: dict[str, Any] = {}
    for rule, kinds in zip(child.layer_kinds, zip(*child.layers, strict=True), strict=True):
        stated = rule.write(kinds)
        assert stated is not None, "refused by `limits`, and not chosen by a plan"
        fields |= stated
    return fields


def _version_4_fields(config: Mapping[str, Any], old: RopeV4) -> dict[str, Any]:
    """Fields that version 5 of transformers renamed, under the names that version 4 reads.

    Without `rope_theta`, version 4 silently falls back to 10000.
    """
    fields = {"torch_dtype": config["dtype"]} if "dtype" in config else {}
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return fields
    fields |= {name: value for name, path in old.fields.items() if (value := at(rope, path)) is not None}
    scaled = at(rope, old.scaled) if old.scaled else rope
    if isinstance(scaled, dict) and scaled.get("rope_type", "default") != "default":
        elsewhere = {path.rpartition(".")[-1] for path in old.fields.values()}
        names = old.scaling or {name: name for name in scaled if name not in elsewhere}
        fields["rope_scaling"] = {name: scaled[new] for name, new in names.items() if new in scaled}
    return fields
