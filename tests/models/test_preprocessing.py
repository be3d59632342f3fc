"""Input defenses: the toolbox's own transformations, and gradients that go through them."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_local import Classifier, ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks import PGD, pgd
from robustbench_local.engine.precision import build_search_models
from robustbench_local.errors import UserError
from robustbench_local.models import fingerprint
from robustbench_local.models.catalog import INPUT_DEFENSES
from robustbench_local.models.metered import Metered
from robustbench_local.models.preprocessing import (
    apply_defenses,
    input_defense,
    input_defense_type,
    spec_text,
    with_preprocessing,
)
from robustbench_local.results.reading import read_result

SPECS = ["jpeg:quality=50", "bit-depth:bits=3", "median:window=3", "total-variation:lamb=0.1,eot=2"]
SHAPES = [(1, 8, 8), (3, 32, 32)]
THREAT = ThreatModel("linf", 0.1)


def pictures(shape, rows=5, seed=0):
    return torch.rand(rows, *shape, generator=torch.Generator().manual_seed(seed))


def network(shape=(1, 8, 8)):
    torch.manual_seed(0)
    layers = nn.Conv2d(shape[0], 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 10)
    return Classifier(nn.Sequential(*layers), std=[0.1])


def logits_and_gradient(model, images):
    images = images.clone().requires_grad_(True)
    logits = model(images)
    return logits.detach(), torch.autograd.grad(logits.square().sum(), images)[0]


def by_the_toolbox(name, images):
    from art.defences import preprocessor

    last = images.permute(0, 2, 3, 1).numpy()
    made = {
        "jpeg": lambda: preprocessor.JpegCompression((0.0, 1.0), quality=50)(last),
        "bit-depth": lambda: preprocessor.FeatureSqueezing((0.0, 1.0), bit_depth=3)(last),
        "median": lambda: preprocessor.SpatialSmoothing(window_size=3, clip_values=(0.0, 1.0))(last),
    }[name]()[0]
    return torch.from_numpy(made.astype(np.float32)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spec", SPECS)
def test_every_defense_is_deterministic_stays_in_the_box_and_treats_images_by_themselves(spec, shape):
    images, defense = pictures(shape), input_defense(spec)
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    once = apply_defenses(images, [defense])
    assert (np.random.get_state()[1] == before).all(), "NumPy's global generator is the caller's"
    np.random.seed(8)
    assert once.shape == images.shape
    assert once.dtype == torch.float32
    assert once.min() >= 0
    assert once.max() <= 1
    assert not torch.equal(once, images)
    alone = torch.cat([apply_defenses(image[None], [defense]) for image in images.flip(0)]).flip(0)
    assert torch.equal(once, alone)
    if defense.name != "total-variation":
        assert torch.equal(once, by_the_toolbox(defense.name, images))


def test_total_variation_is_the_toolboxes_for_the_mask_of_the_draw():
    from art.defences.preprocessor import TotalVarMin

    images, sure = pictures((3, 8, 8)), input_defense("total-variation:prob=1,lamb=0.1")
    expected = TotalVarMin(prob=1.0, lamb=0.1, clip_values=(0.0, 1.0))(images.permute(0, 2, 3, 1).numpy())[0]
    assert torch.equal(apply_defenses(images, [sure]), torch.from_numpy(expected).permute(0, 3, 1, 2))
    random = input_defense("total-variation")
    draws = [apply_defenses(images, [random], draw) for draw in range(3)]
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[1], draws[2])
    nearly = images + 1e-6  # what was drawn for one image says nothing of its neighbour
    assert (apply_defenses(nearly, [random]) - draws[0]).abs().amax() > 0.01


@pytest.mark.parametrize("spec", ["jpeg:quality=50", "bit-depth:bits=3", "total-variation"])
def test_the_gradient_is_the_identitys(spec):
    images, weights = pictures((3, 8, 8)).requires_grad_(True), pictures((3, 8, 8), seed=1)
    (apply_defenses(images, [input_defense(spec)]) * weights).sum().backward()
    assert torch.equal(images.grad, weights)


@pytest.mark.parametrize("window", [2, 3, 4])
def test_the_medians_gradient_is_its_own(window):
    defense = input_defense(f"median:window={window}")
    images = pictures((2, 7, 9))
    assert torch.equal(defense.surrogate(images), apply_defenses(images, [defense]))
    images = images.double().requires_grad_(True)
    assert torch.autograd.gradcheck(defense.surrogate, images, eps=1e-7, atol=1e-4)


def test_logits_are_draw_zeros_and_the_gradient_is_the_mean_of_the_draws():
    classifier, images = network(), pictures((1, 8, 8))
    defense = input_defense("total-variation:eot=3,lamb=0.05")
    logits, gradient = logits_and_gradient(with_preprocessing(classifier, [spec_text(defense)]), images)
    assert torch.equal(logits, classifier(apply_defenses(images, [defense])))
    upstream, jacobians = 2 * logits, []
    for draw in range(3):
        points = images.clone().requires_grad_(True)
        told = classifier(apply_defenses(points, [defense], draw))
        jacobians.append(torch.autograd.grad(told, points, upstream)[0])
    assert not torch.allclose(jacobians[0], jacobians[1], rtol=1e-3)
    assert torch.allclose(gradient, torch.stack(jacobians).mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS)
def test_the_twin_of_the_search_says_the_same(spec):
    model, images = with_preprocessing(network((3, 8, 8)), [spec]), pictures((3, 8, 8), rows=12)
    model(images)
    twins = build_search_models(Metered(model), images, "fp32")
    expected, found = logits_and_gradient(model, images), logits_and_gradient(twins.float32.model, images)
    assert torch.allclose(found[0], expected[0], atol=1e-5)
    assert torch.allclose(found[1], expected[1], atol=1e-5)


def test_what_the_classifier_knows_carries_over_and_each_defense_is_another_model():
    plain = load_classifier("digits-cnn")
    before = fingerprint(plain)
    specs = [["jpeg"], ["jpeg:quality=50"], ["jpeg", "bit-depth"], ["bit-depth", "jpeg"], ["total-variation:eot=2"]]
    models = [with_preprocessing(plain, spec) for spec in specs]
    assert models[1].name == "digits-cnn behind jpeg:quality=50"
    assert models[2].name == "digits-cnn behind jpeg:quality=75, then bit-depth:bits=4"
    assert all("quality=" in repr(model.module) for model in models[:4])
    assert len({fingerprint(model) for model in models} | {before}) == 6
    assert fingerprint(plain) == before
    assert models[0].class_names == plain.class_names
    assert models[0].input_shape == plain.input_shape
    assert with_preprocessing(plain, []) is plain


def test_a_model_that_works_in_place_can_be_defended():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, images):
            return self.linear(images.mul_(0.5).flatten(1))

    images = pictures((1, 8, 8))
    _, gradient = logits_and_gradient(with_preprocessing(Classifier(InPlace()), ["bit-depth"]), images)
    assert gradient.abs().sum() > 0


def test_the_adaptive_attack_breaks_what_a_gradient_through_the_quantiser_cannot():
    plain, data = load_classifier("digits-cnn"), load_dataset("digits").subset(range(120))
    model, images, labels = with_preprocessing(plain, ["bit-depth:bits=3"]), data.images(range(120)), data.labels

    def standing(points):
        return (model(points).argmax(1) == labels).float().mean()

    def as_it_is(points):  # a rounding has gradient 0
        return plain(apply_defenses(points.detach(), [input_defense("bit-depth:bits=3")]) + 0 * points)

    adaptive, blind = pgd(model, images, labels, THREAT), pgd(as_it_is, images, labels, THREAT)
    undefended = (plain(pgd(plain, images, labels, THREAT)).argmax(1) == labels).float().mean()
    assert standing(adaptive) <= undefended + 0.05
    assert standing(blind) >= standing(adaptive) + 0.25


def test_the_medians_own_gradient_finds_more_than_the_identitys(monkeypatch):
    data = load_dataset("digits").subset(range(120))
    model = with_preprocessing(load_classifier("digits-cnn"), ["median:window=2"])
    own = evaluate(model, data, THREAT, attacks=[PGD()], diagnostics=False).robust_accuracy.value
    monkeypatch.setattr(input_defense_type("median"), "surrogate", lambda self, images: images)
    assert own <= evaluate(model, data, THREAT, attacks=[PGD()], diagnostics=False).robust_accuracy.value - 0.05


BAD = {
    "jpeg:quality=0": "between 1 and 100",
    "bit-depth:bits=9": "between 1 and 8",
    "median:window=1": "between 2 and 9",
    "jpg": "'jpeg'",
    "bit-depth:bit=3": "'bits'",
    "total-variation:prob=2": "between 0 and 1",
    "total-variation:eot=0": "eot",
    "total-variation:max-iter=0": "max_iter",
    "jpeg:quality=high": "'high'",
}


@pytest.mark.parametrize("spec", BAD)
def test_bad_settings_are_refused_in_one_sentence(spec):
    with pytest.raises(UserError, match=re.escape(BAD[spec])) as caught:
        with_preprocessing(network(), [spec])
    assert "\n" not in str(caught.value)


def test_images_of_another_rank_are_refused():
    with pytest.raises(UserError, match="N×C×H×W"):
        apply_defenses(torch.rand(4, 64), [input_defense("bit-depth")])


def test_the_toolbox_is_imported_only_when_a_defense_is_asked_for():
    script = "import sys; from robustbench_local.models.preprocessing import input_defense as asked\n"
    script += "asked('jpeg:quality=3'); sys.exit('art' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_command_line_attacks_through_the_defense(robust, tmp_path):
    asked = "attack", "digits-cnn-robust", "--samples", 40, "--no-diagnostics"
    code, _, err = robust(*asked, "--defense", "jpeg:quality=50", "--output", "r.json")
    assert code == 0
    assert "digits-cnn-robust behind jpeg:quality=50 on digits" in err
    assert robust(*asked, "--defense", "jpeg:quality=51", "--output", "s.json")[0] == 0
    results = [read_result(tmp_path / name) for name in ("r.json", "s.json")]
    assert "jpeg:quality=50" in results[0].config["options"]["defenses"]
    assert results[0].model.sha256 != results[1].model.sha256
    assert results[0].config["binding"]["model"] != results[1].config["binding"]["model"]


def test_the_command_line_lists_defenses_examines_them_and_refuses_bad_ones(robust):
    code, out, _ = robust("list", "defenses")
    named = [line.split()[0] for line in out.splitlines()]
    assert code == 0
    assert named[-4:] == list(INPUT_DEFENSES)
    assert "pgd-at" in named[:-4]
    code, _, err = robust("doctor", "--defense", "bit-depth:bits=2", "--defense", "median")
    assert code == 0
    assert "behind bit-depth:bits=2, then median:window=2" in " ".join(err.split())
    for command in ("attack", "doctor"):
        code, _, err = robust(command, "--defense", "jpeg:quality=0")
        assert code == 2
        assert err.startswith("robust: jpeg: quality is 0, but must be between 1 and 100")
        assert err.count("\n") == 1
