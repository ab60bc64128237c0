"""Names among which options of the command line choose, apart from the specs that they select.

Help lists them, and has to be there before the libraries that check a spec could be imported.
"""

from typing import Literal

RepairName = Literal["auto", "none", "rotate", "least_squares", "rescale", "all"]
"""Ways to repair a pruned model (`prune.config`)."""

Preset = Literal["nemotron-15b-to-8b", "nemotron-15b-to-4b"]
"""Published search spaces (`search.axis_sizes`)."""

AUTO = "auto"
FormatName = Literal["text", "chat", "completion", "sharegpt", "alpaca", "auto"]
"""Row formats: modules of `data.formats`; auto is the one whose columns the first row has."""
