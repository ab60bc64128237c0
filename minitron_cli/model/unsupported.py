"""Why a config of transformers has no family: not a causal language model, a wrapper around one, or simply unknown."""

from collections.abc import Collection, Mapping
from typing import Any

from minitron_cli.model.family import Family
from minitron_cli.model.nearest_family import Shapes, nearest

NAMED = 3
"""Number of names of each kind in a sentence."""


def reason(config: Any, known: Mapping[str, Family], tensors: Shapes) -> str | None:
    """Sentence on a config that is none of the `known` model types, or attends both ways; None if it is supported.

    `tensors` are those of its checkpoint, where there is one, to name the nearest table.
    """
    kind = config.model_type
    if kind not in known:
        return (
            _wrapper(config, known) or _no_decoder(config) or _unknown(kind, known) + _nearest(config, known, tensors)
        )
    if getattr(config, "use_bidirectional_attention", False) or getattr(config, "is_causal", True) is False:
        return (
            f"the config of this {kind} model lets tokens attend to later ones, so it is not a causal language model: "
            "give a model that predicts the next token"
        )
    return None


def _wrapper(config: Any, known: Collection[str]) -> str | None:
    text = getattr(getattr(config, "text_config", None), "model_type", None)
    if text is None or text == config.model_type:
        return None
    wraps = f"a {config.model_type} model is a wrapper for images or sound around a text model ({text})"
    if text in known:
        return f"{wraps}, not supported yet: save the text part as a checkpoint of its own (docs/families.md)"
    return f"{wraps}, which has no family table: give another model"


def _no_decoder(config: Any) -> str | None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = type(config)
    if config.is_encoder_decoder:
        what = "an encoder with a decoder"
    elif kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        what = "an encoder"
    elif kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        what = "no language model that predicts the next token"
    else:
        return None
    return f"a {config.model_type} model is {what}, and only decoders are pruned: give a causal language model"


def _unknown(kind: str, known: Collection[str]) -> str:
    return (
        f"model type {kind!r} has no family table (docs/families.md lists the {len(known)} that have one): "
        "to add it, describe it in minitron_cli/model/families/ (docs/extending.md)"
    )


def _nearest(config: Any, known: Mapping[str, Family], tensors: Shapes) -> str:
    fit = nearest(known, config, tensors)
    if fit is None:
        return ""
    share = f"{fit.fitting:,} of the model's {len(tensors):,} tensors"
    found = f"; the nearest table is that of {fit.family}, which has {share}"
    return found + _listed(", but not", fit.others) + _listed("; the model lacks its", fit.missing)


def _listed(what: str, names: tuple[str, ...]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{what} {', '.join(names[:NAMED])}{more}" if names else ""
