"""Two processes under torchrun do what one does."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.distill import small
from tests.unit.distill.test_trainer import FULL, PAIRS

ROOT = Path(__file__).parents[3]


def torchrun(out: Path, scratch: Path, *arguments: str) -> list[dict[str, Any]]:
    out.mkdir()
    script = str(Path(__file__).with_name("one_of_two.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = subprocess.Popen([*command, str(out), str(scratch), *arguments], env=environment, start_new_session=True)
    try:
        assert launcher.wait(timeout=120) == 0
    except subprocess.TimeoutExpired:
        os.killpg(launcher.pid, signal.SIGKILL)  # its workers as well
        raise
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_two_processes_train_like_one_and_resume_to_the_last_bit(tmp_path: Path) -> None:
    blocks = small.TinyBlocks()
    _, alone = small.run(None, FULL, pairs=PAIRS, blocks=blocks)
    both = torchrun(tmp_path / "whole", tmp_path / "a")
    assert both[0]["weights"] == both[1]["weights"], "both hold the same student"
    for ours, theirs in zip(both[0]["metrics"] + both[0]["validation"], alone.metrics + alone.validation, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)  # sums in another order
    for step in range(FULL.steps or 0):
        first, batch = step * FULL.batch_size, FULL.batch_size
        halves = [rank["seen"][first // 2 : (first + batch) // 2] for rank in both]
        assert sorted(halves[0] + halves[1]) == sorted(blocks.seen[first : first + batch])

    stopped = torchrun(tmp_path / "stopped", tmp_path / "b", "3")
    assert [rank["exit_code"] for rank in stopped] == [143, 143]
    resumed = torchrun(tmp_path / "resumed", tmp_path / "b")
    assert resumed[0]["metrics"] == both[0]["metrics"]
    assert resumed[0]["validation"] == both[0]["validation"]
    assert resumed[0]["weights"] == both[0]["weights"]
