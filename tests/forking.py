"""train.py in a process of its own that has everything loaded already: a fork of the test's."""

import os
import resource
import signal
import sys
import time

import torch

import train


def fork_train(argv, **options):
    """Starts a run; returns its process number. options: those of `fork`."""
    return fork(lambda: train.main([str(arg) for arg in argv]), **options)


def fork(job, *, stderr=None, largest_file=None, env=None):
    """Does a job, which returns an exit code, in another process; returns its number.

    stderr: a descriptor. largest_file: bytes that a file may have. A forked process has none of its parent's threads,
    so torch must use one only.
    """
    assert torch.get_num_threads() == 1
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.environ.update(env or {})
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere if stderr is None else stderr, 2)
        # pytest has put its own in their place, which are files too.
        sys.stdout, sys.stderr = (open(descriptor, "w", closefd=False) for descriptor in (1, 2))  # noqa: SIM115
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        code = job()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(child, seconds=300):
    """Its exit code; negative where a signal ended it. One that does not end is killed, and the test fails."""
    deadline = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"process {child} did not end within {seconds} seconds")
        time.sleep(0.005)


def fork_processes(job, count, port, **options):
    """Does a job in several processes on this machine, as torchrun would start them; returns their numbers by rank."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    shared |= {"LOCAL_WORLD_SIZE": str(count)}
    return [fork(job, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **options) for rank in range(count)]


def run_forked(argv, **limits):
    """Runs to the end; returns the exit code and the lines of stderr."""
    reader, writer = os.pipe()
    child = fork_train(argv, stderr=writer, **limits)
    os.close(writer)
    with open(reader) as stream:
        lines = stream.read().splitlines()
    return wait(child), lines
