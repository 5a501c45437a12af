"""Stop signals: the first asks, the second ends."""

import os
import signal
import subprocess
import sys

import pytest

from vlbert_train.stopping import StopSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_what_was_before_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert not stop.asked
        os.kill(os.getpid(), number)
        assert stop.asked
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_at_once(number: signal.Signals) -> None:
    code = (
        "import os, sys\nfrom vlbert_train.stopping import StopSignals\nwith StopSignals():\n"
        f"    os.kill(os.getpid(), {number.value})\n    print('still here', flush=True)\n"
        f"    os.kill(os.getpid(), {number.value})\n    print('never', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "still here\n"
    assert done.returncode == -number.value
