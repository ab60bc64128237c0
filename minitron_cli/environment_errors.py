"""Errors of the machine, not of what the user gave: disk, memory, threads, file handles, network; and what to do."""

import errno

ERRNO = {
    errno.ENOSPC: "no space left on the device; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "the file is larger than the system allows; raise the limit (ulimit -f)",
    errno.EACCES: "permission denied; choose another path or change its permissions",
    errno.EPERM: "the operation is not permitted; choose another path or change its permissions",
    errno.ENOTDIR: "not a directory; choose another path",
    errno.EROFS: "the file system is read-only; choose another path",
    errno.EIO: "the device failed to read or write; check the disk",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
    errno.ENFILE: "the system has too many open files; close some programs",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "a link leads back to itself; remove it",
    errno.ENOMEM: "out of memory; close other programs",
    errno.EAGAIN: "too many threads or processes; raise the limit (ulimit -u) or close some programs",
    errno.ENODEV: "no such device; check the disk",
    errno.ESTALE: "the network file system lost the file; check the mount",
}

OUT_OF_MEMORY = "out of memory; lower the batch size (micro_batch_size for distill), or use --dtype bfloat16"

# Libraries re-raise some errors without errno; these are recognized by their text, in lower case.
WITHOUT_ERRNO = {
    "can't allocate memory": OUT_OF_MEMORY,  # torch on the CPU
    "cannot allocate memory": OUT_OF_MEMORY,  # a system call of a library
    "out of memory": OUT_OF_MEMORY,  # CUDA, outside of torch's allocator
    "cublas_status_alloc_failed": OUT_OF_MEMORY,
    "error return without exception set": OUT_OF_MEMORY,  # an extension module that does not say why
    "bad_alloc": OUT_OF_MEMORY,  # C++
    "bad allocation": OUT_OF_MEMORY,
    "failed to map segment from shared object": OUT_OF_MEMORY,  # a library that does not fit in the address space
    "can't start new thread": ERRNO[errno.EAGAIN],
    "resource temporarily unavailable": ERRNO[errno.EAGAIN],
    "no space left": ERRNO[errno.ENOSPC],
    "unexpected pos": ERRNO[errno.ENOSPC],  # torch.save on a full disk
    "disk quota exceeded": ERRNO[errno.EDQUOT],
    "read-only file system": ERRNO[errno.EROFS],
    "too many open files": ERRNO[errno.EMFILE],
    "input/output error": ERRNO[errno.EIO],
}

NETWORK = ("requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2", "aiohttp")  # whose errors have no errno


def fault(error: BaseException) -> str | None:
    """Sentence for the user if the environment caused the error, directly or through another; None otherwise."""
    return next((sentence for cause in _causes(error) if (sentence := _sentence(cause))), None)


def is_of_environment(error: BaseException) -> bool:
    """Whether an error is the machine's, and would say nothing about the file that was being read."""
    return fault(error) is not None or bool(isinstance(error, OSError) and error.errno)


def _causes(error: BaseException | None) -> list[BaseException]:
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return causes


def _sentence(error: BaseException) -> str | None:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
        return OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno in ERRNO:
        where = error.filename2 or error.filename
        return f"{f'{where}: ' if where else ''}{ERRNO[error.errno]}, then run the same command again"
    if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.split(".")[0] in NETWORK:
        text = " ".join(str(error).split())[:100]
        return f"the network failed ({text}); check the connection, then run the same command again"
    for text, sentence in WITHOUT_ERRNO.items():
        if text in str(error).lower() and not isinstance(error, ValueError):  # which may quote the user's text
            return sentence if sentence is OUT_OF_MEMORY else f"{sentence}, then run the same command again"
    return None
