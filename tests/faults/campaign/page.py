"""The page of the results, docs/results/reliability.md."""

import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from tests.faults.campaign.outcomes import Outcome, table, wrong_ones

LIBRARIES = ("torch", "transformers", "safetensors", "datasets", "pyarrow", "lm-eval")

TEXT = """\
# Reliability

Every row counts runs of a command under one fault. `make faults` repeats them all; the harness is in
`tests/faults/campaign/`.

- **Kills.** The command is stopped by KILL, TERM or INT at a moment of the clock between its start and its end; with
  `--gpus 2` the signal goes to the launcher, to a worker or to all. Then nothing half-written is in view, no process is
  left, and the same command, run again, makes the bytes of a run that nobody disturbed. *Programs* are started as a
  user starts them; *forks* are forks of a process that has imported the libraries already, run the same `main` in a
  process group of their own, and are hit more often in the work itself.
- **Full disks and limits.** The workspace is a file system of its own (tmpfs) with less room or fewer inodes than the
  command needs, or read-only, or the size of a file is limited. The command ends with exit code 3 and one sentence,
  earlier results are as they were, no temporary file is left, and with room the command makes the undisturbed bytes.
- **Malformed input.** The command ends with exit code 2 and one sentence, within {limit} seconds, and writes nothing.
  Where damage is random, what is left may be sound; then it is used, and that is right, too.
- **Code execution.** The input holds code that would make a file. The file never appears.
- **Negative controls.** Each harness with a seeded bug; right is that the harness notices it.

{date}, Python {python}, {libraries}; {machine}. `{command}` took {minutes:.0f} minutes.

{tried} trials, {wrong} of them wrong.

{table}

{problems}
"""


def page(done: Sequence[Outcome], seconds: float, command: str) -> str:
    """The page in Markdown."""
    from tests.faults.campaign.malformed import LIMIT_S

    wrong = wrong_ones(done)
    return TEXT.format(
        limit=LIMIT_S,
        date=datetime.now(UTC).date(),
        python=platform.python_version(),
        libraries=", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        machine=f"{sys.platform}, {os.cpu_count()} CPU cores, {platform.machine()}",
        command=command,
        minutes=seconds / 60,
        tried=len(done),
        wrong=len(wrong),
        table="\n".join(table(done)),
        problems="\n".join(["Wrong:", "", *wrong]) if wrong else "Nothing went wrong.",
    )
