"""Runs command lines of train.py one after the other in each process that torchrun starts.

    torchrun --standalone --nproc-per-node 2 tests/two_processes.py JOBS.json

One start serves many runs: loading torch takes longer than they do. After every epoch it is checked that all processes
hold the same weights to the bit.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).parents[1]))

import train
from uhd import dist, recorder
from uhd.optim import TrainState

share_buffers = TrainState.share_buffers


def checked_share(state):
    share_buffers(state)
    weights = [value.double().sum().item() for value in state.task.state_dict().values()]
    assert all(each == weights for each in dist.gather(weights))


TrainState.share_buffers = checked_share
recorder.write_reports = lambda *args, **kwargs: None
dist.leave = lambda exit_code: None  # the processes of all runs are the same

for argv in json.loads(Path(sys.argv[1]).read_text()):
    code = train.main(argv)
    if code:
        sys.exit(code)
