"""What a disk may hold after the power failed: every state that a legal reordering leaves (Pillai et al. 2014, ALICE).

The model is weaker than common file systems. A file's bytes are safe once it is synced; until then it may hold what was
synced, all zeros, or half. A directory's entries come in the order they were made; those since it was last synced may
be lost, in each directory on its own.
"""

import itertools
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minitron_cli import io


@dataclass
class File:
    data: bytes = b""
    synced: bytes = b""


@dataclass
class Directory:
    """The changes to a directory's entries, oldest first: a name, and what it stands for (None: no longer there)."""

    changes: list[tuple[tuple[str, "Node | None"], ...]] = field(default_factory=list)
    synced: int = 0

    def entries(self, count: int | None = None) -> dict[str, "Node"]:
        names: dict[str, Node | None] = {}
        for change in self.changes[:count]:
            names |= dict(change)
        return {name: node for name, node in names.items() if node is not None}


Node = File | Directory


class Recorder(io.Disk):
    """A disk that keeps the story of what happened below `root`, and the tree as it stands now."""

    def __init__(self, root: Path) -> None:
        self.root, self.tree = root, Directory()
        self.moments: list[Directory] = []
        self.open_files: dict[int, File] = {}

    def at(self, path: Path) -> Any:
        node: Node = self.tree
        for part in path.relative_to(self.root).parts:
            assert isinstance(node, Directory)
            node = node.entries()[part]
        return node

    def moment(self) -> None:
        """Keep a copy: the power may fail now."""
        self.moments.append(copied(self.tree, {}))

    def change(self, parent: Path, *names: tuple[str, Node | None]) -> None:
        self.at(parent).changes.append(names)
        self.moment()

    def create(self, path: Path) -> int:
        fd = super().create(path)
        self.open_files[fd] = File()
        self.change(path.parent, (path.name, self.open_files[fd]))
        return fd

    def reserve(self, fd: int, size_bytes: int) -> None:
        super().reserve(fd, size_bytes)
        self.open_files[fd].data = bytes(size_bytes)
        self.moment()

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        count = super().write(fd, data, offset)
        before = self.open_files[fd].data.ljust(offset, b"\0")
        self.open_files[fd].data = before[:offset] + bytes(data[:count]) + before[offset + count :]
        self.moment()
        return count

    def fsync(self, fd: int) -> None:
        super().fsync(fd)
        self.open_files[fd].synced = self.open_files[fd].data
        self.moment()

    def make_dir(self, path: Path) -> None:
        super().make_dir(path)
        self.change(path.parent, (path.name, Directory()))

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        assert old.parent == new.parent
        self.change(old.parent, (old.name, None), (new.name, self.at(old)))

    replace = rename

    def link(self, old: Path, new: Path) -> None:
        super().link(old, new)
        self.change(new.parent, (new.name, self.at(old)))

    def remove_file(self, path: Path) -> None:
        super().remove_file(path)
        self.change(path.parent, (path.name, None))

    def remove_tree(self, path: Path) -> None:
        super().remove_tree(path)
        self.change(path.parent, (path.name, None))

    def remove_dir(self, path: Path) -> None:
        super().remove_dir(path)
        self.change(path.parent, (path.name, None))

    def sync_dir(self, path: Path) -> None:
        super().sync_dir(path)
        self.at(path).synced = len(self.at(path).changes)
        self.moment()


class Unsynced(Recorder):
    """A negative control: files are never synced."""

    def fsync(self, fd: int) -> None:
        pass


def copied(node: Node, known: dict[int, Node]) -> Any:
    if id(node) in known:
        return known[id(node)]
    if isinstance(node, File):
        return known.setdefault(id(node), File(node.data, node.synced))
    copy = Directory([], node.synced)
    known[id(node)] = copy
    copy.changes = [tuple((n, c and copied(c, known)) for n, c in change) for change in node.changes]
    return copy


def states(moments: Sequence[Directory], per_moment: int, seed: int = 0) -> Iterator[dict[str, bytes | None]]:
    """Distinct trees (path -> content, None for a directory) that may be found after a crash; sampled if too many."""
    seen, draw = set(), random.Random(seed)
    for tree in moments:
        for state in itertools.chain(_all_lost_or_kept(tree), (_drawn(tree, draw) for _ in range(per_moment))):
            key = tuple(sorted(state.items()))
            if key not in seen:
                seen.add(key)
                yield state


def _all_lost_or_kept(tree: Directory) -> Iterator[dict[str, bytes | None]]:
    """The corners: everything unsynced lost, kept, or kept by name with zeros or half inside."""
    for entries, content in itertools.product((0, 1), range(4)):
        yield dict(_laid_out(tree, "", lambda d, e=entries: len(d.changes) if e else d.synced, lambda c=content: c))


def _drawn(tree: Directory, draw: random.Random) -> dict[str, bytes | None]:
    pick: dict[int, int] = {}

    def prefix(directory: Directory) -> int:
        return pick.setdefault(id(directory), draw.randint(directory.synced, len(directory.changes)))

    return dict(_laid_out(tree, "", prefix, lambda: draw.randrange(4)))


def _laid_out(directory: Directory, at: str, prefix: Any, content: Any) -> Iterator[tuple[str, bytes | None]]:
    for name, node in directory.entries(prefix(directory)).items():
        path = f"{at}/{name}" if at else name
        if isinstance(node, Directory):
            yield path, None
            yield from _laid_out(node, path, prefix, content)
        else:
            kept = node.data if node.data == node.synced else _contents(node)[content()]
            yield path, kept


def _contents(file: File) -> list[bytes]:
    return [file.data, file.synced, bytes(len(file.data)), file.data[: len(file.data) // 2]]


def lay_out(state: dict[str, bytes | None], root: Path) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for path, content in state.items():
        (root / path).mkdir() if content is None else (root / path).write_bytes(content)
    return root
