"""The device that stages compute on, and what it multiplies natively. Imports torch only when asked."""

import platform
from typing import TYPE_CHECKING

from minitron_cli.errors import EnvironmentFault

if TYPE_CHECKING:
    import torch


def resolve(name: str, *, needs_float64: bool = True) -> str:
    """Name of a usable device. `auto` is the first accelerator with float64, in which sums are kept, else the CPU.

    Without `needs_float64` a device that is named may lack it, as mps does. EnvironmentFault if it cannot be used.
    """
    import torch

    if name == "auto":
        first = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return str(first) if first and _is_usable(str(first)) else "cpu"
    if not _is_usable(name, needs_float64):
        raise EnvironmentFault(
            f"device {name!r} is missing or lacks float64: omit --device, or list devices with `minitron env`"
        )
    return str(without_index(torch.device(name)))


def without_index(device: "torch.device") -> "torch.device":
    """The device, without a number if it is a CPU: launchers number what is one device and has one name here."""
    import torch

    return torch.device("cpu") if device.type == "cpu" else device


def _is_usable(name: str, needs_float64: bool = True) -> bool:
    import torch

    try:
        # The sum fails on devices that can store float64 and not add it.
        torch.ones(1, dtype=torch.float64 if needs_float64 else torch.float32, device=name).sum().item()
    except (RuntimeError, AssertionError, TypeError):  # TypeError: no float64, as on Apple's mps
        return False
    return True


def settle_threads() -> None:
    """Make the CPU's products those of any process with as many threads.

    Until a process first sets the number of threads, MKL may take fewer of them for a product, and adds in another
    order. Writing a model sets it, so what a process had done before would decide of the last bits.
    """
    import torch

    torch.set_num_threads(torch.get_num_threads())


def multiplies_bf16(device: str) -> bool:
    """Whether the hardware has instructions for products of bf16. Of CPUs, those of x86 are known."""
    import torch

    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)


def emulates(dtype: "torch.dtype", device: str) -> bool:
    """Whether a device is known to compute in 16 bits by other instructions, several times slower than in fp32."""
    import torch

    if device != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return dtype == torch.float16 or (dtype == torch.bfloat16 and not multiplies_bf16(device))
