"""Files that belong together are replaced together, or none of them is."""

import errno
import os

import pytest
from fault_injections import may_mount, small_disk

from robustbench_local.errors import UserError
from robustbench_local.io.atomic_write import write_all_or_none


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_a_disk_that_fills_up_leaves_the_old_files(tmp_path, monkeypatch, fails):
    paths = [tmp_path / name for name in "abc"]
    write_all_or_none(dict.fromkeys(paths, "old"))
    calls, sync = [], os.fsync

    def full(handle):
        calls.append(handle)
        if len(calls) == fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="make room there"):
        write_all_or_none(dict.fromkeys(paths, "new"))
    assert [path.read_text() for path in paths] == ["old"] * 3
    assert sorted(tmp_path.iterdir()) == paths


def test_what_a_killed_process_left_unfinished_goes_with_the_next_write(tmp_path):
    (tmp_path / ".a.x1y2z3w4.unfinished").write_text("half")
    others = [".a.json.x1y2z3w4.unfinished", ".b.x1y2z3w4.unfinished"]
    for name in others:
        (tmp_path / name).write_text("half of another")
    write_all_or_none({tmp_path / "a": "new"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [*others, "a"]


def test_names_that_begin_alike_do_not_sweep_each_other(tmp_path):
    for name in ("eps-0.1", "sub"):
        paths = [tmp_path / f"{name}.samples.jsonl", tmp_path / name]
        for content in ("old", "new"):
            write_all_or_none(dict.fromkeys(paths, content))
            assert [path.read_text() for path in paths] == [content] * 2
    assert len(list(tmp_path.iterdir())) == 4


def test_what_waits_for_its_move_is_not_swept_by_another_write(tmp_path, monkeypatch):
    one, other = tmp_path / "one", tmp_path / "other"
    sync, again = os.fsync, []

    def and_another(handle):
        sync(handle)
        if not again and any(tmp_path.glob(".other.*")):
            again.append(None)
            write_all_or_none({one: "of another process"})

    monkeypatch.setattr(os, "fsync", and_another)
    write_all_or_none({one: "mine", other: "mine"})
    assert again
    assert one.read_text() == other.read_text() == "mine"


@pytest.mark.parametrize("name", ["eps-0.1", "sub"])
def test_an_output_without_json_in_its_name(robust, tmp_path, name):
    for _ in range(2):
        ended = robust("attack", "digits-cnn", "--samples", "20", "--no-diagnostics", "--output", name)
        assert ended.code == 0, ended.err
    assert robust("gate", name, "--min-clean", "0.1").code == 0
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(not may_mount(), reason="may not make disks of its own")
@pytest.mark.parametrize("kilobytes", [4, 8, 12])
def test_a_disk_that_fills_up_inside_a_file_is_one_sentence(tmp_path, kilobytes):
    """What a file had buffered was written again when it was closed, and failed there outside of every sentence."""
    child = os.fork()
    if child == 0:  # the disk vanishes with the process
        code = 1
        try:
            with small_disk(tmp_path, kilobytes):
                write_all_or_none({tmp_path / "a": "x" * 3000, tmp_path / "b": "y" * 20_000})
        except UserError as error:
            code = 0 if "make room there" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
