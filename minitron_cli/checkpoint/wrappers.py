"""Multimodal wrappers: where the text model lies in their checkpoints.

A wrapper's checkpoint is read as the text model in it, under that model's own names and config. What is around it is
kept as it is, and what is made from the text model is written into it again. Knows no axes: `model/wrappers.py` says
which of a wrapper's tensors share a size with the text model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from minitron_cli.errors import CheckpointError, shown

if TYPE_CHECKING:
    from minitron_cli.checkpoint.safetensors_file import TensorInfo

TEXT = "text_config"
"""Field of a wrapper's config with the text model's; some older files have that one's fields beside their own."""
TIED = "tie_word_embeddings"
INHERITED = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id", "quantization_config")
"""Fields that a wrapper's config may state for its text model."""
ROPE = ("rope_parameters", "rope_scaling")
OF_MROPE = frozenset({"mrope_section", "mrope_interleaved"})
"""Fields of rotary positions in three dimensions, which are those of one dimension wherever there is only text."""


class TextModel(NamedTuple):
    """Class of transformers that computes what a wrapper computes of text."""

    model_type: str
    architecture: str


class Wrapper(NamedTuple):
    """Checkpoints of one model type. transformers has written several prefixes; loaders of today read all of them."""

    texts: Mapping[str, TextModel]
    """Model type in the text config -> its class; the first where the config does not say."""
    text: Mapping[str, tuple[str, ...]]
    """Prefix of the text model's own names -> its prefixes on disk, of which the first is written."""
    rest: Mapping[str, tuple[str, ...]]
    """Prefix of other tensors that is written -> other prefixes of the same."""

    def names(self) -> list[tuple[str, str, bool]]:
        """(prefix on disk, prefix that it is read as, whether it is of the text model), longest first."""
        text = [(disk, own, True) for own, prefixes in self.text.items() for disk in prefixes]
        rest = [(disk, own, False) for own, prefixes in self.rest.items() for disk in (own, *prefixes)]
        return sorted(text + rest, key=lambda entry: -len(entry[0]))


LLAVA_TEXT = {
    "model.": ("language_model.model.", "model.language_model."),
    "lm_head.": ("language_model.lm_head.", "lm_head."),
}
LLAVA_REST = {
    "vision_tower.": ("model.vision_tower.",),
    "multi_modal_projector.": ("model.multi_modal_projector.",),
}
IDEFICS_TEXT = {"model.": ("model.text_model.",), "lm_head.": ("lm_head.",)}
LLAMA = TextModel("llama", "LlamaForCausalLM")
MISTRAL = TextModel("mistral", "MistralForCausalLM")
QWEN2 = TextModel("qwen2", "Qwen2ForCausalLM")
QWEN3 = TextModel("qwen3", "Qwen3ForCausalLM")
QWEN2_TEXT = {"model.": ("model.", "model.language_model."), "lm_head.": ("lm_head.",)}
LLAMA4 = TextModel("llama4_text", "Llama4ForCausalLM")
QWEN3_5 = TextModel("qwen3_5_text", "Qwen3_5ForCausalLM")
QWEN3_TEXT = {"model.": ("model.language_model.", "language_model.model."), "lm_head.": ("lm_head.",)}

QWEN3_5_TEXT = QWEN3_TEXT | {"mtp.": ("mtp.",)}
"""With a block for multi-token prediction, which transformers does not load: it is left out like a text model's."""

WRAPPERS: Mapping[str, Wrapper] = MappingProxyType(
    {
        "gemma3": Wrapper({"gemma3_text": TextModel("gemma3_text", "Gemma3ForCausalLM")}, LLAVA_TEXT, LLAVA_REST),
        "idefics3": Wrapper({"llama": LLAMA}, IDEFICS_TEXT, {}),
        "internvl": Wrapper({"qwen2": QWEN2, "qwen3": QWEN3, "llama": LLAMA}, LLAVA_TEXT, LLAVA_REST),
        "llama4": Wrapper(
            {"llama4_text": LLAMA4},
            LLAVA_TEXT,
            {"vision_model.": ("model.vision_model.",), "multi_modal_projector.": ("model.multi_modal_projector.",)},
        ),
        "llava": Wrapper({"llama": LLAMA, "mistral": MISTRAL, "qwen2": QWEN2}, LLAVA_TEXT, LLAVA_REST),
        "mistral3": Wrapper(
            {"mistral": MISTRAL, "ministral3": TextModel("ministral3", "Ministral3ForCausalLM")}, LLAVA_TEXT, LLAVA_REST
        ),
        "qwen2_vl": Wrapper({"qwen2_vl_text": QWEN2}, QWEN2_TEXT, {"visual.": ("model.visual.",)}),
        "qwen2_5_vl": Wrapper({"qwen2_5_vl_text": QWEN2}, QWEN2_TEXT, {"visual.": ("model.visual.",)}),
        "qwen3_vl": Wrapper({"qwen3_vl_text": QWEN3}, QWEN3_TEXT, {"model.visual.": ("visual.",)}),
        "qwen3_5": Wrapper({"qwen3_5_text": QWEN3_5}, QWEN3_5_TEXT, {"model.visual.": ("visual.",)}),
        "smolvlm": Wrapper({"llama": LLAMA}, IDEFICS_TEXT, {}),
    }
)


