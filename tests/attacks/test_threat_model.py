import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_local.attacks import ThreatModel
from robustbench_local.attacks.attack import top_wrong_classes


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.03", 0.03), (0.5, 0.5), ("1e-2", 0.01), ("0.5/255", 0.5 / 255), (0, 0.0)],
)
def test_eps_is_parsed(text, value):
    assert ThreatModel("linf", text).eps == value


def test_the_text_of_eps_is_kept():
    assert ThreatModel("linf", "8/255").eps_text == "8/255"
    assert ThreatModel("linf", "8/255") == ThreatModel("linf", 8 / 255)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("l3", 0.1), "linf, l2, l1"),
        (("linf", "8"), "8/255"),
        (("linf", "-0.1"), "at least 0"),
        (("linf", "nan"), "at least 0"),
        (("l2", "x"), "'x'"),
        (("l2", "1/0"), "1/0"),
        (("l2", "8/"), "8/"),
        (("l2", float("inf")), "inf"),
    ],
)
def test_bad_threat_models_are_refused(arguments, word):
    with pytest.raises(ValueError, match=word):
        ThreatModel(*arguments)


@pytest.mark.parametrize(
    "text",
    [
        "1e999999999",
        "1/1e999999999",
        "-1e999999999",
        "1e-999999999",
        "1e9_9_9_9_9_9_9_9_9",
        "1e+0000000000999999999",
        "1e\u0669\u0669\u0669\u0669\u0669\u0669\u0669\u0669\u0669",
        "1/1e\uff19\uff19\uff19\uff19\uff19\uff19\uff19\uff19\uff19",
        "9" * 101,
        10**400,
        "1e999",
        "0x1p3",
        "\u0668/255",
        "",
        "True",
        None,
    ],
)
def test_numbers_that_take_forever_or_are_none_are_refused_at_once(text):
    before = time.process_time()
    with pytest.raises(ValueError, match="eps is"):
        ThreatModel("l2", text)
    assert time.process_time() - before < 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1_0/2_0", 0.5),
        ("1e-02", 0.01),
        (" 8/255 ", 8 / 255),
        ("+0.5", 0.5),
        (1, 1.0),
        (np.float64(0.25), 0.25),
        (np.float32(0.5), 0.5),
        (np.int64(1), 1.0),
        ("1e-999", 0.0),
        (5e-324, 5e-324),
    ],
)
def test_numbers_of_every_kind_are_read(value, expected):
    threat_model = ThreatModel("linf", value)
    assert threat_model.eps == expected
    assert type(threat_model.eps) is float


def test_l2_may_be_longer_than_a_pixel_is_wide():
    assert ThreatModel("l2", 8).eps == 8


def test_source_and_target():
    labels = torch.tensor([0, 1, 2, 1])
    assert ThreatModel("linf", 0.1).in_scope(labels).all()
    assert ThreatModel("linf", 0.1, target=1).in_scope(labels).tolist() == [True, False, True, False]
    assert ThreatModel("linf", 0.1, target=1, source=2).in_scope(labels).tolist() == [False, False, True, False]
    with pytest.raises(ValueError, match="needs a target"):
        ThreatModel("linf", 0.1, source=1)
    with pytest.raises(ValueError, match="both class 1"):
        ThreatModel("linf", 0.1, source=1, target=1)


@pytest.mark.parametrize("room", ["attacks", "defenses"])
def test_the_rooms_refuse_a_foreign_name(room):
    """Started from the checkout, `import attacks` would shadow a user's own package of that name."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", f"import {room}"]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert f"robustbench_local.{room}" in ran.stderr


@pytest.mark.parametrize("reject", [0, 2, 4])
def test_a_refusal_is_no_success(reject):
    """Against the definition: fooled is who is taken for neither its label nor the reject class."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(200, 5, generator=generator)
    labels = torch.tensor([c for c in range(5) if c != reject]).repeat(50)
    ball = ThreatModel("linf", 0.1, reject=reject)
    predicted = logits.argmax(1)
    assert torch.equal(ball.margin(logits, labels) < 0, (predicted != labels) & (predicted != reject))
    hurdle = torch.maximum(logits.gather(1, labels[:, None])[:, 0], logits[:, reject])
    others = [[c for c in range(5) if c not in (int(label), reject)] for label in labels]
    best = torch.stack([row[other].max() for row, other in zip(logits, others, strict=True)])
    torch.testing.assert_close(ball.margin(logits, labels), hurdle - best)
    torch.testing.assert_close(ball.attack_loss("margin", logits, labels), best - hurdle)
    likely = top_wrong_classes(logits, labels, ball)
    assert likely.shape == (200, 3)
    assert not (likely == reject).any()
    assert not (likely == labels[:, None]).any()
    aimed = ball.attack_loss("margin", logits, labels, likely[:, 0])
    torch.testing.assert_close(aimed, best - hurdle)


def test_a_target_leaves_no_room_for_a_refusal():
    with pytest.raises(ValueError, match="leave one of them out"):
        ThreatModel("linf", 0.1, target=1, reject=3)
