"""Attention masks of decoders that would let the documents of a block see each other. No tensor is read here."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MASKS_WITHOUT_POSITIONS = frozenset({"gpt_oss"})
"""Model types whose decoder in transformers 5.23 makes its attention masks without looking at positions."""


def keep_documents_apart(model: "PreTrainedModel") -> None:
    """Make a decoder keep the documents of a block apart by their positions, as those of all other types do."""
    if model.config.model_type in MASKS_WITHOUT_POSITIONS:
        model.get_decoder().register_forward_pre_hook(_masks_by_position, with_kwargs=True)


def _masks_by_position(decoder: Any, arguments: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """Arguments of a decoder with a mask for each kind of its layers, unless it is given one or caches keys."""
    from torch import empty
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    positions_BT, embedded_BTD = given.get("position_ids"), given.get("inputs_embeds")
    inputs = given.get("input_ids") if embedded_BTD is None else embedded_BTD
    cached = given.get("use_cache") or given.get("past_key_values") is not None
    if positions_BT is None or inputs is None or cached or given.get("attention_mask") is not None:
        return None
    like_BT1 = empty(*inputs.shape[:2], 1, dtype=decoder.dtype, device=inputs.device)
    makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
    shared = {"attention_mask": None, "past_key_values": None, "position_ids": positions_BT}
    masks = {
        kind: make(config=decoder.config, inputs_embeds=like_BT1, **shared)
        for kind, make in makers.items()
        if kind in decoder.config.layer_types
    }
    return arguments, given | {"attention_mask": masks}
