"""Several processes that train together, forked from this one: torch is imported once, so they start in a moment."""

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import torch


def together(count: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = 60) -> list[Any]:
    """What `function(rank, *arguments)` returns in each of `count` processes, as if a launcher had started them."""
    import torch.distributed.fsdp  # noqa: F401 - before the fork: it takes seconds

    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [
        context.Process(target=_one, args=(rank, count, port, pipes[rank][1], function, arguments))
        for rank in range(count)
    ]
    try:
        for process in processes:
            process.start()
        for _, theirs in pipes:
            theirs.close()  # so that a dead process is an end of file
        return [_result(ours, rank, timeout_s) for rank, (ours, _) in enumerate(pipes)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function(*arguments)` returns in a fork of its own, as if a program of its own had called it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


def _result(pipe: Connection, rank: int, timeout_s: float) -> Any:
    assert pipe.poll(timeout_s), f"process {rank} did not end in {timeout_s} s"
    result = pickle.loads(pipe.recv_bytes())
    if isinstance(result, BaseException):
        raise result
    return result


def _one(rank: int, count: int, port: int, pipe: Connection, function: Callable[..., Any], arguments: Any) -> None:
    from accelerate import PartialState

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    PartialState._reset_state()
    try:
        result = function(rank, *arguments)
    except BaseException as e:
        result = e
    pipe.send_bytes(pickle.dumps(result))  # by value: the sender of a shared tensor would have to stay
    os._exit(0)  # without what the forking process would do at its end
