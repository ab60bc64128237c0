"""Training between two rounds in which a model becomes sparse. Imports no torch."""

from minitron_cli.distill.config import DistillConfig
from minitron_cli.errors import InputError
from minitron_cli.sparse.config import SparsifyConfig


def training(config: SparsifyConfig, distill: DistillConfig) -> DistillConfig:
    """Settings of that training: those of the section `distill`, as long as `round_tokens` says if that is set.

    InputError if they would not keep the zeros, or the weights, of the round before.
    """
    if distill.mask != "frozen":
        raise InputError("sparsify.rounds keeps what is pruned once: remove distill.mask, or sparsify.rounds")
    if distill.init != "student":
        raise InputError("sparsify.rounds goes on from the weights of the round before: remove distill.init, or rounds")
    if config.round_tokens is not None:
        return distill.model_copy(update={"tokens": config.round_tokens, "steps": None})
    if distill.tokens is None and distill.steps is None:
        raise InputError(
            "sparsify.rounds trains between two rounds, and nothing says how long: "
            "set sparsify.round_tokens, or give a recipe with distill.tokens or distill.steps"
        )
    return distill
