"""A plain function as an attack: verified and counted like any other, and refused in a sentence where it misbehaves."""

import functools
import json

import pytest
import torch
from torch.nn import functional

from robustbench_local import ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks import FGSM
from robustbench_local.engine.function_attack import attack_findings
from robustbench_local.engine.protocol import custom, resolve_attack
from robustbench_local.errors import UserError
from robustbench_local.models.classifier import fingerprint

THREAT = ThreatModel("linf", 0.1)
N = 40
evaluate = functools.partial(evaluate, diagnostics=False)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits").subset(range(N))


@pytest.fixture(scope="module")
def model():
    return load_classifier("digits-cnn")


def fgsm(model, images, labels, threat_model):
    """The attack of that name, as someone would write it."""
    points = images.requires_grad_(True)
    functional.cross_entropy(model(points), labels).backward()
    return (points + threat_model.eps * points.grad.sign()).clamp(0, 1)


def returns_nothing(model, images, labels, threat_model):
    fgsm(model, images, labels, threat_model)


def returns_numpy(model, images, labels, threat_model):
    return images.numpy()


def returns_one_image(model, images, labels, threat_model):
    return images[0]


def returns_labels_too(model, images, labels, threat_model):
    return images, labels


def returns_bytes(model, images, labels, threat_model):
    return (images * 255).to(torch.uint8)


def raises(model, images, labels, threat_model):
    return images * (1 / len([]))


def exits(model, images, labels, threat_model):
    raise SystemExit(1)


def asks_badly(model, images, labels, threat_model):
    return model(images.flatten(1))


def trains(model, images, labels, threat_model):
    for part in model.modules():
        part.training = True
    return images


def thaws(model, images, labels, threat_model):
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    functional.cross_entropy(model(images), labels).backward()
    return images


def poisons(model, images, labels, threat_model):
    with torch.no_grad():
        next(model.parameters()).add_(1)
    return images


def replaces_weights(model, images, labels, threat_model):
    parameter = next(model.parameters())
    parameter.data = torch.zeros(1)
    return images


def hooks(model, images, labels, threat_model):
    model.model.register_forward_hook(lambda module, inputs, logits: logits * 0)
    return images


def removes_a_layer(model, images, labels, threat_model):
    model.model.module.linear1 = torch.nn.Identity()
    return images


BAD = {
    returns_nothing: ("attack-returns-no-tensor", "NoneType"),
    returns_numpy: ("attack-returns-no-tensor", "ndarray"),
    returns_labels_too: ("attack-returns-no-tensor", "tuple"),
    returns_one_image: ("attack-returns-wrong-shape", "(1, 8, 8)"),
    returns_bytes: ("attack-returns-wrong-dtype", "uint8"),
    raises: ("attack-function-failed", "ZeroDivisionError"),
    exits: ("attack-function-failed", "SystemExit"),
    asks_badly: ("attack-function-failed", "test_function_attack.py line"),
    trains: ("attack-changed-model", "training mode"),
    thaws: ("attack-changed-model", "requires_grad, gradients of parameters"),
    poisons: ("attack-changed-model", "parameters"),
    replaces_weights: ("attack-changed-model", "parameters"),
    hooks: ("attack-changed-model", "hooks"),
    removes_a_layer: ("attack-changed-model", "submodules"),
}


@pytest.mark.parametrize("function", BAD, ids=lambda function: function.__name__)
def test_a_function_that_misbehaves_is_one_sentence_and_leaves_the_model_as_it_was(model, digits, function):
    slug, words = BAD[function]
    before = fingerprint(model), [part.training for part in model.modules()], list(model.modules())
    with pytest.raises(UserError) as refusal:
        evaluate(model, digits, THREAT, attacks=[function])
    assert refusal.value.slug == slug
    assert function.__name__ in str(refusal.value)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert before == (fingerprint(model), [part.training for part in model.modules()], list(model.modules()))
    assert all(not each.requires_grad and each.grad is None for each in model.parameters())
    assert evaluate(model, digits, THREAT, attacks=[FGSM()]).result.attacks[0].fooled > 0, "no hook is left"


def shifts(factor):
    def shift(model, images, labels, threat_model):
        return images + factor * threat_model.eps

    return shift


def answers_nan(model, images, labels, threat_model):
    points = images.clone()
    points[::2] = torch.nan
    points[1::2] = torch.inf
    return points


@pytest.mark.parametrize("function", [shifts(30.0), answers_nan], ids=["outside the ball", "not finite"])
def test_images_outside_count_as_no_success_and_are_shown(model, digits, function):
    result = evaluate(model, digits, THREAT, attacks=[function]).result
    report = result.attacks[0]
    assert report.fooled == 0
    assert report.outside == report.attacked == result.clean_accuracy.correct
    finding = next(each for each in result.diagnostics if each.slug == "adversarial-images-allowed")
    assert (finding.status, finding.value) == ("warn", float(report.outside))
    assert result.verdict.status == "doubtful"
    assert next(each for each in result.diagnostics if each.slug == "logits-finite-under-attack").status == "pass"


def test_a_rounding_error_is_forgiven(model, digits):
    def nearly(model, images, labels, threat_model):
        return fgsm(model, images, labels, threat_model) + 5e-7

    ours = evaluate(model, digits, THREAT, attacks=[fgsm]).result.attacks[0]
    report = evaluate(model, digits, THREAT, attacks=[nearly]).result.attacks[0]
    assert report.outside == 0
    assert report.fooled == pytest.approx(ours.fooled, abs=1)


