"""An import that fails because no file handle is left is the user's matter, any other failing import is a bug."""

import os

import pytest

import robustbench_local.cli as command_line


@pytest.mark.parametrize(("handles_left", "expected"), [(False, 2), (True, None)])
def test_an_import_without_file_handles_is_one_sentence(monkeypatch, capsys, handles_left, expected):
    def fail(*_):
        raise ImportError("sklearn.so: cannot open shared object file: Too many open files")

    def no_handle(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(command_line.cli, "invoke", fail)
    if not handles_left:
        monkeypatch.setattr(os, "open", no_handle)
    if expected is None:
        with pytest.raises(ImportError):
            command_line._exit_code(["list", "models"])
        return
    assert command_line._exit_code(["list", "models"]) == expected
    assert "Too many open files" in capsys.readouterr().err
