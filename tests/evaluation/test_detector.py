"""Feature squeezing as a detector: what it catches of an attack that knows nothing of it, and of one that does."""

import pytest
import torch

from robustbench_local import ThreatModel, load_classifier, load_dataset
from robustbench_local.errors import UserError
from robustbench_local.evaluation.detector import Detector, adaptive_points, calibrate, evaluate_detector, verify
from robustbench_local.models.preprocessing import apply_defenses, input_defense

THREAT = ThreatModel("linf", 0.1)
BINARY = ("bit-depth:bits=1",)


@pytest.fixture(scope="module")
def classifier():
    return load_classifier("digits-cnn")


@pytest.fixture(scope="module")
def halves():
    """Calibration and evaluation, neither of them training images."""
    data = load_dataset("digits")
    return data.subset(torch.arange(0, 360, 2)), data.subset(torch.arange(1, 360, 2))


def test_the_score_is_the_largest_l1_distance_of_probabilities(classifier, halves):
    images, specs = halves[1].images(range(20)), ["bit-depth:bits=1", "median:window=2"]
    detector = Detector(classifier, tuple(map(input_defense, specs)), 1.0)
    logits = classifier(images)
    expected = [
        (logits.softmax(1) - classifier(apply_defenses(images, [input_defense(spec)])).softmax(1)).abs().sum(1)
        for spec in specs
    ]
    assert torch.equal(detector.score(images, logits), torch.maximum(*expected))


@pytest.mark.parametrize("fpr", [0.05, 0.2])
def test_the_threshold_rejects_as_many_calibration_images_as_allowed(classifier, fpr):
    images = load_dataset("digits", split="train").images(range(400))
    detector = calibrate(classifier, images, BINARY, fpr)
    rejected = detector.score(images, classifier(images)) > detector.threshold
    assert int(rejected.sum()) == round(fpr * 400)


def test_the_attack_that_knows_of_the_detector_clearly_finds_more(classifier, halves):
    calibration, data = halves
    found = evaluate_detector(classifier, data, calibration, THREAT, squeezers=BINARY)
    assert found.n == 180
    assert found.clean_accuracy.value > 0.9
    assert abs(found.false_positives.value - 0.05) < 0.04
    assert found.robust_accuracy_adaptive.value <= found.robust_accuracy_non_adaptive.value - 0.1
    assert found.detected_non_adaptive.value > 0.3 > 0.15 > found.detected_adaptive.value
    again = evaluate_detector(classifier, data, calibration, THREAT, squeezers=BINARY, batch_size=70)
    assert again.robust_accuracy_adaptive == found.robust_accuracy_adaptive
    other = evaluate_detector(classifier, data, calibration, THREAT, squeezers=BINARY, weights=())
    assert other.robust_accuracy_adaptive == other.robust_accuracy_non_adaptive == found.robust_accuracy_non_adaptive


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.0), ("l1", 4.0)])
def test_every_point_isverify(classifier, halves, norm, eps):
    threat_model, data = ThreatModel(norm, eps), halves[1]
    images, labels = data.images(range(60)), data.labels[:60]
    detector = calibrate(classifier, halves[0].images(range(180)), BINARY)
    best, _ = adaptive_points(detector, threat_model, images, labels, torch.arange(60), 10.0, 20)
    mistaken, passed = verify(detector, threat_model, images, labels, best)
    assert passed.any()
    assert (mistaken | ~passed).all()
    logits = classifier(best[passed])
    assert (logits.argmax(1) != labels[passed]).all()
    assert (detector.score(best[passed], logits) <= detector.threshold).all()
    assert (threat_model.geometry.distance(best[passed] - images[passed]) <= eps + 1e-5).all()
    assert best.min() >= 0
    assert best.max() <= 1
    twice = images + 2 * (best - images)  # out of the ball, and some out of the box
    assert not verify(detector, threat_model, images, labels, twice)[0][passed].any()


def test_a_ball_without_room_leaves_the_clean_accuracy(classifier, halves):
    found = evaluate_detector(classifier, halves[1], halves[0], ThreatModel("linf", 0), squeezers=BINARY, steps=2)
    assert found.robust_accuracy_adaptive == found.robust_accuracy_non_adaptive == found.clean_accuracy
    assert found.detected_adaptive is None
    assert found.detected_non_adaptive is None


@pytest.mark.parametrize(
    ("arguments", "slug"),
    [
        ({"fpr": 0.0}, "fpr-out-of-range"),
        ({"fpr": 0.001}, "fpr-out-of-range"),
        ({"squeezers": ()}, "no-squeezer"),
        ({"steps": 0}, "steps-below-one"),
        ({"weights": (1.0, -1.0)}, "weight-negative"),
        ({"threat_model": ThreatModel("linf", 0.1, target=3)}, "detector-target"),
    ],
)
def test_bad_input_is_refused(classifier, halves, arguments, slug):
    arguments = {"calibration": halves[0], "threat_model": THREAT, **arguments}
    with pytest.raises(UserError) as caught:
        evaluate_detector(classifier, halves[1], **arguments)
    assert caught.value.slug == slug


def test_calibration_and_evaluation_share_no_image(classifier, halves):
    with pytest.raises(UserError) as caught:
        evaluate_detector(classifier, halves[1], halves[1].subset(range(30)), THREAT, squeezers=BINARY)
    assert caught.value.slug == "calibration-images-reused"


def test_an_unknown_squeezer_is_refused(classifier, halves):
    with pytest.raises(UserError, match="bit-depth"):
        evaluate_detector(classifier, halves[1], halves[0], THREAT, squeezers=("bits",))


def test_an_unknown_keyword_names_the_nearest_setting(classifier, halves):
    with pytest.raises(TypeError, match="'squeezers'"):
        evaluate_detector(classifier, halves[1], halves[0], THREAT, squeezer=BINARY)
