"""Evaluations in several threads at once give what they give one after the other."""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from robustbench_local import Classifier, ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks import PGD
from robustbench_local.diagnostics import adaptive_attacks
from robustbench_local.diagnostics.gradient_flow import trace_gradients
from robustbench_local.engine.protocol import resolve_attack
from robustbench_local.evaluation.run_copy import metered_on
from robustbench_local.models.metered import Metered

BALL = ThreatModel("linf", "0.15")


class Rounded(nn.Module):
    """A masked model: gradients end where its input is rounded."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner((images * 8).round() / 8)


class Softmaxed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images).softmax(1)


def outcome(evaluation):
    result = evaluation.result
    stages = [(report.name, report.because, report.attacked, report.fooled) for report in result.attacks]
    return evaluation.samples, result.diagnostics, result.verdict, stages, result.cost.forward_passes


def cheaper(text):
    """The strongest adaptive attacks with few steps: how much they find is not tested here."""
    return resolve_attack({"square:steps=5000": "square:steps=20", "apgd:loss=dlr,targets=9": "fgsm"}.get(text, text))


def test_two_threads_give_what_one_gives(monkeypatch):
    monkeypatch.setattr(adaptive_attacks, "resolve_attack", cheaper)
    digits = load_dataset("digits").subset(range(12))
    models = [load_classifier("digits-cnn"), Classifier(Rounded(load_classifier("digits-cnn").module))]

    def run(model):
        return outcome(evaluate(model, digits, BALL, device="cpu"))

    alone = [run(model) for model in models]
    assert alone[1][2].status == "doubtful"
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, models))
    assert together == alone


def test_two_threads_may_share_a_classifier():
    """The model returns probabilities, which every run finds out for itself."""
    digits = load_dataset("digits").subset(range(60))
    model = Classifier(Softmaxed(load_classifier("digits-cnn").module))

    def run(seed):
        return outcome(evaluate(model, digits, BALL, attacks=[PGD(steps=5)], diagnostics=False, seed=seed))

    alone = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(4)))
    assert together == alone
    assert not model.probabilities


class Waiting(nn.Module):
    """A forward that waits until another thread has done something."""

    def __init__(self, reached, resume):
        super().__init__()
        self.linear, self.reached, self.resume = nn.Linear(36, 3), reached, resume

    def forward(self, images):
        if threading.current_thread().name == "tracing":
            self.reached.set()
            assert self.resume.wait(30)
        return self.linear(images.flatten(1))


def test_training_in_another_thread_is_not_traced():
    reached, resume = threading.Event(), threading.Event()
    net, traces = Waiting(reached, resume), []
    model = Metered(Classifier(net, copy=False))
    tracing = threading.Thread(
        target=lambda: traces.append(trace_gradients(model, torch.rand(4, 1, 6, 6))), name="tracing"
    )
    tracing.start()
    assert reached.wait(30)
    own = nn.Linear(36, 3)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
    images = torch.rand(4, 1, 6, 6)
    optimizer.zero_grad()
    (own(images.flatten(1)).sum() + net(images).round().sum()).backward()  # the traced layers' hooks run here too
    torch.autograd.grad(own(images.flatten(1)).sum(), own.weight)
    optimizer.step()
    net.linear.train()
    net(images)
    net.linear.eval()
    resume.set()
    tracing.join()
    (trace,) = traces
    assert trace.differentiates == []
    assert trace.functions == {}
    assert trace.training == []
    assert trace.stops == {}


def test_a_trace_notices_its_own_thread():
    """The counterpart: the same calls inside the forward are found."""

    class Optimizing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(36, 3)

        def forward(self, images):
            points = images.detach().requires_grad_(True)
            optimizer = torch.optim.SGD([points], lr=0.1)
            with torch.enable_grad():
                optimizer.zero_grad()
                points.square().sum().backward()
                torch.func.grad(lambda values: values.sum())(points.detach())
            return self.linear(images.flatten(1))

    trace = trace_gradients(Metered(Classifier(Optimizing(), copy=False)), torch.rand(4, 1, 6, 6))
    assert {"Optimizer.zero_grad", "Tensor.backward", "torch.func.grad"} <= set(trace.differentiates)


def test_a_callers_profiler_is_put_back():
    import sys

    def profiler(frame, event, arg):
        return None

    sys.setprofile(profiler)
    try:
        trace_gradients(Metered(load_classifier("digits-cnn")), torch.rand(4, 1, 8, 8))
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_run_leaves_the_classifier_where_and_what_it_is(device):
    classifier = load_classifier("digits-cnn")
    weights = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    with metered_on(classifier, torch.device(device)) as model:
        model.model.probabilities = True
        assert {tensor.device.type for tensor in model.parameters()} == {device}
    assert not classifier.probabilities
    for name, tensor in classifier.state_dict().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, weights[name])


class Tapped(nn.Module):
    """Answers with what a hook has stored, as networks do that read features of an inner layer."""

    def __init__(self, inner, hook):
        super().__init__()
        self.inner, self.seen = inner, None
        inner.register_forward_hook(hook(self))

    def store(self, layer, args, output):
        self.seen = output

    def forward(self, images):
        self.inner(images)
        return self.seen


@pytest.mark.parametrize(
    "hook",
    [
        lambda net: lambda layer, args, output: setattr(net, "seen", output),
        lambda net: lambda *call: net.store(*call),
        lambda net: functools.partial(lambda owner, *call: owner.store(*call), net),
        lambda net: lambda *call, owner=net: owner.store(*call),
        lambda net: net.store,
    ],
    ids=["closure", "closure calls a method", "partial", "default argument", "bound method"],
)
def test_a_function_that_refers_to_the_network_still_works(hook):
    images = load_dataset("digits").images([0, 1, 2])
    plain = load_classifier("digits-cnn")
    classifier = Classifier(Tapped(load_classifier("digits-cnn").module, hook), copy=False)
    with metered_on(classifier, torch.device("cpu")) as model:
        for part in (images, images.flip(0)):
            torch.testing.assert_close(model(part), plain(part))
