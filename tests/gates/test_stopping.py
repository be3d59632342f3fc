"""Evaluating until a gate is decided."""

from __future__ import annotations

import itertools

import pytest
import torch

from robustbench_local import ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks.randomness import hash_indices
from robustbench_local.engine.observer import Observer
from robustbench_local.errors import UserError
from robustbench_local.evaluation.build_result import threat_model_info
from robustbench_local.evaluation.stopping import FIRST_BLOCK, blocks
from robustbench_local.gates.config import read_gate
from robustbench_local.gates.decide import decide
from robustbench_local.gates.stopping import GateStoppingRule, stopping_rule

THREAT = ThreatModel("linf", "0.1")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def model():
    return load_classifier("digits-cnn-robust")


def until(min_robust, min_clean=None):
    return GateStoppingRule("made up", 0.05, min_clean, min_robust)


@pytest.fixture(scope="module")
def near(model, digits, tmp_path_factory):
    """An evaluation whose floor is near what is measured."""
    output = tmp_path_factory.mktemp("near") / "whole.json"
    return evaluate(model, digits, THREAT, stopping_rule=until(0.86), output=output)


def gate(tmp_path, text):
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("n", [1, 99, 100, 101, 360, 10_000])
def test_blocks_hold_every_position_once_and_grow(n):
    parts = list(blocks(n))
    assert torch.cat(parts).tolist() == list(range(n))
    assert len(parts[0]) == min(n, FIRST_BLOCK)
    assert all(len(after) >= len(before) for before, after in itertools.pairwise(parts[1:-1]))


def test_it_stops_when_the_floor_is_decided_and_the_gate_says_the_same(model, digits, tmp_path):
    stopped = evaluate(model, digits, THREAT, stopping_rule=until(0.7), output=tmp_path / "r.json")
    result = stopped.result
    assert result.sequential.looks == [100]
    assert result.data.n == 100 < result.data.available == 360
    assert result.robust_accuracy.n == result.clean_accuracy.n == 100 == len(stopped.samples)
    first = hash_indices(0, torch.arange(360)).argsort(stable=True)[:100]
    assert {sample.index for sample in stopped.samples} == set(first.tolist())
    decision = decide(read_gate(str(gate(tmp_path, "min_robust: 0.7\n"))), [tmp_path / "r.json"])
    assert decision.outcome.name == "PASS"
    assert "of the 360 images of the split" in decision.checks[0].sentence


def test_a_close_floor_takes_more_blocks_and_the_whole_set_decides_it(model, digits, near):
    looks = near.result.sequential.looks
    assert len(looks) > 1
    assert looks == sorted(looks)
    whole = evaluate(model, digits, THREAT).robust_accuracy
    exactly = evaluate(model, digits, THREAT, stopping_rule=until(whole.value)).result
    assert exactly.sequential.looks[-1] == 360
    assert exactly.robust_accuracy.correct == whole.correct


def test_a_hopeless_floor_fails_at_once(digits, tmp_path):
    result = evaluate(
        load_classifier("digits-cnn"),
        digits,
        ThreatModel("linf", "0.2"),
        stopping_rule=until(0.7),
        output=tmp_path / "r.json",
    ).result
    assert result.data.n == 100
    assert decide(read_gate(str(gate(tmp_path, "min_robust: 0.7\n"))), [tmp_path / "r.json"]).outcome.name == "FAIL"


def test_a_killed_run_goes_on_to_the_same_end(model, digits, near, tmp_path):
    class Impatient(Observer):
        def __init__(self):
            self.cleans = 0

        def begin(self, stage, total, done=0):
            self.cleans += stage == "clean"
            if self.cleans == 2 and stage.startswith("pgd"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, digits, THREAT, stopping_rule=until(0.86), output=tmp_path / "part.json", observer=Impatient())
    resumed = evaluate(model, digits, THREAT, stopping_rule=until(0.86), output=tmp_path / "part.json", resume=True)
    assert resumed.samples == near.samples
    assert resumed.result.sequential == near.result.sequential
    again = evaluate(model, digits, THREAT, stopping_rule=until(0.86), output=tmp_path / "part.json", resume=True)
    assert again.result == resumed.result, "a finished run is read back"


def test_block_by_block_every_stage_is_reported_once(near):
    result = near.result
    names = [report.name for report in result.attacks]
    assert len(names) == len(set(names))
    assert result.attacks[0].attacked == result.clean_accuracy.correct
    assert result.attacks[-1].robust_accuracy_after == pytest.approx(result.robust_accuracy.value)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("max_drop: 0.02\nmin_robust: 0.4\nbaseline: b.json\n", "drops"),
        ("min_class_robust: 0.2\n", "no floor"),
        ("min_robust: 0.4\nmin_class_robust: 0.2\n", "single classes"),
        ("threat_models:\n  - {norm: l2, eps: 0.5, min_robust: 0.4}\n", "no floor for L∞ 0.1"),
    ],
)
def test_what_cannot_be_decided_on_the_way_is_refused(tmp_path, text, word):
    path = gate(tmp_path, text)
    with pytest.raises(UserError, match=word):
        stopping_rule(read_gate(str(path)), path.name, threat_model_info(THREAT))


def test_samples_and_until_exclude_each_other(model, digits):
    with pytest.raises(UserError, match="--samples"):
        evaluate(model, digits, THREAT, stopping_rule=until(0.5), samples=50)
