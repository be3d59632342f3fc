"""What every training method keeps to, whatever its formula is."""

from __future__ import annotations

import dataclasses
import typing

import pytest
import torch
from torch import nn

from robustbench_local.attacks import ThreatModel
from robustbench_local.attacks.attack import settings, spec_text
from robustbench_local.defenses import AWP, OBJECTIVES, Objective, TrainingContext
from robustbench_local.training.recipe import Recipe

BALLS = [ThreatModel("linf", 0.05), ThreatModel("linf", 0.6), ThreatModel("l2", 0.5), ThreatModel("l1", 2.0)]
LINF = BALLS[0]
PLAIN = ("standard", "defensive-distillation")
"""Methods that learn from the images as they are."""
OUTSIDE = ("n-fgsm", "gaussian")
"""Methods whose points are not bound to the ball."""

every_method = pytest.mark.parametrize("name", OBJECTIVES)
every_ball = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: f"{ball.norm}-{ball.eps:g}")


@pytest.fixture
def learner(network):
    """Makes a learner of a fresh network, with a teacher."""

    def make(shape=(3, 4, 4), threat_model=LINF, **settings):
        teacher = network(shape, seed=7).eval().requires_grad_(False)
        return TrainingContext.of(network(shape, **settings), threat_model, teacher=teacher)

    return make


def brief(name: str) -> Objective:
    """The method with an inner attack too short to forget where it began."""
    short = {"steps": 1, "step_size": 1e-3} if "steps" in OBJECTIVES[name].__dataclass_fields__ else {}
    return OBJECTIVES[name](**short)


@every_method
def test_keys_alone_decide_where_points_are(learner, batch, name):
    who, (images, labels, keys) = learner(), batch()
    objective = brief(name)
    once = objective.examples(who, images, labels, keys).adversarial
    torch.manual_seed(99)
    assert torch.equal(objective.examples(who, images, labels, keys).adversarial, once)
    differs = not torch.equal(objective.examples(who, images, labels, keys + 1).adversarial, once)
    assert differs == (name not in PLAIN)


@every_method
@every_ball
def test_points_do_not_depend_on_the_rest_of_the_batch(learner, batch, name, ball):
    who, (images, labels, keys) = learner(threat_model=ball), batch()
    # In float64: of the divergence's gradient near the image, float32 sees only a few digits.
    who.model.double()
    who = dataclasses.replace(who, teacher=who.teacher.double())
    images, objective = images.double(), OBJECTIVES[name]()
    whole = objective.examples(who, images, labels, keys).adversarial
    some = torch.tensor([5, 2])
    alone = objective.examples(who, images[some], labels[some], keys[some]).adversarial
    torch.testing.assert_close(alone, whole[some], rtol=0, atol=1e-7)


@every_method
@every_ball
def test_points_are_where_the_method_promises(learner, batch, name, ball):
    images, labels, keys = batch()
    examples = OBJECTIVES[name]().examples(learner(threat_model=ball), images, labels, keys)
    points, low, high = examples.adversarial.detach(), 0.0, 1.0
    far = ball.geometry.distance(points - images)
    assert points.isfinite().all()
    assert examples.images is images
    assert examples.labels is labels
    if name in PLAIN:
        assert examples.adversarial is images
    elif name == "gaussian":
        assert points.min() < low, "the noise of the certificate is not clipped"
        assert points.max() > high
    else:
        assert points.min() >= low
        assert points.max() <= high
    if name not in OUTSIDE:
        assert (far <= ball.eps * (1 + 1e-5) + 1e-7).all()
    if name == "n-fgsm":
        assert (far <= 3 * ball.eps * (1 + 1e-5)).all()
        assert (far > ball.eps).any() or ball.eps == 0.6
    if name not in (*PLAIN, *OUTSIDE):
        assert (far >= 0.5 * min(ball.eps, 0.5)).all(), "an attack that stays at home"


@every_method
def test_parts_are_detached_and_the_loss_trains_every_weight(learner, batch, name):
    who, (images, labels, keys) = learner(dropout=0.2), batch()
    objective = OBJECTIVES[name]()
    loss, parts = objective.loss(who, objective.examples(who, images, labels, keys))
    assert loss.shape == ()
    assert loss.isfinite()
    assert parts
    assert all(part.shape == () and part.isfinite() and not part.requires_grad for part in parts.values())
    loss.backward()
    trained = [parameter for parameter in who.model.parameters() if parameter.requires_grad]
    assert len(trained) == 6
    assert who.model.scale.grad is None
    assert all(each.grad.isfinite().all() and each.grad.any() for each in trained)


