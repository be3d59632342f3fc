import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from unusual_forwards import Digits

from robustbench_local import Classifier, ThreatModel, evaluate, load_dataset
from robustbench_local.data.dataset import ArrayDataset
from robustbench_local.diagnostics.preflight import preflight
from robustbench_local.diagnostics.verdict import finding_of
from robustbench_local.errors import UserError
from robustbench_local.evaluation.doctor import doctor
from robustbench_local.models.metered import Metered

THREAT = ThreatModel("linf", 0.1)
DIGITS = load_dataset("digits", split="test")


def data(n=64, *, classes=4):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((n, 1, 6, 6), generator=generator)
    return ArrayDataset(images, torch.arange(n) % classes)


class Net(nn.Module):
    def __init__(self, after=lambda logits, net: logits, classes=4):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.after = nn.Linear(36, classes), after

    def forward(self, images):
        return self.after(self.linear(images.flatten(1)), self)


def findings(net, dataset=None):
    _, found = doctor(Classifier(net, copy=False), dataset or data(), device="cpu")
    return {finding.slug: finding for finding in found}


@pytest.mark.parametrize(
    ("after", "check"),
    [
        (lambda logits, net: logits.softmax(1), "outputs-are-logits"),
        (lambda logits, net: logits + torch.randn_like(logits), "forward-is-deterministic"),
        (lambda logits, net: logits - logits.mean(0), "batch-independent"),
        (lambda logits, net: logits.detach(), "gradients-reach-input"),
        (lambda logits, net: logits.round(), "gradients-reach-input"),
    ],
    ids=["softmax", "noise", "batch statistics", "detached", "rounded"],
)
def test_each_trouble_is_warned_of_and_only_then(after, check):
    troubled = findings(Net(after))[check]
    assert troubled.status == "warn"
    assert troubled.advice
    healthy = findings(Net())[check]
    assert healthy.status == "pass"
    assert not healthy.advice


def test_guessing_is_warned_of():
    found = findings(Net(), data(400))["clean-accuracy-plausible"]
    assert found.status == "warn"
    assert "guessing" in found.advice


@pytest.mark.parametrize(
    ("net", "dataset", "word", "slug"),
    [
        (Net(), data(classes=5), "label 4", "label-out-of-range"),
        (Net(lambda logits, net: logits / 0), data(), "infinite", "logits-not-finite"),
        (Net(lambda logits, net: logits[:2]), data(), "2 rows", "logits-wrong-rows"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), data(), "3 channels", "wrong-channels"),
        (nn.Sequential(nn.Flatten(), nn.Linear(49, 4)), data(), "1×6×6", "images-not-classifiable"),
        (Net().double(), data(), "float64", "wrong-dtype"),
    ],
    ids=["labels", "infinite", "rows", "channels", "size", "dtype"],
)
def test_what_cannot_be_evaluated_stops_the_run(net, dataset, word, slug):
    with pytest.raises(UserError, match=word) as caught:
        findings(net, dataset)
    assert caught.value.slug == slug


def test_logits_of_another_shape_are_refused():
    with pytest.raises(UserError, match="one row per image"):
        findings(Net(lambda logits, net: logits[:, None]))


def test_a_reject_class_needs_two_further_classes():
    with pytest.raises(UserError) as caught:
        evaluate(
            Classifier(Net(classes=2), copy=False), data(classes=2), ThreatModel("linf", 0.1, reject=1), device="cpu"
        )
    assert caught.value.slug == "too-few-classes"


@pytest.mark.parametrize("shape", ["N×1", "N"])
def test_one_logit_is_a_binary_classifier(shape):
    net = Net(lambda logits, net: logits[:, 0] if shape == "N" else logits, classes=1)
    by_slug = findings(net, data(classes=2))
    assert by_slug["enough-classes"].value == 2
    assert "logits 0 and z" in by_slug["enough-classes"].advice
    assert by_slug["outputs-are-logits"].status == "pass"


def test_a_single_sigmoid_is_attacked_on_its_logarithm():
    net = Net(lambda logits, net: logits.sigmoid(), classes=1)
    by_slug = findings(net, data(classes=2))
    assert (by_slug["outputs-are-logits"].status, by_slug["outputs-are-logits"].value) == ("warn", "probabilities")
    assert "sigmoid" in by_slug["outputs-are-logits"].advice


def test_nan_weights_are_named():
    net = Net()
    net.linear.weight.data[2, 3] = float("nan")
    with pytest.raises(UserError, match=r"linear\.weight") as caught:
        findings(net)
    assert caught.value.slug == "weights-not-finite"


