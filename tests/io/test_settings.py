"""The one reader of YAML settings, and the users that it has: recipes, gate files and option files."""

from __future__ import annotations

import pytest

from robustbench_local.cli.attack import attack_command
from robustbench_local.cli.options import read_options
from robustbench_local.errors import UserError
from robustbench_local.gates.config import read_gate
from robustbench_local.io.settings import parse_settings, read_settings, reject_unknown
from robustbench_local.training.recipe import resolve_recipe

READERS = {
    "recipe": lambda path: resolve_recipe(str(path), {}),
    "gate": lambda path: read_gate(str(path)),
    "options": lambda path: read_options(attack_command, path),
}


def test_names_have_underscores_and_values_keep_their_types(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("batch-size: 32\nlr: 0.1\nnested: {a-b: [1, x]}\n")
    assert read_settings(path) == {"batch_size": 32, "lr": 0.1, "nested": {"a-b": [1, "x"]}}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("- epochs", "no-settings"),
        ("", "no-settings"),
        ("seed: [1", "invalid-yaml"),
        ("seed: 1\nseed: 2", "invalid-yaml"),
        ("batch-size: 1\nbatch_size: 2", "duplicate-setting"),
        ("sede: 1", "unknown-setting"),
        ("a: &a 1\nb: *a", "invalid-yaml"),
    ],
)
def test_every_reader_refuses_the_same_files(reader, text, slug, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        READERS[reader](path)
    assert caught.value.slug == slug
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_unknown_settings_are_named_with_the_nearest_known_one():
    with pytest.raises(UserError) as caught:
        reject_unknown(["epoch", "lrr", "seed"], ["epochs", "lr", "seed"], "it")
    assert str(caught.value) == (
        "it: there is no setting 'epoch'. Did you mean 'epochs'?; there is no setting 'lrr'. Did you mean 'lr'?"
    )


def test_a_message_stays_short_whatever_the_file_holds():
    with pytest.raises(UserError, match="and 990 more"):
        reject_unknown([f"s{i}" for i in range(1000)], ["lr"], "it")


def test_names_that_are_no_text_become_text():
    assert parse_settings("1: 2", "it") == {"1": 2}
