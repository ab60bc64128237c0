"""Names of the axes that can be pruned, and of the ways to count parameters. Imports no torch: the CLI reads them."""

from typing import Literal, get_args

Axis = Literal["layer", "hidden", "head", "kv_head", "expert", "ffn", "mamba_head", "mamba_dim", "q_rank", "kv_rank"]

PRUNABLE: tuple[Axis, ...] = get_args(Axis)
"""Axes that a user may resize, in the order in which they are shown."""

RANKED: tuple[str, ...] = ("expert", "ffn", "shared_ffn", "mlp_ffn", "mamba_head", "mamba_dim", "q_rank", "kv_rank")
"""Axes of which each layer keeps its best entries, one by one. `shared_ffn`, of the experts that all tokens use, and
`mlp_ffn`, of layers without experts, go with `ffn` (`Family.follows`)."""

SCORED: tuple[str, ...] = ("head", *RANKED, "hidden")
"""Axes whose entries have scores. Key-value heads are ranked by the scores of their query heads."""

Count = Literal["total", "non_embedding", "active"]
"""Which parameters are counted; `Shape.parameters` defines each."""
