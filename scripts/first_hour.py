"""Follow the README on a fresh clone with a model and a text of one's own, and write down all that happened.

    python scripts/first_hour.py MODEL --data text.txt --validation held-out.txt --work DIRECTORY

Clones this repository into a new folder, and runs there the commands of the README and the quickstart in their order,
each as a shell line and with sizes that two CPU cores can do. Of each it keeps the exit code, the time, the memory and
what was printed, and ends with the first one that fails. Started again, it repeats no command that is done; one that
failed or was interrupted is run again, and its times add up.
"""

import argparse
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from minitron_cli import io

ROOT = Path(__file__).parents[1]
GIB = 1 << 30
PROGRESS = re.compile(r"^.+  \d[\d,.]*/\d[\d,.]* [A-Za-z]+(  .*)?$")
LAST = re.compile(r"  in \d+(:\d\d)+$")
"""A line of a progress bar, and how its last one ends."""
MODEL, DATA, HELD_OUT = "~/model", "~/text/calibration.txt", "~/text/held-out.txt"  # on the page
LOAD = """python - <<'END'
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("small", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("small")
ids = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=12, do_sample=False)[0]))
END"""


@dataclass(frozen=True)
class Command:
    """A shell line, and where a reader finds it."""

    line: str
    source: str


def commands(model: str, data: str, held_out: str) -> list[Command]:
    """What is run in the clone, in this order."""
    text = f"--data {data} --validation {held_out}"
    return [
        Command("make demo", "README, Try it"),
        Command("minitron env", "quickstart, Install"),
        Command(f"minitron inspect {model}", "quickstart, Inspect before computing"),
        Command(f"minitron importance {model} {text} --sequence-length 256 --samples 32", "README; smaller"),
        Command("minitron prune --shape ffn=3648 repair_samples=8 --dry-run", "README, Use"),
        Command("minitron prune --shape ffn=3648 repair_samples=8", "README, Use; less text"),
        Command("minitron distill --tokens 4k --batch-size 4 --lr 1e-5 eval_blocks=4 -o small", "README; smaller"),
        Command("minitron eval blocks=8", "README; fewer blocks"),
        Command("minitron report -o report.html", "quickstart, On a laptop"),
        Command("minitron show cost", "quickstart"),
        Command("minitron verify", "README, Use"),
        Command(LOAD, "quickstart, Load the result"),
    ]


@dataclass(frozen=True)
class Record:
    """What a command did, over all runs that it took."""

    line: str
    code: int
    seconds: float
    cpu_seconds: float
    """Of all threads, and of the processes that it started."""
    peak_bytes: int
    """Largest resident memory of one process."""
    printed: str
    runs: int = 1


def followed(command: Command, clone: Path, path: Path) -> Record:
    """The record of a command, which is run in the clone unless it is done, and kept at `path`."""
    known = Record(**json.loads(path.read_text())) if path.is_file() else None
    if known and known.line == command.line and known.code == 0:
        return known
    before = known if known and known.line == command.line else Record(command.line, 0, 0.0, 0.0, 0, "", 0)
    print(f"$ {command.line}", flush=True)
    record = _run(command.line, clone, before)
    io.make_dirs(path.parent)
    io.replace(path, json.dumps(asdict(record), indent=1).encode())
    return record


def _run(line: str, clone: Path, before: Record) -> Record:
    """The record of one run of a shell line, on top of what earlier runs took. Its output is passed on."""
    started, printed = time.monotonic(), bytearray()
    process = subprocess.Popen(
        ["bash", "-c", line], cwd=clone, env=_activated(clone), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while chunk := os.read(process.stdout.fileno(), 1 << 16):
        printed += chunk
        sys.stdout.buffer.write(chunk)
        sys.stdout.flush()
    _, status, used = os.wait4(process.pid, 0)  # not `wait`, which tells nothing of this child alone
    return Record(
        line,
        os.waitstatus_to_exitcode(status),
        before.seconds + time.monotonic() - started,
        before.cpu_seconds + used.ru_utime + used.ru_stime,
        max(before.peak_bytes, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)),
        printed.decode(errors="replace"),
        before.runs + 1,
    )


