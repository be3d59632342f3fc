"""FGSM and PGD against linear models, whose best adversarial example is known in closed form."""

import pytest
import torch
from torch import nn

from robustbench_local.attacks import APGD, ATTACKS, FAB, FGSM, PGD, ThreatModel, apgd, fgsm, pgd, run
from robustbench_local.attacks.apgd import checkpoints
from robustbench_local.attacks.attack import Rows, number_of_runs, spec_text, target_for_run, top_wrong_classes
from robustbench_local.attacks.losses import LOSSES, logit_margin

SHAPE = (3, 6, 6)


class Linear(nn.Module):
    """Two classes; the margin of class 0 falls by w·δ."""

    def __init__(self, weight, bias=2.0):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, images):
        score = (images * self.weight).flatten(1).sum(1) - self.bias
        return torch.stack([-score, score], 1)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SHAPE, generator=generator)
    images = 0.25 + 0.5 * torch.rand((8, *SHAPE), generator=generator)
    return Linear(weight, bias=5.0), images, torch.zeros(8, dtype=torch.int64)


def best_perturbation(norm, weight, images, eps):
    """The δ in ball and box that maximises w·δ, [rows, ...]; for ℓ2 only where the box does not bind."""
    room = torch.where(weight > 0, 1 - images, images)
    if norm == "linf":
        return weight.sign() * room.clamp(max=eps)
    if norm == "l2":
        return (eps * weight / weight.norm()).expand_as(images)
    order = weight.abs().flatten().argsort(descending=True)
    sizes = room.flatten(1)[:, order]
    used = sizes.cumsum(1) - sizes
    filled = torch.minimum(sizes, (eps - used).clamp(min=0))
    best = torch.zeros_like(sizes).scatter(1, order.expand_as(sizes), filled)
    return best.view_as(images) * weight.sign()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("norm", "eps", "step_size", "share"),
    [
        ("linf", 0.1, None, 1.0),
        ("linf", 0.6, None, 1.0),
        ("l2", 0.4, None, 0.97),
        ("l2", 0.4, 0.1, 1.0),
        ("l1", 3.0, None, 0.9),
        ("l1", 3.0, 0.1, 0.99),
    ],
)
def test_pgd_finds_the_optimum_of_a_linear_model(problem, norm, eps, step_size, share, loss):
    model, images, labels = problem
    adversarial = pgd(model, images, labels, ThreatModel(norm, eps), steps=200, step_size=step_size, loss=loss)
    gain = ((adversarial - images) * model.weight).flatten(1).sum(1)
    best = (best_perturbation(norm, model.weight, images, eps) * model.weight).flatten(1).sum(1)
    assert (gain <= best * (1 + 1e-5)).all(), "nothing beats the optimum"
    assert (gain >= best * (share - 1e-4)).all()


@pytest.mark.parametrize("loss", ["scaled-ce", "probability-margin"])
@pytest.mark.parametrize(("norm", "eps", "share"), [("linf", 0.1, 1.0), ("l2", 0.4, 0.999), ("l1", 3.0, 0.97)])
@pytest.mark.parametrize("targets", [0, 1])
def test_falling_steps_with_momentum_find_it_too(problem, norm, eps, share, loss, targets):
    model, images, labels = problem
    adversarial = pgd(
        model,
        images,
        labels,
        ThreatModel(norm, eps),
        steps=60,
        loss=loss,
        schedule="cosine",
        momentum=0.25,
        targets=targets,
    )
    gain = ((adversarial - images) * model.weight).flatten(1).sum(1)
    best = (best_perturbation(norm, model.weight, images, eps) * model.weight).flatten(1).sum(1)
    assert (gain <= best * (1 + 1e-5)).all()
    assert (gain >= best * (share - 1e-4)).all()


