"""Errors that say something about the machine, not about what the user gave: memory, disk, threads, files."""

import errno

# Libraries re-raise some errors without errno; these are recognized by their text.
WITHOUT_ERRNO = {
    "no space left": errno.ENOSPC,
    "unexpected pos": errno.ENOSPC,  # torch.save on a full disk
    "disk quota exceeded": errno.EDQUOT,
    "read-only file system": errno.EROFS,
    "too many open files": errno.EMFILE,
    "can't start new thread": errno.EAGAIN,
    "resource temporarily unavailable": errno.EAGAIN,
    "input/output error": errno.EIO,
}

ALLOCATION_FAILURES = (
    "can't allocate memory",  # torch on the CPU
    "cannot allocate memory",  # the system, as Rust libraries write it
    "cuda error: out of memory",
    "cublas_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the host or on an accelerator. Does not import torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(text in str(error).lower() for text in ALLOCATION_FAILURES) and not isinstance(error, ValueError)


def is_of_environment(error: BaseException) -> bool:
    """Whether an error is the machine's, and would say nothing about the file that was being read."""
    if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno):
        return True
    return any(text in str(error).lower() for text in WITHOUT_ERRNO)
