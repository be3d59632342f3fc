"""Training shared between two processes by torchrun: the curve of one, and one set of files."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import subprocess
import sys

import pytest
import torch
import two_processes
from small_trainings import same
from two_processes import TRAININGS, told, training

from robustbench_local.models import load_classifier
from robustbench_local.training.model_card import read_card

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def torchrun(*arguments):
    port = ["--master-port", str(random.randint(20000, 60000))]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *port, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What each of the two processes has found."""
    folder, port = tmp_path_factory.mktemp("shared"), random.randint(20000, 60000)
    clean = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    started = [clean.Process(target=two_processes.run_rank, args=(rank, port, folder)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(240)
    assert [process.exitcode for process in started] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def reports(found):
    return [json.loads(report) for report in found["reports"]]


@pytest.mark.parametrize("name", TRAININGS)
def test_the_same_effective_batch_gives_the_same_curve(shared, name):
    alone = told(training(name).run())
    for ours, theirs in zip(reports(alone), reports(shared[0][name]), strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
        assert theirs["parts"] == pytest.approx(ours["parts"], rel=1e-4)
        assert theirs["learning_rate"] == ours["learning_rate"]
        for accuracy in ("clean_accuracy", "robust_accuracy", "noisy_accuracy"):
            if ours[accuracy] is not None:
                assert theirs[accuracy]["n"] == ours[accuracy]["n"] == 40
                assert abs(theirs[accuracy]["correct"] - ours[accuracy]["correct"]) <= 1
    for kind in ("network", "kept"):
        for key, tensor in alone[kind].items():
            torch.testing.assert_close(shared[0][name][kind][key], tensor, rtol=1e-3, atol=1e-4)


def test_all_processes_end_with_the_same_weights_and_reports(shared):
    one, other = shared
    assert one.keys() == other.keys()
    for name in one:
        assert one[name]["reports"] == other[name]["reports"], name
        assert same(one[name]["network"], other[name]["network"]), name
        assert same(one[name]["kept"], other[name]["kept"]), name


def test_resumed_processes_end_like_uninterrupted_ones(shared):
    for found in shared:
        assert found["resumed"]["reports"] == found["normed"]["reports"]
        assert same(found["resumed"]["network"], found["normed"]["network"])
        assert same(found["resumed"]["kept"], found["normed"]["kept"])


def test_statistics_of_batch_norm_are_not_mixed_up_between_the_network_and_its_average(shared):
    kept, network = shared[0]["normed"]["kept"], shared[0]["normed"]["network"]
    assert kept["1.num_batches_tracked"] == network["1.num_batches_tracked"] == 10
    assert not torch.equal(kept["1.running_mean"], network["1.running_mean"])


def test_a_batch_that_is_bad_in_one_process_is_skipped_by_all(shared):
    for found in shared:
        assert [report["skipped"] for report in reports(found["skipped"])] == [1, 0]
        assert all(tensor.isfinite().all() for tensor in found["skipped"]["network"].values())


def test_processes_roll_back_together(shared):
    for found in shared:
        assert [report["undone"] for report in reports(found["undone"])] == [False, True, False]


def test_the_command_under_torchrun_leaves_one_set_of_files(tmp_path):
    command = [
        "-m",
        "robustbench_local",
        "defend",
        "--samples",
        600,
        "--batch-size",
        32,
        "--epochs",
        2,
        "--device",
        "cpu",
        "--arch",
        "digits-cnn",
        "--method",
        "hat:steps=1",
        "--suite",
        "fast",
        "--eval-samples",
        30,
        "--output",
        tmp_path / "out",
    ]
    ended = torchrun(*command)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("was chosen on the hold-out") == 1, "one process speaks"
    names = {path.name for path in (tmp_path / "out").iterdir()} - {
        "curves.png",
        *(f"last{end}" for end in (".json", ".safetensors", "-result.json", "-result.samples.jsonl")),
    }
    assert names == {
        "metrics.jsonl",
        "model.json",
        "model.safetensors",
        "result.json",
        "result.samples.jsonl",
        "teacher",
    }
    assert read_card((tmp_path / "out" / "model.json").read_bytes()).evaluation is not None
    load_classifier(str(tmp_path / "out"))
