"""`robust list checks` and docs/checks.md say what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robustbench_local import ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks.suites import MASKED
from robustbench_local.diagnostics import gradient_checks, outcome_checks, probes, repeatability
from robustbench_local.results import check_descriptions as about
from robustbench_local.results import checks
from robustbench_local.results.check_descriptions import DESCRIPTIONS, PHASES

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "checks.md").read_text()
LIST = """
import sys
from robustbench_local.cli import main
sys.argv = ["robust", "list", "checks"]
try:
    main()
finally:
    assert not {"torch", "numpy", "scipy"} & set(sys.modules)
"""
DEPENDS_ON_CLASSES = {checks.CLEAN_ACCURACY, checks.CLASS_DIRECTORIES}
"""Checks whose threshold follows from the number of classes."""


def table(phase):
    """The checks of a phase as the document shows them."""
    rows = [
        f"| `{slug}` | {each.asks} | {each.condition} | {each.effect} | {each.source} |"
        for slug, each in DESCRIPTIONS.items()
        if each.phase == phase
    ]
    return "\n".join(["| check | asks | passes | otherwise | from |", "|---|---|---|---|---|", *rows])


def test_every_check_is_described():
    assert set(DESCRIPTIONS) == set(checks.CHECKS)
    for each in DESCRIPTIONS.values():
        assert each.asks.endswith("?")
        assert each.condition
        assert each.effect
        assert each.source
        assert each.phase in PHASES
        assert (each.limit is None) == ("{limit" not in each.passes)


def test_the_list_loads_nothing_heavy_and_shows_every_check():
    listed = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(DESCRIPTIONS)
    assert all(each.asks in line for each, line in zip(DESCRIPTIONS.values(), listed.splitlines(), strict=True))


@pytest.mark.parametrize("check", outcome_checks.CHECKS, ids=lambda check: check.slug)
def test_checks_of_the_outcome_are_described_as_they_are(check):
    described = DESCRIPTIONS[check.slug]
    assert described.phase == about.AFTER
    if check.threshold is not None:
        assert described.limit == check.threshold
    if check.advice:  # the others are for information
        expected = about.DOUBT_OR_FAILS if check.remeasure else about.DOUBT if check.always else about.EXPLAINS
        assert described.effect == expected
    else:
        assert described.effect == about.INFORMS


@pytest.mark.parametrize(
    ("slug", "limit"),
    [
        (checks.ONE_STEP, outcome_checks.SIGNIFICANCE),
        (checks.PROBES_AGREE, MASKED),
        (checks.EVERY_PIXEL, gradient_checks.HIDDEN),
        (checks.DETERMINISTIC, repeatability.TOLERANCE),
        (checks.STATELESS, repeatability.OTHER_BATCH),
        (checks.PROBED, probes.LIMIT),
        (checks.ADAPTED, probes.LIMIT),
    ],
)
def test_limits_are_those_of_the_code(slug, limit):
    assert DESCRIPTIONS[slug].limit == limit


def test_thresholds_of_a_result_are_those_described():
    result = evaluate(
        load_classifier("digits-cnn"),
        load_dataset("digits", split="test").subset(torch.arange(24)),
        ThreatModel("linf", 0.05),
        suite="fast",
    ).result
    compared = [
        each for each in result.diagnostics if each.threshold is not None and each.slug not in DEPENDS_ON_CLASSES
    ]
    assert len(compared) > 10
    assert {each.slug: each.threshold for each in compared} == {
        each.slug: DESCRIPTIONS[each.slug].limit for each in compared
    }


@pytest.mark.parametrize("phase", PHASES)
def test_the_document_shows_the_same_table(phase):
    assert table(phase) in DOCUMENT, f"docs/checks.md needs this table:\n{table(phase)}"


def test_pictures_of_the_document_are_small_and_all_are_shown():
    folder = Path(__file__).resolve().parents[2] / "docs" / "images"
    shown = set(re.findall(r"\]\(images/([^)]+)\)", DOCUMENT))
    assert shown == {path.name for path in folder.iterdir()}
    assert all((folder / name).stat().st_size < 60_000 for name in shown)
