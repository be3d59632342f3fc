"""The engine on the bundled digits classifiers: every claim verified, every sample counted once, no sample swayed."""

import dataclasses
import functools
import hashlib
import json
from typing import ClassVar

import pytest
import torch
from torch import nn

from robustbench_local import Classifier, ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks import FGSM, PGD
from robustbench_local.attacks.attack import initial_state
from robustbench_local.data.dataset import ArrayDataset
from robustbench_local.engine.journal import journal_path
from robustbench_local.errors import UserError
from robustbench_local.results.reading import read_result, read_samples

THREAT = ThreatModel("linf", 0.1)
evaluate = functools.partial(evaluate, diagnostics=False)  # diagnostics have tests of their own


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def model():
    return load_classifier("digits-cnn-robust")


def verdicts(evaluation):
    return [(s.index, s.robust, s.broken_by, s.restart) for s in evaluation.samples]


@pytest.fixture(scope="module")
def reference(model, digits):
    return evaluate(model, digits, THREAT, batch_size=64)


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_the_batch_size_changes_no_verdict(model, digits, reference, batch_size):
    if batch_size == 1:
        chosen = torch.arange(0, len(digits), 6)
        found = evaluate(model, digits.subset(chosen), THREAT, batch_size=1)
        expected = [verdict for verdict in verdicts(reference) if verdict[0] in set(digits.indices[chosen].tolist())]
        assert verdicts(found) == expected
    else:
        assert verdicts(evaluate(model, digits, THREAT, batch_size=batch_size)) == verdicts(reference)


def test_the_order_of_samples_changes_no_verdict(model, digits, reference):
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(1))
    assert verdicts(evaluate(model, digits.subset(order), THREAT, batch_size=64)) == verdicts(reference)


def test_every_sample_is_counted_once_and_the_sums_agree(reference, digits):
    result, samples = reference.result, reference.samples
    assert [sample.index for sample in samples] == list(range(len(digits)))
    assert result.robust_accuracy.correct == sum(sample.robust for sample in samples)
    right = [sample for sample in samples if sample.clean_prediction == sample.label]
    assert result.clean_accuracy.correct == len(right)
    assert sum(attack.fooled for attack in result.attacks) == len(right) - result.robust_accuracy.correct
    for attack in result.attacks:
        assert attack.fooled == sum(sample.broken_by == attack.name for sample in samples)
    assert sum(each.robust_accuracy.correct for each in result.per_class) == result.robust_accuracy.correct
    for sample in samples:
        assert (sample.broken_by is not None) == (sample.clean_prediction == sample.label and not sample.robust)
        assert (sample.margin < 0) == (not sample.robust)
        if sample.broken_by:
            assert sample.distance.linf <= 0.1 + 1e-6
            assert sample.adversarial_prediction != sample.label


def test_robust_accuracy_falls_as_eps_grows(model, digits):
    found = [
        evaluate(model, digits, ThreatModel("linf", eps), samples=100).robust_accuracy.value
        for eps in (0, 0.05, 0.1, 0.2, 0.5)
    ]
    assert found == sorted(found, reverse=True)
    assert found[-1] == 0
    clean = evaluate(model, digits, ThreatModel("linf", 0), samples=100).clean_accuracy
    assert found[0] == clean.value


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_norms_stay_in_their_ball(digits, norm):
    eps = {"l2": 0.5, "l1": 2.0}[norm]
    evaluation = evaluate(load_classifier("digits-cnn"), digits, ThreatModel(norm, eps), samples=100)
    broken = [sample for sample in evaluation.samples if sample.broken_by]
    assert broken
    assert all(getattr(sample.distance, norm) <= eps + 1e-6 for sample in broken)


def test_targeted_counts_only_images_taken_for_the_target(digits):
    threat_model = ThreatModel("linf", 0.3, source=3, target=8)
    evaluation = evaluate(load_classifier("digits-cnn"), digits, threat_model, attacks=[PGD(steps=20)])
    assert {sample.label for sample in evaluation.samples} == {3}
    broken = [sample for sample in evaluation.samples if sample.broken_by]
    assert broken
    assert all(sample.adversarial_prediction == 8 for sample in broken)
    assert evaluation.result.threat_model.goal.target == 8


