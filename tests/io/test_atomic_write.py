import os

import pytest

from robustbench_local.errors import UserError
from robustbench_local.io.atomic_write import check_writable, write_atomically


def test_replaces_the_file_whole(tmp_path):
    path = tmp_path / "new" / "x.json"
    write_atomically(path, "one")
    write_atomically(path, b"two")
    assert path.read_text() == "two"
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_atomically(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left") as caught:
        write_atomically(path, "new")
    assert caught.value.slug == "disk-full"
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_unwritable_places_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output"):
        check_writable(tmp_path / "file" / "x.json")
    with pytest.raises(UserError) as caught:
        check_writable(tmp_path)
    assert caught.value.slug == "output-is-a-directory"
