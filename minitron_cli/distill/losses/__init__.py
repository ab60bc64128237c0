"""The losses on next-token distributions. The union is the registry: a loss is one file here and one name below.

Each is a function of one token's logits, written as value and gradient, so that `objective` can fuse it with both
LM heads and a chunk of tokens at a time.
"""

from typing import Annotated

from pydantic import Field

from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.distill.losses.forward_kl import ForwardKL

KDLoss = Annotated[ForwardKL | CrossEntropy, Field(discriminator="kind")]

__all__ = ["CrossEntropy", "ForwardKL", "KDLoss"]
