"""The losses on next-token distributions. The union is the registry: a loss is one file here and one name below.

Each is a function of one token's logits, written as value and gradient, so that `objective` can fuse it with both
LM heads and a chunk of tokens at a time. Those that need only sums over the vocabulary also say how (`by_vocab`), and
so can do without the logits of even one whole token.
"""

from typing import Annotated

from pydantic import Field

from minitron_cli.distill.losses.cosine import Cosine
from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.distill.losses.forward_kl import ForwardKL
from minitron_cli.distill.losses.jsd import JSD
from minitron_cli.distill.losses.mse import MSE
from minitron_cli.distill.losses.reverse_kl import ReverseKL
from minitron_cli.distill.losses.two_pass import TwoPassLoss

KDLoss = Annotated[ForwardKL | ReverseKL | JSD | MSE | Cosine | CrossEntropy, Field(discriminator="kind")]

__all__ = ["JSD", "MSE", "Cosine", "CrossEntropy", "ForwardKL", "KDLoss", "ReverseKL", "TwoPassLoss"]