def test_a_function_is_as_good_as_the_attack_it_spells_out(model, digits):
    ours, theirs = (evaluate(model, digits, THREAT, attacks=[each]) for each in (FGSM(), fgsm))
    assert [sample.robust for sample in ours.samples] == [sample.robust for sample in theirs.samples]
    mine, other = ours.result.attacks[0], theirs.result.attacks[0]
    assert (mine.forward_passes, mine.backward_passes) == (other.forward_passes, other.backward_passes)
    assert other.name.endswith(":fgsm")
    note = next(each for each in theirs.result.diagnostics if each.slug == "attack-batch-independent")
    assert note.status == "skipped"
    assert "batch size" in note.advice
    assert not attack_findings([FGSM()], ours.result.attacks)


def test_random_numbers_come_from_the_seed_of_the_run(model, digits):
    def seeded(model, images, labels, threat_model, seed):
        drawn.append(seed)
        return images

    def with_generator(model, images, labels, threat_model, generator):
        drawn.append(torch.rand(1, generator=generator).item())
        return images

    def careless(model, images, labels, threat_model):
        drawn.append(torch.rand(1).item())
        torch.manual_seed(0)
        return images

    state = torch.get_rng_state()
    for function in (seeded, with_generator, careless):
        draws = []
        for seed in (1, 1, 2):
            drawn = []
            evaluate(model, digits, THREAT, attacks=[function], seed=seed, batch_size=20)
            draws.append(drawn)
        assert draws[0] == draws[1] != draws[2]
        assert len(set(draws[0])) == 2, "every batch has its own"
    assert torch.equal(state, torch.get_rng_state())


def test_out_of_memory_halves_the_batch(model, digits):
    sizes = []

    def hungry(model, images, labels, threat_model):
        sizes.append(len(images))
        if len(images) > 12:
            raise torch.OutOfMemoryError("out of memory")
        return fgsm(model, images, labels, threat_model)

    report = evaluate(model, digits, THREAT, attacks=[hungry], batch_size=32).result.attacks[0]
    assert report.fooled == evaluate(model, digits, THREAT, attacks=[fgsm]).result.attacks[0].fooled
    assert max(sizes) == 32
    assert sizes.count(32) == sizes.count(16) == 1


@pytest.mark.parametrize(
    ("function", "slug", "words"),
    [
        (lambda model, images, labels: images, "attack-function-signature", "3 positional"),
        (lambda model, images, labels, threat_model, steps: images, "attack-function-signature", "'steps'"),
        (lambda model, images, labels, threat_model, *, rng: images, "attack-function-signature", "'rng'"),
        (FGSM, "attack-is-a-class", "FGSM()"),
        (17, "not-an-attack", "17"),
    ],
)
def test_what_is_no_attack_is_refused_before_anything_runs(function, slug, words):
    with pytest.raises(UserError) as refusal:
        custom([function])
    assert refusal.value.slug == slug
    assert words in str(refusal.value)


CODE = """
import torch
from helper import direction

def push(model, images, labels, threat_model, generator, scale=0.5, sign=False):
    noise = direction(images, generator)
    return (images + scale * threat_model.eps * (noise.sign() if sign else noise)).clamp(0, 1)

constant = 3

class Attack:
    def __call__(self, model, images, labels, threat_model):
        return images
"""


@pytest.fixture
def code(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "helper.py").write_text(
        "import torch\n\ndef direction(images, generator):\n"
        "    return 2 * torch.rand(images.shape, generator=generator) - 1\n"
    )
    return tmp_path / "mine.py"


def test_the_command_line_takes_a_function_with_settings(robust, code, tmp_path):
    ended = robust(
        *("attack", "--samples", "30", "--no-diagnostics", "--output", "r.json", "--eps", "0.3"),
        *("--attack", f"{code}:push:scale=1,sign=true"),
    )
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "r.json").read_text())["attacks"][0]
    assert report["name"] == f"{code}:push:scale=1.0,sign=True"
    assert report["outside"] == 0


@pytest.mark.parametrize(
    ("spec", "slug", "words"),
    [
        ("mine.py", "function-not-named", "mine.py"),
        ("mine.py:", "function-not-named", "FUNCTION"),
        ("other.py:push", "no-such-file", "other.py"),
        ("mine.py:pusch", "function-not-found", "'push'"),
        ("mine.py:constant", "not-a-function", "int"),
        ("mine.py:Attack", "not-a-function", "a class"),
        ("mine.py:push:scalle=1", "user-error", "'scale'"),
        ("no_such_package:push", "user-error", "no_such_package"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_named(code, monkeypatch, spec, slug, words):
    monkeypatch.chdir(code.parent)
    with pytest.raises(UserError) as refusal:
        resolve_attack(spec)
    assert slug in ("user-error", refusal.value.slug)
    assert words in str(refusal.value)


def test_other_code_or_settings_are_another_protocol(code, monkeypatch):
    monkeypatch.chdir(code.parent)
    first = [custom([resolve_attack(spec)])[0].sha256 for spec in ("mine.py:push", "mine.py:push:scale=0.5")]
    assert first[0] == first[1]
    assert custom([resolve_attack("mine.py:push:scale=1")])[0].sha256 != first[0]
    code.write_text(CODE + "\n# another line\n")
    assert custom([resolve_attack("mine.py:push")])[0].sha256 != first[0]


def test_a_module_is_found_in_the_working_directory(code, monkeypatch):
    monkeypatch.chdir(code.parent)
    monkeypatch.delitem(__import__("sys").modules, "mine", raising=False)
    assert resolve_attack("mine:push").name == "mine:push"
