"""Which weights of a file are used: every layout that fits, ambiguity, and what may lie beside the network."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import tiny
from torch import nn

from robustbench_local import ThreatModel, evaluate, load_dataset
from robustbench_local.attacks import PGD
from robustbench_local.errors import UserError
from robustbench_local.models import Classifier, build_architecture, load_classifier
from robustbench_local.models.loaders.checkpoint import Checkpoint
from robustbench_local.models.loaders.state_dict import load_weights

STATE = tiny().state_dict()
OTHER = tiny(seed=2).state_dict()
THIRD = tiny(seed=5).state_dict()


def same(left, right) -> bool:
    return set(left) == set(right) and all(torch.equal(left[key], right[key]) for key in left)


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def load(content, key=None):
    """(the network's weights after loading, what was done)."""
    module = tiny(seed=9)
    loaded = load_weights(module, Checkpoint.from_content(content, "w.pt"), key)
    return module.state_dict(), loaded


def refused(content, key=None) -> UserError:
    with pytest.raises(UserError) as caught:
        load(content, key)
    return caught.value


AMBIGUOUS = {
    "teacher and student": ({"teacher": STATE, "student": OTHER}, ("teacher", "student")),
    "flat teacher and student": (
        {"state_dict": {**prefixed("teacher.", STATE), **prefixed("student.", OTHER)}},
        ("state_dict.teacher", "state_dict.student"),
    ),
    "raw and averaged": ({"ema": OTHER, "model": STATE}, ("ema", "model")),
    "timm's averaged": ({"state_dict_ema": OTHER, "state_dict": STATE}, ("state_dict_ema", "state_dict")),
    "top level and a different copy": ({**STATE, **prefixed("attacker.model.", OTHER)}, (".", "attacker.model")),
    "three": ({"a": STATE, "b": OTHER, "c": {"module": THIRD}}, ("a", "b", "c.module")),
}


@pytest.mark.parametrize(("content", "keys"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_different_weights_that_fit_are_refused_listed_and_chosen_by_key(content, keys):
    error = refused(content)
    assert error.slug == "ambiguous-checkpoint"
    assert all(repr(key) in str(error) for key in keys)
    assert "--checkpoint-key" in str(error)
    loaded = [load(content, key) for key in keys]
    assert len({state["5.weight"].sum().item() for state, _ in loaded}) == len(keys)
    assert [each.key or "." for _, each in loaded] == list(keys)
    assert same(loaded[0][0], STATE) or same(loaded[0][0], OTHER)


def test_averaged_weights_are_marked():
    text = str(refused({"model": STATE, "model_ema": OTHER, "swa": THIRD}))
    assert "'model'," in text
    assert "'model_ema' (averaged)" in text
    assert "'swa' (averaged)" in text


def test_equal_tensors_are_copies_and_the_first_is_used():
    copied = {key: value.clone() for key, value in STATE.items()}
    state, loaded = load({"model": STATE, "ema": copied})
    assert same(state, STATE)
    assert loaded.key == "model"
    assert loaded.notes[0] == "weights: w.pt, key 'model'"


def test_a_key_may_name_the_beginning_of_a_path():
    state, loaded = load({"teacher": {"net": {"module": STATE}}, "student": {"net": {"module": OTHER}}}, "student")
    assert same(state, OTHER)
    assert loaded.key == "student.net.module"


def test_an_unknown_key_is_refused_with_the_keys_that_there_are():
    error = refused({"teacher": STATE, "student": OTHER}, "studnet")
    assert error.slug == "unknown-checkpoint-key"
    assert "'teacher'" in str(error)
    assert "Did you mean 'student'" in str(error)


def test_a_key_whose_weights_do_not_fit_is_no_licence_to_take_others():
    error = refused({"model": STATE, "head": {"weight": torch.rand(3, 3)}}, "head")
    assert error.slug == "checkpoint-does-not-fit"


@pytest.mark.parametrize(
    ("model", "options"), [("digits-cnn", {}), ("torchvision/squeezenet1_1:weights=none", {"num_classes": 3})]
)
def test_a_key_without_a_checkpoint_is_refused(model, options):
    with pytest.raises(UserError) as caught:
        load_classifier(model, checkpoint_key="ema", **options)
    assert caught.value.slug == "checkpoint-key-without-checkpoint"


def test_the_classifier_records_the_key(tmp_path):
    torch.manual_seed(0)
    states = [build_architecture("digits-cnn", classes).state_dict() for classes in (10, 10)]
    torch.save({"teacher": states[0], "student": states[1]}, tmp_path / "w.pt")
    for form in ({"model": "digits-cnn", "checkpoint": tmp_path / "w.pt"}, {"model": f"{tmp_path}/w.pt"}):
        arch = {} if "checkpoint" in form else {"arch": "digits-cnn"}
        with pytest.raises(UserError) as caught:
            load_classifier(**form, **arch)
        assert caught.value.slug == "ambiguous-checkpoint"
        classifier = load_classifier(**form, **arch, checkpoint_key="student")
        assert classifier.weights == "student"
        assert torch.equal(classifier.module.linear2.bias, states[1]["linear2.bias"])
        assert any("key 'student'" in note for note in classifier.notes)
    assert load_classifier("digits-cnn").weights is None


def test_the_result_records_the_key_and_what_was_decided(tmp_path):
    classifier = load_classifier("digits-cnn")
    torch.save({"net": classifier.module.state_dict()}, tmp_path / "w.pt")
    options = {"samples": 10, "attacks": [PGD(steps=1)], "diagnostics": False}
    data, threat_model = load_dataset("digits"), ThreatModel("linf", 0.1)
    loaded = load_classifier("digits-cnn", checkpoint=tmp_path / "w.pt")
    result = evaluate(loaded, data, threat_model, **options).result
    assert result.config["checkpoint_key"] == "net"
    assert result.config["loading"] == list(loaded.notes)
    assert "checkpoint_key" not in evaluate(classifier, data, threat_model, **options).result.config


def madrylab(prefix=""):
    """The layout of MadryLab's robustness library: the network twice, and its normalization twice."""
    values = {"new_mean": torch.tensor([[[0.25]]]), "new_std": torch.tensor([[[0.5]]])}
    return {
        **prefixed(f"{prefix}normalizer.", values),
        **prefixed(f"{prefix}model.", STATE),
        **prefixed(f"{prefix}attacker.normalize.", values),
        **prefixed(f"{prefix}attacker.model.", STATE),
    }


@pytest.mark.parametrize("prefix", ["", "module."])
def test_madrylabs_layout(prefix):
    state, loaded = load({"model": madrylab(prefix), "epoch": 150})
    assert same(state, STATE)
    assert loaded.key == f"model.{prefix}model"
    assert loaded.normalizations == [((0.25,), (0.5,))]
    assert any("copies ('attacker')" in note for note in loaded.notes)


FACTORY = "from tiny_networks import tiny\n\n\ndef net():\n    return tiny(seed=9)\n"


@pytest.fixture
def factory(tmp_path):
    (tmp_path / "net.py").write_text(FACTORY)
    return f"{tmp_path / 'net.py'}:net"


def test_a_stored_normalization_is_used_and_normalize_overrides_it(tmp_path, factory):
    torch.save({"model": madrylab()}, tmp_path / "w.pt")
    images = torch.rand(2, 1, 8, 8)
    expected = Classifier(tiny(), mean=[0.25], std=[0.5])(images)
    stored = load_classifier(factory, checkpoint=tmp_path / "w.pt")
    assert torch.equal(stored(images), expected)
    assert any("0.25:0.5, stored in" in note for note in stored.notes)
    equal = load_classifier(factory, checkpoint=tmp_path / "w.pt", normalize="0.25:0.5")
    assert torch.equal(equal(images), expected)
    assert not any("overrides" in note for note in equal.notes)
    other = load_classifier(factory, checkpoint=tmp_path / "w.pt", normalize="none")
    assert torch.equal(other(images), Classifier(tiny())(images))
    assert any("stores 0.25:0.5; --normalize overrides it" in note for note in other.notes)


def test_different_stored_normalizations_need_a_choice(tmp_path, factory):
    content = madrylab()
    content["attacker.normalize.new_mean"] = torch.tensor([[[0.75]]])
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError) as caught:
        load_classifier(factory, checkpoint=tmp_path / "w.pt")
    assert caught.value.slug == "ambiguous-normalization"
    assert load_classifier(factory, checkpoint=tmp_path / "w.pt", normalize="0.25:0.5").normalization["mean"] == [0.25]


BESIDE = {
    "a loss": ({**STATE, "criterion.weight": torch.rand(3)}, "losses and metrics ('criterion')"),
    "a metric": ({**STATE, "train_acc.total": torch.rand(4)}, "losses and metrics ('train_acc')"),
    "a normalization": ({**STATE, "mean": torch.rand(1, 3, 1, 1), "std": torch.rand(1, 3, 1, 1)}, ""),
    "a sequence of normalization and network": (
        {**prefixed("1.", STATE), "0.mean": torch.rand(3), "0.std": torch.rand(3)},
        "",
    ),
    "a projection head": ({**prefixed("net.", STATE), "projector.weight": torch.rand(9, 9)}, "others ('projector')"),
    "counters": ({**prefixed("module.", STATE), "n_averaged": torch.tensor(3)}, ""),
}


@pytest.mark.parametrize(("content", "ignored"), BESIDE.values(), ids=BESIDE)
def test_what_lies_beside_the_network_is_ignored_and_said(content, ignored):
    state, loaded = load(content)
    assert same(state, STATE)
    notes = "\n".join(loaded.notes[1:])
    assert ignored in notes
    assert bool(notes) is bool(ignored)


def test_an_unexplained_weight_among_the_networks_own_stops_the_run():
    error = refused({**STATE, "1.attention.weight": torch.rand(2, 2)})
    assert error.slug == "checkpoint-does-not-fit"
    assert "'1.attention.weight' 2×2 is not in the model" in str(error)


def test_a_missing_weight_stops_the_run_whatever_lies_beside():
    content = madrylab()
    del content["model.5.bias"], content["attacker.model.5.bias"]
    error = refused(content)
    assert error.slug == "checkpoint-does-not-fit"
    assert "'5.bias' 3 is missing" in str(error)


def test_differences_are_counted_among_all_names():
    """Among the file's alone, "9 of 1 names" could differ."""
    names = len(STATE)
    assert f" of {names + 1} names" in str(refused({"a": torch.zeros(3)}))
    assert f"1 of {names} names" in str(refused({key: STATE[key] for key in list(STATE)[1:]}))


def test_one_complete_copy_is_enough():
    content = madrylab()
    del content["model.5.bias"]
    state, loaded = load(content)
    assert same(state, STATE)
    assert loaded.key == "attacker.model"


def test_a_wrapped_module_takes_bare_weights_and_its_own():
    wrapper = nn.Sequential()
    wrapper.net = nn.Sequential()
    wrapper.net.module = tiny(seed=9)
    for content in (STATE, prefixed("net.module.", STATE), {"model": prefixed("module.", STATE)}):
        load_weights(wrapper, Checkpoint.from_content(content, "w.pt"))
        assert same(wrapper.net.module.state_dict(), STATE)
