"""Exchanged labels are told from honest confusion by the predictions alone."""

import pytest
import torch

from robustbench_local.diagnostics.label_order import other_labels


def predictions_for(labels, classes=10, accuracy=0.85, seed=0):
    """A model that is right with some probability and else confuses a class with either neighbor."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(len(labels), generator=generator) < accuracy
    aside = torch.randint(0, 2, labels.shape, generator=generator) * 2 - 1
    return torch.where(right, labels, (labels + aside) % classes)


def told(truth, given, classes=10, **how):
    return other_labels(predictions_for(truth, classes, **how), given, classes)[1]


def relabeled(truth, **changes):
    given = truth.clone()
    for old, new in changes.items():
        given[truth == int(old[1:])] = new
    return given


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("classes", "changes", "words"),
    [
        (10, {"_8": 9, "_9": 8}, "8→9, 9→8)"),
        (10, {"_0": 3, "_3": 7, "_7": 0}, "0→7, 3→0, 7→3)"),
        (10, {"_1": 2, "_2": 1, "_5": 6, "_6": 5}, "1→2, 2→1, 5→6, 6→5)"),
        (43, {"_13": 40, "_40": 13}, "13→40, 40→13)"),
    ],
)
def test_a_few_exchanged_labels_are_named(classes, changes, words, seed):
    truth = torch.arange(40 * classes) % classes
    assert words in told(truth, relabeled(truth, **changes), classes, seed=seed)


def test_two_labels_are_enough_at_a_hundred_images():
    truth = torch.arange(100) % 10
    assert "8→9, 9→8)" in told(truth, relabeled(truth, _8=9, _9=8), accuracy=0.97)


@pytest.mark.parametrize("missing", [3, 8])
def test_labels_behind_a_missing_class_are_named(missing):
    truth = torch.arange(400) % 10
    truth = truth[truth != missing]
    words = told(truth, truth - (truth > missing).long())
    assert f"{missing}→{missing + 1}" in words
    assert "no image has the label 9: is a class missing" in words


@pytest.mark.parametrize("n", [20, 200])
def test_usual_mistakes_need_few_images(n):
    truth = torch.arange(n) % 10
    assert "label→model's class: 0→1, 1→2" in told(truth, (truth - 1) % 10, accuracy=0.95)
    as_text = torch.tensor(sorted(range(12), key=str))
    truth = torch.arange(n) % 12
    assert "2→10, 3→11, 4→2" in told(truth, as_text.argsort()[truth], 12, accuracy=0.95)


@pytest.mark.parametrize("accuracy", [0.35, 0.45, 0.6, 0.8])
@pytest.mark.parametrize(("n", "classes"), [(20, 10), (100, 10), (400, 10), (20, 43), (430, 43)])
def test_honest_models_of_any_accuracy_are_not_suspected(accuracy, n, classes):
    truth = torch.arange(n) % classes
    for seed in range(10):
        assert not told(truth, truth, classes, accuracy=accuracy, seed=seed)


@pytest.mark.parametrize(("n", "classes"), [(20, 10), (100, 10), (400, 43)])
def test_guessing_is_no_exchange_of_labels(n, classes):
    for seed in range(20):
        guesses = torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed))
        assert other_labels(guesses, torch.arange(n) % classes, classes) == (0.0, "")


def test_classes_that_an_honest_model_confuses_are_not_suspected():
    truth = torch.arange(600) % 10
    predictions = predictions_for(truth)
    for old, new, share in ((3, 5, 0.45), (5, 3, 0.45), (6, 2, 0.9), (8, 9, 1.0)):
        # A model that guesses between two classes, and one that hardly or never says a third.
        moved = (truth == old) & (torch.rand(600, generator=torch.Generator().manual_seed(old)) < share)
        predictions[moved] = new
    assert other_labels(predictions, truth, 10) == (0.0, "")


def test_classes_left_out_on_purpose_are_not_missed():
    truth = torch.tensor([3] * 60 + [7] * 60)
    predictions = torch.where(torch.arange(120) % 4 == 0, truth, torch.where(truth == 3, 8, 1))
    assert other_labels(predictions, truth, 10) == (0.0, "")


def test_a_collapsed_model_is_no_sign_of_a_missing_class():
    truth = torch.arange(400) % 10
    truth = truth[truth != 3]
    assert other_labels(torch.full_like(truth, 3), truth, 10) == (0.0, "")