def test_passes_are_counted_in_images(model, digits):
    part = digits.subset(range(50))
    result = evaluate(model, part, THREAT, attacks=[FGSM()]).result
    right = result.clean_accuracy.correct
    # One forward and one gradient at the image, one more forward to verify the step.
    assert (result.attacks[0].forward_passes, result.attacks[0].backward_passes) == (2 * right, right)
    assert result.cost.forward_passes >= 50 + 2 * right
    weak = evaluate(model, part, ThreatModel("linf", 0), attacks=[PGD(steps=5)]).result
    assert (weak.attacks[0].forward_passes, weak.attacks[0].backward_passes) == (6 * right, 5 * right)


@dataclasses.dataclass(frozen=True)
class Liar:
    """Claims success everywhere: outside the ball, outside the box, or where nothing changed."""

    name: ClassVar[str] = "liar"
    steps: ClassVar[int] = 1
    restarts: ClassVar[int] = 1
    targets: ClassVar[int] = 0
    lie: str = "nothing"

    def start(self, threat_model, rows):
        return initial_state(rows, rows.images)

    def step(self, model, threat_model, state):
        images = state["images"]
        points = {"nothing": images, "ball": 1 - images, "box": images + 3 * (images > 0.99)}[self.lie]
        claim = torch.full_like(state["best_margin"], -1)
        return {**state, "points": points, "best_points": points, "best_margin": claim, "step": state["step"] + 1}


@pytest.mark.parametrize("lie", ["nothing", "ball", "box"])
def test_no_claim_is_believed(model, digits, lie):
    eps = {"box": 10.0}.get(lie, 0.1)
    threat_model = ThreatModel("l2" if lie == "box" else "linf", eps)
    result = evaluate(model, digits.subset(range(60)), threat_model, attacks=[Liar(lie=lie)]).result
    assert result.attacks[0].fooled == 0
    assert result.attacks[0].unconfirmed == result.clean_accuracy.correct
    assert result.robust_accuracy.correct == result.clean_accuracy.correct


def test_files_hold_what_the_run_found(model, digits, tmp_path):
    output = tmp_path / "r.json"
    evaluation = evaluate(model, digits.subset(range(40)), THREAT, output=output)
    assert read_result(output) == evaluation.result
    assert read_samples(evaluation.result, output) == evaluation.samples
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "r.samples.jsonl"]
    first = evaluation.samples[0]
    image = digits.images([0])[0]
    shape = "x".join(map(str, image.shape)).encode() + b":"
    assert first.input_sha256 == hashlib.sha256(shape + image.numpy().astype("<f4").tobytes()).hexdigest()


def test_an_interrupted_run_keeps_what_it_decided(model, digits, tmp_path):
    from robustbench_local.engine.observer import Observer

    class Impatient(Observer):
        def begin(self, stage, total, done=0):
            if stage.startswith("pgd"):
                raise KeyboardInterrupt

    output = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, digits.subset(range(60)), THREAT, output=output, observer=Impatient())
    kinds = [json.loads(line.partition(" ")[2])["kind"] for line in journal_path(output).read_text().splitlines()]
    assert kinds[0] == "header"
    assert {"clean", "search"} == set(kinds[1:])
    assert not output.exists()


def test_the_classifier_comes_back_as_it_was(digits):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1))
    classifier = Classifier(net)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(classifier, digits.subset(range(20)), THREAT)
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.state_dict().items())
    assert not classifier.probabilities
    assert torch.equal(state, torch.get_rng_state())
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_a_softmax_model_is_attacked_on_its_logarithm(digits, model):
    softmaxed = Classifier(nn.Sequential(model.module, nn.Softmax(1)), input_shape=(1, 8, 8))
    plain = evaluate(model, digits, THREAT).robust_accuracy.value
    evaluation = evaluate(softmaxed, digits, THREAT)
    assert evaluation.robust_accuracy.value == pytest.approx(plain, abs=0.012)
    finding = next(each for each in evaluation.result.diagnostics if each.slug == "outputs-are-logits")
    assert finding.status == "warn"
    assert evaluation.result.verdict.status == "doubtful"


def test_memory_does_not_grow_with_the_number_of_samples():
    """Nothing of image size is kept for a sample once it is decided."""
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)))
    generator = torch.Generator().manual_seed(0)
    peaks = []
    for n in (256, 2048):
        images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.cat([classifier(part / 255).argmax(1) for part in images.split(64)])
        dataset = ArrayDataset(images, labels)
        counted = Peak()
        with counted:
            evaluate(classifier, dataset, ThreatModel("linf", "1/255"), attacks=[PGD(steps=3)], batch_size=32)
        peaks.append(counted.bytes)
    assert peaks[1] < peaks[0] * 1.25 + 2048 * 1000, peaks


