"""Which devices there are, and which errors mean that one has no memory left."""

import errno

import pytest
import torch

from robustbench_local.errors import UserError
from robustbench_local.runtime.device import (
    BatchSize,
    automatic_batch_size,
    choose_device,
    enough_memory,
    is_out_of_memory,
)

CPU = torch.device("cpu")


def accelerator_error(code):
    error = torch.AcceleratorError("CUDA error: a sentence that may change")
    error.error_code = code
    return error


def raised_from(error, cause):
    error.__cause__ = cause
    return error


NO_MEMORY = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    torch.OutOfMemoryError("whatever it says"),
    accelerator_error(2),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED"),
    RuntimeError("miopen error: miopenStatusAllocFailed"),
    RuntimeError("CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GiB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory"),
    raised_from(RuntimeError("my layer failed"), torch.OutOfMemoryError("CUDA")),
]
OTHER = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
    accelerator_error(710),
    ValueError("out of memory"),
    OSError(errno.ENOENT, "No such file"),
    raised_from(UserError("`images` does not fit in memory"), MemoryError()),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_an_allocation_that_failed_is_recognized(error):
    assert is_out_of_memory(error)
    with pytest.raises(UserError) as caught, enough_memory(CPU):
        raise error
    assert caught.value.slug == "out-of-memory"


@pytest.mark.parametrize("error", OTHER, ids=str)
def test_other_errors_are_not(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as caught, enough_memory(CPU):
        raise error
    assert caught.value is error


def test_errors_raised_from_each_other_are_no_endless_loop():
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert not is_out_of_memory(one)


def test_batches_are_halved_until_one_image_is_left():
    size = BatchSize(5)
    halves = []
    while size.value > 1:
        size.halve(CPU)
        halves.append(size.value)
    assert halves == [3, 2, 1]
    with pytest.raises(UserError) as caught:
        size.halve(CPU)
    assert caught.value.slug == "out-of-memory"


@pytest.mark.parametrize("name", ["gpu", "cpu:1", "cuda:99", "meta", "", "cpu cpu"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(UserError) as caught:
        choose_device(name)
    assert caught.value.slug == "device-unavailable"
    assert "\n" not in str(caught.value)


def test_larger_networks_get_smaller_batches():
    sizes = []
    for width in (1, 64):
        network = torch.nn.Sequential(torch.nn.Conv2d(1, width, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten())
        sizes.append(automatic_batch_size(network, torch.rand(1, 1, 64, 64)))
    assert sizes[0] > sizes[1] >= 8
    assert all(size % 8 == 0 for size in sizes)
