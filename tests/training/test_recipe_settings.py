"""Recipes: what they accept, what wins over what, and what is said about the rest."""

from __future__ import annotations

import pytest
import yaml

from robustbench_local.data.augmentation import Augmentation
from robustbench_local.defenses import AWP
from robustbench_local.engine.protocol import resolve_suite
from robustbench_local.errors import UserError
from robustbench_local.training.recipe import Recipe, list_recipes, read_config, resolve_recipe


@pytest.mark.parametrize("name", [name for name, _ in list_recipes()])
def test_shipped_recipes_are_valid_and_begin_with_their_command(name):
    recipe = resolve_recipe(name, {})
    assert recipe.objective()
    assert recipe.threat_model().eps > 0
    recipe.add_ons(), Augmentation.parse(recipe.augment), resolve_suite(recipe.suite)
    command = dict(list_recipes())[name]
    assert command.startswith(("robust defend ", "torchrun --nproc-per-node "))
    assert f"--config {name}" in command
    assert " defend " in command


def test_defaults_fit_the_plain_command():
    recipe = resolve_recipe(None, {})
    assert recipe == Recipe()
    assert recipe.objective().name == "pgd-at"
    assert recipe.threat_model().eps == 0.1


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 7\nbatch-size: 32\nlr: 1/8\nmethod: pgd-at:steps=3,weight-decay=0\n")
    recipe = resolve_recipe(str(file), {"epochs": "9", "seed": None})
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (9, 32, 0.125, 0.0)
    assert recipe.objective().steps == 3
    assert recipe.seed == 0


def test_loop_settings_may_stand_with_the_method():
    recipe = resolve_recipe(None, {"method": "pgd-at:steps=7,epochs=20,batch-size=64"})
    assert (recipe.epochs, recipe.batch_size, recipe.method) == (20, 64, "pgd-at:steps=7")
    recipe = resolve_recipe(None, {"method": "trades:beta=5,average=0.99,clip-norm=1/2+awp:gamma=0.01,warmup=2"})
    assert (recipe.average, recipe.clip_norm, recipe.method) == (0.99, 0.5, "trades:beta=5+awp:gamma=0.01,warmup=2")
    assert recipe.add_ons() == (AWP(gamma=0.01, warmup=2),)
    assert recipe.warmup == 0, "what is added to a method keeps its own settings"
    with pytest.raises(UserError, match="epochs twice"):
        resolve_recipe(None, {"method": "pgd-at:epochs=20", "epochs": "3"})


def test_a_start_given_by_flags_replaces_the_whole_start_of_the_file():
    recipe = resolve_recipe("digits-cnn-robust", {"model": "digits-cnn"})
    assert recipe.model == "digits-cnn"
    assert recipe.arch is None


def test_eps_keeps_the_way_it_was_written(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("eps: 0.1\n")
    assert resolve_recipe(str(file), {}).eps == "0.1"
    threat_model = resolve_recipe(str(file), {"eps": "8/255"}).threat_model()
    assert threat_model.eps_text == "8/255"
    assert threat_model.eps == pytest.approx(8 / 255)


def test_everything_wrong_with_a_file_is_said_at_once(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: -1\nlearning_rate: 0.1\nweight_decai: 0\nlr: fast\n")
    with pytest.raises(UserError) as caught:
        resolve_recipe(str(file), {})
    message = str(caught.value)
    assert str(file) in message
    assert "\n" not in message
    for part in ("epochs is -1", "no setting 'learning-rate'", "Did you mean 'weight-decay'", "lr is 'fast'"):
        assert part in message, message


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"method": "pgdat"}, r"unknown method 'pgdat'.*Did you mean 'pgd-at'"),
        ({"method": "pgd-at:step=3"}, r"no setting 'step'.*Did you mean 'steps'"),
        ({"method": "pgd-at:steps=-3"}, r"steps is -3"),
        ({"method": "pgd-at:steps=2.5"}, r"steps is '2.5', but must be a whole number"),
        ({"method": "standard:steps=3"}, r"no setting 'steps'"),
        ({"eps": "0"}, r"eps is 0"),
        ({"eps": "-0.1"}, r"eps is '?-0.1"),
        ({"eps": "8"}, r"8/255"),
        ({"eps": "nan"}, r"eps is '?nan"),
        ({"eps": "much"}, r"eps is 'much'"),
        ({"data": "npz:mine.npz"}, r"give --eps"),
        ({"norm": "l2"}, r"no usual l2 eps for digits"),
        ({"epochs": "0"}, r"epochs is '0'"),
        ({"epochs": "2.5"}, r"epochs is '2.5'"),
        ({"epochs": "ten"}, r"epochs is 'ten'"),
        ({"lr": "0"}, r"lr is '0'"),
        ({"lr": "inf"}, r"lr is 'inf'"),
        ({"batch_size": "1"}, r"batch-size is '1'"),
        ({"holdout": "1"}, r"holdout is '1'"),
        ({"accumulate": "0"}, r"accumulate is '0'"),
        ({"average": "1"}, r"average is '1'"),
        ({"momentum": "1"}, r"momentum is '1'"),
        ({"clip_norm": "-1"}, r"clip-norm is '-1'"),
        ({"eps_warmup": "2"}, r"eps-warmup is '2'"),
        ({"schedule": "cosin"}, r"schedule is 'cosin'"),
        ({"optimizer": "adam"}, r"optimizer is 'adam'"),
        ({"precision": "fp16"}, r"precision is 'fp16'"),
        ({"label_smoothing": "1"}, r"label-smoothing is '1'"),
    ],
)
def test_bad_settings_are_named(flags, sentence):
    def check():
        recipe = resolve_recipe(None, flags)
        recipe.objective(), recipe.threat_model()

    with pytest.raises(UserError, match=sentence):
        check()


def test_configs_that_are_no_recipes(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'digits-cnn-robust'"):
        read_config("digits-cnn-robst")
    for name, content, sentence in (
        ("list.yaml", "- epochs\n", "no settings"),
        ("broken.yaml", "epochs: [1\n", "not valid YAML"),
        ("empty.yaml", "", "no settings"),
        ("unsafe.yaml", "method: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ):
        file = tmp_path / name
        file.write_text(content)
        with pytest.raises(UserError, match=sentence):
            read_config(str(file))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read"):
        read_config(str(binary))


def test_a_recipe_survives_being_written_and_read(tmp_path):
    recipe = resolve_recipe("digits-cnn-robust", {"seed": "3"})
    file = tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump()))
    assert resolve_recipe(str(file), {}) == recipe
