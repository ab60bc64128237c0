"""The one module that writes to disk: open, write, hash, fsync, rename.

All writing goes through `disk`, a `Disk` of system calls. Files are written once, under a new name, and synced before
the directory that holds them is renamed into place; nothing is ever modified. (The only exceptions are libraries with
logs of their own, such as experiment trackers.)
"""

import errno
import hashlib
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from minitron_cli import canonical_json, stopping
from minitron_cli.system_calls import Disk

WRITE_BYTES = 16 << 20  # per call, so that signals are handled between calls
EARLY_BYTES = 64 << 20
"""Bytes after which what was written so far is brought to the disk."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
HASH_BYTES = 1 << 20
HASHERS = 4  # threads, each of which hashes one file

BytesLike = bytes | bytearray | memoryview


class FileRecord(NamedTuple):
    """Hash and size of a file's content, as a manifest records it."""

    sha256: str
    size_bytes: int


disk = Disk()

AnyFile = TypeVar("AnyFile", bound="SizedFile")


class SizedFile:
    """New file of known size, filled in any order and by several threads.

    A thread of `syncing` brings to the disk what was written, while more is computed and written: the sync at the end
    then finds little to wait for.
    """

    def __init__(self, path: Path, fd: int, syncing: Executor) -> None:
        self.path = path
        self._fd = fd
        self._syncing = syncing
        self._lock = threading.Lock()
        self._unsynced = 0  # bytes written since the last early sync began
        self._early: Future[None] | None = None

    def write_at(self, offset: int, data: BytesLike) -> None:
        """Write data at `offset` bytes from the start. OSError also if the sync of earlier data failed."""
        view = memoryview(data).cast("B")
        while view:
            count = disk.write(self._fd, view[:WRITE_BYTES], offset)
            view, offset = view[count:], offset + count
            self._sync_early_if_due(count)

    def _sync_early_if_due(self, count: int) -> None:
        with self._lock:
            self._unsynced += count
            if self._unsynced < EARLY_BYTES or not (self._early is None or self._early.done()):
                return
            self.raise_if_unsynced()
            self._unsynced = 0
            self._early = self._syncing.submit(disk.sync_data, self._fd)

    def raise_if_unsynced(self) -> None:
        """Wait for the last early sync, and raise its OSError: the system reports an error of the disk only once."""
        if self._early:
            self._early.result()


class NewFile(SizedFile):
    """New file, written from start to end and hashed meanwhile."""

    def __init__(self, path: Path, fd: int, syncing: Executor) -> None:
        super().__init__(path, fd, syncing)
        self.size_bytes = 0
        self._sha256 = hashlib.sha256()

    def write(self, data: BytesLike) -> None:
        """Append data."""
        view = memoryview(data).cast("B")
        self._sha256.update(view)
        self.write_at(self.size_bytes, view)
        self.size_bytes += len(view)

    def record(self) -> FileRecord:
        """Hash and size of everything written so far."""
        return FileRecord(self._sha256.hexdigest(), self.size_bytes)


