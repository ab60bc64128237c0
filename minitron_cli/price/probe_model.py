"""One decoder layer of a model and a part of its vocabulary, with random weights: what is timed in its place."""

# B sequence, T token, D hidden, V vocab

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minitron_cli.checkpoint import hf
from minitron_cli.cost.compute import model_size
from minitron_cli.data.batches import Batch
from minitron_cli.model.shape import Shape
from minitron_cli.price.work import Run
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.results.base import ModelSize

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCAB = 8192
NOISE = 1 << 20  # random numbers that are drawn; a large layer's weights repeat them, which takes a tenth of the time
HEAD_WEIGHTS = 1 << 22  # larger heads are timed by a smaller part of the vocabulary


@dataclass(frozen=True)
class ProbeModel:
    """The middle layer of a model, of each kind if there are several, between the first rows of embedding and head."""

    run: Run
    device: str

    @property
    def plan(self) -> PrunePlan:
        """Plan from the whole model to the part that is timed."""
        shape = self.run.shape
        vocab = min(shape.sizes["vocab"], VOCAB, max(1024, HEAD_WEIGHTS // shape.sizes["hidden"]))
        return PrunePlan(shape.resize(vocab=vocab), {"layer": torch.tensor(_middle_layers(shape))})

    @property
    def shape(self) -> Shape:
        return self.plan.child

    def size(self, length: int) -> ModelSize:
        """FLOPs per token of this part in sequences of `length` tokens."""
        return model_size(self.shape, length)

    @cached_property
    def model(self) -> "PreTrainedModel":
        """The part on the device. Its buffers are real, its weights random and small."""
        special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)  # its own may be too high
        raw = child_config(self.run.config, self.plan) | special
        config = hf.config_from_dict(raw, "the config of the model")
        model = hf.empty_model_of(config, device=self.device, dtype=getattr(torch, self.run.dtype))
        model._apply(lambda t: torch.empty_like(t, device=self.device) if t.is_meta else t)
        model.tie_weights()
        noise_N = torch.empty(NOISE).uniform_(-0.02, 0.02, generator=torch.Generator().manual_seed(0))
        noise_N = noise_N.to(self.device, model.dtype)
        for parameter in model.parameters():
            for piece in parameter.data.view(-1).split(NOISE):
                piece.copy_(noise_N[: len(piece)])
        return model

    @property
    def embedding_VD(self) -> Tensor:
        weight_VD: Tensor = self.model.get_input_embeddings().weight
        return weight_VD

    @property
    def head_VD(self) -> Tensor:
        weight_VD: Tensor = self.model.get_output_embeddings().weight
        return weight_VD

    def batch(self, sequences: int, length: int) -> Batch:
        """Sequences of different tokens, each one document."""
        ids_BT = torch.arange(sequences * length).view(sequences, length) * 7 % self.shape.sizes["vocab"]
        return Batch(ids_BT, torch.arange(length).expand(sequences, length), tuple(range(sequences)))


def _middle_layers(shape: Shape) -> list[int]:
    """Number of the layer in the middle; of those of each kind, where layers hold different tensors."""
    kinds = shape.family.layers or ((),) * shape.sizes["layer"]
    places = {kind: [i for i, one in enumerate(kinds) if one == kind] for kind in kinds}
    return sorted(numbers[len(numbers) // 2] for numbers in places.values())
