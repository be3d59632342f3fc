"""Files that belong together are replaced together, or none of them is."""
import errno
import os

import pytest

from robustbench_local.errors import UserError
from robustbench_local.files import write_together


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_a_disk_that_fills_up_leaves_the_old_files(tmp_path, monkeypatch, fails):
    paths = [tmp_path / name for name in "abc"]
    write_together({path: "old" for path in paths})
    calls, sync = [], os.fsync

    def full(handle):
        calls.append(handle)
        if len(calls) == fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="make room there"):
        write_together({path: "new" for path in paths})
    assert [path.read_text() for path in paths] == ["old"] * 3
    assert sorted(tmp_path.iterdir()) == paths


def test_what_a_killed_process_left_unfinished_goes_with_the_next_write(tmp_path):
    (tmp_path / ".a.x1y2z3w4.unfinished").write_text("half")
    (tmp_path / ".b.x1y2z3w4.unfinished").write_text("half of another")
    write_together({tmp_path / "a": "new"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.x1y2z3w4.unfinished", "a"]
