"""Columns of the training curves: what each one measures and how it is presented."""

from typing import TYPE_CHECKING

from minitron_cli.figures import Figure

if TYPE_CHECKING:
    from minitron_cli.distill.config import DistillConfig

CurveRow = dict[str, float]
"""Figures of one step or evaluation, by column."""

HELD_OUT = {
    "loss": Figure("held-out loss", "nats/token", better="lower"),
    "kl": Figure("held-out KL to the teacher", "nats/token", better="lower"),
}
"""Measured columns of `validation.jsonl`: cross-entropy with the text and, with a teacher, KL(teacher || student)."""


def training_figures(config: "DistillConfig") -> dict[str, Figure]:
    """Measured columns of `metrics.jsonl`: the objective, each of its losses by kind, and the optimizer's numbers."""
    hidden = {
        "hidden": Figure("hidden-state losses", better="lower"),
        "hidden_weight": Figure("weight of the hidden-state losses"),
    }
    return {
        "loss": Figure("loss", better="lower"),
        **{loss.kind: loss.figure for loss in config.losses},
        **(hidden if config.hidden is not None else {}),
        "learning_rate": Figure("learning rate"),
        "grad_norm": Figure("gradient norm"),
    }
