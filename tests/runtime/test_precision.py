"""Torch's precision switches belong to the process: whoever changes them must give them back, in every thread."""

import itertools
import threading

import pytest
import torch

from robustbench_local.runtime.precision import Cast, full_precision, tensor_float_32

BACKENDS = torch.backends
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
"""The switches can be set without a GPU."""


def switches():
    gpu = [BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn]
    cpu = [BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.rnn]
    return [switch.fp32_precision for switch in (*gpu, *cpu)]


def readable(read):
    try:
        return read()
    except RuntimeError:
        return "refused"


def settings():
    old = [torch.get_float32_matmul_precision, lambda: BACKENDS.cuda.matmul.allow_tf32]
    old.append(lambda: BACKENDS.cudnn.allow_tf32)
    return [*switches(), *map(readable, old)]


def reset():
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    BACKENDS.fp32_precision = BACKENDS.cuda.matmul.fp32_precision = "none"
    for switch in (BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.rnn):
        switch.fp32_precision = "none"
    BACKENDS.cudnn.conv.fp32_precision = BACKENDS.cudnn.rnn.fp32_precision = "tf32"


@pytest.fixture(autouse=True)
def default_settings():
    reset()
    yield
    reset()


def rounds():
    return {"ieee": False, "tf32": True}[BACKENDS.cuda.matmul.fp32_precision]


CALLERS = {
    "default": lambda: None,
    "older switch": lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True),
    "older function": lambda: torch.set_float32_matmul_precision("medium"),
    "older switch of cudnn": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
    "newer switch": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    "newer switch of cudnn": lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
    "newer switch for all": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
}


@pytest.mark.parametrize("caller", CALLERS)
def test_inside_nothing_rounds_and_the_callers_settings_return(caller):
    CALLERS[caller]()
    before = settings()
    with tensor_float_32(CUDA, allowed=False):
        assert switches() == ["ieee"] * 6
        assert settings()[6:] == ["highest", False, False], "the older settings can be read inside"
        with tensor_float_32(CUDA, allowed=True):
            assert switches() == ["tf32"] * 3 + ["ieee"] * 3
            assert settings()[6:] == ["high", True, True]
        assert switches() == ["ieee"] * 6
    assert settings() == before


def test_a_switch_that_follows_a_common_one_follows_it_afterwards_too():
    before = settings()
    BACKENDS.fp32_precision = "tf32"
    with tensor_float_32(CUDA, allowed=False):
        pass
    assert switches() == ["tf32"] * 6
    BACKENDS.fp32_precision = "none"
    assert settings() == before


def test_the_callers_settings_return_after_an_error():
    before = settings()
    with pytest.raises(KeyError), tensor_float_32(CUDA, allowed=False):
        raise KeyError
    assert settings() == before


def test_an_exact_cpu_changes_nothing_and_an_inexact_one_is_exact_inside():
    before = settings()
    with tensor_float_32(CPU, allowed=False):
        assert settings() == before
    torch.set_float32_matmul_precision("medium")
    assert BACKENDS.mkldnn.matmul.fp32_precision == "bf16"
    with full_precision(CPU):
        assert BACKENDS.mkldnn.matmul.fp32_precision == "ieee"
    assert BACKENDS.mkldnn.matmul.fp32_precision == "bf16"
    assert torch.get_float32_matmul_precision() == "medium"


class Worker:
    """A thread that enters and leaves when it is told to."""

    def __init__(self, device, *choices):
        self.steps = [threading.Event() for _ in range(2 * len(choices))]
        self.done = [threading.Event() for _ in self.steps]
        self.next = itertools.count()
        self.thread = threading.Thread(target=self.run, args=(device, list(choices), iter(range(99))))
        self.thread.start()

    def run(self, device, choices, numbers):
        if not choices:
            return
        self.steps[step := next(numbers)].wait(20)
        with tensor_float_32(device, allowed=choices[0]):
            self.done[step].set()
            self.run(device, choices[1:], numbers)
            self.steps[step := next(numbers)].wait(20)
        self.done[step].set()

    def go(self):
        step = next(self.next)
        self.steps[step].set()
        assert self.done[step].wait(20)
        if step == len(self.steps) - 1:
            self.thread.join(20)


@pytest.mark.parametrize("caller", ["default", "older switch", "newer switch"])
def test_a_thread_that_leaves_first_does_not_switch_rounding_on_for_the_other(caller):
    CALLERS[caller]()
    before = settings()
    one, other = Worker(CUDA, False), Worker(CUDA, False)
    one.go(), other.go(), one.go()
    assert not rounds()
    other.go()
    assert settings() == before


def test_rounding_is_on_only_while_every_thread_allows_it():
    before = settings()
    one, other = Worker(CUDA, False, True), Worker(CUDA, False, True)
    one.go(), one.go()
    assert rounds()
    other.go()
    assert not rounds()
    other.go()
    assert rounds()
    one.go()
    assert not rounds()
    one.go()
    assert rounds()
    other.go()
    assert not rounds()
    other.go()
    assert settings() == before


def test_a_cpu_thread_beside_a_gpu_thread_stays_exact():
    torch.set_float32_matmul_precision("medium")
    before = settings()
    gpu, cpu = Worker(CUDA, False, True), Worker(CPU, False)
    gpu.go(), cpu.go(), gpu.go()
    assert switches()[3] == "ieee"
    gpu.go(), gpu.go()
    assert switches()[3] == "ieee"
    cpu.go()
    assert settings() == before


def test_full_precision_ends_autocast_and_inference_mode():
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), full_precision(CPU):
        product = torch.ones(2, 2, requires_grad=True) @ torch.ones(2, 2)
        assert product.dtype == torch.float32
        assert product.requires_grad


def test_a_cast_module_computes_in_its_type_and_leaves_the_images():
    module = Cast(torch.nn.Conv2d(1, 2, 1), torch.bfloat16)
    images = torch.rand(3, 1, 4, 4)
    assert module(images).dtype == torch.bfloat16
    assert images.dtype == torch.float32
