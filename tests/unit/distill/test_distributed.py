"""One process alone, and what "auto" precision means."""

import pytest
import torch

from minitron_cli.distill.distributed import ProcessGroup, resolve_precision


def test_alone_everything_is_ones_own() -> None:
    group = ProcessGroup("cpu")
    assert (group.rank, group.size, group.device) == (0, 1, torch.device("cpu"))
    tensor = torch.tensor([1.0, 2.0])
    group.sum_([tensor])
    assert tensor.tolist() == [1, 2]
    assert group.sum(2.5) == 2.5
    assert group.broadcast(7) == 7
    assert group.any(True)
    assert not group.any(False)
    group.barrier()


def test_a_precision_that_was_asked_for_is_used() -> None:
    assert resolve_precision("fp32", torch.device("cpu")) == "fp32"
    assert resolve_precision("bf16", torch.device("cpu")) == "bf16"


@pytest.mark.parametrize(("avx", "amx", "expected"), [(0, 0, "fp32"), (1, 0, "bf16"), (0, 1, "bf16")])
def test_auto_is_bf16_where_the_cpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, avx: int, amx: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    assert resolve_precision("auto", torch.device("cpu")) == expected
    assert resolve_precision("auto", torch.device("meta")) == "fp32"
