"""Training methods against a linear model, whose worst point in an L∞ ball is known in closed form."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustbench_local.attacks import ThreatModel
from robustbench_local.attacks.randomness import sample_keys
from robustbench_local.defenses import OBJECTIVES, PGDAT, Objective, Standard

EPS = 0.05
THREAT = ThreatModel("linf", EPS)


@pytest.fixture
def linear() -> nn.Module:
    """Two classes: the loss of class 0 rises with the sign of w1 - w0, wherever one stands."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = 0.2 + 0.6 * torch.rand(9, 3, 2, 2, generator=generator)
    return images, torch.arange(9) % 2, sample_keys(0, torch.arange(9), "train/1", 0)


def worst(linear: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    weight = linear[1].weight.detach()
    direction = (weight[1 - labels] - weight[labels]).sign()
    return images + EPS * direction.view_as(images)


@pytest.mark.parametrize("settings", [{}, {"steps": 3, "step_size": EPS}, {"random_start": False}])
def test_pgd_at_is_cross_entropy_at_the_worst_point(linear, batch, settings):
    images, labels, keys = batch
    loss, parts = PGDAT(**settings).loss(linear, images, labels, THREAT, keys)
    expected = F.cross_entropy(linear(worst(linear, images, labels)), labels)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert parts["adversarial"] == loss and not parts["adversarial"].requires_grad

    gradients = torch.autograd.grad(loss, list(linear.parameters()))
    by_hand = torch.autograd.grad(expected, list(linear.parameters()))
    for ours, theirs in zip(gradients, by_hand, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_standard_is_cross_entropy_at_the_images(linear, batch):
    images, labels, keys = batch
    loss, parts = Standard().loss(linear, images, labels, THREAT, keys)
    assert loss == F.cross_entropy(linear(images), labels) == parts["clean"]


class Watched(nn.Module):
    """Counts passes, and sees in which mode and with which parameters they happen."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(12), nn.Linear(12, 2)
        self.dropout = nn.Dropout(0.5).eval()
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)
        self.seen: list[tuple[bool, bool]] = []
        self.backwards = 0

    def forward(self, images):
        self.seen.append((self.norm.training, self.linear.weight.requires_grad))
        logits = self.linear(self.norm(images.flatten(1))) * self.frozen
        if logits.requires_grad:
            logits.register_hook(lambda _: setattr(self, "backwards", self.backwards + 1))
        return logits


def test_pgd_at_costs_steps_passes_on_a_model_held_still_and_one_more(batch):
    model = Watched().train()
    model.dropout.eval()
    images, labels, keys = batch
    means = model.norm.running_mean.clone()
    loss, _ = PGDAT(steps=4).loss(model, images, labels, THREAT, keys)
    assert model.seen == [(False, False)] * 4 + [(True, True)] and model.backwards == 4
    assert model.norm.num_batches_tracked == 1 and not torch.equal(model.norm.running_mean, means)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.norm.training and not model.dropout.training, "every part keeps its own mode"
    assert not model.frozen.requires_grad and model.linear.weight.requires_grad
    loss.backward()
    assert model.linear.weight.grad is not None


def test_model_is_released_when_the_attack_fails(batch):
    class Broken(Watched):
        def forward(self, images):
            raise RuntimeError("out of memory")

    model = Broken().train()
    with pytest.raises(RuntimeError, match="out of memory"):
        PGDAT().loss(model, *batch[:2], THREAT, batch[2])
    assert model.norm.training and model.linear.weight.requires_grad


def test_points_depend_on_keys_and_not_on_the_batch(linear, batch):
    images, labels, keys = batch
    objective = PGDAT(steps=1, step_size=1e-3)
    whole, _ = objective.loss(linear, images, labels, THREAT, keys)
    rows = [objective.loss(linear, images[i : i + 1], labels[i : i + 1], THREAT, keys[i : i + 1])[0] for i in range(9)]
    torch.testing.assert_close(whole, torch.stack(rows).mean(), rtol=1e-6, atol=1e-6)
    other, _ = objective.loss(linear, images, labels, THREAT, keys + 1)
    assert whole != other


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"steps": 0}, "steps is 0"), ({"steps": -3}, "steps is -3"), ({"step_size": -0.1}, "step_size is -0.1"),
     ({"step_size": 0.0}, "step_size is 0")],
)
def test_impossible_settings_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        PGDAT(**settings)


def test_registry_holds_objectives_by_their_names():
    assert set(OBJECTIVES) >= {"standard", "pgd-at"}
    for name, kind in OBJECTIVES.items():
        assert kind.name == name and isinstance(kind(), Objective)


def test_folder_refuses_to_be_imported_under_another_name():
    import importlib.util
    from pathlib import Path

    import robustbench_local.defenses as defenses

    spec = importlib.util.spec_from_file_location("defenses", Path(defenses.__file__))
    with pytest.raises(ImportError, match=r"robustbench_local\.defenses"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
