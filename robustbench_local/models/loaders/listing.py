"""What `robust list models` shows."""

from __future__ import annotations

from robustbench_local.models.architectures.registry import count_parameters, find_architecture
from robustbench_local.models.catalog import ARCHITECTURES, bundled_names
from robustbench_local.models.loaders.bundled import read_description
from robustbench_local.models.loaders.hub import torchvision_names


def list_models() -> list[tuple[str, str, str]]:
    """(group, name, note) of everything that MODEL may name, every name once, the bundled classifiers first."""
    bundled = bundled_names()
    rows = []
    for name in bundled:
        note = f"a trained {read_description(name)['architecture']}"
        also = "; with --checkpoint, the architecture" if name in ARCHITECTURES else ""
        rows.append(("bundled", name, note + also))
    for name in ARCHITECTURES:
        if name not in bundled:
            first = (find_architecture(name).__doc__ or "").split(".")[0].split(":")[0].split("\n")[0].strip()
            rows.append(("architecture", name, f"{first}; {count_parameters(name):,} parameters; needs --checkpoint"))
    note = "published weights, or :weights=none"
    rows += [("torchvision", f"torchvision/{name}", note) for name in torchvision_names()]
    rows += [
        ("timm", "timm/NAME", "any classifier of timm (pip install 'robustbench-local[timm]')"),
        ("code", "path/file.py:FACTORY", "a function of yours that returns a torch.nn.Module"),
        ("code", "package.module:FACTORY", "the same, from an importable package"),
        ("file", "FILE.safetensors|pt|pth|ckpt|bin", "weights alone: needs --arch"),
        ("file", "FILE.pt", "a TorchScript program"),
        ("file", "FILE.pt2", "a torch.export program"),
        ("file", "FILE.onnx", "an ONNX graph (pip install 'robustbench-local[onnx]')"),
    ]
    return rows
