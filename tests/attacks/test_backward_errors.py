"""Only an operation without a backward counts as a gradient of 0; every other error of a backward pass comes up."""

import threading

import pytest
import torch
from torch import nn

from robustbench_local.attacks import APGD, BPDA, EOT, FAB, FGSM, PGD, Descent, ThreatModel, run
from robustbench_local.attacks.backward_errors import breaks_autograd_rule, is_device_failure, is_missing_backward
from robustbench_local.attacks.pgd import ascend

BALL = ThreatModel("linf", 0.1)
ATTACKS = [
    FGSM(),
    *(kind(steps=2) for kind in (PGD, APGD, FAB, BPDA, Descent)),
    FAB(steps=2, targets=1),
    EOT(steps=2, draws=2),
]
FAILURES = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    torch.OutOfMemoryError("CUDA out of memory"),
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    MemoryError(),
    ValueError("the model's own complaint"),
    NotImplementedError("\"upsample_bilinear2d_backward\" not implemented for 'BFloat16'"),
    NotImplementedError("Could not run 'aten::foo_backward' with arguments from the 'MPS' backend."),
]
MASKS = [
    NotImplementedError(),
    NotImplementedError("no gradient here"),
    RuntimeError("derivative for aten::heaviside is not implemented"),
]


class Failing(torch.autograd.Function):
    """The identity, whose backward raises."""

    @staticmethod
    def forward(ctx, values, error):
        ctx.error = error
        return values * 1.0

    @staticmethod
    def backward(ctx, gradient):
        raise ctx.error


class WithoutBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values * 1.0


class Model(nn.Module):
    def __init__(self, front):
        super().__init__()
        self.front, self.flat = front, nn.Flatten()
        self.layer = nn.Linear(4, 3).requires_grad_(False)

    def forward(self, images):
        return self.layer(self.flat(self.front(images)))


@pytest.fixture
def batch():
    images = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return images, torch.zeros(5, dtype=torch.int64)


def name_of(value):
    return (
        f"{type(value).__name__}-{str(value)[:24]}" if isinstance(value, BaseException) else getattr(value, "name", "")
    )


@pytest.mark.parametrize("error", FAILURES, ids=name_of)
@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
def test_a_failing_backward_stops_the_attack(batch, attack, error):
    with pytest.raises(type(error)) as caught:
        run(attack, Model(lambda images: Failing.apply(images, error)), BALL, *batch)
    assert caught.value is error


@pytest.mark.parametrize("error", MASKS, ids=name_of)
@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
def test_an_operation_without_a_backward_is_a_gradient_of_0(batch, attack, error):
    points = run(attack, Model(lambda images: Failing.apply(images, error)), BALL, *batch)
    assert BALL.geometry.distance(points - batch[0]).max() <= BALL.eps + 1e-6


@pytest.mark.parametrize(
    "front",
    [
        WithoutBackward.apply,
        lambda images: torch.heaviside(images - 0.5, images),
        lambda images: torch.special.zeta(images + 2, images + 1),
    ],
    ids=["Function", "heaviside", "zeta"],
)
def test_what_torch_itself_raises_without_a_backward_is_recognized(batch, front):
    images, labels = batch
    points = images.clone().requires_grad_()
    with pytest.raises(RuntimeError) as caught:
        torch.autograd.grad(front(points).sum(), points)
    assert is_missing_backward(caught.value)
    still = run(PGD(steps=2, random_start=False), Model(front), BALL, images, labels)
    assert torch.equal(still, images)


@pytest.mark.parametrize("error", FAILURES, ids=name_of)
def test_ascend_does_not_hide_a_failing_backward(batch, error):
    with pytest.raises(type(error)):
        ascend(lambda points: Failing.apply(points, error).flatten(1).sum(1), batch[0], batch[0], BALL, [0.1])


@pytest.mark.parametrize("error", FAILURES, ids=name_of)
def test_bpda_hides_no_failure_of_the_forward_pass(batch, error):
    """The failure strikes once: attacking the plain model instead would hide it."""
    struck = []

    def front(images):
        if images.requires_grad and not struck:
            struck.append(True)
            raise error
        return images

    with pytest.raises(type(error)) as caught:
        run(BPDA(steps=2), Model(front), BALL, *batch)
    assert caught.value is error


def test_bpda_hides_no_failure_of_a_surrogate(batch, monkeypatch):
    error = RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")

    def fails(*args):
        raise error

    monkeypatch.setattr("robustbench_local.attacks.bpda.SOFT_LOGIC", {"where": fails})
    model = Model(lambda images: torch.where(images > 0.5, torch.ones(()), torch.zeros(())))
    with pytest.raises(RuntimeError) as caught:
        run(BPDA(steps=2), model, BALL, *batch)
    assert caught.value is error


def test_a_rule_of_autograd_is_recognized_behind_a_wrapper():
    rule = RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
    wrapped = ValueError("the model failed")
    wrapped.__cause__ = rule
    assert breaks_autograd_rule(rule)
    assert breaks_autograd_rule(wrapped)
    wrapped.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    assert not breaks_autograd_rule(wrapped)


@pytest.mark.parametrize("error", FAILURES, ids=name_of)
def test_no_failure_is_a_missing_backward_or_a_rule_of_autograd(error):
    assert not is_missing_backward(error)
    assert not breaks_autograd_rule(error)


def test_device_failures_are_recognized_by_type_or_library():
    assert [is_device_failure(error) for error in FAILURES] == [True] * 4 + [False, True, True, True] + [False] * 2 + [
        True
    ]


def test_bpda_leaves_inference_mode_to_other_threads(batch):
    """One thread is inside a model under BPDA; what torch.inference_mode means for another has not changed."""
    inside, checked, results = threading.Event(), threading.Event(), {}

    def front(images):
        with torch.inference_mode():
            inside.set()
            assert checked.wait(30)
            return (images * 255).round() / 255

    def attack():
        images, labels = batch
        results["points"] = run(BPDA(steps=5, loss="margin"), Model(front), BALL, images, labels)

    original = torch.inference_mode
    thread = threading.Thread(target=attack)
    thread.start()
    try:
        assert inside.wait(30)
        assert torch.inference_mode is original
        with torch.inference_mode():
            assert torch.is_inference_mode_enabled()
            assert torch.ones(1).is_inference()
        with torch.no_grad():
            assert not torch.is_grad_enabled()
        assert (torch.ones(2, requires_grad=True) > 0).grad_fn is None
    finally:
        checked.set()
        thread.join(30)
    distances = (results["points"] - batch[0]).abs().flatten(1).amax(1)
    assert (distances > 0.05).all(), "the gradient passed through inference mode"