@pytest.mark.parametrize(
    "attack", [PGD(steps=20, loss="margin", targets=3), APGD(steps=20, loss="dlr", targets=3), FAB(steps=20, targets=3)]
)
@pytest.mark.parametrize("eps", [0.03, 0.1])
def test_every_run_steers_to_a_class_of_its_own(attack, eps):
    """A linear model of four classes: a run succeeds exactly where its own target is within reach."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(4, 12, generator=generator)
    images = 0.3 + 0.4 * torch.rand((40, 12), generator=generator)
    model = lambda points: points @ weight.T  # noqa: E731
    logits = model(images)
    labels = logits.argmax(1)
    threat_model = ThreatModel("linf", eps)
    rivals = top_wrong_classes(logits, labels, threat_model)
    assert (logits.gather(1, rivals).diff(dim=1) <= 0).all()
    assert number_of_runs(attack, 3) == 3
    for number in range(3):
        target = target_for_run(attack, number, rivals)
        state = attack.start(threat_model, Rows(images, labels, torch.arange(40), target))
        for _ in range(attack.steps):
            state = attack.step(model, threat_model, state)
        way = weight[target] - weight[labels]
        ahead = (images * way).sum(1) + eps * way.abs().sum(1)
        clear = ahead.abs() > 1e-3
        assert (state["best_margin"] < 0)[clear & (ahead > 0)].all(), "what is in reach is reached"
        target_logits = model(state["best_points"]).gather(1, target[:, None]).squeeze(1)
        own = model(state["best_points"]).gather(1, labels[:, None]).squeeze(1)
        assert (target_logits < own)[clear & (ahead < 0)].all()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.4), ("l1", 3.0)])
def test_fgsm_is_exact_on_a_linear_model(problem, norm, eps):
    model, images, labels = problem
    adversarial = fgsm(model, images, labels, ThreatModel(norm, eps))
    assert torch.allclose(adversarial - images, best_perturbation(norm, model.weight, images, eps), atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_targeted_moves_towards_its_target(problem, norm):
    model, images, labels = problem
    towards = pgd(model, images, labels, ThreatModel(norm, 0.2, target=1), steps=20)
    assert (logit_margin(model(towards), labels + 1) > logit_margin(model(images), labels + 1)).all()
    away = pgd(model, images, labels, ThreatModel(norm, 0.2), steps=20)
    assert torch.allclose(model(towards), model(away), rtol=1e-3), "with two classes both goals are one"


def small_net():
    generator = torch.Generator().manual_seed(5)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return net


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_results_lie_in_ball_and_box_and_never_nearer_to_failure(name, norm):
    net, threat_model = small_net(), ThreatModel(norm, 0.3)
    images = torch.rand((16, *SHAPE), generator=torch.Generator().manual_seed(1)).round(decimals=1)
    labels = net(images).argmax(1)
    # The windows of Square shrink with the share of its queries, so a fifth of them has every size as well.
    attack = ATTACKS[name](**({"steps": 1000} if name == "square" else {}))
    adversarial = run(attack, net, threat_model, images, labels)
    assert (threat_model.geometry.distance((adversarial - images).double()) <= 0.3 + 1e-6).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    if name != "descent":  # which goes the other way on an honest model
        assert (logit_margin(net(adversarial), labels) <= logit_margin(net(images), labels) + 1e-4).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_sample_does_not_care_about_its_neighbours(norm):
    net, threat_model = small_net().double(), ThreatModel(norm, 0.05)
    images = torch.rand((12, *SHAPE), generator=torch.Generator().manual_seed(2)).double()
    labels = net(images).argmax(1)
    together = pgd(net, images, labels, threat_model, steps=10, restarts=3, seed=4)
    selection = torch.tensor([11, 3, 7])
    apart = pgd(
        net, images[selection], labels[selection], threat_model, steps=10, restarts=3, seed=4, indices=selection
    )
    assert torch.allclose(together[selection], apart, atol=1e-12)


def test_seeds_and_restarts_start_elsewhere():
    threat_model, images = ThreatModel("linf", 0.1), torch.full((1, *SHAPE), 0.5)
    flat = lambda images: images.flatten(1)[:, :2] * 0  # noqa: E731 – no gradient: points stay where they start
    starts = [pgd(flat, images, torch.zeros(1, dtype=torch.int64), threat_model, steps=1, seed=seed) for seed in (0, 1)]
    assert not torch.equal(*starts)


def test_more_restarts_never_hurt():
    net, threat_model = small_net(), ThreatModel("linf", 0.02)
    images = torch.rand((64, *SHAPE), generator=torch.Generator().manual_seed(3))
    labels = net(images).argmax(1)
    margins = [
        logit_margin(net(pgd(net, images, labels, threat_model, steps=3, restarts=restarts)), labels)
        for restarts in (1, 4)
    ]
    assert (margins[1] <= margins[0] + 1e-5).all()
    assert (margins[1] < 0).sum() >= (margins[0] < 0).sum()


def test_model_and_generators_come_back_as_they_were():
    net = small_net().train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    before = (
        {name: tensor.clone() for name, tensor in net.state_dict().items() if "running" not in name},
        [module.training for module in net.modules()],
        [p.requires_grad for p in net.parameters()],
    )
    state = torch.get_rng_state()
    pgd(
        net,
        torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)),
        torch.zeros(4, dtype=torch.int64),
        ThreatModel("linf", 0.1),
        steps=3,
    )
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before[0].items())
    assert [module.training for module in net.modules()] == before[1]
    assert [p.requires_grad for p in net.parameters()] == before[2]
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_works_on_any_image_rank():
    images, labels = torch.rand(5, 7), torch.zeros(5, dtype=torch.int64)
    weight = torch.randn(7, generator=torch.Generator().manual_seed(0))
    for norm in ("linf", "l2", "l1"):
        assert pgd(Linear(weight), images, labels, ThreatModel(norm, 0.1), steps=3).shape == images.shape


def test_a_model_without_gradients_is_survived_not_crashed():
    stuck = lambda images: images.detach().flatten(1)[:, :3].round()  # noqa: E731
    images = torch.rand(4, *SHAPE)
    adversarial = pgd(stuck, images, torch.zeros(4, dtype=torch.int64), ThreatModel("linf", 0.1), steps=2)
    assert torch.isfinite(adversarial).all()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"steps": 0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"loss": "cross"}, "ce, margin, scaled-ce"),
        ({"step_size": -1}, "step_size"),
        ({"restarts": 2, "random_start": False}, "random start"),
        ({"targets": -1}, "targets"),
        ({"schedule": "linear"}, "cosine"),
        ({"momentum": 1.0}, "below 1"),
    ],
)
def test_bad_settings_are_named(settings, word):
    with pytest.raises(ValueError, match=word):
        PGD(**settings)


def test_spec_is_what_the_command_line_writes():
    assert spec_text(PGD()) == "pgd"
    assert spec_text(PGD(steps=10, step_size=0.5)) == "pgd:steps=10,step-size=0.5"
    assert spec_text(FGSM(loss="margin")) == "fgsm:loss=margin"


def test_inference_mode_is_refused_rather_than_blind():
    images, labels = torch.rand(2, *SHAPE), torch.zeros(2, dtype=torch.int64)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        pgd(small_net(), images, labels, ThreatModel("linf", 0.1))


def test_a_success_on_the_way_is_not_lost_at_the_end():
    """The gradient always points up, but only a window in the middle of the ball is misclassified."""

    def windowed(images):
        level = images.flatten(1).mean(1)
        inside = ((level > 0.55) & (level < 0.6)).float()
        return torch.stack([torch.ones_like(level), level + inside], 1)

    images, labels = torch.full((3, *SHAPE), 0.5), torch.zeros(3, dtype=torch.int64)
    adversarial = pgd(windowed, images, labels, ThreatModel("linf", 0.2), steps=20, step_size=0.02, random_start=False)
    assert (windowed(adversarial).argmax(1) == 1).all()
    assert windowed(images + 0.2).argmax(1).eq(0).all(), "where the search ends is classified correctly again"


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("norm", "eps", "share"), [("linf", 0.1, 0.999), ("linf", 0.6, 0.999), ("l2", 0.4, 0.999), ("l1", 3.0, 0.99)]
)
def test_apgd_finds_the_optimum_of_a_linear_model(problem, norm, eps, share, loss):
    model, images, labels = problem
    adversarial = apgd(model, images, labels, ThreatModel(norm, eps), steps=100, loss=loss)
    gain = ((adversarial - images) * model.weight).flatten(1).sum(1)
    best = (best_perturbation(norm, model.weight, images, eps) * model.weight).flatten(1).sum(1)
    if (norm, loss) == ("l1", "scaled-ce"):
        share = 0.95  # its values cannot be compared between points, and the sparse steps of ℓ1 feel it
    assert (gain <= best * (1 + 1e-5)).all()
    assert (gain >= best * share).all()


def test_apgds_checkpoints_are_the_papers():
    """Intervals of 22 %, then 3 points less each time, never below 6 %."""
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_apgd_halves_its_step_where_the_loss_swings():
    """The only maximum of -|level - 0.52| is nearer than the first step of 2 eps: the step must shrink to find it."""

    def valley(images):
        level = images.flatten(1).mean(1)
        return torch.stack([torch.ones_like(level), 0.9 - (level - 0.52).abs()], 1)

    images, labels = torch.full((4, *SHAPE), 0.5), torch.zeros(4, dtype=torch.int64)
    adversarial = apgd(valley, images, labels, ThreatModel("linf", 0.3), steps=100, loss="margin")
    assert (adversarial.flatten(1).mean(1) - 0.52).abs().max() < 0.01


def test_apgd_treats_every_row_by_its_own_clock():
    """Rows that joined at different times give what they give alone."""
    net, threat_model = small_net().double(), ThreatModel("linf", 0.05)
    images = torch.rand((6, *SHAPE), generator=torch.Generator().manual_seed(2)).double()
    labels, attack = net(images).argmax(1), APGD(steps=12)

    def begin(rows):
        return attack.start(threat_model, Rows(images[rows], labels[rows], torch.arange(6)[rows], labels[rows]))

    early, late = begin(slice(0, 3)), begin(slice(3, 6))
    for _ in range(5):
        early = attack.step(net, threat_model, early)
    joined = {key: torch.cat([early[key], late[key]]) for key in early}
    for _ in range(7):
        joined = attack.step(net, threat_model, joined)
        early = attack.step(net, threat_model, early)
    assert torch.allclose(joined["points"][:3], early["points"], atol=1e-12)
