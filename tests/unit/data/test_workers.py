import operator
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from minitron_cli import stopping
from minitron_cli.data import workers
from minitron_cli.data.workers import mapping, processes_for
from minitron_cli.errors import EnvironmentFault, Interrupted


@pytest.mark.parametrize(
    ("size_bytes", "expected"), [(0, 1), (2 * workers.BYTES_EACH - 1, 1), (2 * workers.BYTES_EACH, 2), (None, 8)]
)
def test_processes_are_as_many_as_there_is_work_for_and_cores(size_bytes, expected, monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert processes_for(size_bytes) == expected


def test_no_more_processes_than_can_be_fed(monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: set(range(256)), raising=False)
    assert processes_for(None) == processes_for(1 << 50) == workers.MOST


def test_a_system_that_pins_no_process_has_all_its_cores(monkeypatch):
    """As macOS, whose `os` has no sched_getaffinity."""
    monkeypatch.delattr(workers.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 6)
    assert processes_for(None) == 6


@pytest.mark.slow
def test_results_come_in_the_order_of_the_jobs_and_few_are_taken_ahead():
    taken = []

    def jobs():
        for i in range(50):
            taken.append(i)
            yield i

    with mapping(partial, (operator.mul, 3), 2) as over:
        results = over(jobs())
        assert next(results) == 0
        assert len(taken) <= 5
        assert list(results) == [3 * i for i in range(1, 50)]


@pytest.mark.slow
def test_a_process_that_is_killed_is_named():
    with (
        pytest.raises(EnvironmentFault, match=r"a tokenizing process was killed.* run the command again"),
        mapping(partial, (os._exit,), 2) as over,
    ):
        list(over([9]))


@pytest.mark.slow
def test_a_killed_parent_leaves_no_process_behind(tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from functools import partial\n"
        "from minitron_cli.data.workers import mapping\n"
        "if __name__ == '__main__':\n"
        "    with mapping(partial, (eval,), 2) as over:\n"
        "        print(*over(['__import__(\"os\").getpid()'] * 4), flush=True)\n"
        "        time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        children = {int(pid) for pid in parent.stdout.readline().split()}
        parent.send_signal(signal.SIGKILL)
    assert children
    deadline = time.monotonic() + 20
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in children if is_alive(pid)]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_is_left_to_the_process_that_reads(number):
    """As a job of a cluster gets it: the tokenizing processes go on until the one that reads stops."""
    with mapping(partial, (_signalled, number), 2) as over:
        assert list(over(range(4))) == [0, 1, 2, 3]


def _signalled(number: int, job: int) -> int:
    os.kill(os.getpid(), number)
    return job


@pytest.mark.slow
def test_a_process_that_the_signal_killed_before_it_could_ignore_it_is_a_stop():
    stopping.request_stop(signal.SIGTERM)
    try:
        with pytest.raises(Interrupted), mapping(partial, (os._exit,), 2) as over:
            list(over([9]))
    finally:
        stopping.request_stop(None)
