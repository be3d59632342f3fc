"""Projected gradient ascent along any objective: closed forms, and what PGD itself does."""

import pytest
import torch

from robustbench_local.attacks import PGD, ThreatModel
from robustbench_local.attacks.attack import Rows, run_steps
from robustbench_local.attacks.pgd import ascend, cosine_step_sizes, projected_step

IMAGES = torch.full((3, 1, 2, 2), 0.5)
SLOPE = torch.tensor([[[1.0, -2.0], [3.0, -4.0]]])


def linear(points):
    return (points * SLOPE).flatten(1).sum(1)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.2), ("l1", 0.3)])
def test_the_optimum_of_a_linear_objective_is_reached(norm, eps):
    threat_model = ThreatModel(norm, eps)
    points = ascend(linear, IMAGES, IMAGES, threat_model, [eps / 2] * 10)
    dual = {"linf": 10.0, "l2": 30**0.5, "l1": 4.0}[norm]
    torch.testing.assert_close(linear(points) - linear(IMAGES), torch.full((3,), eps * dual), atol=1e-5, rtol=0)


def test_the_objective_sees_every_iterate_but_the_last_once():
    evaluated = []

    def objective(points):
        evaluated.append(points.detach().clone())
        return linear(points)

    last = ascend(objective, IMAGES, IMAGES, ThreatModel("linf", 0.1), [0.01, 0.02, 0.03])
    assert len(evaluated) == 3
    torch.testing.assert_close(evaluated[0], IMAGES)
    torch.testing.assert_close(last, IMAGES + 0.06 * SLOPE.sign())


def test_rows_do_not_influence_each_other_and_may_share_one_image():
    threat_model = ThreatModel("l2", 0.3)
    scaled = IMAGES + torch.tensor([0.0, 0.01, -0.02]).view(3, 1, 1, 1)
    together = ascend(lambda points: linear(points).exp(), scaled, IMAGES[:1], threat_model, [0.1] * 5)
    alone = [
        ascend(lambda points: linear(points).exp(), row[None], IMAGES[:1], threat_model, [0.1] * 5) for row in scaled
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_an_objective_without_a_gradient_leaves_the_points_where_they_are():
    points = ascend(lambda points: points.detach().flatten(1).sum(1), IMAGES, IMAGES, ThreatModel("linf", 0.1), [0.1])
    torch.testing.assert_close(points, IMAGES)


def test_an_ascent_refuses_to_run_without_gradients():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        ascend(linear, IMAGES, IMAGES, ThreatModel("linf", 0.1), [0.1])


def test_pgd_is_this_ascent_along_its_loss():
    threat_model, weights = ThreatModel("linf", 0.1), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2])

    def model(points):
        return points.flatten(1) @ weights

    attack = PGD(steps=7, schedule="cosine", random_start=False)
    iterates = []
    state = attack.start(threat_model, Rows(IMAGES, labels, labels, labels))
    state = run_steps(attack, model, threat_model, state, lambda state: iterates.append(state["points"]))
    assert len(iterates) == 7
    sizes = cosine_step_sizes(2 * 0.1, 7)
    points = ascend(
        lambda points: threat_model.attack_loss("ce", model(points), labels), IMAGES, IMAGES, threat_model, sizes
    )
    torch.testing.assert_close(points, state["points"])


def test_a_step_is_projected_into_ball_and_box():
    threat_model = ThreatModel("linf", 0.1)
    stepped_to = projected_step(IMAGES, SLOPE.expand_as(IMAGES), torch.full((3,), 5.0), IMAGES, threat_model)
    torch.testing.assert_close(stepped_to, IMAGES + 0.1 * SLOPE.sign())
    bright = torch.ones_like(IMAGES)
    stepped_to = projected_step(bright, SLOPE.expand_as(IMAGES), torch.full((3,), 5.0), bright, threat_model)
    torch.testing.assert_close(stepped_to, bright - 0.1 * (SLOPE < 0).float())
