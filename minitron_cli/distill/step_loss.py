"""Loss of one step of a training of something other than weights, on the text in the order of a seed."""

from torch import Tensor

from minitron_cli.data.batches import batch, training_ids
from minitron_cli.data.pack import Blocks
from minitron_cli.distill.model_pair import ModelPair
from minitron_cli.distill.targets import targets


def step_loss(pair: ModelPair, blocks: Blocks, step: int) -> Tensor:
    """Mean loss over the scored tokens of the batch of a step, with gradients. The batch is run at once."""
    config = pair.config
    ids = training_ids(config.seed, step * config.batch_size, config.batch_size, len(blocks))
    part = batch(blocks, ids)
    target = targets(part)
    return pair.losses(part, target, len(target.labels_N), 0.0).total
