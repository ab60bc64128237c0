"""Trainings that are killed again and again end with the bytes of one that nobody disturbed.

python -m tests.faults.training_kills --runs 20 --kills 100 --out benchmarks/results/training-kills.json

Every run has settings of its own and is killed several times: at a step and a bit, while it starts or is loading, or in
the middle of writing a checkpoint. Then it is finished, and compared: weights, moments, curves, best weights, and the
samples of every step as they were read. Some of the runs are two processes with one copy of the models between them.
"""

import argparse
import json
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from minitron_cli import io
from minitron_cli.distill.trainer import Placement
from tests.faults.harness import Faulty
from tests.processes import together
from tests.unit.distill import small
from tests.unit.distill.masked import lost, mask_
from tests.unit.distill.test_trainer import FULL, PAIRS

BLOCKS = 10  # so that an epoch is two and a half batches: its edges fall before, in and after a step
SETTLED_S = 60


class Setting(NamedTuple):
    """One run's settings."""

    seed: int
    processes: int

    @property
    def mask(self) -> str:
        """What becomes of zeros; none: the model is dense."""
        return ("none", "frozen", "refresh")[self.seed % 3]

    def config(self) -> Any:
        draw = random.Random(self.seed)
        changes = {
            "steps": draw.randint(9, 14),
            "batch_size": draw.choice([4, 5]),
            "micro_batch_size": draw.choice([1, 2, 5]),
            "save_every": draw.choice([1, 2, 3]),
            "eval_every": draw.choice([2, 5]),
            "seed": self.seed,
            "export": "best",
        } | ({"mask": {"refresh": 2}} if self.mask == "refresh" else {})
        return small.configured(**{**FULL.model_dump(), **changes})


def train(setting: Setting, root: Path, disk: io.Disk | None = None) -> None:
    """The whole run, or what is left of it; which samples each step has read is appended to a log."""
    if setting.processes > 1:
        together(setting.processes, _one, setting, root, None, timeout_s=SETTLED_S)
    else:
        _one(0, setting, root, disk)


def _one(rank: int, setting: Setting, root: Path, disk: io.Disk | None) -> None:
    log = os.open(root / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    config = setting.config()

    class Logged(small.TinyBlocks):
        def tokens(self, i: int) -> torch.Tensor:
            os.write(log, b"read %d\n" % i)
            return super().tokens(i)

    class Display(small.AfterStep):
        """Tells the end of each step, in every process; the first call tells where the run begins."""

        def start(self, title: str, total: int | None, unit: str) -> Callable[..., None]:
            def show(n: int = 1, **figures: object) -> None:
                self.done += n
                os.write(log, b"step %d\n" % self.done)

            return show

    from minitron_cli import progress

    if disk:
        io.disk = disk
    progress.show_on(Display())
    os.write(log, b"start\n")
    student = small.student(attention_dropout=0.3, tie_word_embeddings=True)
    masks = mask_(student, root / f"masks-{rank}") if setting.mask != "none" else None
    trained, _ = small.run(
        root / "scratch",
        config,
        student=student,
        masks=masks,
        blocks=Logged(BLOCKS),
        pairs=PAIRS,
        placement=Placement(is_sharded=setting.processes > 1),
    )
    if masks and setting.mask == "frozen" and setting.processes == 1:
        weights = dict(trained.named_parameters())
        assert not any(weights[name][lost_].count_nonzero() for name, lost_ in lost(masks, trained).items())


@dataclass
class Fork:
    """A process group that trains."""

    pid: int
    ended: bool = False
    failed: bool = field(default=False)

    @classmethod
    def of(cls, function: Callable[..., None], *arguments: Any) -> "Fork":
        if pid := os.fork():
            return cls(pid)
        os.setsid()
        code = 1
        try:
            torch.set_num_threads(1)
            function(*arguments)
            code = 0
        finally:
            os._exit(code)

    def is_over(self) -> bool:
        if not self.ended:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.ended = pid != 0
            self.failed = self.ended and os.waitstatus_to_exitcode(status) not in (0, -signal.SIGKILL)
        return self.ended

    def kill(self) -> None:
        if not self.is_over():
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.ended = True

    def wait(self) -> None:
        if not self.ended:
            self.failed = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) != 0
            self.ended = True


def lines(root: Path) -> list[str]:
    path = root / "log-0"
    return path.read_text().splitlines() if path.exists() else []


