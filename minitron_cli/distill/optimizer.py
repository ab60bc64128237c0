"""Trained parameters and their AdamW moments, also as tensors by name."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minitron_cli.distill.checkpoints import Saved
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.masking import Masking
from minitron_cli.distill.optimizer_kinds import BLOCK
from minitron_cli.distill.sharding import local, span, whole

MOMENTS = ("exp_avg", "exp_avg_sq")
IS_SIGNED = {"exp_avg": True, "exp_avg_sq": False}


class Optimizer:
    """AdamW on named parameters; weight decay on those named `decayed`, by default on all of two dims or more.

    Its moments are in fp32, in 8 bits, or in the host's memory with the copy of the weights that they update. Masked
    parameters keep their zeros; if the mask is refreshed, the moments update a dense copy of them.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: DistillConfig,
        masking: Masking | None = None,
        decayed: Collection[str] | None = None,
    ) -> None:
        self.parameters, self._masking = dict(parameters), masking
        self._clip, self._is_8bit = config.clip, config.optimizer == "adamw_8bit"
        is_offloaded = config.optimizer == "adamw_offload"
        dense = masking.lost.keys() if masking and masking.refresh else ()
        self._updated = {
            name: _on_host(p) if is_offloaded else nn.Parameter(p.data.clone()) if name in dense else p
            for name, p in parameters.items()
        }
        if decayed is None:
            decayed = {name for name, p in parameters.items() if p.ndim >= 2}
        groups = [
            {
                "params": [p for name, p in self._updated.items() if name in decayed],
                "weight_decay": config.weight_decay,
            },
            {"params": [p for name, p in self._updated.items() if name not in decayed], "weight_decay": 0.0},
        ]
        self._adamw = _adamw_8bit(groups, config) if self._is_8bit else _adamw(groups, config)
        self._mask_weights_()

    @property
    def gradients(self) -> list[Tensor]:
        """Gradients to sum over processes. Those of sharded parameters are not among them: FSDP has summed them."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        return [gradient for gradient in gradients if not isinstance(gradient, DTensor)]

    def clip_(self) -> Tensor:
        """Clip the gradient, that of masked parameters as they train, to a norm of at most `clip`; its norm before."""
        for name, masking, p, updated in self._masked():
            masking.mask_gradient_(name, p, updated.data)
        return whole(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self._clip))

    def step_(self, learning_rate: float) -> None:
        """Update the parameters, then drop the gradients."""
        for group in self._adamw.param_groups:
            group["lr"] = torch.tensor(learning_rate) if self._is_8bit else learning_rate
        for p, updated in self._copies():
            updated.grad = None if p.grad is None else p.grad.to(updated.device)
        with torch.compiler.set_stance("force_eager") if self._is_8bit and not self._is_on_gpu else nullcontext():
            self._adamw.step()
        self._use_updated_()
        self.drop_gradients_()

    def refresh_masks_(self) -> None:
        """Choose the weights that are lost again. All processes must call this."""
        for name, masking, _, updated in self._masked():
            masking.choose_(name, updated.data)
        self._use_updated_()

    def drop_gradients_(self) -> None:
        """Drop the gradients without a step."""
        for p in (*self.parameters.values(), *self._updated.values()):
            p.grad = None

    def weights(self) -> dict[str, Tensor]:
        """This process's rows of every parameter, not copied, as `parameter.NAME`.

        If masks are refreshed, they are the dense weights, and `lost.NAME` is what is masked of them.
        """
        weights = {f"parameter.{name}": local(p.data) for name, p in self._updated.items()}
        refreshed = self._masking.lost if self._masking and self._masking.refresh else {}
        return weights | {f"lost.{name}": lost for name, lost in refreshed.items()}

    def tensors(self) -> dict[str, Tensor]:
        """This process's rows of the whole state: weights, and moments of parameters that have had a gradient."""
        tensors = self.weights()
        for name, p in self._updated.items():
            if state := self._adamw.state.get(p):
                tensors[f"step.{name}"] = state["step"]
                for moment in MOMENTS:
                    tensors |= _stored(f"{moment}.{name}", local(state[moment]))
        return tensors

    def load_(self, saved: Saved, group: ProcessGroup) -> None:
        """Restore a saved state of any number of processes: from `tensors`, or from `weights` without moments."""
        for name, p in self.parameters.items():
            rows, updated = span(p.data, group), self._updated[name]
            local(p.data).copy_(saved.rows(f"parameter.{name}", *rows))
            if updated is not p:
                updated.data.copy_(p.data)
            if f"step.{name}" in saved:
                step = saved.rows(f"step.{name}")
                state: dict[str, Tensor] = {"step": step if self._is_8bit else step.to(updated.device)}
                for moment in MOMENTS:
                    state[moment] = _restored(moment, name, updated.data, saved, rows)
                self._adamw.state[updated] = state
        for name, masking, p, _ in self._masked():
            if f"lost.{name}" in saved:
                masking.lost[name] = saved.rows(f"lost.{name}", *span(p.data, group)).to(masking.lost[name].device)
        self._mask_weights_()

    def _use_updated_(self) -> None:
        """Copy the weights that the moments update, where they are a copy, to the parameters, and mask those."""
        for p, updated in self._copies():
            p.data.copy_(updated.data)
        self._mask_weights_()

    def _mask_weights_(self) -> None:
        for name, masking, p, updated in self._masked():
            masking.mask_(name, p.data)
            if masking.refresh is None and updated is not p:
                masking.mask_(name, updated.data)

    def _masked(self) -> Iterator[tuple[str, Masking, nn.Parameter, nn.Parameter]]:
        """Each masked parameter, and the copy of it that the moments update, or itself; none in a dense model."""
        if self._masking:
            for name in self._masking.lost:
                yield name, self._masking, self.parameters[name], self._updated[name]

    def _copies(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Each parameter with the copy that the moments update, where that is not itself: offloaded, or masked."""
        both = zip(self.parameters.values(), self._updated.values(), strict=True)
        return [(p, updated) for p, updated in both if updated is not p]

    @property
    def _is_on_gpu(self) -> bool:
        return any(p.device.type != "cpu" for p in self.parameters.values())


def _adamw(groups: list[dict[str, Any]], config: DistillConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _adamw_8bit(groups: list[dict[str, Any]], config: DistillConfig) -> torch.optim.Optimizer:
    """torchao's AdamW; tensors of fewer than 4,096 values keep moments in fp32."""
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of kernels that are for other hardware
    from torchao.optim import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(groups, lr=config.learning_rate, betas=config.betas, block_size=BLOCK)
    return made


def _on_host(p: nn.Parameter) -> nn.Parameter:
    copy = torch.empty_like(p.data, device="cpu", pin_memory=p.is_cuda)
    return nn.Parameter(copy.copy_(p.data))


def _stored(name: str, moment: Any) -> dict[str, Tensor]:
    """A moment as plain tensors: itself or, in 8 bits, its codes and the scale of each block."""
    codes = getattr(moment, "codes", None)
    return {name: moment} if codes is None else {name: codes, f"scale.{name}": moment.scale}


def _restored(moment: str, name: str, p: Tensor, saved: Saved, rows: tuple[int, int]) -> Tensor:
    """A moment like `_stored` has left it, for the parameter `p`."""
    stored = saved.rows(f"{moment}.{name}", *rows)
    if f"scale.{moment}.{name}" not in saved:
        restored = torch.empty_like(p)
        local(restored).copy_(stored)
        return restored
    from torchao.optim.subclass_8bit import OptimState8bit

    in_8bit = OptimState8bit.zeros(p.shape, IS_SIGNED[moment], BLOCK, p.device, dtype=p.dtype)
    in_8bit.codes.copy_(stored)
    in_8bit.scale.copy_(saved.rows(f"scale.{moment}.{name}"))
    return in_8bit
