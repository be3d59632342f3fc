"""TorchScript programs."""

from __future__ import annotations

import warnings

import pytest
import torch
from tiny_networks import IMAGES, same_function, tiny

from robustbench_local.errors import UserError
from robustbench_local.models import load_classifier


@pytest.fixture
def script(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit")
        path = tmp_path / "script.pt"
        torch.jit.script(tiny().train()).save(str(path))
    return path


def test_torchscript(script):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier = load_classifier(str(script), normalize="none")
    assert same_function(classifier, tiny().eval())
    assert not any(part.training for part in classifier.modules())
    scaled = load_classifier(str(script), normalize="0.5:0.25")
    assert torch.allclose(scaled(IMAGES), tiny().eval()((IMAGES - 0.5) / 0.25), atol=1e-5)


def test_torchscript_is_no_checkpoint(script):
    with pytest.raises(UserError, match=r"TorchScript program.*give it as MODEL itself"):
        load_classifier("resnet18", checkpoint=script)
    with pytest.raises(UserError, match="brings its own architecture; leave --arch out"):
        load_classifier(str(script), arch="resnet18")