def test_a_box_that_does_not_contain_the_images_is_refused():
    threat_model = ThreatModel("linf", 0.1, box=(0.0, 0.5))
    with pytest.raises(UserError, match=r"\[0, 0\.5\]") as error:
        evaluate(Classifier(Net(), copy=False), data(), threat_model, device="cpu")
    assert error.value.slug == "images-outside-box"


def checked(net, dataset=None, threat_model=THREAT):
    dataset = dataset or data()
    return preflight(Metered(Classifier(net, copy=False)), dataset, threat_model, torch.device("cpu"))


@pytest.mark.parametrize(
    ("after", "status"),
    [
        (lambda logits, net: 1e5 * logits, "pass"),
        (lambda logits, net: torch.tanh(1e5 * logits), "warn"),
        (lambda logits, net: torch.where(torch.arange(len(logits))[:, None] % 2 == 0, logits, logits.detach()), "warn"),
    ],
    ids=["only softmax saturates", "the logits saturate", "every second image has none"],
)
def test_a_saturated_softmax_alone_is_a_doubt(after, status):
    found = checked(Net(after))
    gradients = finding_of(found.findings, "gradients-reach-input")
    assert gradients.status == status
    assert gradients.value > 0
    assert ("gradients-reach-input" in found.doubts) == (status == "pass")
    assert checked(Net()).doubts == ()


class Fronted(nn.Module):
    """The bundled network behind a front."""

    def __init__(self, front):
        super().__init__()
        self.front, self.net = front, Digits()

    def forward(self, images):
        return self.net(self.front(images))


def left_half(images, function):
    return torch.cat([function(images[..., :4]), images[..., 4:]], -1)


@pytest.mark.parametrize(
    ("front", "hidden"),
    [
        (lambda images: images.clamp(0.02, 0.98), True),
        (lambda images: left_half(images, lambda half: (half * 8).round() / 8), True),
        (lambda images: left_half(images, torch.detach), True),
        (lambda images: torch.where(images < 0.3, (5 * images).round() / 5, images), True),
        (lambda images: nn.functional.hardtanh(images, -0.05, 0.95), True),
        (lambda images: images, False),
        (lambda images: images.clamp(0, 1), False),
        (lambda images: nn.functional.hardtanh(images, 0, 1), False),
        (lambda images: left_half(images, lambda half: 0 * half), False),
        (lambda images: nn.functional.pad(images[..., 1:-1, 1:-1], (1, 1, 1, 1)), False),
        (lambda images: nn.functional.max_pool2d(nn.functional.interpolate(images, scale_factor=2), 2), False),
    ],
    ids=[
        "clamp inside the box",
        "half rounded",
        "half detached",
        "dark pixels quantised",
        "bright pixels clipped",
        "none",
        "clamp at the box",
        "hardtanh at the box",
        "half unused",
        "border unused",
        "max-pool",
    ],
)
def test_pixels_that_matter_without_a_gradient_are_a_doubt(front, hidden):
    found = checked(Fronted(front), DIGITS)
    finding = finding_of(found.findings, "every-pixel-has-gradient")
    assert finding.status == "pass"
    assert (finding.value > 0.1) == bool(finding.advice) == hidden
    assert ("every-pixel-has-gradient" in found.doubts) == hidden


class Checkpointed(Digits):
    def __init__(self, **how):
        super().__init__()
        self.how = how

    def forward(self, images):
        maps = checkpoint(lambda points: self.net.conv2(self.net.conv1(points).relu()).relu(), images, **self.how)
        return self.net.linear2(self.net.linear1(maps.flatten(1)).relu())


class CheckpointedInAList(Digits):
    """Reentrant checkpoints see no tensor inside a list, so that the gradient is cut without an error."""

    def forward(self, images):
        maps = checkpoint(lambda points: self.net.conv1(points[0]).relu(), [images], use_reentrant=True)
        return self.net.linear2(self.net.linear1(self.net.conv2(maps).relu().flatten(1)).relu())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("net", [Checkpointed(use_reentrant=True), CheckpointedInAList()])
def test_reentrant_checkpoints_are_refused_in_one_sentence(net):
    with pytest.raises(UserError, match="use_reentrant=False") as error:
        evaluate(Classifier(net), DIGITS.subset(range(8)), THREAT, device="cpu")
    assert error.value.slug == "reentrant-checkpointing"


def test_other_checkpoints_change_nothing():
    nets = Checkpointed(use_reentrant=False), Digits()
    one, other = (evaluate(Classifier(net), DIGITS.subset(range(20)), THREAT, device="cpu").result for net in nets)
    assert one.verdict.status == other.verdict.status == "trusted"
    assert one.robust_accuracy == other.robust_accuracy
