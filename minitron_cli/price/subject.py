"""Models as far as a price goes, from opened checkpoints, from configs, and from shapes that are still to be made."""

from collections.abc import Mapping
from typing import Any

import torch

from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.model.shape import Shape
from minitron_cli.price.work import ITEM_BYTES, Subject
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.plan import PrunePlan


def of_source(source: SourceModel, dtype: str = "auto") -> Subject:
    """An opened model, run in `dtype`; `auto` is the dtype that it is stored in."""
    stored = str(source.checkpoint.dtype).removeprefix("torch.")
    return Subject(source.checkpoint.config, source.shape, stored if dtype == "auto" else dtype)


def of_config(config: Mapping[str, Any], shape: Shape, dtype: str = "auto") -> Subject:
    """A model that is known by its config alone."""
    stored = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    return Subject(config, shape, dtype if dtype != "auto" else stored if stored in ITEM_BYTES else "bfloat16")


def child_of(parent: Subject, shape: Shape) -> Subject:
    """A child of a model, whichever of the parent's entries it keeps."""
    return Subject(child_config(parent.config, plan_to(parent.shape, shape)), shape, parent.dtype)


def plan_to(parent: Shape, shape: Shape) -> PrunePlan:
    """Plan to a shape that keeps the first entries of every axis."""
    smaller = {axis: size for axis, size in shape.sizes.items() if size < parent.sizes[axis]}
    return PrunePlan(parent, {axis: torch.arange(size) for axis, size in smaller.items()})
