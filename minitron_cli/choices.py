"""Names among which options of the command line choose, apart from the specs that they select.

Help lists them, and has to be there before the libraries that check a spec could be imported.
"""

from typing import Literal

RepairName = Literal["auto", "none", "rotate", "least_squares", "rescale", "bias", "merge", "all"]
"""Ways to repair a pruned model (`prune.config`)."""

CheckpointForm = Literal["wrapper", "text"]
"""Forms in which a model in a multimodal wrapper is written: with what is around it, or alone (`inputs`)."""

ServingLint = Literal["refuse", "warn"]
"""Whether a child may be made that a serving program would not run (`prune.config`)."""

MetricName = Literal["magnitude", "wanda", "sparsegpt"]
"""Scores by which single weights are kept (`sparse.metrics`)."""

MaskRepair = Literal["none", "least_squares"]
"""Ways to repair the weights that a mask leaves (`sparse.config`)."""

Preset = Literal["nemotron-15b-to-8b", "nemotron-15b-to-4b"]
"""Published search spaces (`search.axis_sizes`)."""

AUTO = "auto"
FormatName = Literal["text", "chat", "completion", "sharegpt", "alpaca", "auto"]
"""Row formats: modules of `data.formats`; auto is the one whose columns the first row has."""

PruneMethod = Literal[
    "minitron-width", "minitron-depth", "shortgpt", "flap", "laco", "replaceme", "llm-streamline", "sheared-llama"
]
SparseMethod = Literal["magnitude", "wanda", "sparsegpt"]
"""Published methods of `minitron prune` and `minitron sparsify` (`methods`)."""

DirectionScale = Literal["none", "filter", "curvature"]
"""Lengths of a step in each weight (`landscape.directions`)."""

Subspace = Literal["all", "last", "kept"]
"""Weights around which a landscape is measured: all, those of the last decoder layer, or those that no mask zeroes."""

MaskCriterion = Literal["large_final", "large_final_same_sign", "magnitude_increase", "random", "edge_popup"]
"""Criteria by which weights that are never trained are kept (`ticket.supermask`, `ticket.popup`)."""

TicketControl = Literal["reinit", "shuffled", "random_mask"]
TransferControl = Literal["reinit", "shuffled", "random_mask", "own"]
TicketScope = Literal["global", "layer", "layer_half_last"]
TicketStart = Literal["random", "model"]
"""Controls of a ticket and of one that was found on another text, where the smallest weights are chosen, and what a
ticket starts from (`ticket.config`)."""
