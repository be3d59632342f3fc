"""torchvision's own weights files: recognized by their hash, and what they imply is applied."""

from __future__ import annotations

import hashlib

import pytest
import torch
import torchvision

from robustbench_local.models import load_classifier

IMAGES = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def googlenet(tmp_path_factory):
    """(a file of GoogLeNet weights named as torchvision names it, the start of its hash, the network)."""
    folder = tmp_path_factory.mktemp("googlenet")
    torch.manual_seed(0)
    network = torchvision.models.googlenet(weights=None, init_weights=False).eval()
    torch.save(network.state_dict(), folder / "w.pth")
    start = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()[:8]
    return (folder / "w.pth").rename(folder / f"googlenet-{start}.pth"), start, network


def publish(monkeypatch, kind, start):
    """Let torchvision have published the file of this hash."""
    monkeypatch.setattr(kind.IMAGENET1K_V1.value, "url", f"https://example.org/models/name-{start}.pth")


def transformed(network, transform: bool):
    network.transform_input = transform
    with torch.no_grad():
        return network((IMAGES - mean()) / std())


def mean():
    return torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)


def std():
    return torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def test_torchvisions_own_file_switches_its_input_transform_on(monkeypatch, googlenet):
    path, start, network = googlenet
    publish(monkeypatch, torchvision.models.GoogLeNet_Weights, start)
    classifier = load_classifier("torchvision/googlenet", checkpoint=path)
    assert classifier.module.transform_input is True
    assert torch.equal(classifier(IMAGES), transformed(network, True))
    assert not torch.equal(classifier(IMAGES), transformed(network, False))
    notes = "\n".join(classifier.notes)
    assert "IMAGENET1K_V1" in notes
    assert "transform_input is on" in notes


def test_a_copy_that_a_browser_renamed_is_still_recognized(monkeypatch, googlenet, tmp_path):
    path, start, _ = googlenet
    publish(monkeypatch, torchvision.models.GoogLeNet_Weights, start)
    copy = tmp_path / f"googlenet-{start} (1).pth"
    copy.symlink_to(path)
    assert load_classifier("torchvision/googlenet", checkpoint=copy).module.transform_input is True


def test_a_name_alone_is_no_proof(googlenet, tmp_path):
    path, _, _ = googlenet
    claimed = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    (tmp_path / claimed).symlink_to(path)
    classifier = load_classifier("torchvision/googlenet", checkpoint=tmp_path / claimed)
    assert classifier.module.transform_input is False


def test_other_files_are_told_of_the_option(googlenet):
    path, _, network = googlenet
    classifier = load_classifier("torchvision/googlenet", checkpoint=path)
    assert torch.equal(classifier(IMAGES), transformed(network, False))
    assert any("torchvision/googlenet:weights=IMAGENET1K_V1" in note for note in classifier.notes)
    for weights, state in (("IMAGENET1K_V1", True), ("none", False)):
        named = load_classifier(f"torchvision/googlenet:weights={weights}", checkpoint=path)
        assert named.module.transform_input is state
        assert not any("transform_input" in note for note in named.notes)


def test_the_files_own_version_decides_the_resize(monkeypatch, tmp_path):
    """The first MobileNet v2 weights were trained for a resize to 256, the default ones for 232."""
    kind = torchvision.models.MobileNet_V2_Weights
    torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), tmp_path / "w.pth")
    plain = load_classifier("torchvision/mobilenet_v2", checkpoint=tmp_path / "w.pth")
    start = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()[:8]
    publish(monkeypatch, kind, start)
    (tmp_path / "w.pth").rename(tmp_path / f"mobilenet_v2-{start}.pth")
    own = load_classifier("torchvision/mobilenet_v2", checkpoint=tmp_path / f"mobilenet_v2-{start}.pth")
    assert (plain.resize.resize, own.resize.resize) == (232, 256)
    assert any("IMAGENET1K_V1" in note for note in own.notes)
