"""Student and teacher: a batch's losses with gradients, or its sums on held-out text.

Knows models as transformers has them; not the optimizer, the schedule or the order of the data.
"""

# B sequence, T token, N scored token, S chosen one of them, D hidden, F figure

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from minitron_cli import stopping
from minitron_cli.data.batches import Batch
from minitron_cli.decoder import decoder_of
from minitron_cli.distill import sharding
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.distributed import Precision, ProcessGroup
from minitron_cli.distill.fused.entropy import least_sure
from minitron_cli.distill.fused.objective import HeadInput, fused_objective
from minitron_cli.distill.hidden_state_losses import StatePair, capture, hidden_loss, projection
from minitron_cli.distill.losses.forward_kl import ForwardKL
from minitron_cli.distill.sharding import RowReader
from minitron_cli.distill.targets import Targets, documents
from minitron_cli.distill.weight_decay import decayed
from minitron_cli.errors import CheckpointError
from minitron_cli.layerwise.observer import layer_output
from minitron_cli.model.families import family_of
from minitron_cli.model.lm_head import Head, head_of
from minitron_cli.model.taps import layer_module
from minitron_cli.prune.slicing import is_finite
from minitron_cli.signals.rows import SignalRows

T = TypeVar("T")
STUDENT = "student."
"""Prefix of the student's parameters among all that are trained."""


class Losses(NamedTuple):
    """Losses of one batch."""

    total: Tensor
    """Weighted sum, a scalar with gradients."""
    figures_F: Tensor
    """Each loss without its weight, in the order of `ModelPair.figures`; detached."""