class Peak:
    """The most bytes that live tensors took at once."""

    def __enter__(self):
        from torch.profiler import ProfilerActivity, profile

        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *error):
        self._profile.__exit__(*error)
        level = highest = 0
        for event in self._profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                level += event.nbytes()
                highest = max(highest, level)
        self.bytes = highest


@pytest.mark.parametrize(
    "name",
    [
        "art/FastGradientMethod",
        "art/ProjectedGradientDescentPyTorch:max_iter=10",
        "art/DeepFool:max_iter=5",
        "art/SquareAttack:max_iter=20",
    ],
)
def test_the_toolbox_is_verified_and_recorded_like_anyone(digits, name):
    import numpy as np

    from robustbench_local.engine.protocol import resolve_attack

    before = np.random.get_state()[1].copy()
    part = digits.subset(range(60))
    evaluation = evaluate(load_classifier("digits-cnn"), part, ThreatModel("linf", 0.2), attacks=[resolve_attack(name)])
    report = evaluation.result.attacks[0]
    assert report.name == name.replace("_", "-")
    assert report.fooled > 0
    assert report.forward_passes > 60
    broken = [sample for sample in evaluation.samples if sample.broken_by]
    assert len(broken) == report.fooled
    assert all(sample.distance.linf <= 0.2 + 1e-6 for sample in broken)
    assert (np.random.get_state()[1] == before).all()
    again = evaluate(load_classifier("digits-cnn"), part, ThreatModel("linf", 0.2), attacks=[resolve_attack(name)])
    assert verdicts(again) == verdicts(evaluation), "seeded, so repeatable"


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_agrees_with_the_toolbox(digits, model, loss):
    """At least as strong, and of nearly the same strength; the toolbox counts restarts its own way."""
    from robustbench_local.engine.protocol import resolve_attack

    name = {"ce": "cross_entropy", "dlr": "difference_logits_ratio"}[loss]
    theirs = resolve_attack(f"art/AutoProjectedGradientDescent:max_iter=50,nb_random_init=1,loss_type={name}")
    found = [
        evaluate(model, digits, THREAT, attacks=[attack]).robust_accuracy.value
        for attack in (resolve_attack(f"apgd:steps=50,loss={loss}"), theirs)
    ]
    assert found[0] <= found[1] + 0.003, found
    assert found[0] == pytest.approx(found[1], abs=0.015), found


def test_fgsm_and_pgd_agree_with_the_toolbox(digits, model):
    from robustbench_local.engine.protocol import resolve_attack

    pairs = [
        ("fgsm", "art/FastGradientMethod"),
        (
            "pgd:steps=20,step-size=0.02,random-start=false",
            "art/ProjectedGradientDescentPyTorch:max_iter=20,eps_step=0.02",
        ),
    ]
    for ours, theirs in pairs:
        found = [
            evaluate(model, digits, THREAT, attacks=[resolve_attack(name)]).robust_accuracy.value
            for name in (ours, theirs)
        ]
        assert found[0] == pytest.approx(found[1], abs=0.006), (ours, found)


class Twisted(nn.Module):
    """The robust digits classifier with something done to its logits."""

    def __init__(self, twist):
        super().__init__()
        self.inner, self.twist = load_classifier("digits-cnn-robust").module, twist

    def forward(self, images):
        return self.twist(self.inner(images), images)


def standing(twist, dataset, **options):
    evaluation = evaluate(Classifier(Twisted(twist), input_shape=(1, 8, 8)), dataset, THREAT, **options)
    assert len(evaluation.samples) == len(dataset)
    return evaluation.robust_accuracy.correct, evaluation.result


def test_logits_of_any_type_and_scale_stand_for_the_same_verdicts(digits):
    part = digits.subset(range(100))
    expected, _ = standing(lambda logits, images: logits, part)
    for twist in (
        lambda logits, images: logits.double(),
        lambda logits, images: logits * 1e-6,
        lambda logits, images: logits * 1e4,
    ):
        assert standing(twist, part)[0] == expected