@dataclass(frozen=True)
class Wrapped:
    """What a checkpoint holds around its text model."""

    model_type: str
    config: Mapping[str, Any]
    """Its config.json."""
    text_config: Mapping[str, Any]
    """Config of the text model, as `unwrap` has made it from the wrapper's."""
    tensors: "Mapping[str, TensorInfo]"
    """Tensors that are not the text model's, by the names under which they are written."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the tensors around the text model."""
        return {name: info.shape for name, info in self.tensors.items()}

    def stored_name(self, name: str) -> str:
        """Name on disk of a tensor of the text model."""
        own = next(own for own in WRAPPERS[self.model_type].text if name.startswith(own))
        return WRAPPERS[self.model_type].text[own][0] + name.removeprefix(own)

    def prefixes(self) -> dict[str, str]:
        """Pattern of a prefix on disk -> the text model's own, where they differ."""
        names = WRAPPERS[self.model_type].names()
        return {f"^{disk.replace('.', '[.]')}": own for disk, own, is_text in names if is_text and disk != own}

    def config_of(self, text: Mapping[str, Any]) -> dict[str, Any]:
        """The wrapper's config.json around a text model of another config: only what differs is changed."""
        before = self.text_config
        changed = {name: value for name, value in text.items() if name not in before or before[name] != value}
        changed[TIED] = text[TIED]  # which every version of transformers then reads from where it looks
        removed = before.keys() - text.keys()
        nested = self.config.get(TEXT)
        if not isinstance(nested, Mapping):
            return _updated(self.config, _with_mrope(changed, self.config), removed)
        inner = _updated(nested, _with_mrope(changed, nested), removed)
        beside = {name: value for name, value in changed.items() if name in self.config and name not in ROPE}
        return {**self.config, **beside, TIED: text[TIED], TEXT: inner}


def _updated(config: Mapping[str, Any], changed: Mapping[str, Any], removed: set[str]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in removed} | dict(changed)


def _with_mrope(changed: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The same fields, with what `_plain_rope` has left out of the stored ones."""
    ropes = [stored[name] for name in ROPE if isinstance(stored.get(name), Mapping)]
    left_out = {name: value for rope in ropes for name, value in rope.items() if name in OF_MROPE}
    return {
        name: {**value, **left_out} if name in ROPE and isinstance(value, Mapping) else value
        for name, value in changed.items()
    }


def unwrap(
    config: Mapping[str, Any], tensors: "Mapping[str, TensorInfo]"
) -> "tuple[Mapping[str, Any], Mapping[str, TensorInfo], Wrapped | None]":
    """Config and tensors of the text model, and what is around it; config and tensors as they are where none is known.

    CheckpointError if a tensor is stored under two names.
    """
    kind = config.get("model_type")
    wrapper = WRAPPERS.get(kind) if isinstance(kind, str) else None
    if wrapper is None or (model := _text_model(wrapper, config)) is None:
        return config, tensors, None
    text, rest = _sorted_out(wrapper, tensors)
    own = _text_config(config, model, any(name.startswith("lm_head.") for name in text))
    return own, text, Wrapped(str(kind), config, own, rest)


def _text_model(wrapper: Wrapper, config: Mapping[str, Any]) -> TextModel | None:
    nested = config.get(TEXT)
    kind = nested.get("model_type") if isinstance(nested, Mapping) else None
    return next(iter(wrapper.texts.values())) if kind is None else wrapper.texts.get(str(kind))


def _sorted_out(
    wrapper: Wrapper, tensors: "Mapping[str, TensorInfo]"
) -> "tuple[dict[str, TensorInfo], dict[str, TensorInfo]]":
    text: dict[str, TensorInfo] = {}
    rest: dict[str, TensorInfo] = {}
    names = wrapper.names()
    for stored, info in tensors.items():
        fits = ((disk, own, is_text) for disk, own, is_text in names if stored.startswith(disk))
        disk, own, is_text = next(fits, ("", "", False))
        name, found = own + stored.removeprefix(disk), text if is_text else rest
        if name in found:
            raise CheckpointError(f"{shown(name)} is stored twice, the second time as {shown(stored)}: remove one")
        found[name] = info
    return text, rest


def _text_config(config: Mapping[str, Any], model: TextModel, has_head: bool) -> dict[str, Any]:
    nested = config.get(TEXT)
    fields = dict(nested) if isinstance(nested, Mapping) else {n: v for n, v in config.items() if n not in _OUTER}
    fields |= {name: config[name] for name in INHERITED if name in config and name not in fields}
    fields |= {"model_type": model.model_type, "architectures": [model.architecture]}
    return fields | dict(_plain_rope(fields)) | {TIED: _is_tied(config, nested, has_head)}


_OUTER = frozenset({"vision_config", "audio_config", TEXT, "transformers_version"})


def _plain_rope(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Rotary positions of the text model alone, for the fields that state those of images too."""
    for name in ROPE:
        if isinstance(rope := fields.get(name), Mapping) and OF_MROPE & rope.keys():
            plain = {key: value for key, value in rope.items() if key not in OF_MROPE and value != "mrope"}
            yield name, plain if plain.get("rope_type", plain.get("type", "default")) != "default" else _base(plain)


def _base(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    """Unscaled rotary positions that state their base; None where the base is in a field of its own."""
    return {**rope, "rope_type": "default"} if "rope_theta" in rope else None


def _is_tied(config: Mapping[str, Any], nested: Any, has_head: bool) -> bool:
    """Whether the LM head is the embedding. Where the two configs say different things, or neither does, a head that is
    stored is the model's own, which is how transformers loads it."""
    said = {bool(part[TIED]) for part in (config, nested) if isinstance(part, Mapping) and TIED in part}
    return said.pop() if len(said) == 1 else not has_head
