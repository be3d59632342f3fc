"""Ctrl-C ends a run wherever it arrives."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import signal, time, weakref
from robustbench_local.cli import interrupts_redelivered

class Lost:
    def __del__(self):
        raise KeyboardInterrupt

class Referred:
    pass

def callback(reference):
    raise KeyboardInterrupt

for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, signal.SIG_IGN)
signal.signal(signal.{name}, signal.default_int_handler)
with interrupts_redelivered():
    try:
        {lose}
        for _ in range(100):
            time.sleep(0.01)
        print("lost")
    except KeyboardInterrupt:
        print("arrived")
"""


@pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="needs signals")
@pytest.mark.parametrize(
    "lose",
    ["Lost()", "referred = Referred(); kept = weakref.ref(referred, callback); del referred"],
    ids=["destructor", "weak reference"],
)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_in_a_place_that_only_reports_it_still_arrives(lose, name):
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(lose=lose, name=name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.stdout.strip() == "arrived"
    assert ran.stderr == ""