def user_cache() -> Path | None:
    """The program's directory in the user's cache, which may be deleted at any time; None for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "minitron"
    except RuntimeError:
        return None


@contextmanager
def _created(path: Path, make: Callable[[Path, int, Executor], AnyFile]) -> Iterator[AnyFile]:
    """The new file `path`, synced at the end of the context. FileExistsError if it exists."""
    fd = disk.create(path)
    try:
        with ThreadPoolExecutor(1) as syncing:  # has no thread before it is needed
            file = make(path, fd, syncing)
            yield file
            file.raise_if_unsynced()
        disk.fsync(fd)
    except OSError as e:
        if e.errno in NO_ROOM and not e.filename:  # which calls on a descriptor do not name
            e.filename = str(path)
        raise
    finally:
        disk.close(fd)


@contextmanager
def new_file(path: Path) -> Iterator[NewFile]:
    """New file to write in order, synced when the context ends without an error. FileExistsError if it exists."""
    with _created(path, NewFile) as file:
        yield file


@contextmanager
def sized_file(path: Path, size_bytes: int) -> Iterator[SizedFile]:
    """New file of `size_bytes` (at least 1) to fill in any order; synced as by `new_file`.

    The space is reserved at once where the system can, so that a full disk is noticed before the work.
    """

    def reserved(path: Path, fd: int, syncing: Executor) -> SizedFile:
        disk.reserve(fd, size_bytes)
        return SizedFile(path, fd, syncing)

    with _created(path, reserved) as file:
        yield file


def write_new(path: Path, chunks: Iterable[BytesLike] | BytesLike) -> FileRecord:
    """Write a new file; its hash and size. FileExistsError if `path` exists."""
    with new_file(path) as file:
        for chunk in [chunks] if isinstance(chunks, BytesLike) else chunks:
            file.write(chunk)
    return file.record()


def write_new_json(path: Path, value: Any) -> FileRecord:
    """Write a value as readable JSON to a new file; its hash and size. FileExistsError if `path` exists."""
    return write_new(path, canonical_json.pretty(value))


def link(old: Path, new: Path) -> None:
    """Give a finished file a second name; a copy where the file system has no links."""
    try:
        disk.link(old, new)
    except OSError as e:
        if e.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV):
            raise
        with open(old, "rb") as file:
            write_new(new, iter(lambda: file.read(HASH_BYTES), b""))


def replace(path: Path, content: BytesLike, like: os.stat_result | None = None) -> None:
    """Replace the content of a small file atomically: a reader sees the old or the new content, never a mixture.

    The file has the mode and, where allowed, the owner of `like`; without it, those of a new file.
    """
    temporary = _beside(path)
    try:
        write_new(temporary, content)
        if like:
            disk.make_like(temporary, like)
        disk.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            disk.remove_file(temporary)
        raise
    disk.sync_dir(path.parent)


TEMPORARY = ".tmp-"  # prefix of everything that a killed run may leave behind


_at_work: set[Path] = set()  # temporary directories of this process


def _beside(path: Path) -> Path:
    """Unique temporary path beside `path`. It ends in this process's id, so that no other sweeps it meanwhile."""
    return path.with_name(f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}-{os.getpid()}")


def temporary_dir(parent: Path, name: str) -> Path:
    """Create a directory beside `parent/name` under a unique temporary name."""
    path = _beside(parent / name)
    _at_work.add(path)
    disk.make_dir(path)
    return path


def publish(temporary: Path, final: Path) -> bool:
    """Rename a finished directory into place. False if another writer was first; then its directory stays."""
    disk.sync_dir(temporary)
    try:
        disk.rename(temporary, final)
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    disk.sync_dir(final.parent)
    return True


@contextmanager
def new_dir(final: Path) -> Iterator[Path]:
    """Directory to fill that is then renamed to `final`; nothing is left of it after an error, or if one was there."""
    temporary = temporary_dir(final.parent, final.name)
    try:
        yield temporary
        publish(temporary, final)
    finally:
        remove_tree(temporary)  # gone already if it was published


def make_dirs(path: Path) -> None:
    """Create `path` and its missing parents. NotADirectoryError if a file is in the way."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        try:
            disk.make_dir(directory)
            disk.sync_dir(directory.parent)
        except FileExistsError:
            if not directory.is_dir():
                raise NotADirectoryError(
                    errno.ENOTDIR, "a file stands where a directory is needed", str(directory)
                ) from None


def files_in(directory: Path) -> dict[str, Path]:
    """What a directory and those in it hold, except directories, by its path in the directory, sorted."""
    found = (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(directory).as_posix(): path for path in sorted(found)}


def remove_tree(path: Path) -> None:
    """Remove a directory if it exists. It is renamed first, so that a killed removal leaves no half of it visible."""
    doomed = _beside(path.with_name(f"del-{path.name}"))
    try:
        disk.rename(path, doomed)
    except FileNotFoundError:
        return
    disk.remove_tree(doomed)


def sweep(directory: Path) -> None:
    """Remove what killed runs left in `directory`, but nothing that a running process works on."""
    for path in directory.glob(f"{TEMPORARY}*"):
        if not _is_at_work(path):
            disk.remove_tree(path) if path.is_dir() else disk.remove_file(path)


def _is_at_work(path: Path) -> bool:
    pid = path.name.rpartition("-")[2]
    if not pid.isdecimal() or int(pid) == os.getpid():  # an earlier process may have had our id
        return path in _at_work
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def file_record(path: Path) -> FileRecord:
    """Hash and size of an existing file."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        buffer = memoryview(bytearray(HASH_BYTES))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            stopping.raise_if_stopped()
        return FileRecord(digest.hexdigest(), file.tell())


def file_records(paths: Iterable[Path]) -> Iterator[FileRecord]:
    """Hashes and sizes of existing files, in their order; several are hashed at once."""
    with ThreadPoolExecutor(HASHERS) as pool:
        yield from pool.map(file_record, paths)
