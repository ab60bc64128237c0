"""The system calls that change the disk."""

import errno
import fcntl
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path


class Disk:
    """The system calls that change the disk, one method each, so that a test can make any of them fail."""

    def create(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def reserve(self, fd: int, size_bytes: int) -> None:
        """Set the size of a new file and take its space where the system can; elsewhere a write finds the disk full."""
        if hasattr(os, "posix_fallocate"):  # macOS has none
            try:
                os.posix_fallocate(fd, 0, size_bytes)
                return
            except OSError as e:
                if e.errno not in (errno.EINVAL, errno.ENOTSUP):
                    raise
        os.ftruncate(fd, size_bytes)

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def fsync(self, fd: int) -> None:
        _sync(fd)

    def sync_data(self, fd: int) -> None:
        """Bring what was written so far to the disk, or to its cache, without the file's times."""
        os.fdatasync(fd) if hasattr(os, "fdatasync") else os.fsync(fd)  # macOS has no fdatasync

    def close(self, fd: int) -> None:
        os.close(fd)

    def open_stream(self, path: Path) -> int:
        """Open a device or a pipe to write; ENXIO if nothing reads the pipe."""
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)

    def write_stream(self, fd: int, data: memoryview) -> int:
        return os.write(fd, data)

    def make_like(self, path: Path, other: os.stat_result) -> None:
        """Give a file the mode of another one, and its owner where the system allows it."""
        with suppress(PermissionError):
            os.chown(path, other.st_uid, other.st_gid)
        os.chmod(path, stat.S_IMODE(other.st_mode))

    def make_dir(self, path: Path) -> None:
        os.mkdir(path)

    def rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)

    def replace(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def link(self, old: Path, new: Path) -> None:
        os.link(old, new)

    def remove_file(self, path: Path) -> None:
        os.unlink(path)

    def remove_tree(self, path: Path) -> None:
        shutil.rmtree(path)

    def remove_dir(self, path: Path) -> None:
        os.rmdir(path)

    def sync_dir(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _sync(fd)
        except OSError as e:
            if e.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a directory
                raise
        finally:
            os.close(fd)


def _sync(fd: int) -> None:
    """Make the content of an open file or directory survive a power failure."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # on macOS fsync leaves data in the cache of the drive
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
        except OSError as e:
            if e.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOTTY):  # network file systems do not know it
                raise
    os.fsync(fd)
