"""Entropy of a model's next-token distributions, from a part of tokens x vocabulary at a time."""

# N token, B token of one block, C one chunk of the vocab

from collections.abc import Sequence

import torch
from torch import Tensor

from minitron_cli.distill.fused.head_matmul import HeadInput, Logits, parts
from minitron_cli.distill.fused.vocab_chunks import TOKENS, VOCAB
from minitron_cli.model.softmax import OnlineSoftmax


@torch.no_grad()
def entropy(side: HeadInput) -> Tensor:
    """Entropy in nats of each token's distribution, [N], in fp32 (fp64 for fp64 weights); without gradients."""
    logits = Logits(side)
    where = "cpu" if logits.hidden_ND.device.type == "cpu" else "accelerator"
    entropy_N = logits.hidden_ND.new_empty(len(logits.hidden_ND), dtype=logits.acc_dtype)
    with torch.autocast(logits.hidden_ND.device.type, enabled=False):
        for tokens in parts(len(entropy_N), TOKENS[where]):
            softmax = OnlineSoftmax(entropy_N[tokens, None].zero_())
            for vocab in parts(logits.vocab, VOCAB[where]):
                logits_BC, _ = logits.finish_(logits.product_PQ(tokens, vocab))
                softmax.read_(logits_BC, logits_BC.clone())
            entropy_N[tokens] = (softmax.log_z_N1 - softmax.mean_N1)[:, 0]
    return entropy_N


def least_sure(side: HeadInput, sizes: Sequence[int], counts: Sequence[int]) -> Tensor:
    """Places of the tokens of the highest entropy, ascending; of equals the first.

    Of each block of consecutive tokens, `sizes` long, as many as its entry of `counts`.
    """
    entropy_N = entropy(side)
    places, first = [torch.empty(0, dtype=torch.long, device=entropy_N.device)], 0
    for entropy_B, count in zip(entropy_N.split(list(sizes)), counts, strict=True):
        places.append(first + entropy_B.sort(descending=True, stable=True).indices[:count].sort().values)
        first += len(entropy_B)
    return torch.cat(places)