def _activated(clone: Path) -> dict[str, str]:
    """The environment as `source .venv/bin/activate` leaves it, if there is one, and 80 columns."""
    venv = clone / ".venv"
    paths = f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"
    left = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return {**left, "COLUMNS": "80", **({"PATH": paths, "VIRTUAL_ENV": str(venv)} if venv.is_dir() else {})}


def page(records: Sequence[Record], sources: Sequence[str], shown: dict[str, str], remark: str) -> Iterator[str]:
    """Lines of Markdown: a table of all commands, then what each printed."""
    total, cpu = sum(one.seconds for one in records), sum(one.cpu_seconds for one in records)
    yield from ("# A first hour, from a fresh clone", "", __doc__.strip().partition("\n\n")[2].partition("\n\n")[2], "")
    yield f"{remark} {len(records)} commands, {total / 60:.0f} minutes, {cpu / 60:.0f} CPU minutes."
    yield from ("", "After `make demo`: `source .venv/bin/activate`. Lines of progress bars are left out.", "")
    yield from ("| command | exit code | seconds | CPU seconds | peak memory (GiB) |", "|---|--:|--:|--:|--:|")
    for number, one in enumerate(records, 1):
        figures = f"{one.code} | {one.seconds:.0f} | {one.cpu_seconds:.0f} | {one.peak_bytes / GIB:.2f}"
        yield f"| {number}. {' '.join(one.line.split()[:2])} | {figures} |"
    for number, (one, source) in enumerate(zip(records, sources, strict=True), 1):
        again = f" Run {one.runs} times; the last one printed:" if one.runs > 1 else ""
        yield from ("", f"## {number}. {source}", "", "```bash", _hidden(one.line, shown), "```", "")
        yield from (*([again.strip(), ""] if again else []), "```output", *_plain(_hidden(one.printed, shown)), "```")


def _plain(printed: str) -> Iterator[str]:
    """Lines that stay on the screen."""
    for line in printed.splitlines():
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rstrip()
        if LAST.search(text) or not PROGRESS.match(text):
            yield text


def _hidden(text: str, shown: dict[str, str]) -> str:
    for own, name in shown.items():
        text = text.replace(own, name)
    return text


def _until_failure(records: Iterator[Record]) -> Iterator[Record]:
    """The records up to the first command that failed, which is the last to be run."""
    for one in records:
        yield one
        if one.code:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="directory of a model")
    parser.add_argument("--data", type=Path, required=True, help="text to calibrate and train on")
    parser.add_argument("--validation", type=Path, required=True, help="held-out text")
    parser.add_argument("--work", type=Path, required=True, help="a new folder, for the clone and the records")
    parser.add_argument("--commands", type=int, help="only the first ones")
    parser.add_argument("--remark", default="One run.", help="sentence on the machine and what else it did")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "first-hour.md")
    args = parser.parse_args()
    work, clone = args.work.resolve(), args.work.resolve() / "minitron"
    own = [str(path.expanduser().resolve()) for path in (args.model, args.data, args.validation)]
    if not clone.is_dir():
        io.make_dirs(work)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    wanted = commands(*map(shlex.quote, own))[: args.commands]
    records = list(_until_failure(followed(one, clone, work / f"{i:02d}.json") for i, one in enumerate(wanted, 1)))
    shown = {
        platform.platform(): platform.system(),
        str(clone): "~/minitron",
        str(work): "~",
        **dict(zip(own, (MODEL, DATA, HELD_OUT), strict=True)),
    }
    sources = [one.source for one in wanted[: len(records)]]
    text = "\n".join(page(records, sources, shown, args.remark)).rstrip() + "\n"
    args.output.write_text(text)
    sys.exit(any(one.code for one in records))


if __name__ == "__main__":
    main()
