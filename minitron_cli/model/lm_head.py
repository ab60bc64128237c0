"""An LM head: logits of hidden states, and the likelihood of tokens without ever holding all logits."""

# N token, D hidden, V vocab, C one chunk of the vocab

from typing import Any, NamedTuple

import torch
from torch import Tensor

from minitron_cli import stopping
from minitron_cli.decoder import decoder_of
from minitron_cli.errors import CheckpointError
from minitron_cli.model.softmax import OnlineSoftmax

TOKENS = 1024  # rows whose logits over one chunk of the vocab are held at a time


class Head(NamedTuple):
    """logits = softcap(scale * (hidden @ weight.T + bias)), with softcap(x) = c tanh(x / c)."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    """Gemma's `final_logit_softcapping`."""
    scale: float = 1.0
    """Cohere's `logit_scale`, or one over Granite's `logits_scaling`."""

    def first(self, count: int) -> "Head":
        """Head of the first `count` entries of the vocabulary; it shares their weights."""
        if count == len(self.weight_VD):
            return self
        return self._replace(
            weight_VD=self.weight_VD[:count], bias_V=None if self.bias_V is None else self.bias_V[:count]
        )

    def nll(self, hidden_ND: Tensor, labels_N: Tensor) -> Tensor:
        """-log p(label) of each token in nats, [N], without gradients."""
        return token_nll(hidden_ND, self.weight_VD, labels_N, self.bias_V, self.softcap, self.scale)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V], which only a few tokens have room for."""
        return _finish(torch.nn.functional.linear(hidden_ND, self.weight_VD, self.bias_V), self.softcap, self.scale)


def head_of(model: Any) -> Head:
    """Head of a transformers causal language model. CheckpointError if it computes more than a `Head` does."""
    linear, config = model.get_output_embeddings(), model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
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


@torch.no_grad()
def token_nll(
    hidden_ND: Tensor,
    head_VD: Tensor,
    labels_N: Tensor,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> Tensor:
    """-log p(label) of each token in nats, [N] in fp32 (fp64 for fp64 inputs), without gradients.

    The logsumexp runs online over chunks of the vocab: a chunk's logits are used while they are still in cache,
    which is faster than the one large product and needs a hundredth of its memory.
    """
    dtype = torch.promote_types(hidden_ND.dtype, head_VD.dtype)
    nll_N = torch.empty(len(labels_N), dtype=torch.promote_types(dtype, torch.float32), device=hidden_ND.device)
    for start in range(0, len(labels_N), TOKENS):
        rows = slice(start, start + TOKENS)
        nll_N[rows] = _rows_nll(hidden_ND[rows].to(dtype), head_VD, labels_N[rows], bias_V, softcap, scale)
    return nll_N


def _rows_nll(
    hidden_ND: Tensor, head_VD: Tensor, labels_N: Tensor, bias_V: Tensor | None, softcap: float | None, scale: float
) -> Tensor:
    acc = torch.promote_types(hidden_ND.dtype, torch.float32)
    label_logit_N = torch.zeros(labels_N.shape, dtype=acc, device=hidden_ND.device)
    softmax = OnlineSoftmax(label_logit_N[:, None])
    size = 1024 if hidden_ND.device.type == "cpu" else 16384  # fits a core's cache; fills an accelerator
    for start in range(0, len(head_VD), size):
        stopping.raise_if_stopped()
        chunk_CD = head_VD[start : start + size].to(hidden_ND.dtype)
        logits_NC = (hidden_ND @ chunk_CD.T).to(acc)
        if bias_V is not None:
            logits_NC += bias_V[start : start + size]
        logits_NC = _finish(logits_NC, softcap, scale)
        # From the same rounded logits as the sum, so that no probability exceeds 1.
        offset_N = labels_N - start
        inside_N = (offset_N >= 0) & (offset_N < len(chunk_CD))
        own_N = logits_NC.gather(1, offset_N.clamp(0, len(chunk_CD) - 1)[:, None])[:, 0]
        label_logit_N = torch.where(inside_N, own_N, label_logit_N)
        softmax.read_(logits_NC)
    return softmax.log_z_N1[:, 0] - label_logit_N


def _finish(logits_NV: Tensor, softcap: float | None, scale: float) -> Tensor:
    if scale != 1:
        logits_NV = logits_NV * scale
    if softcap is not None:
        logits_NV = (logits_NV / softcap).tanh_() * softcap
    return logits_NV
