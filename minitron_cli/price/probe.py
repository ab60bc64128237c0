"""Speed of a model's parts on this device, from a layer and a part of the head that run for a moment.

What is timed is the stages' own code: observers of a calibration, the fused losses of a training, the optimizer. A
decoder's time is proportional to its FLOPs, so that of one layer stands for all of them.
"""

# B sequence, T token, N token of any sequence, D hidden, V vocab

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minitron_cli import stopping, timings
from minitron_cli.cost.compute import TRAINING, HeadWork
from minitron_cli.decoder import decoder_of
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.distributed import resolve_precision
from minitron_cli.distill.fused.objective import HeadInput, fused_objective
from minitron_cli.distill.optimizer import Optimizer
from minitron_cli.distill.teaching import some_logits
from minitron_cli.importance.collect import observe
from minitron_cli.importance.magnitude import powers
from minitron_cli.importance.observers import layer_observers
from minitron_cli.layerwise.config import ObserverOptions
from minitron_cli.layerwise.observer import Part
from minitron_cli.model.lm_head import Head, Predictions, token_values
from minitron_cli.price.probe_model import ProbeModel
from minitron_cli.price.work import Decoder, Run
from minitron_cli.signals.config import Sampled
from minitron_cli.signals.encoding import Encoding

VERSION = 4
SECONDS = 0.4  # for each figure: a warm-up and a few repetitions
REPETITIONS = 5
FIRST_TOKENS = 32  # of the first run, which tells how many tokens the time is enough for
UPDATED = 1 << 24  # parameters whose update is timed
SAVED_TOKENS = 64  # that the memory of a forward pass is measured on, and twice as many
PRODUCT = 1024  # rows and columns of the matrices whose product is timed


class Batches(NamedTuple):
    """Sequences that run at once, and their tokens."""

    sequences: int
    length: int

    @property
    def tokens(self) -> int:
        return self.sequences * self.length


