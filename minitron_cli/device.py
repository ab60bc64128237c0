"""Choice of the device that stages compute on. Imports torch only when asked."""

from minitron_cli.errors import EnvironmentFault


def resolve(name: str) -> str:
    """Name of a usable device. `auto` is the first accelerator with float64, in which sums are kept, else the CPU.

    EnvironmentFault if a device that was named cannot be used.
    """
    import torch

    if name == "auto":
        first = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return str(first) if first and _is_usable(str(first)) else "cpu"
    if not _is_usable(name):
        raise EnvironmentFault(
            f"device {name!r} is missing or lacks float64: omit --device, or list devices with `minitron env`"
        )
    return name


def _is_usable(name: str) -> bool:
    import torch

    try:
        # The sum fails on devices that can store float64 and not add it.
        torch.ones(1, dtype=torch.float64, device=name).sum().item()
    except (RuntimeError, AssertionError, TypeError):  # TypeError: no float64, as on Apple's mps
        return False
    return True
