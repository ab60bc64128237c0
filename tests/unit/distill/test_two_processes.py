"""Two processes, each with a copy of the student, do what one does."""

import hashlib
import signal
from pathlib import Path
from typing import Any

import pytest

from minitron_cli import progress
from minitron_cli.errors import Interrupted
from tests.processes import together
from tests.unit.distill import small
from tests.unit.distill.test_trainer import FULL, PAIRS


def one_of_two(rank: int, scratch: Path, stop_after: int | None = None) -> dict[str, Any]:
    """Train as one of the processes; its figures, a hash of the weights, and the samples that it read."""
    if stop_after and rank == 1:  # a stop that only one of the two gets
        progress.show_on(small.AfterStep(stop_after, lambda: progress.request_stop(signal.SIGTERM)))
    blocks = small.TinyBlocks()
    try:
        student, result = small.run(scratch, FULL, pairs=PAIRS, blocks=blocks)
    except Interrupted as e:
        return {"exit_code": e.exit_code, "seen": blocks.seen}
    weights = b"".join(p.detach().numpy().tobytes() for p in student.parameters())
    figures = {"metrics": result.metrics, "validation": result.validation}
    return {**figures, "weights": hashlib.sha256(weights).hexdigest(), "seen": blocks.seen}


@pytest.mark.slow
def test_two_processes_train_like_one_and_resume_to_the_last_bit(tmp_path: Path) -> None:
    blocks = small.TinyBlocks()
    _, alone = small.run(None, FULL, pairs=PAIRS, blocks=blocks)
    both = together(2, one_of_two, tmp_path / "a")
    assert both[0]["weights"] == both[1]["weights"], "both hold the same student"
    for ours, theirs in zip(both[0]["metrics"] + both[0]["validation"], alone.metrics + alone.validation, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)  # sums in another order
    for step in range(FULL.steps or 0):
        first, batch = step * FULL.batch_size, FULL.batch_size
        halves = [rank["seen"][first // 2 : (first + batch) // 2] for rank in both]
        assert sorted(halves[0] + halves[1]) == sorted(blocks.seen[first : first + batch])

    stopped = together(2, one_of_two, tmp_path / "b", 3)
    assert [rank["exit_code"] for rank in stopped] == [143, 143]
    resumed = together(2, one_of_two, tmp_path / "b")
    assert resumed[0]["metrics"] == both[0]["metrics"]
    assert resumed[0]["validation"] == both[0]["validation"]
    assert resumed[0]["weights"] == both[0]["weights"]
