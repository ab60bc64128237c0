"""Checkpoints are whole or not there, verified before use, and rotated by number."""

import json
import os
from pathlib import Path

import pytest
import torch

from minitron_cli import io, progress, strict_json
from minitron_cli.distill import checkpoints
from minitron_cli.errors import ArtifactError
from tests.unit.distill.small import AfterStep

RUN = "a digest"


def save(scratch: Path, step: int, run: str = RUN, keep_last: int = 2) -> None:
    tensors = {"w": torch.full((2, 3), float(step)), "step": torch.tensor(float(step))}
    checkpoints.save(scratch, run, step, tensors, {"metrics": [{"loss": 0.1 * step}]}, keep_last)


def names(scratch: Path) -> list[str]:
    return sorted(path.name for path in scratch.iterdir())


@pytest.fixture
def display() -> AfterStep:
    shown = AfterStep()
    progress.show_on(shown)
    return shown


def test_what_is_saved_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 2), "b": torch.randn(2).bfloat16(), "n": torch.tensor(7.0)}
    record = {"metrics": [{"loss": 0.1 + 0.2, "step": 3}], "validation": []}
    checkpoints.save(tmp_path / "new", RUN, 3, tensors, record, 2)
    assert checkpoints.newest(tmp_path / "new", RUN) == 3
    saved = checkpoints.load(tmp_path / "new", 3)
    assert saved.step == 3
    assert saved.record == record
    assert all(name in saved for name in tensors)
    assert "b2" not in saved
    assert all(torch.equal(saved.rows(name), tensor) for name, tensor in tensors.items())


def test_curves_of_a_long_run_are_no_damage(tmp_path: Path, display: AfterStep) -> None:
    curves = "x" * (strict_json.MAX_BYTES + 1)
    checkpoints.save(tmp_path, RUN, 3, {"w": torch.zeros(1)}, {"metrics": curves}, 2)
    assert checkpoints.newest(tmp_path, RUN) == 3
    assert checkpoints.load(tmp_path, 3).record["metrics"] == curves
    assert display.warned == []


def test_nothing_saved_is_nothing_found(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path, RUN) is None
    assert checkpoints.newest(tmp_path / "absent", RUN) is None


def test_the_newest_by_number_stay(tmp_path: Path) -> None:
    for step in (8, 9, 10, 1_000_000):
        save(tmp_path, step, keep_last=3)
        os.utime(tmp_path / f"step-{step:06d}", (10**9 - step, 10**9 - step))  # a clock that ran backwards
    assert names(tmp_path) == ["step-000009", "step-000010", "step-1000000"]
    assert checkpoints.newest(tmp_path, RUN) == 1_000_000


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "state.safetensors").unlink(),
        lambda path: (path / "state.json").unlink(),
        lambda path: (path / "state.json").write_text("{"),
        lambda path: (path / "state.json").write_text("{}"),
        lambda path: (path / "state.json").write_text('{"content": 3, "sha256": ""}'),
        lambda path: os.truncate(path / "state.safetensors", 100),
        lambda path: _flip(path / "state.safetensors", -1),
        lambda path: _change_a_figure(path / "state.json"),
    ],
    ids=["no tensors", "no record", "half json", "empty json", "wrong json", "truncated", "flipped bit", "figure"],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, display: AfterStep, damage: object) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path / "step-000002")
    assert checkpoints.newest(tmp_path, RUN) == 1
    assert len(display.warned) == 1
    assert "step-000002 is damaged" in display.warned[0]
    assert names(tmp_path) == ["step-000001"], "so that the step can be saved again"


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def _change_a_figure(path: Path) -> None:
    outer = json.loads(path.read_text())
    outer["content"]["record"]["metrics"][0]["loss"] = 0.5
    path.write_text(json.dumps(outer))


def test_all_damaged_is_nothing_found(tmp_path: Path, display: AfterStep) -> None:
    for step in (1, 2):
        save(tmp_path, step)
        (tmp_path / f"step-{step:06d}" / "state.json").unlink()
    assert checkpoints.newest(tmp_path, RUN) is None
    assert len(display.warned) == 2


def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, run="another")
    with pytest.raises(ArtifactError, match="--no-resume"):
        checkpoints.newest(tmp_path, RUN)
    assert names(tmp_path) == ["step-000001"]


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    class Full(io.Disk):
        def write(self, fd: int, data: memoryview, offset: int) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(io, "disk", Full())
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert names(tmp_path) == ["step-000001"]
    assert checkpoints.newest(tmp_path, RUN) == 1


def test_what_a_killed_save_left_is_swept(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".tmp-step-000002-1-ab").mkdir()
    checkpoints.newest(tmp_path, RUN)
    assert names(tmp_path) == ["step-000001"]


def test_clear_removes_all_of_them(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2, run="another")
    checkpoints.clear(tmp_path)
    assert names(tmp_path) == []
