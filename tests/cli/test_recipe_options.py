"""The training options of the command line are the fields of a recipe."""

from __future__ import annotations

import typing

import click
import pytest

from robustbench_local.cli.defend import defend_command, train_command
from robustbench_local.cli.recipe_options import recipe_options
from robustbench_local.training.recipe import Recipe

RUN = {"config", "data_dir", "download", "device", "output", "resume", "search", "tensorboard", "compiled", "workers"}


@pytest.mark.parametrize(
    ("command", "without"), [(defend_command, set()), (train_command, {"method", "teacher"})], ids=["defend", "train"]
)
def test_every_field_is_an_option_with_its_description_choices_and_default(command, without):
    parameters = {parameter.name: parameter for parameter in command.params}
    assert parameters.keys() == (Recipe.model_fields.keys() - without) | RUN
    for name, field in Recipe.model_fields.items():
        parameter = parameters.get(name)
        if parameter is None or name == "model":
            continue
        assert parameter.opts == [f"--{name.replace('_', '-')}"]
        assert parameter.help.startswith(field.description)
        if typing.get_origin(field.annotation) is typing.Literal:
            assert list(parameter.type.choices) == list(typing.get_args(field.annotation))
        if isinstance(field.default, float | int) and field.annotation is not bool:
            assert f"[default: {field.default:g}" in parameter.help


def test_an_option_that_is_not_given_is_no_setting():
    @click.command()
    @recipe_options()
    def command(**options):
        return options

    options = command.main([], standalone_mode=False)
    assert options == dict.fromkeys(Recipe.model_fields)
    options = command.main(["m", "--batch-size", "3", "--norm", "L2", "--pretrained"], standalone_mode=False)
    given = {name: value for name, value in options.items() if value is not None}
    assert given == {"model": "m", "batch_size": "3", "norm": "l2", "pretrained": True}


def test_help_uses_the_words_of_the_field():
    text = defend_command.get_help(click.Context(defend_command, terminal_width=200))
    assert "Optimizer.  [default: sgd]" in text
    assert "0.01 for trained weights" in text
    assert "follows the gradient" not in text