@dataclass(frozen=True)
class Probe:
    """Seconds per FLOP of one model's parts, each measured in a moment and kept for the machine and model."""

    run: Run
    device: str
    training: DistillConfig | None = None
    observed: ObserverOptions = field(default_factory=ObserverOptions)

    def decoder(self, how: Decoder) -> float:
        """Seconds per FLOP of the decoder."""
        timed = {"forward": self._forward, "observed": self._observed, "training": self._training}[how]
        times = TRAINING if how == "training" else 1
        return self._per_flop(f"decoder {how}", timed, lambda size: size.decoder_flops * times)

    def head(self, work: HeadWork) -> float:
        """Seconds per FLOP of the head."""
        timed = {"loss": self._loss, "kl": self._kl, "training": self._objective, "signals": self._signals}[work]
        return self._per_flop(f"head {work}", timed, lambda size: size.head_flops * self._head_passes(work))

    def update(self) -> float:
        """Seconds that an optimizer takes per parameter and step, clipping included."""
        return self._figure("update", lambda: _fastest(self._update()) / UPDATED)

    def start(self) -> float:
        """Seconds until a model is made, with the import of its code if it is the first of this process."""
        return self._figure("start", lambda: _seconds(lambda: self.model.model))

    def magnitude(self) -> float:
        """Seconds that the magnitude of a weight takes, which is summed on the CPU."""

        def timed() -> float:
            matrix_VD = self.model.embedding_VD.detach().cpu()
            return _fastest(lambda: powers(matrix_VD)) / matrix_VD.numel()

        return self._figure("magnitude", timed)

    def product(self, dtype: torch.dtype) -> float:
        """Seconds per FLOP of a product of two square matrices."""

        def timed() -> float:
            a = torch.rand(PRODUCT, PRODUCT, dtype=dtype, device=self.device)
            return _fastest(self._synced(lambda: a @ a)) / (2 * PRODUCT**3)

        return self._figure(f"product {dtype}", timed)

    def saved_bytes(self, tokens: int) -> float:
        """Bytes that the forward pass of one layer keeps for its backward pass over this many tokens."""
        facts = self._facts | {"figure": "saved"}
        saved = timings.cached(facts, lambda: dict(zip(("once", "per token"), self._saved(), strict=True)))
        return float(saved["once"] + tokens * saved["per token"])

    # Figures

    def _figure(self, name: str, measure: Callable[[], float]) -> float:
        """Seconds per unit, kept as `timings.fastest` does."""
        return timings.fastest(self._facts | {"figure": name}, lambda: {"seconds": measure()})["seconds"]

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """Everything that a figure depends on."""
        training = self.training and _timed_settings(self.training)
        shape = {"family": self.run.shape.family.model_type, "sizes": dict(self.run.shape.sizes)}
        batches = {"batch": self.run.batch, "length": self.run.length, "dtype": self.run.dtype}
        settings = {"training": training, "observed": asdict(self.observed)}
        return {"price": VERSION, **shape, **batches, **settings, "machine": timings.machine(self.device)}

    def _per_flop(self, name: str, timed: "Timed", flops: Callable[[Any], int]) -> float:
        def measure() -> float:
            batches = self._fitting(timed)
            size = self.model.size(batches.length)
            return _fastest(self._synced(timed(batches))) / (batches.tokens * flops(size))

        return self._figure(name, measure)

    def _fitting(self, timed: "Timed") -> Batches:
        """As many of the stage's sequences, or tokens of one, as run in the time that there is.

        They are doubled until twice as many would take too long: some of the time is of the weights, not of the tokens.
        """
        tokens = FIRST_TOKENS
        while True:
            batches = self._batches(tokens)
            run = self._synced(timed(batches))
            run()
            if batches.tokens >= self.run.tokens or 2 * _seconds(run) > SECONDS / 2:
                return batches
            tokens *= 2

    def _batches(self, tokens: int) -> Batches:
        """About so many tokens, but no more than the stage's: a part of a sequence, or whole sequences."""
        length = min(tokens, self.run.length)
        return Batches(min(self.run.batch, tokens // length), length)

    def _synced(self, run: Callable[[], object]) -> Callable[[], object]:
        """The same, done only when the device is."""
        if not self.device.startswith("cuda"):
            return run

        def synced() -> None:
            run()
            torch.cuda.synchronize(self.device)

        return synced

    @cached_property
    def model(self) -> ProbeModel:
        """The part of the model that runs."""
        return ProbeModel(self.run, self.device)

    # What is timed

    def _forward(self, batches: Batches) -> Callable[[], object]:
        batch = self.model.batch(*batches)
        ids_BT, positions_BT = batch.input_ids_BT.to(self.device), batch.position_ids_BT.to(self.device)
        decoder = decoder_of(self.model.model)

        @torch.inference_mode()
        def run() -> None:
            decoder(input_ids=ids_BT, position_ids=positions_BT, use_cache=False)

        return run

    def _observed(self, batches: Batches) -> Callable[[], object]:
        batch, shape = self.model.batch(*batches), self.model.shape
        observers = layer_observers(shape.family, shape.sizes, Part(range(1), True), self.observed)

        @torch.inference_mode()
        def run() -> None:
            observe(self.model.model, observers, batch)

        return run

    def _training(self, batches: Batches) -> Callable[[], object]:
        model = self.model.model.train()
        if self.training and self.training.activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return lambda: self.forward_for_training(batches).float().sum().backward()

    def forward_for_training(self, batches: Batches) -> Tensor:
        """Output of the layer in the training's precision, [B, T, D], with what its backward pass needs."""
        model, batch = self.model.model, self.model.batch(*batches)
        embedded_BTD = self.model.embedding_VD.detach()[batch.input_ids_BT.to(self.device)].requires_grad_()
        with self._autocast():
            output = decoder_of(model)(
                inputs_embeds=embedded_BTD, position_ids=batch.position_ids_BT.to(self.device), use_cache=False
            )
        hidden_BTD: Tensor = output.last_hidden_state
        return hidden_BTD

    def _saved(self) -> tuple[float, float]:
        """What is kept once, such as weights in the precision of the products, and for each token."""
        self.model.model.gradient_checkpointing_disable()
        few = min(self.run.length // 2, SAVED_TOKENS) or 1
        some, twice = (_saved_bytes(self, Batches(1, count)) for count in (few, 2 * few))
        return max(0, 2 * some - twice), (twice - some) / few

    @property
    def _is_bf16(self) -> bool:
        """Whether the training computes in bf16."""
        training = self.training
        return training is not None and resolve_precision(training.precision, torch.device(self.device)) == "bf16"

    def _autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self._is_bf16)

    def _loss(self, batches: Batches) -> Callable[[], object]:
        hidden_ND, labels_N = self._read(batches)
        return lambda: Head(self.model.head_VD.detach()).nll(hidden_ND, labels_N)

    def _kl(self, batches: Batches) -> Callable[[], object]:
        hidden_ND, labels_N = self._read(batches)
        one = Predictions(Head(self.model.head_VD.detach()), hidden_ND)
        return torch.inference_mode()(lambda: token_values(one, labels_N, one))

    def _signals(self, batches: Batches) -> Callable[[], object]:
        """Draws from the head's distributions."""
        hidden_ND, _ = self._read(batches)
        side, places_N = HeadInput(hidden_ND, Head(self.model.head_VD.detach())), np.arange(len(hidden_ND))
        encoding = Encoding(Sampled(), side.vocab)
        return torch.inference_mode()(lambda: encoding.encoded(some_logits(side), 0, places_N))

    def _read(self, batches: Batches) -> tuple[Tensor, Tensor]:
        """What a head reads, [N, D], and labels [N]."""
        labels_N = self.model.batch(*batches).input_ids_BT.flatten().to(self.device)
        return self.model.embedding_VD.detach()[labels_N], labels_N

    def _objective(self, batches: Batches) -> Callable[[], object]:
        """The losses on logits with the gradients of both embeddings, which are as large as the head."""
        assert self.training
        training, embedding_VD, head_VD = self.training, self.model.embedding_VD, self.model.head_VD
        _, labels_N = self._read(batches)
        teacher = HeadInput(*self._teacher_side(labels_N)) if training.needs_teacher else None

        def run() -> None:
            with self._autocast():
                student = HeadInput(torch.nn.functional.embedding(labels_N, embedding_VD), Head(head_VD))
                found = fused_objective(training.losses, student, teacher, labels_N, low_memory=training.low_memory)
            found.total.backward()

        return run

    def _teacher_side(self, labels_N: Tensor) -> tuple[Tensor, Head]:
        weight_VD = self.model.head_VD.detach().to(torch.bfloat16 if self._is_bf16 else torch.float32)
        return weight_VD[labels_N], Head(weight_VD)

    def _head_passes(self, work: HeadWork) -> int:
        """Forward passes of the head that the FLOPs of one run of it amount to."""
        if work == "training":
            return TRAINING + bool(self.training and self.training.needs_teacher)
        return 2 if work == "kl" else 1

    def _update(self) -> Callable[[], object]:
        assert self.training
        parameter = torch.nn.Parameter(torch.rand(1024, UPDATED // 1024, device=self.device))
        optimizer = Optimizer({"weight": parameter}, self.training)
        gradient = torch.rand_like(parameter)

        def run() -> None:
            parameter.grad = gradient
            optimizer.clip_()
            optimizer.step_(1e-9)

        return self._synced(run)


def _timed_settings(training: DistillConfig) -> dict[str, Any]:
    """Settings of a training that its speed depends on, also those that are no part of its result's identity."""
    identity = training.model_dump(mode="json", exclude={"tokens", "steps", "seed"})
    recomputes = training.activation_checkpointing
    return identity | {"optimizer": training.optimizer, "activation_checkpointing": recomputes}


Timed = Callable[[Batches], Callable[[], object]]


def _saved_bytes(probe: Probe, batches: Batches) -> int:
    """Bytes of the tensors that autograd keeps, without the weights; each memory counts once."""
    weights = {p.untyped_storage().data_ptr() for p in probe.model.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = probe.forward_for_training(batches)
    del output
    return sum(kept.values())


def _fastest(run: Callable[[], object]) -> float:
    """Least seconds of a few repetitions after a warm-up: the figure is kept, and the load of the moment passes."""
    run()
    taken: list[float] = []
    while len(taken) < REPETITIONS and sum(taken) < SECONDS:
        stopping.raise_if_stopped()
        taken.append(_seconds(run))
    return min(taken)


def _seconds(run: Callable[[], object]) -> float:
    """Seconds of one call; of a single thread on the CPU those that it computed, whatever else the machine does."""
    is_one_thread = torch.get_num_threads() == 1 and not torch.cuda.is_initialized()
    clock = time.thread_time if is_one_thread else time.perf_counter
    started = clock()
    run()
    return clock() - started
