"""Run the campaign: `python -m tests.faults.campaign --out docs/results/reliability.md`.

Every trial is one run of a command under one fault; the page has the number of trials of each kind that went right
and wrong, and a line for each that went wrong. `--only` and `--quick` do less.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.faults.campaign.outcomes import Outcome, wrong_ones
from tests.faults.campaign.page import page
from tests.faults.campaign.tasks import QUICK, Task, begin, full, perform

MEMORY = Path("/dev/shm")


def main() -> None:
    """Perform the tasks in several processes, each with a setting of its own, and write the page."""
    asked = _arguments()
    tasks = [task for task in (QUICK if asked.quick else full()) if asked.only in str(task)]
    begun = time.monotonic()
    where = {"dir": MEMORY} if MEMORY.is_dir() else {}
    with tempfile.TemporaryDirectory(prefix="minitron-campaign-", **where) as place:
        done = [outcome for found in _performed(tasks, asked.jobs, Path(place)) for outcome in found]
    text = page(done, time.monotonic() - begun, " ".join(["python -m tests.faults.campaign", *sys.argv[1:]]))
    if asked.out:
        asked.out.write_text(text)
    print(text)
    raise SystemExit(bool(wrong_ones(done)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the page to this file as well")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="groups and verbs that contain this, such as malformed or demo"
    )
    parser.add_argument("--quick", action="store_true", help="a few trials of each kind, in half a minute")
    parser.add_argument("--jobs", type=int, default=2, help="processes that perform trials side by side")
    return parser.parse_args()


def _performed(tasks: list[Task], jobs: int, place: Path) -> list[list[Outcome]]:
    """Outcomes of each task, in the order of the tasks."""
    context = multiprocessing.get_context("fork")  # with what this process has imported
    with ProcessPoolExecutor(jobs, context, initializer=begin, initargs=(place,)) as pool:
        waiting = {pool.submit(perform, task): i for i, task in enumerate(tasks)}
        found: dict[int, list[Outcome]] = {}
        for future in as_completed(waiting):
            i = waiting[future]
            found[i] = future.result()
            wrong = sum(bool(outcome.problems) for outcome in found[i])
            print(
                f"{len(found)}/{len(tasks)} {tasks[i]}: {len(found[i])} tried, {wrong} wrong",
                file=sys.stderr,
                flush=True,
            )
    return [found[i] for i in range(len(tasks))]


if __name__ == "__main__":
    main()
