"""Which device a command runs on."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from minitron_cli import device
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.errors import EnvironmentFault
from minitron_cli.layerwise.processes import join_processes
from tests.cli.program import invoke
from tests.processes import together


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


@pytest.mark.usefixtures("_a_mac")
def test_an_accelerator_that_has_no_fp64_may_evaluate_if_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert device.resolve("mps", needs_float64=False) == "mps"
    assert device.resolve("auto", needs_float64=False) == "cpu"
    assert "lacks float64" in invoke("importance", "absent", "--data", "python_stdlib", "--device", "mps").stderr
    evaluated = invoke("eval", "absent", "--data", "python_stdlib", "--device", "mps")
    assert evaluated.exit_code == 2
    assert "float64" not in evaluated.stderr


def test_a_device_that_is_not_there_is_refused() -> None:
    assert device.resolve("cpu") == "cpu"
    for absent in ("cuda:99", "abacus"):
        with pytest.raises(EnvironmentFault, match=f"device '{absent}' is missing or lacks float64"):
            device.resolve(absent)


def test_a_device_that_has_room_for_numbers_and_computes_nothing_is_refused() -> None:
    """As an accelerator may give memory to fp64 and have no kernels for it."""
    with pytest.raises(EnvironmentFault, match="device 'meta' is missing or lacks float64"):
        device.resolve("meta")


@pytest.mark.parametrize("has_bf16", [False, True])
def test_the_environment_says_whether_the_cpu_has_instructions_for_bf16(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    found = json.loads(invoke("env", "--json").stdout)
    assert ("no instructions for bf16" in found["cpu"]) != has_bf16


def test_a_cpu_has_one_name() -> None:
    assert device.resolve("cpu:0") == "cpu"


def _names(rank: int) -> tuple[str, str]:
    return join_processes("cpu")[1], str(ProcessGroup("cpu").device)


@pytest.mark.slow
def test_a_cpu_that_a_launcher_numbers_has_the_same_name() -> None:
    """By its name it is known whether it multiplies bf16, and with it the precision of a training."""
    assert together(2, _names) == [("cpu", "cpu")] * 2


def test_whoever_makes_the_group_first_sets_the_timeout(monkeypatch):
    """accelerate has one state for all: importance made it with torch's half an hour, and a training got that."""
    given = []

    class State:
        num_processes, process_index, device = 2, 0, torch.device("cpu")

        def __init__(self, **settings):
            given.append(settings["timeout"])

    monkeypatch.setattr("accelerate.PartialState", State)
    monkeypatch.setenv("WORLD_SIZE", "2")
    join_processes("cpu")
    ProcessGroup("cpu")
    assert given == [timedelta(hours=2)] * 2
