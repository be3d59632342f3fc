"""Where the passes of an evaluation went: every attack's are in its part, and what is left is the checks'."""

import pytest
import torch
from interrupting import StopAfter

from robustbench_local import Classifier, ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks import PGD
from robustbench_local.diagnostics import adaptive_attacks
from robustbench_local.engine.journal import journal_path
from robustbench_local.engine.protocol import resolve_attack

BALL = ThreatModel("linf", "0.1")


class Rounded(torch.nn.Module):
    """A masked model: gradients end where its input is rounded."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner((images * 8).round() / 8)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits").subset(range(24))


@pytest.fixture
def cheap(monkeypatch):
    """The strongest adaptive attacks with few steps: what they find is not tested here."""
    few = {"square:steps=5000": "square:steps=20", "square:steps=3000,share=0.1": "square:steps=20,share=0.1"}
    monkeypatch.setattr(adaptive_attacks, "resolve_attack", lambda text: resolve_attack(few.get(text, "fgsm")))


def require_sums(result):
    """The parts have what the attacks of their roles have, and the checks what is left."""
    parts = {part.name: part for part in result.cost.parts}
    names = {"diagnostic": "probes", "adaptive": "adaptive attacks"}
    found = dict.fromkeys(parts, (0, 0, 0.0))
    for attack in result.attacks:
        name, spent = names.get(attack.role, "suite"), (attack.forward_passes, attack.backward_passes, attack.seconds)
        found[name] = tuple(sum(each) for each in zip(found[name], spent, strict=True))
    for name, part in parts.items():
        if name not in ("clean pass", "checks"):
            assert (part.forward_passes, part.backward_passes) == found[name][:2], name
            assert part.seconds == pytest.approx(found[name][2])
    clean = parts["clean pass"]
    assert (clean.forward_passes, clean.backward_passes) == (result.data.n, 0)
    assert parts["checks"].forward_passes > 0 < parts["checks"].seconds
    assert sum(part.passes for part in parts.values()) == result.cost.forward_passes + result.cost.backward_passes
    assert sum(part.seconds for part in parts.values()) == pytest.approx(result.cost.seconds)
    return list(parts)


def test_an_honest_run_has_no_adaptive_attacks(digits):
    result = evaluate(load_classifier("digits-cnn-robust"), digits, BALL, suite="fast").result
    assert require_sums(result) == ["clean pass", "suite", "checks", "probes"]


@pytest.mark.usefixtures("cheap")
def test_a_doubt_has_its_own_part(digits):
    model = Classifier(Rounded(load_classifier("digits-cnn").module), input_shape=(1, 8, 8))
    result = evaluate(model, digits.subset(range(12)), BALL, suite="fast").result
    assert require_sums(result) == ["clean pass", "suite", "checks", "probes", "adaptive attacks"]


@pytest.mark.parametrize("eps", ["0.1", "0"])
def test_without_diagnostics_the_preflight_is_left(digits, eps):
    model, ball = load_classifier("digits-cnn"), ThreatModel("linf", eps)
    result = evaluate(model, digits, ball, attacks=[PGD(steps=3)], diagnostics=False).result
    assert require_sums(result) == ["clean pass", "suite", "checks"]


@pytest.mark.parametrize("batches", [2, 7])
def test_a_resumed_run_has_the_parts_of_both_sessions(digits, tmp_path, batches):
    model, output = load_classifier("digits-cnn-robust"), tmp_path / "r.json"
    options = {"suite": "fast", "batch_size": 8, "output": output}
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, digits, BALL, observer=StopAfter(batches), **options)
    assert journal_path(output).exists()
    resumed = evaluate(model, digits, BALL, resume=True, **options).result
    assert require_sums(resumed) == ["clean pass", "suite", "checks", "probes"]
    whole = evaluate(model, digits, BALL, **{**options, "output": tmp_path / "whole.json"}).result
    assert [part.passes for part in resumed.cost.parts] == [part.passes for part in whole.cost.parts]
