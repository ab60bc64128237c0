"""Losses on next-token distributions. The union is the registry: a loss is one file here and one name below.

A loss is a function of one token's logits, written as value and gradient, so that it can be fused with both LM heads
and computed for a chunk of tokens at a time. A loss that needs only sums over the vocabulary can also say how to
compute them (`by_vocab`); then not even one token's logits have to be held at once.
"""

from typing import Annotated

from pydantic import Field

from minitron_cli.distill.losses.cosine import Cosine
from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.distill.losses.forward_kl import ForwardKL
from minitron_cli.distill.losses.jsd import JSD
from minitron_cli.distill.losses.mse import MSE
from minitron_cli.distill.losses.reverse_kl import ReverseKL

KDLoss = Annotated[ForwardKL | ReverseKL | JSD | MSE | Cosine | CrossEntropy, Field(discriminator="kind")]