def samples(root: Path) -> dict[int, set[tuple[int, ...]]]:
    """Step -> what was read for it; more than one entry if it was done again with other samples."""
    found: dict[int, set[tuple[int, ...]]] = {}
    steps: list[dict[int, list[tuple[int, ...]]]] = []
    for log in sorted(root.glob("log-*")):
        mine: dict[int, list[tuple[int, ...]]] = {}
        reads: list[int] = []
        for line in log.read_text().splitlines():
            word, _, number = line.partition(" ")
            if word == "read":
                reads.append(int(number))
            else:
                if word == "step" and reads:
                    mine.setdefault(int(number), []).append(tuple(reads))
                reads = []
        steps.append(mine)
    for step in set().union(*steps):
        found[step] = {tuple(done) for mine in steps for done in mine.get(step, [])}
    return found


def state(root: Path) -> dict[str, bytes]:
    """Every byte of the last checkpoint and of the best weights."""
    scratch = root / "scratch"
    last = max((path.name for path in scratch.iterdir() if re.fullmatch(r"step-\d+", path.name)), key=str)
    kept = [path for path in scratch.iterdir() if path.name == last or path.name.startswith("best-")]
    return {f"{path.name}/{file.name}": file.read_bytes() for path in kept for file in path.iterdir()}


def kill_once(setting: Setting, root: Path, draw: random.Random) -> str | None:
    """Start, or go on, and kill; where it was hit, or None if it ended first."""
    total, calls = setting.config().steps, 60
    way = draw.choices(["at a step", "at the start", "in a write"], [6, 2, 3])[0]
    if way == "in a write" and setting.processes == 1:
        disk = Faulty(draw.randrange(1, calls), draw.choice(["kill", "torn"]))
        fork = Fork.of(train, setting, root, disk)
        fork.wait()
        return f"{way}" if fork.failed else None
    before = len(lines(root))
    fork = Fork.of(train, setting, root)
    if way == "at the start":
        time.sleep(draw.uniform(0, 0.3))
    else:
        done = max((int(line.split()[1]) for line in lines(root) if line.startswith("step")), default=0)
        wanted = f"step {draw.randint(min(done + 1, total), total)}"
        while wanted not in lines(root)[before:] and not fork.is_over():
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.08))
    if fork.is_over():
        assert not fork.failed, "the run failed by itself"
        return None
    fork.kill()
    return "at a step" if way == "in a write" else way


def study(runs: int, kills: int, of_two: int, seed: int = 0) -> dict[str, Any]:
    """`kills` kills over `runs` runs, the last `of_two` of them by two processes; what they hit, and what differed."""
    hits: Counter[str] = Counter()
    problems: list[str] = []
    resumes: list[int] = []
    for run in range(runs):
        setting = Setting(seed + run, 2 if run >= runs - of_two else 1)
        share = kills // runs + (run < kills % runs)
        with TemporaryDirectory() as one, TemporaryDirectory() as other:
            undisturbed, killed = Path(one), Path(other)
            Fork.of(train, setting, undisturbed).wait()
            draw = random.Random(1000 + setting.seed)
            landed = 0
            while landed < share:
                if hit := kill_once(setting, killed, draw):
                    landed += 1
                    hits[f"{hit}, {setting.processes} processes" if setting.processes > 1 else hit] += 1
            last = Fork.of(train, setting, killed)
            last.wait()
            resumes.append(landed)
            problems += [f"run {run}: {problem}" for problem in compare(undisturbed, killed, last.failed)]
        print(
            f"run {run + 1}/{runs}: {setting.processes} processes, {landed} kills, {len(problems)} problems", flush=True
        )
    return {"runs": runs, "kills": sum(hits.values()), "hits": dict(sorted(hits.items())), "problems": problems}


def compare(undisturbed: Path, killed: Path, failed: bool) -> list[str]:
    """What differs, in words."""
    if failed:
        return ["the last resume failed"]
    expected, found = state(undisturbed), state(killed)
    problems = [
        f"{name} differs" for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)
    ]
    ids, its_ids = samples(undisturbed), samples(killed)
    return problems + [f"step {step} read other samples" for step in ids if its_ids.get(step) != ids[step]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--of-two", type=int, default=4, help="how many of the runs are two processes, sharded")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = study(asked.runs, asked.kills, asked.of_two)
    print(json.dumps(found, indent=2))
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=2) + "\n")
    raise SystemExit(bool(found["problems"]))


if __name__ == "__main__":
    main()