@every_method
def test_examples_leave_network_teacher_images_and_random_state_as_they_were(learner, batch, name):
    who, (images, labels, keys) = learner(dropout=0.5), batch()
    model = who.model
    model.norm.eval()
    model.first.weight.grad = torch.full_like(model.first.weight, 3.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pixels, state = images.clone(), torch.get_rng_state()
    examples = OBJECTIVES[name]().examples(who, images, labels, keys)
    assert examples.adversarial.grad_fn is None
    assert examples.adversarial.requires_grad == (name == "free")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [model.training, model.dropout.training, model.norm.training] == [True, True, False], "modes are kept"
    assert model.first.weight.requires_grad
    assert not model.scale.requires_grad
    assert (model.first.weight.grad == 3).all()
    assert model.last.weight.grad is None
    assert not any(each.training for each in who.teacher.modules())
    assert torch.equal(images, pixels)
    assert torch.equal(torch.get_rng_state(), state)


COSTS = {  # in passes of the batch: forward and backward of the attack, forward of the loss, forward of the teacher
    "standard": (0, 0, 1, 0),
    "pgd-at": (4, 4, 1, 0),
    "trades": (5, 4, 2, 0),
    "mart": (4, 4, 2, 0),
    "hat": (5, 4, 3, 1),
    "fgsm-rs": (1, 1, 1, 0),
    "n-fgsm": (1, 1, 1, 0),
    "free": (0, 0, 1, 0),
    "rslad": (4, 4, 2, 1),
    "defensive-distillation": (0, 0, 1, 1),
    "gaussian": (0, 0, 1, 0),
    "smooth-adv": (8, 8, 2, 0),
}


@every_method
def test_passes_are_those_the_method_needs_and_happen_on_a_network_held_still(learner, batch, name):
    who, (images, labels, keys) = learner(), batch()
    kind, model, rows = OBJECTIVES[name], who.model, len(images)
    objective = kind(steps=4) if "steps" in kind.__dataclass_fields__ else kind()
    examples = objective.examples(who, images, labels, keys)
    forwards, backwards = model.forwards / rows, model.backwards / rows
    assert model.seen <= {(False, False)}
    model.seen.clear()
    objective.loss(who, examples)
    assert model.seen == {(True, True)}
    results = (forwards, backwards, model.forwards / rows - forwards, who.teacher.forwards / rows)
    assert results == COSTS[name]
    assert who.teacher.backwards == 0


@every_method
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 2, 4, 4), (7,)])
@pytest.mark.parametrize("ball", BALLS[1:3], ids=["linf", "l2"])
def test_images_may_have_any_rank(learner, batch, name, shape, ball):
    who, (images, labels, keys) = learner(shape, ball), batch(shape)
    objective = OBJECTIVES[name]()
    examples = objective.examples(who, images, labels, keys)
    loss, _ = objective.loss(who, examples)
    loss.backward()
    assert examples.adversarial.shape == images.shape
    assert who.model.first.weight.grad.isfinite().all()


class Broken(nn.Module):
    def forward(self, images):
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in (*PLAIN, "gaussian", "free")])
def test_a_network_is_released_when_the_attack_fails(learner, batch, name):
    who = learner()
    who.model.last = Broken()
    with pytest.raises(RuntimeError, match="out of memory"):
        OBJECTIVES[name]().examples(who, *batch())
    assert who.model.training
    assert who.model.norm.training
    assert who.model.first.weight.requires_grad


class Root(nn.Module):
    """Square roots of pixels; at a black one the gradient is infinite in the first half, no number in the second."""

    def forward(self, images):
        first, second = images.flatten(1).chunk(2, dim=1)
        return torch.cat([first.maximum(torch.zeros(())), torch.where(second > 0, second, 0 * second)], dim=1).sqrt()


