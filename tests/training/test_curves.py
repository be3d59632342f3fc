"""What people see of a training: the table, the picture, and TensorBoard's files."""

from __future__ import annotations

import builtins
import sys
import types

import pytest
from rich.console import Console
from small_trainings import Training

from robustbench_local.cli import cli
from robustbench_local.display.training import EpochTable
from robustbench_local.errors import UserError
from robustbench_local.training.curves import draw_curves, write_tensorboard


def reports():
    done = Training(epochs=3, method="trades:steps=1").run().reports
    undone = done[1].model_copy(update={"undone": True, "parts": {}})
    return [done[0], undone, *done[1:]]


@pytest.fixture
def without(monkeypatch):
    """Packages that cannot be imported."""

    def hide(*names):
        real = builtins.__import__

        def refuse(name, *arguments, **settings):
            if name.partition(".")[0] in names or name in names:
                raise ImportError(f"No module named {name!r}")
            return real(name, *arguments, **settings)

        monkeypatch.setattr(builtins, "__import__", refuse)

    return hide


def test_curves_are_drawn_where_matplotlib_is(tmp_path):
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    assert draw_curves(reports(), tmp_path) == tmp_path / "curves.png"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_are_none(tmp_path, without):
    without("matplotlib")
    assert draw_curves(reports(), tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_missing_tensorboard_is_found_before_training(tmp_path, without):
    without("torch.utils.tensorboard")
    with pytest.raises(UserError, match=r"--tensorboard needs .*pip install 'robustbench-local\[tensorboard\]'"):
        cli(["defend", "--tensorboard", "--output", str(tmp_path / "out")], standalone_mode=False)
    assert not (tmp_path / "out").exists()


def test_tensorboard_gets_the_numbers_of_the_reports(tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    given = reports()
    write_tensorboard(given, tmp_path)
    assert written[0] == str(tmp_path / "tensorboard")
    assert written[-1] == "closed"
    last = {name: value for name, value, step in written[1:-1] if step == 4}
    assert last.keys() == {
        "loss",
        "learning rate",
        "loss/clean",
        "loss/divergence",
        "hold-out/clean",
        "hold-out/robust, PGD-10",
        "hold-out/robust, FGSM",
    }
    assert last["hold-out/clean"] == given[-1].clean_accuracy.value
    assert last["loss"] == given[-1].loss


def test_the_table_has_a_line_for_every_epoch_and_says_what_the_watchers_say(capsys):
    screen = Console(stderr=True, width=200, force_terminal=False)
    with EpochTable(screen) as table:
        Training(epochs=2, method="trades:steps=1").run(observer=table)
        table.warn("robust overfitting: 3 points")
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0].startswith("2 epochs of 160 images")
    assert "epoch   1" in lines[1]
    assert "divergence" in lines[1]
    assert "clean" in lines[1]
    assert "robust" in lines[1]
    assert "best so far" in lines[1]
    assert "images/s" in lines[1]
    assert any("epoch   2" in line for line in lines)
    assert lines[-1] == "robust overfitting: 3 points"
