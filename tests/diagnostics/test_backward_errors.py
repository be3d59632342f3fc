"""A failing backward pass stops the diagnostics; an operation without one is reported as a mask."""

import pytest
import torch
from torch import nn

from robustbench_local import Classifier, ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks import FGSM, PGD
from robustbench_local.diagnostics.gradient_flow import trace_gradients
from robustbench_local.diagnostics.preflight import preflight
from robustbench_local.errors import UserError
from robustbench_local.evaluation.doctor import doctor
from robustbench_local.models.metered import Metered, backward_failures
from robustbench_local.results.checks import GRADIENTS, LAYERS
from robustbench_local.runtime.device import is_out_of_memory


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, error):
        ctx.error = error
        return values * 1.0

    @staticmethod
    def backward(ctx, gradient):
        raise ctx.error


class Front(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, images):
        return Failing.apply(images, self.error)


class Late(nn.Module):
    """Its backward fails from a certain call on."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def forward(self, images):
        if torch.is_grad_enabled():
            self.calls -= 1
        return images * 1.0 if self.calls > 0 else Failing.apply(images, RuntimeError("CUDA error: late"))


def metered(error):
    return Metered(Classifier(nn.Sequential(Front(error), nn.Flatten(), nn.Linear(64, 10)), copy=False))


FAILURES = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    ValueError("the model's own complaint"),
]


@pytest.mark.parametrize("error", FAILURES, ids=str)
def test_a_failing_backward_stops_the_checks(error):
    with pytest.raises(type(error)):
        trace_gradients(metered(error), torch.rand(2, 1, 8, 8))
    with pytest.raises(type(error)):
        preflight(metered(error), load_dataset("digits", split="test"), ThreatModel("linf", 0.1), torch.device("cpu"))


@pytest.mark.parametrize("error", FAILURES, ids=str)
def test_a_failing_backward_ends_a_run_in_one_sentence(error):
    model = metered(error).model
    dataset = load_dataset("digits", split="test").subset(range(8))
    for run in (
        lambda: evaluate(model, dataset, ThreatModel("linf", 0.1), attacks=[FGSM()], device="cpu"),
        lambda: doctor(model, dataset, device="cpu"),
    ):
        with pytest.raises(UserError, match=f"{type(error).__name__}: {error}") as caught:
            run()
        assert caught.value.slug == "model-failed"


def test_a_backward_that_fails_during_an_attack_is_one_sentence():
    """The checks before the attack pass, because the first gradients are right."""
    model = Classifier(nn.Sequential(Late(calls=10), load_classifier("digits-cnn").module), copy=False)
    dataset = load_dataset("digits", split="test").subset(range(8))
    with pytest.raises(UserError) as caught:
        evaluate(model, dataset, ThreatModel("linf", 0.1), attacks=[PGD(steps=50)], device="cpu", diagnostics=False)
    assert caught.value.slug == "attack-step-failed"
    assert "CUDA error: late" in str(caught.value)


@pytest.mark.parametrize("error", [ValueError("not the model's"), KeyError("a mistake of ours")], ids=str)
def test_an_error_outside_the_backward_pass_stays_what_it_is(error):
    with pytest.raises(type(error)) as caught, backward_failures("net"):
        raise error
    assert caught.value is error


def test_a_lack_of_memory_in_the_backward_pass_stays_one():
    points = torch.rand(2, requires_grad=True)
    with pytest.raises(torch.OutOfMemoryError), backward_failures("net"):
        Failing.apply(points, torch.OutOfMemoryError("CUDA out of memory")).sum().backward()


def test_an_operation_without_a_backward_is_a_warning():
    model = metered(NotImplementedError("no gradient here"))
    checks = preflight(model, load_dataset("digits", split="test"), ThreatModel("linf", 0.1), torch.device("cpu"))
    status = {finding.slug: finding.status for finding in checks.findings}
    assert status[GRADIENTS] == status[LAYERS] == "warn"
    assert checks.layers == ("0",)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_a_lack_of_memory_is_recognized(error, expected):
    assert is_out_of_memory(error) is expected
