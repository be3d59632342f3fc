"""Answers that depend on earlier questions, on company, on the mode or on chance are told apart."""

import pytest
import torch
from unusual_forwards import Digits, unusual

from robustbench_local import Classifier, ThreatModel, evaluate, load_dataset
from robustbench_local.diagnostics.preflight import PROBE_IMAGES, preflight
from robustbench_local.models.metered import Metered

DIGITS = load_dataset("digits", split="test")
THREAT = ThreatModel("linf", "0.1")
SLUGS = ("forward-is-deterministic", "batch-independent", "mode-independent", "stateless")


class Remembering(Digits):
    """Repeats the answer for near-duplicates of images that it has seen."""

    def __init__(self, radius=0.15):
        super().__init__()
        self.radius, self.seen = radius, []

    def known(self, image):
        return next((answer for other, answer in self.seen if (other - image).abs().max() <= self.radius), None)

    def forward(self, images):
        rows = []
        for image, logits in zip(images, super().forward(images), strict=True):
            answer = self.known(image.detach())
            if answer is None:
                self.seen.append((image.detach().clone(), logits.detach().clone()))
            rows.append(logits if answer is None else answer)
        return torch.stack(rows)


class RememberingInBuffers(Digits):
    """The same for the mean of the image, in buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("means", torch.full((100,), -1.0))
        self.register_buffer("answers", torch.zeros(100, 10))

    def forward(self, images):
        logits = super().forward(images)
        place = (images.detach().flatten(1).mean(1) * 99).round().long().clamp(0, 99)
        fresh = self.means[place] < 0
        self.answers[place[fresh]] = logits.detach()[fresh]
        self.means[place[fresh]] = place[fresh].float()
        return torch.where(fresh[:, None], logits, self.answers[place])


class Tiring(Digits):
    """After a few calls the logits are those of another image."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return super().forward(images.flip(-1) if self.calls > 6 else images)


class Suspicious(Digits):
    """The same after very many images, as a defense against search."""

    def __init__(self):
        super().__init__()
        self.register_buffer("left", torch.tensor(5000))

    def forward(self, images):
        self.left -= len(images)
        return super().forward(images.flip(-1) if self.left < 0 else images)


class RunningMean(Digits):
    """The input is centered by a running mean of all that was asked."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 1, 8, 8))

    def forward(self, images):
        self.mean.lerp_(images.detach().mean(0, keepdim=True), 0.1)
        return super().forward(images - 0.5 * self.mean)


class Counting(Digits):
    """Counters, a log of shapes, a cache of constants and running statistics that nothing reads: harmless."""

    def __init__(self):
        super().__init__()
        self.calls, self.shapes, self.cache = 0, [], {}
        self.register_buffer("mean", torch.zeros(1, 1, 8, 8))

    def forward(self, images):
        self.calls += 1
        self.shapes.append(tuple(images.shape))
        self.cache.setdefault(images.device.type, torch.linspace(1, 1, 1))
        self.mean.lerp_(images.detach().mean(0, keepdim=True), 0.1)
        return super().forward(images) * self.cache[images.device.type]


class SometimesRandom(Digits):
    """Noise for the darkest images alone."""

    def forward(self, images):
        dark = images.flatten(1).mean(1) < 0.3
        return super().forward(images) + dark[:, None] * torch.randn(len(images), 10)


class RandomOffTheData(Digits):
    """Noise for images whose pixels are not the 17 levels of the dataset's."""

    def forward(self, images):
        strange = ((16 * images).frac() != 0).flatten(1).float().mean(1) > 0.05
        return super().forward(images) + strange[:, None] * torch.randn(len(images), 10)


class OwnGenerator(Digits):
    """Noise from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.noise = torch.Generator().manual_seed(0)

    def forward(self, images):
        return super().forward(images + 0.1 * torch.rand(images.shape, generator=self.noise))


class GradWeighted(Digits):
    """Where the input requires gradients, the logits are scaled differently."""

    def forward(self, images):
        return super().forward(images) * (0.5 if images.requires_grad else 1.0)


class SecondRow(Digits):
    """The second row of every batch is answered as the first."""

    def forward(self, images):
        logits = super().forward(images)
        return torch.cat([logits[:1], logits[:1], logits[2:]])[: len(images)]


class Uncopyable(Digits):
    def __deepcopy__(self, memo):
        raise TypeError("it cannot be copied")


def statuses(net, count=40):
    classifier = net if isinstance(net, Classifier) else Classifier(net, copy=False)
    part = DIGITS.subset(range(count))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = preflight(Metered(classifier), part, THREAT, torch.device("cpu")).findings
    by_slug = {finding.slug: finding for finding in found}
    return tuple(by_slug[slug].status for slug in SLUGS), by_slug


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (Digits, ("pass", "pass", "pass", "pass")),
        (Counting, ("pass", "pass", "pass", "pass")),
        (SometimesRandom, ("warn", "skipped", "skipped", "skipped")),
        (RandomOffTheData, ("warn", "skipped", "skipped", "skipped")),
        (OwnGenerator, ("warn", "skipped", "skipped", "skipped")),
        (GradWeighted, ("pass", "pass", "warn", "pass")),
        (SecondRow, ("pass", "warn", "pass", "pass")),
        (Uncopyable, ("pass", "pass", "pass", "skipped")),
    ],
)
def test_each_dependence_is_told_from_the_others(net, expected):
    found, by_slug = statuses(net())
    assert found == expected
    assert all(bool(by_slug[slug].advice) == (by_slug[slug].status != "pass") for slug in SLUGS)


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (Remembering, {"seen"}),
        (RememberingInBuffers, {"means", "answers"}),
        (Tiring, {"calls"}),
        (RunningMean, {"mean"}),
    ],
)
def test_a_memory_that_changes_answers_fails_and_is_named(net, names):
    found, by_slug = statuses(net())
    assert found[3] == "fail"
    assert found[0] != "warn", "the same images got the same answers, but for what was asked in between"
    assert all(name in by_slug["stateless"].advice for name in names)


def test_a_memory_of_the_images_themselves_fails_too():
    """Somebody has measured the clean accuracy before: nothing that is asked of the dataset is new."""
    net = Remembering(radius=0.12)
    net(DIGITS.images(range(40)))
    assert statuses(net)[0][3] == "fail"


@pytest.mark.soak
def test_a_model_that_remembers_is_not_trusted():
    result = evaluate(Classifier(Remembering()), DIGITS.subset(range(16)), THREAT, suite="fast", device="cpu").result
    assert result.verdict.status == "not-trusted"
    assert any("asked before" in reason for reason in result.verdict.reasons)


@pytest.mark.parametrize(("name", "slug"), [("grad mode", 2), ("batch of one", 1), ("gated", 1), ("never alone", 1)])
def test_branching_forwards_are_named(name, slug):
    found = statuses(unusual(name))[0]
    assert [index for index, status in enumerate(found) if status != "pass"] == [slug]


@pytest.mark.parametrize("count", [1, 4, 5, 40, 360])
def test_checks_are_few_passes_for_every_image(count):
    model = Metered(Classifier(Digits(), copy=False))
    checked = preflight(model, DIGITS.subset(range(count)), THREAT, torch.device("cpu"))
    asked = min(count, 16, max(4, count // 4))
    fits = min(count, PROBE_IMAGES)  # one pass each shows that so many do
    assert model.passes.forward + model.passes.backward <= 12 * max(2, asked) + fits
    assert checked.doubts == ()
    assert all(finding.status in ("pass", "skipped") for finding in checked.findings)
