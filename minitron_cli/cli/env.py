"""`minitron env`: versions and devices of this installation, for bug reports."""

import os
import platform
from importlib import metadata

from minitron_cli import __version__
from minitron_cli.cli.options import Show
from minitron_cli.device import emulates

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "safetensors", "huggingface-hub", "lm-eval", "pydantic")


def env(shown: Show) -> None:
    """Show library versions, devices and threads, for bug reports."""
    import torch

    from minitron_cli.cli import console

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    facts = {
        "minitron": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: _version(name) for name in LIBRARIES},
        "cpu": f"{os.cpu_count()} cores, {_instructions()}",
        "threads": torch.get_num_threads(),
        "accelerator": f"{torch.accelerator.device_count()} x {_name(accelerator)}" if accelerator else None,
        "offline": os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"),
    }
    console.fields("environment", facts, shown)


def _instructions() -> str:
    """Vector instructions of the CPU, and whether it has some for bf16 as far as that is known."""
    import torch

    found = torch.backends.cpu.get_cpu_capability()
    return f"{found}, no instructions for bf16" if emulates(torch.bfloat16, "cpu") else found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _name(accelerator: object) -> str:
    import torch

    return torch.cuda.get_device_name() if str(accelerator) == "cuda" else str(accelerator)
