import random

import pytest
from fault_commands import COMMAND, TRAINING, ended, told, trained
from fault_scene import Scene


@pytest.fixture(scope="package")
def expected(tmp_path_factory):
    """What the commands find that nothing disturbs."""
    folder, log = tmp_path_factory.mktemp("undisturbed"), tmp_path_factory.mktemp("log")
    for command in ([*COMMAND, "--output", "r.json"], TRAINING):
        undisturbed = ended(folder, *command, log=log)
        assert undisturbed.process.exitcode == 0, undisturbed.err
    return told(folder / "r.json"), trained(folder)


@pytest.fixture
def scene(expected, tmp_path):
    """Makes scenes; what a command prints is kept beside its folder."""

    def make(seed):
        folder = tmp_path / str(seed) / "run"
        folder.mkdir(parents=True)
        return Scene(folder, random.Random(seed), *expected)

    return make
