"""Commands on file systems that are too small, read-only or limited, and then on one with room.

Each command's workspace is a tmpfs of its own where this process may mount one; elsewhere `io.disk` refuses to grow
what is written from a certain call on.
"""

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from minitron_cli import io
from tests.faults.campaign.outcomes import Outcome, sentence_of
from tests.faults.campaign.programs import fork
from tests.faults.campaign.setting import MAKERS, Setting
from tests.faults.harness import Faulty, Listing, artifacts, different, half_made, leftovers

GROUP = "full disks and limits"
ROOM = "size=200m"
KIB = 1 << 10


def may_mount(place: Path) -> bool:
    """Whether this process can mount small file systems; tried once."""
    place.mkdir(parents=True, exist_ok=True)
    if _mount("-t", "tmpfs", "-o", "size=64k", "none", str(place)):
        return False
    subprocess.run(["umount", str(place)], check=True)
    return True


def _mount(*words: str) -> int:
    try:
        return subprocess.run(["mount", *words], capture_output=True).returncode
    except FileNotFoundError:
        return -1


@contextmanager
def small_disk(root: Path, options: str) -> Iterator[Callable[[str], None]]:
    """`runs/` on a tmpfs that holds what was in it; yields a function that changes the options of the mount."""
    runs, kept = root / "runs", root.parent / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    runs.mkdir(exist_ok=True)
    runs.rename(kept)
    runs.mkdir()
    assert _mount("-t", "tmpfs", "-o", ROOM, "none", str(runs)) == 0
    try:
        shutil.copytree(kept, runs, dirs_exist_ok=True, symlinks=True)
        remount = partial(_remount, runs)
        remount(options)
        yield remount
    finally:
        subprocess.run(["umount", "--lazy", str(runs)], check=True)


def _remount(runs: Path, options: str) -> None:
    assert _mount("-o", f"remount,{options}", str(runs)) == 0, options


def used(runs: Path) -> tuple[int, int]:
    """Bytes and inodes in use on the file system of a directory."""
    found = os.statvfs(runs)
    return (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_files - found.f_ffree


def full_disks(setting: Setting, name: str, count: int) -> Iterator[Outcome]:
    """`count` runs of a verb, each with less than it needs of something, and then with enough."""
    if not may_mount(setting.place / "mount"):
        yield from refused_growth(setting, name, count)
        return
    wanted, before, after = measured(setting, name)
    limits = ("nr_inodes={inodes}", "ro", "fsize")
    sizes = count - len(limits)
    for i in range(sizes):
        size = before[0] + (after[0] - before[0]) * i // sizes
        yield trial(setting, name, f"size={max(size // KIB, 4)}k", wanted)
    for limit in limits:
        yield trial(setting, name, limit.format(inodes=before[1] + (after[1] - before[1]) // 2), wanted)


def measured(setting: Setting, name: str) -> tuple[dict[str, dict[str, bytes]], tuple[int, int], tuple[int, int]]:
    """Artifacts of a run with enough of everything, and what was in use before and after it."""
    root = setting.fresh(MAKERS[name])
    with small_disk(root, ROOM):
        before = used(root / "runs")
        ended = fork(MAKERS[name].words, root).wait()
        assert ended.code == 0, ended
        return artifacts(root / "runs"), before, used(root / "runs")


def trial(setting: Setting, name: str, limit: str, wanted: dict[str, dict[str, bytes]]) -> Outcome:
    """One run with less than it needs, and one with enough."""
    root = setting.fresh(MAKERS[name])
    before = _no_large_files if limit == "fsize" else lambda: None
    with ExitStack() as stack:
        remount = stack.enter_context(small_disk(root, ROOM if limit == "fsize" else limit))
        earlier = artifacts(root / "runs")
        ended = fork(MAKERS[name].words, root, before).wait()
        problems = sentence_of(ended, [3]) + view(root / "runs", earlier)
        remount("rw" if limit == "ro" else "nr_inodes=0" if "inodes" in limit else ROOM)
        problems += again(name, root, wanted)
    return Outcome(GROUP, name, limit, tuple(problems), "minitron " + " ".join(MAKERS[name].words))


def _no_large_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))


def view(runs: Path, earlier: dict[str, dict[str, bytes]]) -> list[str]:
    """What is wrong with what a refused run left: half-made results, temporary files, damage to what was there."""
    found = artifacts(runs)
    problems = half_made(runs) + [f"left: {name}" for name in leftovers(runs) if io.TEMPORARY in name]
    changed = [name for name, files in earlier.items() if Path(name).name != "current" and found.get(name) != files]
    return problems + [f"changed: {name}" for name in changed]


def again(name: str, root: Path, wanted: dict[str, dict[str, bytes]]) -> list[str]:
    """What is wrong with the run that has enough of everything."""
    ended = fork(MAKERS[name].words, root).wait()
    if ended.code:
        return [f"with room it exits with {ended.code}: {ended.err[-300:]}"]
    found = artifacts(root / "runs")
    problems = [f"with room it differs: {different(found, wanted)}"] if found != wanted else []
    return problems + [f"left over: {left}" for left in leftovers(root / "runs")]


def refused_growth(setting: Setting, name: str, count: int) -> Iterator[Outcome]:
    """The same where nothing can be mounted: from some call on, nothing grows any more."""
    root, listing = setting.fresh(MAKERS[name]), Listing()
    assert fork(MAKERS[name].words, root, partial(setattr, io, "disk", listing)).wait().code == 0
    wanted, calls = artifacts(root / "runs"), len(listing.last.split())
    for i in range(count):
        at = 1 + calls * i // count
        root = setting.fresh(MAKERS[name])
        earlier = artifacts(root / "runs")
        ended = fork(MAKERS[name].words, root, partial(setattr, io, "disk", Faulty(at, "full"))).wait()
        problems = view(root / "runs", earlier)
        problems += sentence_of(ended, [3]) if ended.code else []  # some calls need no room
        problems += again(name, root, wanted)
        yield Outcome(GROUP, name, f"full from call {at} of {calls} on", tuple(problems))
