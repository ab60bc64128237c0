"""Names of the axes that can be pruned, and of the ways to count parameters. Imports no torch: the CLI reads them."""

from typing import Literal, get_args

Axis = Literal["layer", "hidden", "head", "kv_head", "expert", "ffn", "mamba_head", "mamba_dim"]

PRUNABLE: tuple[Axis, ...] = get_args(Axis)
"""Axes that a user may resize, in the order in which they are shown."""

Count = Literal["total", "non_embedding", "active"]
"""Which parameters are counted; `Shape.parameters` defines each."""
