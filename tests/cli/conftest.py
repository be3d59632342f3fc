"""Results that several tests of the command line read."""

import sys

import pytest

from robustbench_local.cli import main

COMMANDS = {"weak": ["digits-cnn"], "strong": ["digits-cnn-robust"], "few": ["digits-cnn", "--samples", "50"]}


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """A folder with results of both bundled classifiers on the test digits, and of the weaker one on fifty of them."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for name, arguments in COMMANDS.items():
            patched.setattr(sys, "argv", ["robust", "attack", *arguments, "--output", f"{name}.json"])
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 0
    return folder
