"""Two processes that want the same folder or file."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from helpers import draw_people, metric_rows, train_args

from uhd.locking import Claim, exclusive
from uhd.logger import LOCK

HOLD = """
import sys
from pathlib import Path
from uhd.locking import Claim
assert Claim.take(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Starts a process that holds the lock of a file until it is killed or its input ends."""
    started = []

    def hold(file):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(file)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("end", [signal.SIGKILL, None])
def test_claim_ends_with_its_holder(holder, tmp_path, end):
    process = holder(tmp_path / "lock")
    assert Claim.take(tmp_path / "lock") is None
    if end:
        process.send_signal(end)
    process.communicate()
    claim = Claim.take(tmp_path / "lock")
    assert claim is not None
    assert Claim.take(tmp_path / "lock") is None
    claim.release()
    claim.release()
    Claim.take(tmp_path / "lock").release()


def test_forked_workers_do_not_keep_a_claim(tmp_path):
    claim = Claim.take(tmp_path / "lock")
    (is_up, up), (is_over, over) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.write(up, b"x")
        os.read(is_over, 1)
        os._exit(0)
    os.read(is_up, 1)
    claim.release()
    again = Claim.take(tmp_path / "lock")
    os.write(over, b"x")
    os.waitpid(child, 0)
    assert again is not None
    again.release()


def test_exclusive_waits_and_says_so(holder, tmp_path, monkeypatch, caplog):
    process = holder(tmp_path / "lock")
    said = []
    monkeypatch.setattr("uhd.locking._PATIENCE", 0.0)
    monkeypatch.setattr("uhd.locking._log.info", lambda *words: (said.append(words), process.kill()))
    with exclusive(tmp_path / "lock", "the cache") as held:
        assert held
    assert said == [("waiting for another run, which is making %s", "the cache")]


def test_run_folder_that_another_process_has_claimed_is_not_used(holder, run_train, tmp_path):
    data = draw_people(tmp_path / "data", 8, side=32)
    (tmp_path / "run").mkdir()
    holder(tmp_path / "run" / LOCK)
    outcome = run_train(*train_args(data, tmp_path / "run", epochs=1, val_split=0.0))
    assert outcome.code == 0, outcome.err
    assert len(metric_rows(tmp_path / "run-2")) == 1
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [LOCK]


def test_run_that_is_still_written_cannot_be_resumed(holder, run_train, tmp_path):
    data = draw_people(tmp_path / "data", 8, side=32)
    assert run_train(*train_args(data, tmp_path / "run", epochs=2, stop_epoch=1, val_split=0.0)).code == 0
    process = holder(tmp_path / "run" / LOCK)
    flags = ("--resume", tmp_path / "run", "--num-workers", 0, "--cache", "ram", "--stop-epoch", 0)
    outcome = run_train(*flags)
    assert outcome.code == 2
    assert outcome.errors == [f"train.py: error: --resume {tmp_path / 'run'}: another process is writing this run"]
    process.kill()
    process.communicate()
    assert run_train(*flags).code == 0