def test_a_model_that_gives_nan_off_the_images_is_not_robust(digits):
    part = digits.subset(range(30))
    on_grid = lambda images: ((images * 16) % 1 == 0).flatten(1).all(1)[:, None]  # noqa: E731
    count, result = standing(lambda logits, images: torch.where(on_grid(images), logits, torch.nan), part)
    assert count == 0
    finding = next(each for each in result.diagnostics if each.slug == "logits-finite-under-attack")
    assert finding.status == "fail"
    assert result.verdict.status == "not-trusted"


def test_nan_on_a_clean_image_stops_the_run_and_leaves_nothing(digits, tmp_path):
    first = digits.images([7])[0]
    poisoned = lambda images: (images == first).flatten(1).all(1)[:, None]  # noqa: E731
    with pytest.raises(UserError, match="sample 7"):
        standing(
            lambda logits, images: torch.where(poisoned(images), torch.nan, logits), digits, output=tmp_path / "r.json"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_tie_is_lost_under_attack_as_it_is_on_clean_images(digits):
    """Off the images all logits are equal: the prediction is class 0, and every other label is lost."""
    on_grid = lambda images: ((images * 16) % 1 == 0).flatten(1).all(1)[:, None]  # noqa: E731
    part = digits.subset(range(60))
    count, _ = standing(lambda logits, images: torch.where(on_grid(images), logits, 0.0), part)
    assert count == int((part.labels == 0).sum())


def test_evaluation_does_not_depend_on_the_callers_mode(model, digits):
    part = digits.subset(range(60))
    expected = verdicts(evaluate(model, part, THREAT))
    with torch.inference_mode():
        assert verdicts(evaluate(model, part, THREAT)) == expected
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert verdicts(evaluate(model, part, THREAT)) == expected


@pytest.mark.parametrize(("norm", "eps"), [("l2", 3.0), ("l1", 75.0)])
def test_every_success_in_a_large_ball_is_confirmed(norm, eps):
    """A two-class linear model on large images: the best perturbation is on the ball's surface and known to win."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(1, 3 * 64 * 64, generator=generator) * torch.tensor([[-0.5], [0.5]]))
        net[1].bias.zero_()
    images = 0.5 + 0.001 * torch.randn((24, 3, 64, 64), generator=generator)
    classifier = Classifier(net)
    dataset = ArrayDataset(images, classifier(images).argmax(1))
    result = evaluate(classifier, dataset, ThreatModel(norm, eps), attacks=[PGD(steps=20, loss="margin")]).result
    assert result.robust_accuracy.correct == 0
    assert result.attacks[0].unconfirmed == 0


def test_the_same_attack_twice_writes_every_sample_once(model, digits):
    attack = PGD(steps=3)
    evaluation = evaluate(model, digits.subset(range(50)), THREAT, attacks=[attack, FGSM(), attack])
    assert len(evaluation.samples) == 50 == len({sample.index for sample in evaluation.samples})


def test_pixels_a_hair_outside_the_box_do_not_protect(digits):
    images = digits.images(range(60))
    off = images + 5e-7 * torch.where(images > 0.5, 1.0, -1.0)
    model, threat_model = load_classifier("digits-cnn"), ThreatModel("l1", 3.0)
    found = [
        evaluate(model, ArrayDataset(each, digits.labels[:60]), threat_model).robust_accuracy.correct
        for each in (images, off)
    ]
    assert found[0] == found[1]


def test_outputs_that_differ_after_the_last_dot_are_two_runs(model, digits, tmp_path):
    for eps in ("0.1", "0.2"):
        evaluate(model, digits.subset(range(20)), ThreatModel("linf", eps), output=tmp_path / f"eps-{eps}")
    assert len(list(tmp_path.iterdir())) == 4


def test_a_suite_and_attacks_exclude_each_other(model, digits):
    with pytest.raises(UserError) as refusal:
        evaluate(model, digits, THREAT, suite="fast", attacks=[FGSM()])
    assert refusal.value.slug == "suite-and-attacks"


def test_a_fooled_sample_costs_nothing_more(digits):
    part = digits.subset(range(60))
    report = evaluate(
        load_classifier("digits-cnn"), part, ThreatModel("linf", 0.5), attacks=[PGD(steps=50)], batch_size=16
    ).result.attacks[0]
    assert report.fooled == report.attacked
    assert report.backward_passes < 10 * report.attacked
