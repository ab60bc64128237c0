"""A checkpoint under the names of its family's table, whatever names its writer chose, as stock transformers reads it.

transformers adds or takes off the base model's prefix ("model."), reads experts that are stored joined, and ignores
tensors that its model does not have. What it would not find at all is refused with the likely cause.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.other_formats import ADAPTER
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.safetensors_file import QUANTIZED, TensorInfo
from minitron_cli.errors import CheckpointError, shown
from minitron_cli.model.family import NAME_AXIS, Family, pattern
from minitron_cli.model.layout import parse
from minitron_cli.model.shape import Shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DistributedDataParallel or DeepSpeed",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""Part of a name -> what puts it there when the state of a wrapped model is saved."""

PREDICTORS = "num_nextn_predict_layers"
"""Field of a config that counts layers for multi-token prediction."""

OF_ADAPTERS = frozenset({"lora_A", "lora_B", "lora_embedding_A", "base_layer", "modules_to_save"})
OF_QUANTIZATION = frozenset(
    {"qweight", "qzeros", "scales", "absmax", "weight_packed", "weight_scale", "weight_scale_inv", "SCB"}
)
"""Parts of names that only such checkpoints have."""


def named_by_table(checkpoint: Checkpoint, shape: Shape, config: "PretrainedConfig") -> Checkpoint:
    """The checkpoint under the table's names, with a remark on the tensors that transformers ignores, which it lacks.

    CheckpointError if a tensor is missing, with the likely cause, or is stored under two names.
    """
    found: dict[str, TensorInfo] = {}
    ignored: list[str] = []
    predictors = int(getattr(config, PREDICTORS, None) or 0)
    for stored, info in checkpoint.tensors.items():
        parts = dict(_in_table(shape, predictors, stored, info))
        if twice := min(parts.keys() & found.keys(), default=None):
            raise CheckpointError(f"{shown(twice)} is stored twice, the second time as {shown(stored)}: remove one")
        found |= parts
        if not parts and not shape.family.ignores(stored):
            ignored.append(stored)
    _refuse_missing(shape, found, checkpoint.tensors)
    if not ignored:
        return replace(checkpoint, tensors=found)
    _refuse_needed(ignored, config)
    return replace(checkpoint, tensors=found, remarks=(*checkpoint.remarks, _left_out(ignored)))


def _in_table(shape: Shape, predictors: int, stored: str, info: TensorInfo) -> Iterator[tuple[str, TensorInfo]]:
    """(name in the table, place) of what a stored tensor holds: itself, or the experts joined in it; or nothing.

    `predictors`: layers for multi-token prediction, which are numbered after the others and which no model has.
    """
    family, layers = shape.family, shape.sizes["layer"]
    for name in _variants(stored, _prefix(family)):
        if family.ignores(name):
            return
        if found := family.find(name):
            if not layers <= int(found.at.get("layer", 0)) < layers + predictors:
                yield name, info
            return
        for template, sources in (*family.stacks.items(), *family.runtime_names.items()):
            if match := pattern(template).fullmatch(name):
                if layers <= int(match.groupdict().get("layer", 0)) < layers + predictors:
                    return
                yield from _parts(shape, stored, sources, match.groupdict(), info)
                return


def _variants(name: str, prefix: str) -> tuple[str, ...]:
    """Names that transformers tries: as stored, and with the base model's prefix added or taken off."""
    return name, f"{prefix}{name}", name.removeprefix(prefix)


def _prefix(family: Family) -> str:
    """Prefix of the base model in a family's names: "model." or "gpt_neox."."""
    layer = next(template for template in family.tensors if "{layer}" in template)
    return f"{layer.partition('.')[0]}."


def _parts(
    shape: Shape, stored: str, sources: tuple[str, ...], at: Mapping[str, str], info: TensorInfo
) -> Iterator[tuple[str, TensorInfo]]:
    """Tensors of the table that lie one after another in a stored one: `model/runtime_tensors.py` says how."""
    stacked = [axis for axis in NAME_AXIS.findall(sources[0]) if axis not in at]
    sizes = [parse(shape.family.tensors[source]).shape(shape.sizes) for source in sources]
    whole = (*(shape.sizes[axis] for axis in stacked), sum(size[0] for size in sizes), *sizes[0][1:])
    if info.shape != whole:
        raise CheckpointError(
            f"tensor {shown(stored)} has shape {shown(info.shape)} where config.json implies {whole}: fix config.json"
        )
    start = info.start
    for i in range(shape.sizes[stacked[0]] if stacked else 1):
        for source, size in zip(sources, sizes, strict=True):
            size_bytes = math.prod(size) * info.torch_dtype.itemsize
            yield (
                source.format(**at, **dict.fromkeys(stacked, i)),
                TensorInfo(info.dtype, size, info.file, start, size_bytes),
            )
            start += size_bytes


def _refuse_missing(shape: Shape, found: Collection[str], stored: Collection[str]) -> None:
    missing = sorted(shape.tensors().keys() - set(found))
    if not missing:
        return
    if cause := _cause(shape.family, stored):
        raise CheckpointError(cause)
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    raise CheckpointError(
        f"missing tensors {', '.join(missing[:3])}{more}: the checkpoint is incomplete; download it again"
    )


def _cause(family: Family, stored: Collection[str]) -> str | None:
    """Sentence on names that a wrapper, an adapter or a quantization has left; None if there are none."""
    for name in stored:
        parts = name.split(".")
        if OF_ADAPTERS.intersection(parts):
            return f"tensor {shown(name)} is of an adapter: the directory {ADAPTER}"
        if OF_QUANTIZATION.intersection(parts):
            return f"tensor {shown(name)} is of a quantization: {QUANTIZED}"
        wrapped = [part for part in parts if part in WRAPPERS]
        if wrapped and family.find(".".join(part for part in parts if part not in WRAPPERS)):
            return (
                f"tensor {shown(name)} has the prefix {wrapped[0]!r} of {WRAPPERS[wrapped[0]]}, which transformers "
                f"does not know: save model.{wrapped[0]} with save_pretrained, or take the prefix off all names"
            )
        if whole := _below_a_prefix(family, name):
            return (
                f"tensor {shown(name)} has the prefix {shown(name[: -len(whole)])}, so the model is a part of another: "
                "save that part as a checkpoint of its own"
            )
    return None


def _below_a_prefix(family: Family, name: str) -> str | None:
    """End of a name that is a layer's tensor in the table; None if there is no such end, or no beginning before it."""
    end = name[name.find(f".{_prefix(family)}") + 1 :]
    return end if end != name and (match := family.find(end)) and match.at else None


def _refuse_needed(ignored: Collection[str], config: "PretrainedConfig") -> None:
    """Raise CheckpointError for a tensor that transformers loads and the table lacks, or that scales a quantization."""
    for name in ignored:
        if OF_QUANTIZATION.intersection(name.split(".")):
            raise CheckpointError(f"tensor {shown(name)} is of a quantization: {QUANTIZED}")
    loaded = hf.parameter_names(config)
    if needed := sorted(loaded.intersection(ignored)):
        raise CheckpointError(
            f"tensor {shown(needed[0])} is part of the model, and minitron has no layout for it in family "
            f"{config.model_type!r}: report it with the name of the model"
        )


def _left_out(ignored: list[str]) -> str:
    """Remark on tensors that are not part of the model."""
    if len(ignored) == 1:
        return f"tensor {shown(ignored[0])} is left out: it is not part of the model that transformers loads"
    return (
        f"{len(ignored):,} tensors such as {shown(min(ignored))} are left out: "
        "they are not part of the model that transformers loads"
    )
