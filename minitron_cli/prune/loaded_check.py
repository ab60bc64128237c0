"""The last part of the export check: the child as transformers loads it computes what the pruned parent computes."""

# B batch, T token, V vocab

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minitron_cli.checkpoint import hf

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPT, GENERATED = 12, 4  # tokens

# Allowed error as a share of the logits' norm. The same numbers run through the same code, but another layout in
# memory may change the order of sums.
SAME = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
# A cache changes the order of sums, and so the rounding.
WITH_CACHE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}


class Refused(Exception):
    """The written child is wrong; the message says how."""


def check_loaded(
    found: "PreTrainedModel", wanted: "PreTrainedModel", is_same: Callable[[Tensor, Tensor], bool]
) -> None:
    """Compare the loaded child with the model pruned in memory: weights, ties, logits, generation.

    Raises Refused where they differ; `is_same` compares two tensors.
    """
    _check_state(found, wanted, is_same)
    _check_ties(found, wanted)
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(found.config.vocab_size, (1, PROMPT), generator=generator)
    with torch.inference_mode():
        logits_BTV = found(tokens_BT, use_cache=False).logits
        _check_close("the logits", logits_BTV, wanted(tokens_BT, use_cache=False).logits, SAME[found.dtype])
        _check_cache(found, tokens_BT)


def _check_state(
    found: "PreTrainedModel", wanted: "PreTrainedModel", is_same: Callable[[Tensor, Tensor], bool]
) -> None:
    theirs = dict(itertools.chain(wanted.named_parameters(), wanted.named_buffers()))
    for name, tensor in itertools.chain(found.named_parameters(), found.named_buffers()):
        if not is_same(tensor, theirs[name]):
            raise Refused(f"{name} is loaded with other numbers than the pruned parent")


def _check_ties(found: "PreTrainedModel", wanted: "PreTrainedModel") -> None:
    is_tied = [m.get_output_embeddings().weight is m.get_input_embeddings().weight for m in (found, wanted)]
    ties = bool(wanted.config.tie_word_embeddings and wanted._tied_weights_keys)  # Nemotron-H never does
    if is_tied[0] != is_tied[1] or is_tied[0] != ties:
        raise Refused("the LM head and the embedding are " + ("tied" if is_tied[0] else "not tied") + " after loading")


def _check_cache(model: "PreTrainedModel", tokens_BT: Tensor) -> None:
    """Compare the logits of greedy generation with a cache with those of one pass without a cache."""
    from transformers import GenerationConfig

    greedy = GenerationConfig(
        do_sample=False,
        min_new_tokens=GENERATED,
        max_new_tokens=GENERATED,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    with hf.without_generation_config(model):
        made = model.generate(tokens_BT, generation_config=greedy, attention_mask=torch.ones_like(tokens_BT))
    if made.sequences.shape[1] != PROMPT + GENERATED:
        raise Refused(f"the model generated {made.sequences.shape[1] - PROMPT} tokens, not {GENERATED}")
    logits_BTV = model(made.sequences, use_cache=False).logits[:, PROMPT - 1 : -1]
    _check_close("with a cache, the logits", torch.stack(made.logits, 1), logits_BTV, WITH_CACHE[model.dtype])


def _check_close(what: str, found: Tensor, wanted: Tensor, allowed: float) -> None:
    error = float((found.float() - wanted.float()).norm() / wanted.float().norm())
    if not error <= allowed:
        raise Refused(f"{what} differ from the expected ones by {error:.1e} of their norm ({allowed:.0e} is allowed)")