@every_method
@every_ball
def test_gradients_that_are_no_numbers_do_not_move_points_out_of_the_world(learner, batch, name, ball):
    images, labels, keys = batch()
    torch.manual_seed(3)
    crooked = nn.Sequential(Root(), nn.Linear(48, 5))
    black = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(crooked(black).logsumexp(1).sum(), black)
    assert gradient.isnan().any()
    assert gradient.isinf().any()

    who = TrainingContext.of(crooked, ball, teacher=learner().teacher)
    objective = OBJECTIVES[name]()
    examples = objective.examples(who, images, labels, keys)
    loss, _ = objective.loss(who, examples)
    loss.backward()
    again = objective.next_replay(who, examples)
    assert examples.adversarial.isfinite().all()
    assert loss.isfinite()
    assert again is None or again.adversarial.isfinite().all()


@every_method
def test_losses_are_float32s_even_of_bfloat16_logits(learner, batch, name):
    """A CPU's autocast would take the difference of two bfloat16 log-probabilities, which is mostly rounding."""
    who, (images, labels, keys) = learner(), batch()
    network, teacher = who.model.eval(), who.teacher
    objective = OBJECTIVES[name]()
    narrow = dataclasses.replace(who, model=lambda x: network(x).bfloat16(), teacher=lambda x: teacher(x).bfloat16())
    rounded = dataclasses.replace(
        who, model=lambda x: network(x).bfloat16().float(), teacher=lambda x: teacher(x).bfloat16().float()
    )
    losses = [objective.loss(each, objective.examples(each, images, labels, keys)) for each in (narrow, rounded)]
    assert losses[0][0].dtype == torch.float32
    assert losses[0] == losses[1]


@every_method
def test_smoothed_labels_change_losses_and_not_points(learner, batch, name):
    who, (images, labels, keys) = learner(), batch()
    who.model.eval()
    smooth = dataclasses.replace(who, label_smoothing=0.3)
    objective = OBJECTIVES[name]()
    hard, soft = (objective.examples(each, images, labels, keys) for each in (who, smooth))
    assert torch.equal(hard.adversarial, soft.adversarial)
    from_labels = name not in ("rslad", "defensive-distillation")
    assert (objective.loss(who, hard)[0] != objective.loss(smooth, soft)[0]) == from_labels


@every_method
def test_settings_that_are_no_sensible_numbers_are_refused_by_their_names(name):
    _refuses_nonsense(OBJECTIVES[name])


def test_weight_perturbation_refuses_them_too():
    _refuses_nonsense(AWP)


