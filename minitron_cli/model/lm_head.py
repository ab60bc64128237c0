"""An LM head: logits of hidden states; likelihoods and divergences of two models without ever holding all logits."""

# N token, D hidden, V vocab, C one chunk of the vocab

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minitron_cli import stopping
from minitron_cli.decoder import decoder_of
from minitron_cli.errors import CheckpointError
from minitron_cli.model.softmax import TOKENS, OnlineSoftmax, chunk_entries


class Head(NamedTuple):
    """logits = softcap(scale * (hidden @ weight.T + bias)), with softcap(x) = c tanh(x / c)."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    """Gemma's `final_logit_softcapping`."""
    scale: float = 1.0
    """Cohere's `logit_scale`, one over Granite's `logits_scaling`, or Falcon-H1's `lm_head_multiplier`."""

    def first(self, count: int) -> "Head":
        """Head of the first `count` entries of the vocabulary; it shares their weights."""
        if count == len(self.weight_VD):
            return self
        return self._replace(
            weight_VD=self.weight_VD[:count], bias_V=None if self.bias_V is None else self.bias_V[:count]
        )

    def nll(self, hidden_ND: Tensor, labels_N: Tensor) -> Tensor:
        """-log p(label) of each token in nats, [N], without gradients."""
        return token_values(Predictions(self, hidden_ND), labels_N).nll_N

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V], which only a few tokens have room for."""
        return _finish(torch.nn.functional.linear(hidden_ND, self.weight_VD, self.bias_V), self.softcap, self.scale)


def head_of(model: Any) -> Head:
    """Head of a transformers causal language model. CheckpointError if it computes more than a `Head` does."""
    linear, config = model.get_output_embeddings(), model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    scale *= getattr(config, "lm_head_multiplier", None) or 1
    head = Head(linear.weight, getattr(linear, "bias", None), getattr(config, "final_logit_softcapping", None), scale)
    _check(model, head)
    return head


@torch.no_grad()
def _check(model: Any, head: Head) -> None:
    seen: list[Tensor] = []
    hook = decoder_of(model).register_forward_hook(lambda _, args, output: seen.append(output.last_hidden_state[0]))
    with hook:
        ids_BT = torch.arange(2, device=head.weight_VD.device)[None]
        expected_NV = model(input_ids=ids_BT, use_cache=False).logits[0].float()
    hidden_ND = seen[0]
    error = (head.logits(hidden_ND).float() - expected_NV).abs().max()
    if error > 0.05 * expected_NV.abs().max():  # bf16 rounding is ten times smaller, a forgotten factor much larger
        raise CheckpointError(
            f"the LM head of model type {model.config.model_type!r} does more than project, scale and cap: "
            "add its formula to minitron_cli/model/lm_head.py"
        )


class Predictions(NamedTuple):
    """What a model predicts at some positions: its head, and its final hidden states there."""

    head: Head
    hidden_ND: Tensor


class TokenValues(NamedTuple):
    """Values of each position in nats, [N]: in fp32, or in fp64 of fp64 inputs."""

    nll_N: Tensor
    """-log p(label)."""
    kl_N: Tensor | None
    """KL(parent || model); None without a parent."""


@torch.no_grad()
def token_values(own: Predictions, labels_N: Tensor, parent: Predictions | None = None) -> TokenValues:
    """Likelihood of each label [N], and with a parent its divergence from the model, without gradients.

    Logits are read online over chunks of the vocab: a chunk's logits are used while they are still in cache, which is
    faster than the one large product and needs a hundredth of its memory. If one head has more entries than the other,
    such as padding, the divergence is over the entries that both have.
    """
    found = []
    for start in range(0, max(len(labels_N), 1), TOKENS):
        rows = slice(start, start + TOKENS)
        found.append(_of_rows(_positions(own, rows), labels_N[rows], _positions(parent, rows) if parent else None))
    kl = [some.kl_N for some in found if some.kl_N is not None]
    return TokenValues(torch.cat([some.nll_N for some in found]), torch.cat(kl) if kl else None)


def _positions(all_of_them: Predictions, rows: slice) -> Predictions:
    """Predictions at some positions, with hidden states in the dtype of the products."""
    head, hidden_ND = all_of_them
    return Predictions(head, hidden_ND[rows].to(torch.promote_types(hidden_ND.dtype, head.weight_VD.dtype)))


def _of_rows(own: Predictions, labels_N: Tensor, parent: Predictions | None) -> TokenValues:
    vocab, device = len(own.head.weight_VD), own.hidden_ND.device
    common = min(vocab, len(parent.head.weight_VD)) if parent else 0
    acc = torch.promote_types(own.hidden_ND.dtype, torch.float32)
    label_logit_N, kl_N1 = torch.zeros(labels_N.shape, dtype=acc, device=device), None
    softmax, parent_softmax = (OnlineSoftmax(label_logit_N[:, None]) for _ in range(2))
    for start, stop in _chunks(vocab, common, chunk_entries(device.type)):
        stopping.raise_if_stopped()
        logits_NC = _logits(own, start, stop, acc)
        # From the same rounded logits as the sum, so that no probability exceeds 1.
        offset_N = labels_N - start
        inside_N = (offset_N >= 0) & (offset_N < stop - start)
        own_N = logits_NC.gather(1, offset_N.clamp(0, stop - start - 1)[:, None])[:, 0]
        label_logit_N = torch.where(inside_N, own_N, label_logit_N)
        if parent and stop <= common:
            parent_logits_NC = _logits(parent, start, stop, acc).to(device)
            parent_softmax.read_(parent_logits_NC, parent_logits_NC - logits_NC)
        softmax.read_(logits_NC)
        if stop == common:
            kl_N1 = parent_softmax.mean_N1 - parent_softmax.log_z_N1 + softmax.log_z_N1
    return TokenValues(softmax.log_z_N1[:, 0] - label_logit_N, None if kl_N1 is None else kl_N1[:, 0])


def _chunks(vocab: int, common: int, size: int) -> Iterator[tuple[int, int]]:
    """First entry of each chunk, and the one after its last; a chunk ends at `common`."""
    for first, end in ((0, common), (common, vocab)):
        for start in range(first, end, size):
            yield start, min(start + size, end)


def _logits(predictions: Predictions, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    head, hidden_ND = predictions
    logits_NC = (hidden_ND @ head.weight_VD[start:stop].to(hidden_ND.dtype).T).to(dtype)
    if head.bias_V is not None:
        logits_NC += head.bias_V[start:stop]
    return _finish(logits_NC, head.softcap, head.scale)


def _finish(logits_NV: Tensor, softcap: float | None, scale: float) -> Tensor:
    if scale != 1:
        logits_NV = logits_NV * scale
    if softcap is not None:
        logits_NV = (logits_NV / softcap).tanh_() * softcap
    return logits_NV
