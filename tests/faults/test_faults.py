"""Faults of the world around a run: nothing is lost, nothing is counted twice, and a sentence says what happened."""

import sys

import disk_faults
import journal_faults
import model_faults
import process_faults
import pytest
from fault_injections import may_mount

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs the limits, mounts and /proc of Linux")
FAULTS = {
    **process_faults.FAULTS,
    **disk_faults.FAULTS,
    **disk_faults.MOUNTED,
    **journal_faults.FAULTS,
    **model_faults.FAULTS,
}
TIMES = 20
MOUNTS = may_mount()


def needs(fault):
    return pytest.mark.skipif(fault in disk_faults.MOUNTED and not MOUNTS, reason="may not make disks of its own")


CASES = [pytest.param(fault, marks=needs(fault)) for fault in FAULTS]


@pytest.mark.parametrize("fault", CASES)
def test_a_fault_is_survived(fault, scene):
    FAULTS[fault](scene(0))


def test_the_documented_faults_are_those_that_are_tested(request):
    table = (request.config.rootpath / "docs" / "faults.md").read_text()
    named = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert named[1:] == list(FAULTS)


@pytest.mark.soak
@pytest.mark.parametrize("fault", CASES)
def test_a_fault_is_survived_twenty_times(fault, scene):
    failures = []
    for seed in range(1, TIMES + 1):
        try:
            FAULTS[fault](scene(seed))
        except Exception as error:
            failures.append(f"seed {seed}: {type(error).__name__}: {error}")
    print(f"\n{fault}: {TIMES - len(failures)}/{TIMES}", end="")
    assert not failures, "\n".join(failures)
