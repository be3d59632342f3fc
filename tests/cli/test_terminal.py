"""What reaches the terminal: errors with their slugs, once under torchrun, and no warnings of libraries."""

import os
import subprocess
import sys
import warnings

import click
import pytest
from torch.distributed import TCPStore

import robustbench_local
from robustbench_local.cli import COMMANDS, cli
from robustbench_local.cli.terminal import routed_warnings, show_error
from robustbench_local.errors import RobustWarning, UserError, nearest

NOISY = """
import warnings
import numpy, torch
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
    def forward(self, images):
        warnings.warn("my own words")
        torch.range(0, 3)  # deprecated: compiled code complains, and names this line
        numpy.float64(1) / numpy.float64(0)
        torch.from_numpy(numpy.broadcast_to(numpy.zeros(1, numpy.float32), (3,)))  # not writable
        return super().forward(images)
"""
REFUSAL = """
import sys
from robustbench_local.cli.terminal import show_error
from robustbench_local.errors import UserError
from robustbench_local.runtime.distributed import process_group
try:
    with process_group():
        raise UserError("no weights today", slug="any")
except UserError as error:
    show_error(error)
    sys.exit(2)
"""


@pytest.fixture
def shown():
    """The messages of all warnings that Python shows in its own way; none is filtered."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        yield record


def test_an_error_is_one_line_with_its_slug(robust):
    outcome = robust("attack", "--eps", "small")
    assert outcome.code == 2
    assert outcome.err.startswith("robust: ")
    assert outcome.err.endswith("[invalid-eps]\n")
    assert outcome.err.count("\n") == 1


def test_what_steers_a_terminal_is_spelled_out(capsys):
    show_error(UserError("no file \x1b[2Jx", slug="file-missing"))
    assert capsys.readouterr().err == "robust: no file \\x1b[2Jx [file-missing]\n"


@pytest.mark.parametrize(
    ("rank", "reported_elsewhere", "printed"),
    [("0", None, True), ("1", None, False), ("1", False, True), ("0", True, False)],
)
def test_of_several_processes_one_prints(capsys, monkeypatch, rank, reported_elsewhere, printed):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("robustbench_local.cli.terminal._EXIT_DELAY", 0)
    error = UserError("wrong", slug="wrong")
    error.reported_elsewhere = reported_elsewhere
    show_error(error)
    assert (capsys.readouterr().err != "") is printed


def test_a_refusal_in_a_group_of_processes_is_printed_once(tmp_path):
    """The store is kept outside of both processes, as torchrun's agent does."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    common = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", REFUSAL],
            cwd=tmp_path,
            env={**os.environ, **common, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    assert "".join(errors).count("no weights today") == 1, errors


def test_warnings_of_libraries_are_dropped_and_those_of_user_code_are_shown(robust, tmp_path, shown):
    (tmp_path / "f.py").write_text(NOISY)
    assert robust("doctor", "f.py:Net", "--data", "digits").code == 0
    assert {str(warning.message) for warning in shown} == {"my own words"}


def test_warnings_of_this_package_are_one_line_with_a_slug(capsys, shown):
    with routed_warnings():
        warnings.warn(RobustWarning("the model has two classes", slug="few-classes"), stacklevel=1)
    assert capsys.readouterr().err == "robust: warning: the model has two classes [few-classes]\n"
    assert not shown


def test_the_filters_of_a_program_that_imports_the_package_stay(robust):
    before = (list(warnings.filters), warnings.showwarning)
    robustbench_local.evaluate  # noqa: B018  # imports torch and most of the package
    assert robust("--version").code == 0
    assert (list(warnings.filters), warnings.showwarning) == before


def test_with_python_s_own_option_all_warnings_are_shown(monkeypatch, shown):
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    with routed_warnings():
        warnings.warn(RobustWarning("as python shows it", slug="any"), stacklevel=1)
    assert [warning.category for warning in shown] == [RobustWarning]


@pytest.mark.parametrize("arguments", [["version"], ["--version"], ["-V"]])
def test_the_version_is_printed(robust, arguments):
    assert robust(*arguments).out == f"robust, version {robustbench_local.__version__}\n"


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("verison", "version"), ("trian", "train"), ("atack", "attack"), ("gates", "gate"), ("serve", None)],
)
def test_only_near_names_are_suggested(robust, name, suggestion):
    outcome = robust(name)
    assert outcome.code == 2
    assert ("Did you mean" in outcome.err) is (suggestion is not None)
    assert suggestion is None or f"'{suggestion}'" in outcome.err


def test_a_name_that_is_not_near_has_no_suggestion():
    assert nearest("version", ["train", "attack"]) == ""
    assert nearest("max_drop", ["resume", "samples"]) == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_in_the_help_keep_their_lines(name):
    command = cli.get_command(click.Context(cli), name)
    with click.Context(command, info_name=name) as context:
        help_text = command.get_help(context)
    assert "\\b" not in help_text
    assert [line for line in help_text.splitlines() if line.startswith(f"  robust {name}")]
