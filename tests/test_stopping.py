"""Stop signals: the first asks, the second ends; helpers are started whole before Ctrl-C is heard."""

import os
import signal
import subprocess
import sys

import pytest

from vlbert_data.build.processes import _interrupt_later
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


def test_helpers_start_where_the_handler_of_ctrl_c_is_not_pythons() -> None:
    # As in a program that Python is embedded in: Python met a handler of C's when it looked, and knows no name for it.
    code = (
        "import ctypes, signal, sys\nfrom vlbert_data.build.processes import _interrupt_later\n"
        "caught = []\nhandler = ctypes.CFUNCTYPE(None, ctypes.c_int)(caught.append)\n"
        "ctypes.CDLL(None).signal(signal.SIGINT, handler)\n"
        "del sys.modules['_signal']\nimport _signal\nassert signal.getsignal(signal.SIGINT) is None\n"
        "with _interrupt_later():\n    pass\n"
        "signal.raise_signal(signal.SIGINT)\nprint(caught == [signal.SIGINT])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_ctrl_c_comes_through_once_a_helper_has_started() -> None:
    with pytest.raises(KeyboardInterrupt), _interrupt_later():
        os.kill(os.getpid(), signal.SIGINT)
        told = "all that it waits for"
    assert told
