"""Commands on malformed input: one sentence, exit code 2, nothing written; or what is sound after all is used."""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.cli.test_broken_inputs import tree, without_token_cache
from tests.damage import damaged
from tests.faults.campaign.outcomes import Outcome, sentence_of
from tests.faults.campaign.programs import fork
from tests.faults.campaign.setting import Setting

LIMIT_S = 30

Words = tuple[str, ...]


class Case(NamedTuple):
    """A damage to a directory, and the command that then meets it."""

    name: str
    damage: Callable[[Path], object]
    words: Words
    must_refuse: bool = True
    """False: what is left may be sound, and is then used."""


class Group(NamedTuple):
    """Cases of one kind of input."""

    start: Callable[[Setting], Path]
    """Directory to copy for every case."""
    cases: Callable[[Path], Iterator[Case]]
    """Cases for a directory like that."""
    sound: tuple[Words, ...]
    """Commands that do well on it while it is undamaged."""


def malformed(setting: Setting, name: str, group: Group, share: tuple[int, int] = (0, 1)) -> Iterator[Outcome]:
    """Every `share[1]`-th case of a group from `share[0]` on."""
    start = setting.made(group.start)
    if share[0] == 0:
        for words in group.sound:
            yield Outcome(f"malformed: {name}", words[0], "undamaged", tuple(undamaged(start, words)), " ".join(words))
    for i, case in enumerate(group.cases(start)):
        if i % share[1] == share[0]:
            yield Outcome(
                f"malformed: {name}", case.words[0], case.name, tuple(tried(start, case)), " ".join(case.words)
            )


def tried(start: Path, case: Case) -> list[str]:
    """What is wrong with how a command meets one case."""
    root = copied(start)
    case.damage(root)
    before, begun = regular(root), time.monotonic()
    ended = fork(case.words, root).wait(LIMIT_S)
    if time.monotonic() - begun > LIMIT_S:
        return [f"it takes longer than {LIMIT_S} s"]
    problems = sentence_of(ended, [2] if case.must_refuse else [0, 2])
    if ended.code and regular(root) != before:
        problems.append("something was written")
    return problems


def regular(root: Path) -> dict[str, bytes | None]:
    """What is below a directory, without tokens, which may stay, and without what blocks when it is read."""
    odd = [path for path in root.rglob("*") if path.is_symlink() or not (path.is_file() or path.is_dir())]
    if odd or any(path.stat().st_size > 1 << 24 for path in root.rglob("*") if path.is_file()):
        return {str(path): None for path in sorted(root.rglob("*")) if "runs" not in path.parts}
    return without_token_cache(tree(root))


def undamaged(start: Path, words: Words) -> list[str]:
    """What is wrong with a command on input that nobody damaged: its refusals would prove nothing."""
    ended = fork(words, copied(start)).wait(LIMIT_S)
    return [f"exit code {ended.code}: {ended.err[-300:]}"] if ended.code else []


def copied(start: Path) -> Path:
    """A copy of a directory, at the same path each time."""
    root = start.parent / "root"
    shutil.rmtree(root, ignore_errors=True)
    return shutil.copytree(start, root, symlinks=True)


# Damage


def damage_file(path: str, seed: str, root: Path) -> None:
    """Damage a file as the seed says, its first bytes more often than the rest."""
    draw, file = random.Random(seed), root / path
    content = file.read_bytes()
    head = draw.choice([len(content), min(len(content), 2000)])
    file.write_bytes(damaged(content[:head], draw) + content[head:])


def random_damage(path: str, count: int, words: Words) -> Iterator[Case]:
    """`count` damages of a file at random places; some leave it sound."""
    for i in range(count):
        yield Case(f"{path} damaged, seed {i}", partial(damage_file, path, f"{path} {i}"), words, must_refuse=False)


def truncations(path: str, count: int, words: Words) -> Iterator[Case]:
    """A file that ends early, at `count` places."""
    for i in range(count):
        yield Case(f"{path} ends after {i}/{count}", partial(_truncate, path, i / count), words)


def _truncate(path: str, share: float, root: Path) -> None:
    content = (root / path).read_bytes()
    (root / path).write_bytes(content[: int(len(content) * share)])


def texts(path: str, contents: dict[str, str | bytes], words: Words, *, must_refuse: bool = True) -> Iterator[Case]:
    """A file with other contents."""
    for name, content in contents.items():
        yield Case(f"{path}: {name}", partial(_write, path, content), words, must_refuse)


def _write(path: str, content: str | bytes, root: Path) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content.encode() if isinstance(content, str) else content)
