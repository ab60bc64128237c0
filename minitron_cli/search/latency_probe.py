"""Latency of a shape on this device: built with random weights, timed in alternation with its parent, cached."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from minitron_cli import canonical_json, timings
from minitron_cli.checkpoint import hf
from minitron_cli.errors import InputError
from minitron_cli.evaluate.config import Speed
from minitron_cli.evaluate.generation_speed import compare
from minitron_cli.model.shape import Shape
from minitron_cli.prune.child_builder import ChildBuilder
from minitron_cli.prune.child_config import child_config
from minitron_cli.search.constraints.base import Timing, Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NEW_TOKENS = 8  # generated in one round


@dataclass(frozen=True)
class LatencyProbe:
    """Times shapes against the parent. Times are no part of a result; they are kept in the user's cache."""

    builder: ChildBuilder

    def __call__(self, shape: Shape, workload: Workload) -> Timing:
        found = timings.cached(self._facts(shape, workload), lambda: self._time(shape, workload)._asdict())
        return Timing(**found)

    def _facts(self, shape: Shape, workload: Workload) -> dict[str, Any]:
        """Everything that a time depends on."""
        return {
            "family": shape.family.model_type,
            "shape": dict(shape.sizes),
            "parent": dict(self.builder.parent.shape.sizes),
            "config": canonical_json.digest(self._parent_config),  # windows, kinds of layers, a tied head, ...
            "layers": self.builder.plan(shape).child.family.layers,  # kinds of those that are kept
            "workload": workload.model_dump(mode="json"),
            "dtype": str(self._dtype),
            "machine": timings.machine(self.builder.context.device),
        }

    def _time(self, shape: Shape, workload: Workload) -> Timing:
        child = self._model(child_config(self._parent_config, self.builder.plan(shape)))
        positions = child.config.max_position_embeddings
        if workload.length + NEW_TOKENS > positions:
            raise InputError(
                f"search.constraints: {workload.length:,} tokens and {NEW_TOKENS} new ones exceed the model's "
                f"{positions:,} positions; lower length"
            )
        found = compare(
            child,
            self._parent,
            Speed(
                batch_size=workload.batch,
                prompt_tokens=workload.length,
                new_tokens=NEW_TOKENS,
                rounds=workload.repeats,
            ),
        )
        if workload.phase == "prefill":
            speed, ratio = found.model.prefill_tokens_per_second, found.prefill_ratio
        else:
            speed, ratio = found.model.decode_tokens_per_second, found.decode_ratio
        seconds = workload.tokens / speed
        return Timing(seconds, seconds * ratio)  # the ratio varies least: both are timed in alternation

    @cached_property
    def _parent(self) -> "PreTrainedModel":
        return self._model(self._parent_config)

    @property
    def _parent_config(self) -> dict[str, Any]:
        return dict(self.builder.parent.checkpoint.config)

    @cached_property
    def _dtype(self) -> torch.dtype:
        """Requested dtype, or the one that the parent is stored in."""
        if self.builder.context.dtype != "auto":
            return getattr(torch, self.builder.context.dtype)
        return next(iter(self.builder.parent.checkpoint.tensors.values())).torch_dtype

    def _model(self, config: dict[str, Any]) -> "PreTrainedModel":
        """Model of a config with random weights, on the device."""
        model = hf.new_model(hf.config_from_dict(config, "the config of the pruned model"), seed=0)
        return model.to(device=self.builder.context.device, dtype=self._dtype)
