"""Which device a command runs on."""

import pytest
import torch

from minitron_cli import device
from minitron_cli.errors import EnvironmentFault


@pytest.fixture
def _a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator that has no fp64, and says so as torch does."""
    ones = torch.ones

    def on_mps(*size: int, dtype: torch.dtype | None = None, device: str = "cpu") -> torch.Tensor:
        if device == "mps" and dtype == torch.float64:
            raise TypeError("the MPS framework doesn't support float64. Please use float32 instead.")
        return ones(*size, dtype=dtype)

    monkeypatch.setattr(torch, "ones", on_mps)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))


@pytest.mark.usefixtures("_a_mac")
def test_an_accelerator_that_has_no_fp64_is_not_chosen() -> None:
    assert device.resolve("auto") == "cpu"
    with pytest.raises(EnvironmentFault, match="device 'mps' is missing or lacks float64"):
        device.resolve("mps")


def test_a_device_that_is_not_there_is_refused() -> None:
    assert device.resolve("cpu") == "cpu"
    for absent in ("cuda:99", "abacus"):
        with pytest.raises(EnvironmentFault, match=f"device '{absent}' is missing or lacks float64"):
            device.resolve(absent)


def test_a_device_that_has_room_for_numbers_and_computes_nothing_is_refused() -> None:
    """As an accelerator may give memory to fp64 and have no kernels for it."""
    with pytest.raises(EnvironmentFault, match="device 'meta' is missing or lacks float64"):
        device.resolve("meta")
