"""One copy of everything for all processes: each holds some rows of every parameter, its gradient and its moments.

torch's `fully_shard` gathers a decoder layer's rows when the layer runs and lets them go again; what stands outside the
layers (embedding, last norm, head) is one more such unit. Rows are consecutive, in the order of the processes, as
`torch.chunk` deals them.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minitron_cli import memory
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.distributed import Precision, ProcessGroup
from minitron_cli.errors import EnvironmentFault

TRAINED_BYTES = 16  # of a parameter in fp32: itself, its gradient, two moments


class RowReader(Protocol):
    """A model's weights, wherever they are: rows `start:stop` of a parameter by its name in the live model.

    `like` has the whole parameter's shape and dtype; what comes back is on the CPU.
    """

    def __call__(self, name: str, like: Tensor, start: int, stop: int) -> Tensor: ...


def is_wanted(config: DistillConfig, group: ProcessGroup, trained: int, teacher_bytes: int) -> bool:
    """Whether to shard a student of so many trained parameters, and a teacher of so many bytes."""
    if group.size == 1 or config.sharding == "none":
        return False
    if config.sharding == "full":
        return True
    on_one_machine = group.local_size if group.device.type == "cpu" else 1
    needed = (trained * TRAINED_BYTES + teacher_bytes) * on_one_machine
    return group.any(not memory.fits(needed, 0, str(group.device)))


def shard_(root: nn.Module, layers: Iterable[nn.Module], group: ProcessGroup, precision: Precision) -> None:
    """Leave each process its rows of `root`; parameters that are trained are computed with in `precision`.

    Weights may be on the CPU, the same in all processes, or nowhere yet (on the meta device): see `fill_`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise EnvironmentFault("sharding needs a newer torch: upgrade it, or set distill.sharding=none")
    is_trained = any(p.requires_grad for p in root.parameters())
    dtype = torch.bfloat16 if is_trained and precision == "bf16" else None
    policy: Any = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None)
    mesh = init_device_mesh(group.device.type, (group.size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(root, mesh=mesh, mp_policy=policy, reshard_after_forward=False)  # the losses need the head
    for module in root.modules():
        if isinstance(module, FSDPModule):  # sums, not means: losses are divided by the whole batch's tokens
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def fill_(root: nn.Module, model: nn.Module, group: ProcessGroup, rows: RowReader) -> None:
    """Give `model`, a part of the sharded `root` that has no weights yet, this process's rows of them."""
    root._apply(lambda t: torch.empty_like(t, device=group.device) if t.is_meta else t)
    for name, p in model.named_parameters():
        local(p.data).copy_(rows(name, p, *span(p.data, group)))


def release(root: nn.Module) -> None:
    """Let go of what a forward pass without a backward pass has gathered."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(root, FSDPModule):
        root.reshard()


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, in the same memory: its rows, or all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def span(tensor: Tensor, group: ProcessGroup) -> tuple[int, int]:
    """Which rows of the whole `local` has: first, and one after the last."""
    if not isinstance(tensor, DTensor):
        return 0, len(tensor)
    start = min(group.rank * -(-len(tensor) // group.size), len(tensor))
    return start, start + len(local(tensor))


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. If it is sharded, all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter, whole, one after the other: at no time are there two. All processes must ask."""
    for name, p in model.named_parameters():
        yield name, whole(p.data)
