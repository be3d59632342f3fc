"""A failing backward pass stops the diagnostics; an operation without one is reported as a mask."""

import pytest
import torch
from torch import nn

from robustbench_local import Classifier, ThreatModel, load_dataset
from robustbench_local.diagnostics.gradient_flow import trace_gradients
from robustbench_local.diagnostics.preflight import preflight
from robustbench_local.models.metered import Metered
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
