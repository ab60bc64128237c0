"""What the sparsify stage refuses before it starts."""

from collections.abc import Mapping

from minitron_cli.errors import InputError
from minitron_cli.model.linear_layers import INPUTS
from minitron_cli.sparse.config import SparsifyConfig
from minitron_cli.sparse.mask_file import MaskFile, MaskSpec


def text_is_missing(config: SparsifyConfig) -> str:
    """Sentence on what needs the calibration text that is not there."""
    if config.metric.needs != "nothing":
        return f"{config.metric.kind} needs calibration text: give some with --data, or use --metric magnitude"
    what = config.repair if config.repair != "none" else "layer_amounts=owl"
    return f"{what} needs calibration text: give some with --data, or leave it out"


def check_sizes(specs: Mapping[str, MaskSpec]) -> None:
    """Refuse a pattern whose groups do not divide the inputs of a matrix."""
    for name, spec in specs.items():
        spec.pattern.check(spec.shape[INPUTS], name)


def check_continued(parent: str, config: SparsifyConfig, masks: MaskFile, specs: Mapping[str, MaskSpec]) -> None:
    """Refuse patterns that cannot keep every zero of a sparse parent's masks, and add to them.

    Patterns that depend on outliers are not in `specs` before these were measured, and then checked again.
    """
    what = "layer_amounts" if config.amounts == "list" else config.pattern
    if sum(spec.zeros for spec in specs.values()) <= sum(spec.zeros for spec in masks.specs.values()):
        raise InputError(
            f"{parent} is sparse already, and {what} makes no more of its weights zero: "
            "give a pattern with more zeros, or the dense model that it was made from"
        )
    for name, before in masks.specs.items():
        if name not in specs or not specs[name].continues(before):
            raise InputError(
                f"{parent} is sparse already ({before.pattern}), and {what} by {config.metric.kind} cannot "
                "keep all its zeros: give the dense model that it was made from"
            )