class Decoder(nn.Module):
    """A causal language model and the projection that is trained with it, as one module to shard.

    Calling it with a function applies the function to the model. During the call, and until the backward pass, all
    weights outside the decoder layers are whole even if the module is sharded: FSDP gathers them in `forward`.
    """

    def __init__(self, model: Any, device: torch.device, project: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.device, self.project = model, device, project

    def forward(self, use: Callable[[Any], T]) -> T:
        return use(self.model)

    @torch.no_grad()
    def check_head(self) -> None:
        """Read the head's soft cap and scale. CheckpointError if the head computes more than `Head` can express."""
        checked = self(head_of)
        self._softcap, self._scale = checked.softcap, checked.scale
        sharding.release(self)

    @property
    def head(self) -> Head:
        """The LM head with the weights as they are now."""
        linear = self.model.get_output_embeddings()
        return Head(linear.weight, getattr(linear, "bias", None), self._softcap, self._scale)


class ModelPair:
    """The student with fp32 weights on the device; the teacher there or on the CPU, frozen, in compute precision."""

    def __init__(
        self,
        student: Any,
        teacher: Any | None,
        config: DistillConfig,
        pairs: Sequence[StatePair],
        group: ProcessGroup,
        precision: Precision,
        *,
        is_sharded: bool = False,
        student_rows: RowReader | None = None,
        teacher_rows: RowReader | None = None,
    ) -> None:
        self.config, self.group, self.device, self.precision = config, group, group.device, precision
        self.student, self.teacher = student, teacher
        self.is_sharded = is_sharded
        teacher_device = torch.device("cpu") if config.teacher_device == "cpu" else self.device
        self.pairs = tuple(pairs) if config.hidden is not None else ()
        self.project: nn.Module = nn.Identity()
        if teacher is not None:
            widths = _width(student), _width(teacher)
            self.project = projection(*widths, config.seed) if self.pairs else nn.Identity()
            frozen, dtype = Decoder(teacher.requires_grad_(False), teacher_device), compute_dtype(precision)
            self._teacher = self._placed(frozen, dtype, teacher_rows, "teacher")
        if config.activation_checkpointing:
            student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        trained = Decoder(student, self.device, self.project)
        self._student = self._placed(trained, torch.float32, student_rows, "student")
        self._stops_in = _layers(student) if group.size == 1 else []  # several processes stop between micro-batches

    def _placed(self, decoder: Decoder, dtype: torch.dtype, rows: RowReader | None, role: str) -> Decoder:
        """The model on its device in evaluation mode: all of it or, if models are sharded, this process's rows."""
        model = decoder.model
        cast_(model.eval(), dtype)
        if self.is_sharded:
            sharding.shard_(decoder, _layers(model), self.group, self.precision)
        elif not is_spread(model):
            decoder.to(decoder.device)
        if rows is not None:
            sharding.fill_(decoder, model, self.group, rows)
        _refuse_non_finite(model, role)
        decoder.check_head()
        return decoder

    @property
    def figures(self) -> tuple[str, ...]:
        """Columns that `losses` measures: each loss on logits by its kind, then the sum of those on hidden states."""
        return (*(loss.kind for loss in self.config.losses), *(["hidden"] if self.pairs else []))

    def trained(self) -> dict[str, nn.Parameter]:
        """Every trained parameter by a unique name; tied ones once."""
        student = {f"{STUDENT}{name}": p for name, p in self.student.named_parameters()}
        return student | {f"projection.{name}": p for name, p in self.project.named_parameters()}

    def decayed(self) -> set[str]:
        """Names of the trained parameters that weight decay applies to."""
        matrices = decayed(family_of(self.student.config), (name for name, _ in self.student.named_parameters()))
        return {f"{STUDENT}{name}" for name in matrices} | (self.trained().keys() & {"projection.weight"})

    def losses(
        self, batch: Batch, targets: Targets, count: int, hidden_weight: float, signals: SignalRows | None = None
    ) -> Losses:
        """Losses summed over this batch's scored tokens and divided by `count`, those of the whole step.

        `signals` of the scored tokens stand for the teacher. With `config.positions` only some of the tokens count.
        """
        rows_N, labels_N = (tensor.to(self.device) for tensor in targets)
        signals = None if signals is None else signals.to(self.device)
        assert signals is None or signals.tokens == len(rows_N)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            with _checked_in_backward(self._stops_in):
                student_BTD, student_states = self._decode(self._student, batch, [pair.student for pair in self.pairs])
            student_side = HeadInput(student_BTD.flatten(0, 1), self._student.head).rows(rows_N)
            if self.config.positions:
                sizes = targets.in_blocks(batch.input_ids_BT.shape[1])
                chosen_S = least_sure(student_side, sizes, self.config.positions.counts(sizes))
                student_side = student_side.rows(chosen_S)
                signals = None if signals is None else signals.rows(chosen_S)
                rows_N, labels_N = rows_N[chosen_S], labels_N[chosen_S]
            teacher_side: HeadInput | SignalRows | None = signals
            teacher_states: dict[str, Tensor] = {}
            if self.teacher is not None and self.config.needs_teacher:
                with torch.no_grad():
                    teacher_BTD, teacher_states = self._decode(self._teacher, batch, [p.teacher for p in self.pairs])
                teacher_side = HeadInput(teacher_BTD.flatten(0, 1), self._teacher_head).rows(rows_N)
            objective = fused_objective(
                self.config.losses, student_side, teacher_side, labels_N, count=count, low_memory=self.config.low_memory
            )
            if not self.pairs or self.config.hidden is None:
                return Losses(*objective)
            hidden = hidden_loss(
                self.pairs,
                student_states,
                teacher_states,
                self.project,
                self.config.hidden.distance,
                rows_N,
                count,
                documents(batch).to(self.device),
            )
        return Losses(
            objective.total + hidden_weight * hidden, torch.cat([objective.each_L, hidden.detach().reshape(1)])
        )

    @torch.no_grad()
    def evaluate(self, batch: Batch, targets: Targets, signals: SignalRows | None = None) -> Tensor:
        """Sums over the batch's scored tokens of the columns of `HELD_OUT`, [2] in fp64.

        KL is that to the teacher, or to its `signals`; 0 without any.
        """
        rows_N, labels_N = (tensor.to(self.device) for tensor in targets)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            student_BTD, _ = self._decode(self._student, batch)
            student = HeadInput(student_BTD.flatten(0, 1), self._student.head).rows(rows_N)
            nll = student.head.nll(student.hidden_ND, labels_N).sum(dtype=torch.float64)
            kl = torch.zeros_like(nll)
            teacher: HeadInput | SignalRows | None = None if signals is None else signals.to(self.device)
            if self.teacher is not None:
                teacher_BTD, _ = self._decode(self._teacher, batch)
                teacher = HeadInput(teacher_BTD.flatten(0, 1), self._teacher_head).rows(rows_N)
            if teacher is not None:
                assert not isinstance(teacher, SignalRows) or teacher.tokens == len(rows_N)
                kl += fused_objective([ForwardKL()], student, teacher, None, count=1, low_memory=True).total
        return torch.stack([nll, kl])

    def release(self) -> None:
        """Drop gathered weights of the student; if it is sharded, only this process's rows are left."""
        sharding.release(self._student)

    @cached_property
    def _moved_head(self) -> Head:
        """The teacher's head, copied to the student's device. Made once: the teacher is frozen."""
        head = self._teacher.head
        bias_V = None if head.bias_V is None else head.bias_V.to(self.device)
        return head._replace(weight_VD=head.weight_VD.to(self.device), bias_V=bias_V)

    @property
    def _teacher_head(self) -> Head:
        is_elsewhere = is_spread(self.teacher) or self._teacher.device != self.device
        return self._moved_head if is_elsewhere else self._teacher.head

    def _decode(self, decoder: Decoder, batch: Batch, modules: Iterable[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Last hidden states [B, T, D], and the outputs of the named modules, on the student's device."""
        precise = torch.autocast(decoder.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with precise, capture(decoder.model, modules) as states:
            hidden_BTD = decoder(partial(last_hidden_states, batch=batch, device=decoder.device))
        return hidden_BTD.to(self.device), {name: state.to(self.device) for name, state in states.items()}


@contextmanager
def _checked_in_backward(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Context of a forward pass whose backward pass raises Interrupted at the next layer after a stop was requested."""

    def mark(layer: nn.Module, inputs: Any, output: Any) -> None:
        if (hidden_BTD := layer_output(output)).requires_grad:
            hidden_BTD.register_hook(lambda grad_BTD: stopping.raise_if_stopped())

    handles = [layer.register_forward_hook(mark) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def last_hidden_states(model: Any, batch: Batch, device: torch.device) -> Tensor:
    """States that the LM head reads, [B, T, D]; document boundaries are in the batch's positions."""
    output = decoder_of(model)(
        input_ids=batch.input_ids_BT.to(device), position_ids=batch.position_ids_BT.to(device), use_cache=False
    )
    states: Tensor = output.last_hidden_state
    return states


def is_spread(model: Any) -> bool:
    """Whether accelerate has placed the model's layers on several devices."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1


def _layers(model: Any) -> list[nn.Module]:
    family = family_of(model.config)
    count = family.axis_sizes(model.config)["layer"]
    return [model.get_submodule(layer_module(family).format(layer=i)) for i in range(count)]


def _width(model: Any) -> int:
    return int(model.get_output_embeddings().weight.shape[1])


def _refuse_non_finite(model: nn.Module, role: str) -> None:
    for name, parameter in model.named_parameters():
        stopping.raise_if_stopped()
        if not is_finite(sharding.local(parameter.data)):
            raise CheckpointError(f"the {role}'s {name} holds NaN or infinity: use an undamaged checkpoint")


def compute_dtype(precision: Precision) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def cast_(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters in place. Buffers stay: rotary frequencies lose too much precision in bf16."""
    for parameter in model.parameters():
        stopping.raise_if_stopped()
        parameter.data = parameter.data.to(dtype)
