"""Small valid files of every kind that the program reads: what attacks and fuzzers start from."""

from __future__ import annotations

import functools
import io
import json
import zipfile
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import nn

CONFIG = "data: digits\neps: 8/255\nattack: [fgsm, 'pgd:steps=5']\nseed: 3\ndownload: false\n"
RECIPE = "method: trades:beta=6+awp\ndata: digits\neps: 0.1\nepochs: 3\nlr: 1/10\nnormalize: null\npretrained: false\n"
GATE = (
    "alpha: 0.05\nmin_clean: 0.8\nthreat_models:\n  - norm: linf\n    eps: 8/255\n    min_robust: 0.4\n"
    "    min_class_robust: {default: 0.2, stop: 0.6, 14: 0.6}\n"
)


def network() -> nn.Module:
    """Images 1×4×4, three classes."""
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {key: torch.rand(value.shape, generator=generator) for key, value in network().state_dict().items()}


def accuracy(correct: int, n: int) -> dict[str, Any]:
    confidence = {"level": 0.95, "method": "wilson", "low": 0.0, "high": 1.0}
    return {"value": correct / n, "correct": correct, "n": n, "confidence": confidence}


def result() -> dict[str, Any]:
    """Two samples of three stand."""
    attack = {
        "name": "pgd:steps=5",
        "parameters": {"steps": 5, "loss": "ce"},
        "restarts": 1,
        "attacked": 3,
        "fooled": 1,
        "unconfirmed": 0,
        "robust_accuracy_after": 2 / 3,
        "forward_passes": 15,
        "backward_passes": 15,
        "seconds": 0.5,
    }
    cost = {
        "forward_passes": 15,
        "backward_passes": 15,
        "forward_passes_per_image": 5.0,
        "backward_passes_per_image": 5.0,
        "seconds": 0.5,
        "image_steps_per_second": 30.0,
        "peak_memory_bytes": 1000,
    }
    return {
        "schema": "robustbench-local/result/1",
        "created": "2025-01-01T00:00:00Z",
        "model": {"name": "net", "sha256": "0" * 64, "classes": 3, "parameters": 47, "normalization": None},
        "data": {
            "name": "digits",
            "split": "test",
            "n": 3,
            "available": 3,
            "sha256": "1" * 64,
            "subset_seed": None,
            "lossy": False,
        },
        "threat_model": {"norm": "linf", "eps": 0.1, "eps_text": "0.1", "box": [0.0, 1.0], "goal": "untargeted"},
        "protocol": {"name": "fast", "version": 1, "sha256": "2" * 64},
        "clean_accuracy": accuracy(3, 3),
        "robust_accuracy": accuracy(2, 3),
        "per_class": [
            {"label": 0, "name": "zero", "clean_accuracy": accuracy(3, 3), "robust_accuracy": accuracy(2, 3)}
        ],
        "attacks": [attack],
        "verdict": {"status": "trusted", "reasons": []},
        "samples_file": "result.samples.jsonl",
        "diagnostics": [{"check": "gradients", "status": "pass", "value": 0.0, "threshold": 0.1}],
        "cost": cost,
        "environment": {"torch": "2"},
        "config": {"seed": 0, "device": "cpu"},
    }


def samples() -> str:
    lines = []
    for index in range(3):
        fooled = index == 2
        lines.append(
            json.dumps(
                {
                    "index": index,
                    "input_sha256": str(index) * 64,
                    "label": 0,
                    "clean_prediction": 0,
                    "adversarial_prediction": 1 if fooled else None,
                    "robust": not fooled,
                    "broken_by": "pgd:steps=5" if fooled else None,
                    "restart": 0 if fooled else None,
                    "step": 3 if fooled else None,
                    "distance": {"linf": 0.1, "l2": 0.3, "l1": 0.9} if fooled else None,
                    "clean_margin": 2.0,
                    "margin": -0.1 if fooled else 1.0,
                }
            )
            + "\n"
        )
    return "".join(lines)


def card() -> dict[str, Any]:
    """A `model.json` as far as loading a model looks at it."""
    return {
        "schema": "robustbench-local/checkpoint/1",
        "architecture": "digits-cnn",
        "class_names": ["a", "b", "c"],
        "input_shape": [1, 8, 8],
        "normalization": {"mean": [0.5], "std": [0.25]},
        "resize": {"resize": 8, "crop": 8, "interpolation": "bilinear"},
    }


def torch_zip(content: Any = None) -> bytes:
    torch.save(state() if content is None else content, buffer := io.BytesIO())
    return buffer.getvalue()


def torch_legacy(content: Any = None) -> bytes:
    torch.save(state() if content is None else content, buffer := io.BytesIO(), _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def safetensors_file() -> bytes:
    return safetensors.torch.save(state(), {"format": "pt"})


def snapshot() -> bytes:
    facts = {"about": {"recipe": {"lr": 0.1}}, "now": {"epoch": 2}, "healthy": {"epoch": 1}}
    tensors = {f"{when}.{key}": value for when in ("now", "healthy") for key, value in state().items()}
    return safetensors.torch.save(tensors, {"training": json.dumps(facts)})


def npz(**arrays: Any) -> bytes:
    images, labels = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3), np.array([0, 1, 2])
    np.savez_compressed(buffer := io.BytesIO(), **{"images": images, "labels": labels, **arrays})
    return buffer.getvalue()


@functools.cache
def exported() -> bytes:
    torch.export.save(torch.export.export(network(), (torch.rand(2, 1, 4, 4),)), buffer := io.BytesIO())
    return buffer.getvalue()


def rezipped(content: bytes, change: dict[str, Any], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive again, with the parts of these names (without the root) changed.

    A change is a function of the part's bytes, or the new bytes.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer := io.BytesIO(), "w") as new:
        root = old.namelist()[0].partition("/")[0]
        parts = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
        for part, changed in change.items():
            parts[part] = changed(parts[part]) if callable(changed) else changed
        for part, body in parts.items():
            new.writestr(f"{root}/{part}", body, compress_type=compression)
    return buffer.getvalue()


def picture(kind: str) -> bytes:
    pixels = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


def onnx_graph() -> bytes:
    """Raises ImportError without the extra."""
    import onnx2torch  # noqa: F401 - what reads it is part of the extra, too
    from onnx import TensorProto, helper, numpy_helper

    weights = [numpy_helper.from_array(np.ones((3, 16), np.float32), "w")]
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"], transB=1)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    return model.SerializeToString()