def _refuses_nonsense(kind: type) -> None:
    for key, hint in typing.get_type_hints(kind).items():
        if typing.get_origin(hint) is typing.ClassVar or hint is bool:
            continue
        for nonsense in (-1, *([float("nan")] if hint is not int else [])):
            with pytest.raises(ValueError, match=f"^{key} is {nonsense}, but must be "):
                kind(**{key: nonsense})


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("pgd-at", {"steps": 0}, "steps is 0"),
        ("smooth-adv", {"draws": 0}, "draws is 0"),
        ("free", {"replays": 1}, "replays is 1, but must be at least 2"),
        ("rslad", {"clean": 1.01}, "must be from 0 to 1"),
        ("standard", {"temperature": 0}, "temperature is 0"),
        ("defensive-distillation", {"temperature": 0}, "temperature is 0"),
        ("gaussian", {"sigma": 0}, "sigma is 0"),
        ("smooth-adv", {"sigma": 0}, "sigma is 0"),
        ("fgsm-rs", {"step": 0}, "step is 0"),
        ("n-fgsm", {"step": 0}, "step is 0"),
        ("n-fgsm", {"noise": 0}, "noise is 0"),
        *[(name, {"steps": 0}, "steps is 0") for name in ("trades", "mart", "hat", "rslad", "smooth-adv")],
        *[
            (name, {"step_size": 0.0}, "step_size is 0, but must be above 0")
            for name in ("pgd-at", "trades", "mart", "hat", "rslad", "smooth-adv")
        ],
    ],
)
def test_impossible_settings_are_refused_with_a_sentence(name, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        OBJECTIVES[name](**settings)


WRITTEN = {
    "standard": "temperature=1.0",
    "pgd-at": "steps=10,step_size=None,random_start=True",
    "trades": "beta=6.0,steps=10,step_size=None",
    "mart": "beta=5.0,steps=10,step_size=None",
    "hat": "beta=2.5,gamma=0.5,reach=2.0,steps=10,step_size=None",
    "fgsm-rs": "step=1.25",
    "n-fgsm": "noise=2.0,step=1.0",
    "free": "replays=8",
    "rslad": f"clean={1 / 6},steps=10,step_size=None",
    "defensive-distillation": "temperature=20.0",
    "gaussian": "sigma=0.25",
    "smooth-adv": "sigma=0.25,draws=2,steps=4,step_size=None",
}


@every_method
def test_settings_keep_their_names_order_and_defaults_which_written_recipes_rely_on(name):
    kind = OBJECTIVES[name]
    assert ",".join(f"{key}={value}" for key, value in settings(kind).items()) == WRITTEN[name]
    assert spec_text(kind()) == name


@pytest.mark.parametrize(
    "spec",
    [
        "pgd-at:steps=2,step-size=0.5,random-start=False",
        "trades:beta=1.0,steps=3,step-size=0.5",
        "mart:beta=1.0,steps=3,step-size=0.5",
        "hat:beta=1.0,gamma=2.0,reach=3.0,steps=3,step-size=0.5",
        "rslad:clean=0.5,steps=3,step-size=0.5",
        "smooth-adv:sigma=0.5,draws=1,steps=3,step-size=0.5",
    ],
)
def test_what_departs_from_the_defaults_is_written_in_that_order(spec):
    objective = Recipe(method=spec).objective()
    assert spec_text(objective) == spec
    assert repr(objective).count("=") == spec.count("=")


@pytest.mark.parametrize(
    ("name", "key"),
    [("trades", "beta"), ("mart", "beta"), ("hat", "beta"), ("hat", "gamma"), ("hat", "reach"), ("rslad", "clean")],
)
def test_nothing_is_a_possible_weight(name, key):
    assert getattr(OBJECTIVES[name](**{key: 0.0}), key) == 0


def test_registry_holds_objectives_by_their_names():
    assert set(OBJECTIVES) == set(COSTS)
    assert AWP.name not in OBJECTIVES
    for name, kind in OBJECTIVES.items():
        objective = kind()
        assert kind.name == name
        assert isinstance(objective, Objective)
        assert kind.__doc__
        assert objective == kind()
        assert hash(objective) == hash(kind())
        assert objective.validation_metric in ("clean", "robust", "noisy")
        with pytest.raises(dataclasses.FrozenInstanceError):
            objective.anything = 1


@every_method
def test_safer_methods_come_to_an_end_at_one_of_many_steps(name):
    chain = [OBJECTIVES[name]()]
    while (safer := chain[-1].fallback()) is not None:
        chain.append(safer)
        assert len(set(chain)) == len(chain) <= 5, "a circle"
    assert len(chain) == {"fgsm-rs": 4, "free": 4, "n-fgsm": 3}.get(name, 1)
    assert len(chain) == 1 or (chain[-1].name, chain[-1].steps) == ("pgd-at", 10)


@pytest.mark.parametrize(("steps", "after"), [(1, 10), (3, 10), (4, None)])
def test_pgd_of_few_steps_has_a_safer_one(steps, after):
    safer = OBJECTIVES["pgd-at"](steps=steps, step_size=0.5).fallback()
    assert (safer and (safer.steps, safer.step_size)) == (after and (after, None))


@every_method
def test_methods_with_a_teacher_ask_it_and_can_train_their_own_or_say_not(learner, batch, name):
    who, (images, labels, keys) = learner(), batch()
    objective, alone = OBJECTIVES[name](), dataclasses.replace(who, teacher=None)
    own = objective.own_teacher()
    assert own is None or (objective.needs_teacher and not own.needs_teacher)
    if objective.needs_teacher:
        with pytest.raises(AssertionError, match="a teacher"):
            objective.loss(alone, objective.examples(alone, images, labels, keys))
    else:
        objective.loss(alone, objective.examples(alone, images, labels, keys))


def test_folder_refuses_to_be_imported_under_another_name():
    import importlib.util
    from pathlib import Path

    import robustbench_local.defenses as defenses

    spec = importlib.util.spec_from_file_location("defenses", Path(defenses.__file__))
    with pytest.raises(ImportError, match=r"robustbench_local\.defenses"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
