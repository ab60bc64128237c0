"""Files that the user names for output: checked before the work, written after it.

A regular file is replaced atomically where its links lead, and keeps its mode. Devices, pipes and open files such as
/dev/stdout are written to. Nothing else is touched.
"""

import errno
import fcntl
import os
import stat
import sys
import time
from pathlib import Path

from minitron_cli import io, progress
from minitron_cli.errors import EnvironmentFault, InputError

OPEN_FILES = ("/dev/fd", "/proc/self/fd")  # directories in which a name is the number of a file of this process
MAX_LINKS = 40  # that Linux follows
WAIT_SECONDS = 0.1


def check(path: Path | None, *, new: bool = False) -> None:
    """Raise InputError or EnvironmentFault if `write` would fail; called before any work is done.

    Args:
        path: the file, None for no output.
        new: refuse a regular file that exists, because the user may have edited it.
    """
    if path is None:
        return
    if (fd := _descriptor(path)) is not None:
        _check_open(path, fd)
    elif (found := _status(path)) is None:
        check_parent(path)
    elif stat.S_ISREG(found.st_mode):
        _check_regular(path, new)
    elif not _is_stream(found):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "no regular file, device or pipe"
        raise InputError(f"{path} is {kind}: name a file to write")


def check_distinct(*paths: Path | None) -> None:
    """Raise InputError if two outputs are one regular file."""
    files = [os.path.realpath(path) for path in paths if path and not _is_written_through(path)]
    if twice := [file for file in files if files.count(file) > 1]:
        raise InputError(f"two outputs go to {twice[0]}: name two files")


def check_parent(path: Path) -> None:
    """Raise InputError or EnvironmentFault if `path`, which does not exist, cannot be made.

    Missing directories above it will be made.
    """
    directory = Path(os.path.realpath(path)).parent
    while not os.path.lexists(directory):
        directory = directory.parent
    if not directory.is_dir():
        raise InputError(f"{directory} is no directory, so {path} cannot be written: name another path")
    _require_access(directory, os.W_OK | os.X_OK)


def write(path: Path, content: bytes, *, append: bool = False) -> None:
    """Write a file that the user named; with `append`, after what a regular file holds."""
    check(path)
    if _is_written_through(path):
        _write_through(path, content)
        return
    target = Path(os.path.realpath(path))
    found = _status(target)
    try:
        io.make_dirs(target.parent)
        io.replace(target, (target.read_bytes() if append and found else b"") + content, like=found)
    except FileNotFoundError as e:  # of a directory that was removed meanwhile, or that takes no new files, as /proc
        raise EnvironmentFault(f"{path} cannot be written: {target.parent} takes no new file; name another path") from e


def _status(path: Path) -> os.stat_result | None:
    """Status of what a path leads to, None if it does not exist."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        if e.errno != errno.ELOOP:
            raise
        raise InputError(f"{path} is a link that leads back to itself: name a file to write") from None


def _check_regular(path: Path, new: bool) -> None:
    if new:
        raise InputError(f"{path} already exists: choose another file")
    target = Path(os.path.realpath(path))
    _require_access(target, os.W_OK)
    _require_access(target.parent, os.W_OK | os.X_OK)


def _require_access(path: Path, mode: int) -> None:
    if not os.access(path, mode):
        raise EnvironmentFault(f"{path} may not be written to: change its permissions or name another path")


def _check_open(path: Path, fd: int) -> None:
    try:
        writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except OSError:
        writable = False
    if not writable:
        raise InputError(f"{path} is not open for writing: name a file to write")


def _is_stream(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) or stat.S_ISFIFO(found.st_mode)


def _is_written_through(path: Path) -> bool:
    return _descriptor(path) is not None or bool((found := _status(path)) and _is_stream(found))


def _descriptor(path: Path) -> int | None:
    """Number of the open file that a path such as /dev/stdout or /dev/fd/63 leads to; None for any other path."""
    open_files = [os.path.realpath(directory) for directory in OPEN_FILES]
    for _ in range(MAX_LINKS):
        directory = os.path.realpath(path.parent)
        if directory in open_files and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(directory) / path.readlink()
    return None


def _write_through(path: Path, content: bytes) -> None:
    """Write to a device, a pipe or an open file.

    An open file is duplicated, not opened again, which would write over what this process has written to it.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    fd = _descriptor(path)
    fd = _opened(path) if fd is None else os.dup(fd)
    try:
        view = memoryview(content)
        while view:
            view = view[io.disk.write_stream(fd, view[: io.WRITE_BYTES]) :]
    finally:
        io.disk.close(fd)


def _opened(path: Path) -> int:
    """Descriptor of a device or a pipe. Waits until a pipe has a reader, unless a stop is requested."""
    while True:
        try:
            fd = io.disk.open_stream(path)
        except OSError as e:
            if e.errno != errno.ENXIO or not stat.S_ISFIFO(path.stat().st_mode):
                raise
            progress.raise_if_stopped()
            time.sleep(WAIT_SECONDS)
        else:
            os.set_blocking(fd, True)
            return fd
