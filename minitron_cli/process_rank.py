"""Rank of this process in a distributed run, from the launcher's environment variables. Knows no torch."""

import os


def process_count() -> int:
    """Number of processes that a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_count_here() -> int:
    """Number of them on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or process_count())


def this_process() -> str:
    """Name of this process among several, for messages."""
    return named(int(os.environ.get("RANK", "0")), process_count())


def named(rank: int, processes: int) -> str:
    """Name of the process of a rank, counted from 0, for messages."""
    return f"process {rank + 1} of {processes}"


def is_first_process() -> bool:
    """Whether this process writes what all processes of a distributed run have made: the one of rank 0."""
    return os.environ.get("RANK", "0") == "0"
