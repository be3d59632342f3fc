"""Models and machines that fail half-way: memory that runs out, logits that stop being numbers, clocks that jump."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from fault_commands import TRAINING, ended, require_same, require_same_outcome, told, trained
from fault_injections import jumping_clocks
from fault_scene import Scene
from torch import nn

from robustbench_local import Classifier, ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.errors import UserError
from robustbench_local.results.reading import read_result

ERRORS = (
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GiB)"),
    lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    MemoryError,
)


class Failing(nn.Module):
    """The bundled classifier, until it fails."""

    def __init__(self, inner, fail):
        super().__init__()
        self.inner, self.fail, self.calls = inner, fail, 0

    def forward(self, images):
        self.calls += 1
        return self.fail(images, self.inner(images), self.calls)


def classifier(fail) -> Classifier:
    return Classifier(Failing(load_classifier("digits-cnn").module, fail), name="failing", input_shape=(1, 8, 8))


def healthy(images, logits, calls):
    return logits


def evaluated(scene: Scene, fail, *, name: str = "r.json", resume: bool = False, batch_size: int = 16):
    output = scene.folder / name
    evaluate(
        classifier(fail),
        load_dataset("digits"),
        ThreatModel("linf", 0.1),
        suite="fast",
        samples=60,
        batch_size=batch_size,
        device="cpu",
        output=output,
        resume=resume,
        diagnostics=False,
    )
    return told(output)


def same_verdicts(found: tuple[dict, bytes], expected: tuple[dict, bytes]) -> None:
    """Smaller batches move a last digit here and there, but no verdict."""
    samples = [[json.loads(line) for line in record.splitlines()] for _, record in (found, expected)]
    require_same(*samples, rounding=1e-4)
    for name in ("robust_accuracy", "clean_accuracy"):
        assert found[0][name] == expected[0][name]


def calls_of_a_run(scene: Scene) -> int:
    """How often a run that nothing disturbs asks the model; `whole.json` is its result."""
    made = []

    def count(images, logits, calls):
        made.append(calls)
        return logits

    evaluated(scene, count, name="whole.json")
    return made[-1]


def no_memory_for_a_batch(scene: Scene) -> None:
    fits, error = scene.moments.choice([1, 3, 7, 20, 40]), scene.moments.choice(ERRORS)

    def fail(images, logits, calls):
        if len(images) > fits:
            raise error()
        return logits

    same_verdicts(evaluated(scene, fail, batch_size=64), scene.expected)


def no_memory_once(scene: Scene) -> None:
    at, error = scene.moments.randint(1, calls_of_a_run(scene)), scene.moments.choice(ERRORS)

    def fail(images, logits, calls):
        if calls == at:
            raise error()
        return logits

    same_verdicts(evaluated(scene, fail), scene.expected)


def no_memory_for_one_image(scene: Scene) -> None:
    """Another program takes the memory half-way, and goes away again."""
    after, error = scene.moments.randrange(calls_of_a_run(scene)), scene.moments.choice(ERRORS)

    def fail(images, logits, calls):
        if calls > after:
            raise error()
        return logits

    with pytest.raises(UserError, match="memory"):
        evaluated(scene, fail)
    result, record = told(scene.folder / "whole.json")
    require_same_outcome(
        evaluated(scene, healthy, resume=True), ({**result, "samples_file": "r.samples.jsonl"}, record)
    )


def nan_on_an_image(scene: Scene) -> None:
    dataset = load_dataset("digits")
    position = scene.moments.randrange(len(dataset))
    image = dataset.images([position])[0]

    def fail(images, logits, calls):
        return torch.where((images == image).flatten(1).all(1)[:, None], torch.nan, logits)

    with pytest.raises(UserError, match=f"sample {position} of digits") as refusal:
        evaluate(classifier(fail), dataset, ThreatModel("linf", 0.1), output=scene.output, diagnostics=False)
    assert refusal.value.slug == "clean-logits-not-finite"
    assert list(scene.folder.iterdir()) == []


def nan_half_way(scene: Scene) -> None:
    after = round(scene.moments.uniform(0.6, 0.9) * calls_of_a_run(scene))  # the clean pass is over

    def fail(images, logits, calls):
        return logits * torch.nan if calls > after else logits

    found, record = evaluated(scene, fail)
    finding = next(each for each in found["diagnostics"] if each["slug"] == "logits-finite-under-attack")
    samples = [json.loads(line) for line in record.splitlines()]
    assert found["robust_accuracy"]["correct"] == sum(sample["robust"] for sample in samples)
    assert found["robust_accuracy"]["correct"] <= scene.expected[0]["robust_accuracy"]["correct"]
    lost = sum(sample["broken_by"] is not None and sample["margin"] < -1e38 for sample in samples)
    assert finding["value"] >= lost > 0
    assert finding["status"] == "fail"
    assert found["verdict"]["status"] not in ("trusted", "not-assessed")


def nan_for_some(scene: Scene) -> None:
    label = scene.moments.randrange(10)

    def fail(images, logits, calls):
        off = ((images * 16) % 1 != 0).flatten(1).any(1)
        return torch.where((off & (logits.argmax(1) == label))[:, None], torch.nan, logits)

    found, record = evaluated(scene, fail)
    for sample in map(json.loads, record.splitlines()):
        if sample["clean_prediction"] == sample["label"] == label:
            assert not sample["robust"], "a model that gives no numbers does not stand"
    assert found["verdict"]["status"] not in ("trusted", "not-assessed")


def clocks(scene: Scene) -> None:
    """In an evaluation that is interrupted and resumed, and in a training."""
    jumping = functools.partial(jumping_clocks, scene.moments.randrange(1000))
    scene.started_then(prepare=[jumping]).send(9)
    scene.require_resumed(prepare=[jumping])
    result = read_result(scene.output)
    assert result.cost.seconds >= 0
    assert all(report.seconds >= 0 for report in result.attacks)
    command = ended(scene.folder, *TRAINING, prepare=[jumping])
    assert command.process.exitcode == 0, command.err
    require_same(trained(scene.folder), scene.trained)
    for line in (scene.folder / "t" / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["seconds"] >= 0
        assert json.loads(line)["images_per_second"] >= 0


FAULTS = {
    "a batch does not fit into memory": no_memory_for_a_batch,
    "memory runs out once": no_memory_once,
    "a single image does not fit into memory during the run": no_memory_for_one_image,
    "NaN for one image": nan_on_an_image,
    "NaN for every image from the middle of a run": nan_half_way,
    "NaN for some images under attack": nan_for_some,
    "the clock jumps": clocks,
}
