"""Sharded models: each process holds some rows of every parameter, of its gradient and of its moments.

torch's `fully_shard` gathers a decoder layer's rows when the layer runs and frees them afterwards. The parameters
outside the layers (embedding, last norm, head) are one more such unit. Rows are consecutive and in the order of the
ranks, split as by `torch.chunk`.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minitron_cli import memory
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.distributed import Precision, ProcessGroup
from minitron_cli.distill.optimizer_kinds import OptimizerKind, trained_bytes
from minitron_cli.errors import EnvironmentFault


class RowReader(Protocol):
    """Reads rows of a model's weights from wherever they are stored."""

    def __call__(self, name: str, like: Tensor, start: int, stop: int) -> Tensor:
        """Rows `start:stop` of the parameter `name` of the model in memory, on the CPU.

        `like` has the whole parameter's shape and dtype.
        """


def is_wanted(config: DistillConfig, group: ProcessGroup, trained: int, beside: int) -> bool:
    """Whether to shard a student with `trained` parameters; `beside` as for `fits_replicated`."""
    if group.size == 1 or config.sharding == "none" or config.kept_whole:
        return False
    if config.sharding == "full":
        return True
    bytes_each = config.optimizer, trained, beside
    return group.any(not fits_replicated(str(group.device), group.local_size, *bytes_each))


def fits_replicated(device: str, processes: int, optimizer: OptimizerKind, trained: int, beside: int) -> bool:
    """Whether this many processes of one machine can each hold both models whole; on the CPU they share its memory.

    `beside`: bytes of the teacher, and of the student's masks.
    """
    on_one_device = processes if device.startswith("cpu") else 1
    return memory.fits(int(trained * trained_bytes(optimizer).on(device) + beside) * on_one_device, 0, device)


def shard_(root: nn.Module, layers: Iterable[nn.Module], group: ProcessGroup, precision: Precision) -> None:
    """Leave each process only its rows of `root`; compute with trained parameters in `precision`.

    Weights may be on the CPU, the same in all processes, or on the meta device until `fill_`. EnvironmentFault if torch
    is too old.
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
    """Fill `model`, a part of the sharded `root`, with this process's rows of its weights."""
    root._apply(lambda t: torch.empty_like(t, device=group.device) if t.is_meta else t)
    for name, p in model.named_parameters():
        local(p.data).copy_(rows(name, p, *span(p.data, group)))
    for name, buffer in stored_buffers(model):
        buffer.copy_(rows(name, buffer, 0, len(buffer) if buffer.ndim else 1).reshape(buffer.shape))


def release(root: nn.Module) -> None:
    """Free the weights that a forward pass without a backward pass has gathered."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(root, FSDPModule):
        root.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's rows of a tensor, or all of it if it is not sharded; in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def span(tensor: Tensor, group: ProcessGroup) -> tuple[int, int]:
    """First row of the whole tensor that `local` has, and one after the last."""
    if not isinstance(tensor, DTensor):
        return 0, len(tensor)
    start = min(group.rank * -(-len(tensor) // group.size), len(tensor))
    return start, start + len(local(tensor))


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor. If it is sharded, all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter, whole, one at a time, which bounds memory, then stored buffers. All processes must iterate."""
    for name, p in model.named_parameters():
        yield name, whole(p.data)
    yield from stored_buffers(model)


def stored_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that are part of a checkpoint, such as a router's correction bias."""
    stored = model.state_dict().keys() if any(True for _ in model.buffers()) else ()
    return ((name, buffer) for name, buffer in model.named_buffers() if name in stored)
