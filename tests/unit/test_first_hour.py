"""The script that follows the README on a fresh clone: what it keeps of a command, and what it writes."""

import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import first_hour
from first_hour import Command, Record, followed, page


def record(line: str, printed: str = "", code: int = 0) -> Record:
    return Record(line, code, 60.0, 30.0, 1 << 30, printed)


def test_a_command_that_is_done_is_not_run_again(tmp_path: Path) -> None:
    command = Command("echo once >> log; cat log", "README")
    first = followed(command, tmp_path, tmp_path / "1.json")
    assert (first.code, first.printed, first.runs) == (0, "once\n", 1)
    assert first.peak_bytes > 100_000
    assert followed(command, tmp_path, tmp_path / "1.json") == first
    assert (tmp_path / "log").read_text() == "once\n"


def test_one_that_failed_is_run_again_and_its_times_add_up(tmp_path: Path) -> None:
    command = Command("echo x >> log; sleep 0.1; test $(wc -l < log) = 2", "README")
    first = followed(command, tmp_path, tmp_path / "1.json")
    second = followed(command, tmp_path, tmp_path / "1.json")
    assert (first.code, second.code, second.runs) == (1, 0, 2)
    assert second.seconds > first.seconds + 0.1


def test_another_command_in_its_place_is_a_new_one(tmp_path: Path) -> None:
    followed(Command("echo a", ""), tmp_path, tmp_path / "1.json")
    assert followed(Command("echo b", ""), tmp_path, tmp_path / "1.json").printed == "b\n"


def test_nothing_is_run_after_the_first_failure() -> None:
    records = iter([record("a"), record("b", code=3), record("c")])
    assert [one.line for one in first_hour._until_failure(records)] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "stays"),
    [
        ("calibrate  8/64 samples  0:13 left", False),
        ("prune  583/831 MB  0:05 left", False),
        ("distill  2/6 steps  loss 0.1309  tokens/s 375  0:18 left", False),
        ("calibrate  64/64 samples  in 0:52", True),
        ("importance  calibration  8.19 k  5.95e12", True),
        ("evaluate: 5 models on 96 blocks of 256 tokens, 319 k tokens", True),
    ],
)
def test_progress_is_left_out_and_all_else_stays(line: str, stays: bool) -> None:
    assert list(first_hour._plain(line)) == [line] * stays


def test_the_page_names_no_place_of_this_machine(tmp_path: Path) -> None:
    one = record(f"minitron inspect {tmp_path}/model", f"read {tmp_path}/model\n")
    text = "\n".join(page([one], ["README"], {f"{tmp_path}/model": "~/model"}, "One run."))
    assert "| 1. minitron inspect | 0 | 60 | 30 | 1.00 |" in text
    assert "read ~/model" in text
    assert str(tmp_path) not in text
