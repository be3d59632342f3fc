"""`--normalize` in all its spellings."""

from __future__ import annotations

import pytest

from robustbench_local.errors import UserError
from robustbench_local.models import parse_normalization


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", None),
        ("imagenet", ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ("MNIST", ((0.1307,), (0.3081,))),
        ("0.5:0.25", ((0.5,), (0.25,))),
        ("0.49,0.48,0.45:0.2", ((0.49, 0.48, 0.45), (0.2, 0.2, 0.2))),
        ("0:1,2", ((0.0, 0.0), (1.0, 2.0))),
        ("51/255:102/255", ((0.2,), (0.4,))),
        ("125.3/255 : 63/255", ((125.3 / 255,), (63 / 255,))),
    ],
)
def test_spellings(text, expected):
    assert parse_normalization(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("imagnet", "Did you mean 'imagenet'"),
        ("0.5", "MEAN:STD"),
        ("0.5:0", "above 0"),
        ("0.5:-1", "above 0"),
        ("0.1,0.2:1,2,3", "2 means and 3"),
        ("a:1", "'a' is not a number"),
        ("1/0:1", "divides by zero"),
        (":", "not a number"),
        ("1:2:3", "'2:3' is not a number"),
    ],
)
def test_refusals(text, said):
    with pytest.raises(UserError, match=said):
        parse_normalization(text)
