"""How each program ends: an exit code and, where something went wrong, one line on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from uhd.signals import Stopped, StopSignals


def leave_on_mistake(program: str, check: Callable[[], object]) -> None:
    """Ends the process with exit code 2 where check raises ValueError: before the slow imports of a program."""
    try:
        check()
    except ValueError as error:
        print(f"{_with_rank(program)}: error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


def exit_code_of(program: str, job: Callable[[StopSignals], None]) -> int:
    """Runs the job; returns 0, or 2 for a mistake of the user's, 1 for a machine's failure, 130 or 143 for signals."""
    signals = StopSignals()
    name = _with_rank(program)
    try:
        job(signals)
        return 0
    except ValueError as error:
        print(f"{name}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except (Stopped, OSError, RuntimeError, FloatingPointError, MemoryError) as error:
        # A signal to the whole process group ends the loader's workers too, which may be noticed before the signal.
        if signals.received:
            # Nor is the loader's complaint about them, when Python takes it down, of use to anyone.
            sys.unraisablehook = lambda _: None
            print(f"{name}: stopped by {signals.received}", file=sys.stderr)
            return signals.received.exit_code
        print(f"{name}: error: {one_line(error)}", file=sys.stderr)
        return 1


def _with_rank(program: str) -> str:
    """The program's name, with its number where it is not the first of the processes that torchrun has started."""
    rank = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"
    return program if rank == "0" else f"{program} (process {rank})"


def one_line(error: BaseException) -> str:
    """The error's message on one line, without the traceback that a loader's worker sends along."""
    text = str(error).strip()
    if text.startswith("Caught "):
        text = text.splitlines()[-1]
    return " ".join(text.split()) or type(error).__name__
