"""Several processes on this machine, connected with gloo. Forked from the test, they start in a tenth of a second."""

import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState


def run_processes(function: Callable[..., Any], *arguments: Any, folder: Path, processes: int = 2) -> list[Any]:
    """Call `function(*arguments)` in every process of a group, and return the results by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    leave, ready = fork.Event(), [fork.Event() for _ in range(processes)]
    started = [
        fork.Process(target=_run, args=(function, arguments, rank, processes, port, folder, ready[rank], leave))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    try:
        while any(process.is_alive() and not event.is_set() for process, event in zip(started, ready, strict=True)):
            time.sleep(0.005)
        leave.set()
        for process in started:
            process.join()
    finally:  # where pytest's limit ends a test that hangs
        for process in started:
            process.kill()
    errors = [file.read_text() for file in sorted(folder.glob("error_*.txt"))]
    assert not errors, "\n".join(errors)
    assert [process.exitcode for process in started] == [0] * processes
    return [torch.load(folder / f"result_{rank}.pt", weights_only=False) for rank in range(processes)]


def _run(
    function: Callable, arguments: tuple, rank: int, processes: int, port: int, folder: Path, ready: Any, leave: Any
) -> None:
    for state in (AcceleratorState, PartialState, GradientState):  # inherited from the test's process
        state._shared_state.clear()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    try:
        result = function(*arguments)
        torch.save(result, folder / f"result_{rank}.pt")
        ready.set()
        leave.wait()  # gloo aborts a process that still waits for its data when the other one leaves
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except BaseException:
        (folder / f"error_{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)
