"""Opened checkpoints, whose files, config and tensor shapes were checked against each other."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli import progress, strict_json
from minitron_cli.artifacts.build import Context
from minitron_cli.checkpoint import hf, model_names
from minitron_cli.checkpoint.aliases import aliases
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.safetensors_file import TensorInfo
from minitron_cli.choices import CheckpointForm
from minitron_cli.device import emulates
from minitron_cli.errors import CheckpointError, shown
from minitron_cli.inputs import early_checks
from minitron_cli.inputs.stored_names import named_by_table
from minitron_cli.model import wrappers
from minitron_cli.model.families import family_of
from minitron_cli.model.family import Family
from minitron_cli.model.reader_bias import reader_biases
from minitron_cli.model.shape import Shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class SourceModel:
    """Model that a stage reads."""

    name: str
    path: Path
    fingerprint: str
    checkpoint: Checkpoint
    config: "PretrainedConfig"
    shape: Shape

    @property
    def family(self) -> Family:
        return self.shape.family

    def size_bytes(self, dtype: str) -> int:
        """Bytes of the weights in memory in `dtype`; `auto` is the stored dtype."""
        item_bytes = {"float32": 4, "bfloat16": 2, "float16": 2}.get(dtype)
        return self.shape.parameters() * item_bytes if item_bytes else self.checkpoint.size_bytes

    def dtype_in(self, context: Context) -> str:
        """Dtype that the model runs in, as a stage was told; `auto` is the stored one.

        Where a CPU only emulates products in the stored one, `auto` is float32, which has all of its values.
        """
        is_slow = context.dtype == "auto" and emulates(self.checkpoint.dtype, context.device)
        return "float32" if is_slow else context.dtype

    def without_pattern(self) -> "SourceModel":
        """Model whose layers may be removed in any choice, as transformers reads each layer's kind from the config.

        The config states kinds that it only implied, by a pattern that the survivors would leave.
        """
        implied = {self.family.layer_pattern: list(self.shape.kinds)} if self.shape.kinds else {}
        stated = replace(self.checkpoint, config={**implied, **self.checkpoint.config})
        return replace(self, checkpoint=stated, shape=self.shape.without_pattern())

    def untied(self) -> "SourceModel":
        """Model whose LM head is a copy of the embedding. InputError if the head is not tied."""
        shape, checkpoint = self.shape.untied(), self.checkpoint
        heads = {head: checkpoint.tensors[embedding] for head, embedding in self.family.tied.items()}
        return self._changed(shape, {"tie_word_embeddings": False}, heads)

    def with_biases(self) -> "SourceModel":
        """Model with a bias of zeros wherever inputs of a matrix can be pruned and transformers loads a bias there."""
        shape = self.shape.with_biases()
        flags = {bias.flag: True for bias in reader_biases(self.family).values() if bias.flag}
        added = shape.tensors().items() - self.shape.tensors().items()
        zeros = {name: TensorInfo.zeros(self._dtype_beside(name), size) for name, size in added}
        return self._changed(shape, flags, zeros)

    def _dtype_beside(self, bias: str) -> str:
        weight = f"{bias.removesuffix('.bias')}.weight"
        return self.checkpoint.tensors[weight if weight in self.checkpoint.tensors else self.family.tied[weight]].dtype

    def _changed(self, shape: Shape, fields: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> "SourceModel":
        """Model of another shape, with these fields in its config and these tensors besides its own."""
        checkpoint = self.checkpoint
        raw = {**checkpoint.config, **fields}
        config = hf.config_from_dict(dict(raw), str(self.path / "config.json"))
        view = replace(checkpoint, config=raw, tensors={**checkpoint.tensors, **tensors}, remarks=())
        return replace(self, checkpoint=view, config=config, shape=shape)

    def written_as(self, form: CheckpointForm | None) -> "SourceModel":
        """Model whose children are written in this form; None: as it is itself. InputError if it is in no wrapper."""
        shape = self.shape.written_as(form)
        if form != "text" or self.checkpoint.wrapper is None:
            return self
        return replace(self, checkpoint=self.checkpoint.without_wrapper, shape=shape)


def open_source_model(model: str | Path, *, offline: bool = False) -> SourceModel:
    """Open a local or hub model and check the shape of every tensor. Reads headers, no weights."""
    source = model_names.resolve(str(model), offline=offline)
    checkpoint, config, shape = open_checkpoint(source.path)
    early_checks.check(checkpoint, config, shape)
    return SourceModel(source.name, source.path, source.fingerprint(), checkpoint, config, shape)


def open_checkpoint(path: Path) -> "tuple[Checkpoint, PretrainedConfig, Shape]":
    """A directory's checkpoint under the names of its family's table, its config and its shape. Reads headers only.

    CheckpointError unless they agree. What is left out of the files is said.
    """
    found = Checkpoint.open(path)
    config = hf.config_of(found)
    shape = Shape.of(_family(found, config), config)
    if place := strict_json.not_finite(found.config):
        raise CheckpointError(f"{path / 'config.json'}: {shown(place)} is NaN or infinite; fix the field")
    checkpoint = named_by_table(found, shape, config)
    shape.check(checkpoint.shapes)
    if found.wrapper:
        wrappers.check(shape.family, shape.sizes, found.wrapper.shapes)
    for remark in checkpoint.remarks:
        progress.warn_once(f"{path}: {remark}")
    return checkpoint, config, shape


def _family(found: Checkpoint, config: "PretrainedConfig") -> Family:
    family, wrapper = family_of(config, found.shapes), found.wrapper
    return wrappers.within(family, wrapper.model_type, wrapper.config, wrapper.shapes) if wrapper else family


def published_shape(model: str) -> Shape | None:
    """Shape of a model in the alias table, without network access; None for any other name, and for a directory."""
    if model not in aliases() or Path(model).is_dir():
        return None
    config = hf.config_from_dict(dict(aliases()[model].config), model)
    return Shape.of(family_of(config), config)
