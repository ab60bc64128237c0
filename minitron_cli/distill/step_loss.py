"""Loss of one step of a training of something other than weights, on the text in the order of a seed."""

from collections.abc import Iterator

from torch import Tensor

from minitron_cli.data.batches import batch, training_ids
from minitron_cli.data.pack import Blocks
from minitron_cli.distill.model_pair import ModelPair
from minitron_cli.distill.targets import targets


def step_loss(pair: ModelPair, blocks: Blocks, step: int) -> Tensor:
    """Mean loss over the scored tokens of the batch of a step, with gradients. The batch is run at once."""
    (loss,) = step_losses(pair, blocks, step, pair.config.batch_size)
    return loss


def step_losses(pair: ModelPair, blocks: Blocks, step: int, size: int) -> Iterator[Tensor]:
    """The same in parts of at most `size` sequences, one after the other. Their sum is the mean loss."""
    config = pair.config
    ids = training_ids(config.seed, step * config.batch_size, config.batch_size, len(blocks))
    parts = [batch(blocks, ids[start : start + size]) for start in range(0, len(ids), size)]
    wanted = [targets(part) for part in parts]
    count = sum(len(target.labels_N) for target in wanted)
    for part, target in zip(parts, wanted, strict=True):
        yield pair.losses(part, target, count, 0.0).total
