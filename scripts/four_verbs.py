"""Run the README's four verbs on a model and a text, and print their time and memory.

    python scripts/four_verbs.py ~/qwen2.5-0.5b --data text.txt
    python scripts/four_verbs.py ~/qwen2.5-0.5b --data text.txt --target 75% --tokens 50k --megabytes 1

The verbs run as a user starts them, each in a process of its own, with no option but the model, the text, the target
and the number of tokens. A verb that is interrupted continues when the script is started again, and its seconds add up;
one that is done is not run again. Writes a Markdown table to --output, or prints it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from studies import write_page

from minitron_cli import io

MEGABYTE, GIB = 1_000_000, 1 << 30


@dataclass(frozen=True)
class Usage:
    """Time and memory of a verb, over all runs that it took."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of all threads, and of the processes that it started."""
    peak_bytes: int = 0
    """Largest resident memory."""
    first_output_seconds: float | None = None
    """Time to the first byte of output of the first run."""
    is_done: bool = False


@dataclass(frozen=True)
class Verbs:
    """The verbs on one model and text, and the files in which their figures are kept."""

    directory: Path

    def usage(self, verb: str, arguments: Sequence[str]) -> Usage:
        """Figures of a verb, which is run unless it is done. SystemExit if it fails."""
        path = self.directory / f"{verb}.json"
        known = Usage(**json.loads(path.read_text())) if path.is_file() else Usage()
        if known.is_done:
            return known
        found, code = run(["--run", "four-verbs", "--runs-dir", str(self.directory)], verb, arguments, known)
        io.replace(path, json.dumps(asdict(replace(found, is_done=code == 0)), indent=1).encode())
        if code:
            raise SystemExit(f"minitron {verb} ended with {code}: start the script again to continue")
        return found


def run(place: Sequence[str], verb: str, arguments: Sequence[str], known: Usage) -> tuple[Usage, int]:
    """Figures of `minitron VERB` on top of what earlier runs took, and its exit code. Its output is passed on."""
    command = [sys.executable, "-m", "minitron_cli", verb, *arguments, *place]
    print("minitron", verb, *arguments, flush=True)
    started, first = time.monotonic(), known.first_output_seconds
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout
    while chunk := os.read(process.stdout.fileno(), 1 << 16):
        first = time.monotonic() - started if first is None else first
        sys.stdout.buffer.write(chunk)
        sys.stdout.flush()
    _, status, used = os.wait4(process.pid, 0)  # not `wait`, which tells nothing of this child alone
    return (
        Usage(
            seconds=known.seconds + time.monotonic() - started,
            cpu_seconds=known.cpu_seconds + used.ru_utime + used.ru_stime,
            peak_bytes=max(known.peak_bytes, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)),
            first_output_seconds=first,
        ),
        os.waitstatus_to_exitcode(status),
    )


def table(rows: dict[str, Usage]) -> Iterator[str]:
    """Markdown table of all verbs, and of importance and prune together."""
    yield from ("| | seconds | CPU seconds | peak memory (GiB) | first output (s) |", "|---|---|---|---|---|")
    for command, used in rows.items():
        first = "" if used.first_output_seconds is None else f"{used.first_output_seconds:.2f}"
        yield (f"| `{command}` | {used.seconds:.0f} | {used.cpu_seconds:.0f} | {used.peak_bytes / GIB:.2f} | {first} |")


def first_part(text: Path, megabytes: float, directory: Path) -> Path:
    """File with the first megabytes of a text, cut at a line."""
    path = directory / text.name
    content = text.read_bytes()[: round(megabytes * MEGABYTE)]
    io.make_dirs(directory)
    io.replace(path, content[: content.rfind(b"\n") + 1])
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="directory of a model")
    parser.add_argument("--data", type=Path, required=True, help="text file")
    parser.add_argument("--megabytes", type=float, default=1.0, help="use this much of the text")
    parser.add_argument("--target", default="75%", help="size of the child")
    parser.add_argument("--tokens", default="50k", help="tokens of the distillation")
    parser.add_argument("--verbs", nargs="+", help="only these verbs; those before must be done")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="directory for results")
    parser.add_argument("--output", type=Path, help="page to write")
    args = parser.parse_args()
    directory = args.runs_dir / f"four-verbs-{args.model.name}"
    text = first_part(args.data, args.megabytes, directory)
    commands = {
        "importance": [str(args.model), "--data", str(text)],
        "prune": ["--width", "--target", args.target],
        "distill": ["--tokens", args.tokens],
        "eval": [],
    }
    verbs, rows = Verbs(directory), {}
    for verb, arguments in commands.items():
        if args.verbs is None or verb in args.verbs:
            shown = [Path(word).name if "/" in word else word for word in arguments]
            rows[" ".join(["minitron", verb, *shown])] = verbs.usage(verb, arguments)
    lines = list(table(rows))
    write_page(args.output, lines) if args.output else print("\n".join(lines))


if __name__ == "__main__":
    main()
