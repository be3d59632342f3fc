"""Where training starts: other people's architectures and weights, and the way back from the folder they end in."""

from __future__ import annotations

import json
import urllib.error

import pytest
import torch
import torchvision
from PIL import Image

from robustbench_local.data import load_dataset
from robustbench_local.data.dataset import ArrayDataset
from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError
from robustbench_local.models import build_architecture, load_classifier
from robustbench_local.training.initialization import check_fits, from_checkpoint, from_scratch, resize_of
from robustbench_local.training.model_card import (
    CARD,
    WEIGHTS,
    ModelCard,
    TrainingData,
    read_card,
    versions,
    write_card,
    write_weights,
)
from robustbench_local.training.recipe import Recipe
from robustbench_local.training.run import run_training
from robustbench_local.training.settings import RuntimeSettings

SMALL = "shufflenet_v2_x0_5"
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def pictures(classes=3, channels=3, side=64):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2 * classes, channels, side, side, generator=generator)
    return ArrayDataset(images, torch.arange(2 * classes) % classes, class_names=[f"kind {i}" for i in range(classes)])


@pytest.fixture
def published(monkeypatch):
    """Stands in for the network: torchvision's weights of that name are these random ones."""

    def put(name):
        torch.manual_seed(11)
        state = torchvision.models.get_model(name, weights=None).state_dict()
        urls = {weights.url: state for weights in torchvision.models.get_model_weights(name)}
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda url, **_: urls[url])
        return state

    return put


def same_but_for(head, network, weights):
    """Whether the network's weights are these, except those of the head, all of which are others."""
    own = network.module.state_dict()
    assert own.keys() == weights.keys()
    return all(
        torch.equal(own[key], weights[key]) is not (f"module.{key}" in head)
        if own[key].shape == weights[key].shape
        else f"module.{key}" in head
        for key in own
    )


@pytest.mark.parametrize(("name", "head"), [("resnet18", "fc"), ("squeezenet1_1", "classifier.1"), (SMALL, "fc")])
def test_published_weights_get_a_new_last_layer(published, name, head):
    weights, data = published(name), pictures()
    start = from_scratch(Recipe(arch=f"torchvision/{name}", pretrained=True), data)
    assert start.head == (f"module.{head}.weight", f"module.{head}.bias")
    assert same_but_for(start.head, start.network, weights)
    assert check_fits(start.network, name, data) == 3
    assert start.normalization == IMAGENET
    assert start.class_names == ["kind 0", "kind 1", "kind 2"]
    assert start.architecture == f"torchvision/{name}"
    assert start.resize == Resize(256, 224)
    assert all(parameter.requires_grad for parameter in start.network.parameters())
    assert set(start.head) < dict(start.network.named_parameters()).keys()
    images = data.images([0, 1])
    scaled = (images - torch.tensor(IMAGENET["mean"]).view(3, 1, 1)) / torch.tensor(IMAGENET["std"]).view(3, 1, 1)
    torch.testing.assert_close(start.network.eval()(images), start.network.module(scaled))


def test_as_many_classes_as_published_still_mean_a_new_last_layer(published):
    weights = published(SMALL)
    labels = torch.tensor([0, 999])
    data = ArrayDataset(torch.rand(2, 3, 64, 64), labels)
    start = from_scratch(Recipe(arch=f"torchvision/{SMALL}", pretrained=True), data)
    assert same_but_for(start.head, start.network, weights)
    assert start.class_names is None


def test_the_seed_draws_the_last_layer_and_the_recipe_the_normalisation(published):
    published(SMALL)
    recipe = Recipe(arch=f"torchvision/{SMALL}", pretrained=True, normalize="0.5:0.25")
    torch.manual_seed(5)
    random_state = torch.random.get_rng_state()
    one, again = (from_scratch(recipe, pictures()) for _ in range(2))
    other = from_scratch(recipe.model_copy(update={"seed": 1}), pictures())
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert torch.equal(one.network.module.fc.weight, again.network.module.fc.weight)
    assert not torch.equal(one.network.module.fc.weight, other.network.module.fc.weight)
    assert one.normalization == {"mean": [0.5], "std": [0.25]}
    assert from_scratch(recipe.model_copy(update={"normalize": "none"}), pictures()).normalization is None


def test_a_local_file_takes_the_place_of_the_download(published, monkeypatch, tmp_path):
    weights = published(SMALL)
    recipe = Recipe(arch=f"torchvision/{SMALL}", pretrained=True)
    fetched = from_scratch(recipe, pictures())
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    wrapped = {"state_dict": {f"module.{key}": value for key, value in weights.items()}, "epoch": 90}
    torch.save(wrapped, tmp_path / "w.pth")
    local = from_scratch(recipe.model_copy(update={"checkpoint": str(tmp_path / "w.pth")}), pictures())
    assert local.normalization == fetched.normalization == IMAGENET
    ours, theirs = local.network.state_dict(), fetched.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_own_architectures_take_over_a_file_of_other_classes(tmp_path):
    weights = build_architecture("cnn-medium", 10).state_dict()
    torch.save(weights, tmp_path / "w.pt")
    recipe = Recipe(arch="cnn-medium", pretrained=True, checkpoint=str(tmp_path / "w.pt"))
    start = from_scratch(recipe, pictures())
    assert start.head == ("module.linear.weight", "module.linear.bias")
    assert same_but_for(start.head, start.network, weights)


def offline(*_, **__):
    raise urllib.error.URLError("Name or service not known")


def test_without_a_network_one_sentence_names_both_ways_out(monkeypatch):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"could not be fetched.*--checkpoint FILE.*without --pretrained") as caught:
        from_scratch(Recipe(arch="torchvision/alexnet", pretrained=True), pictures())
    assert "\n" not in str(caught.value)


def test_random_weights_come_from_the_seed(monkeypatch):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    recipe = Recipe(arch=f"torchvision/{SMALL}")
    one, again = (from_scratch(recipe, pictures(4)) for _ in range(2))
    other = from_scratch(recipe.model_copy(update={"seed": 1}), pictures(4))
    first, second, third = (start.network.module.conv1[0].weight for start in (one, again, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert check_fits(one.network, SMALL, pictures(4)) == 4
    assert one.normalization is None
    assert one.resize == Resize(256, 224)


@pytest.mark.parametrize(
    ("settings", "resize"),
    [
        ({}, None),
        ({"arch": "resnet18"}, None),
        ({"arch": "torchvision/resnet18"}, Resize(256, 224)),
        ({"arch": "torchvision/resnet50", "pretrained": True}, Resize(232, 224)),
        ({"arch": "torchvision/resnet50:weights=IMAGENET1K_V1", "pretrained": True}, Resize(256, 224)),
        ({"arch": "torchvision/efficientnet_b0"}, Resize(256, 224, "bicubic")),
        ({"arch": "torchvision/resnet18", "resize": "64:56", "data": "imagefolder:x"}, Resize(64, 56)),
        ({"arch": "resnet18", "resize": "48", "data": "gtsrb"}, Resize(48, 48)),
    ],
)
def test_how_files_are_resized_is_known_before_the_data_are(monkeypatch, settings, resize):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    assert resize_of(Recipe(**settings)) == resize


def test_a_models_own_resize_gives_way_to_the_recipes(tmp_path):
    save(tmp_path, from_scratch(Recipe(arch=f"torchvision/{SMALL}"), pictures()), pictures(), Resize(80, 64))
    recipe = Recipe(model=str(tmp_path), data="imagefolder:x")
    assert from_checkpoint(recipe).resize == Resize(80, 64)
    assert from_checkpoint(recipe.model_copy(update={"resize": "70:60"})).resize == Resize(70, 60)
    assert from_checkpoint(recipe).head == ("module.fc.weight", "module.fc.bias")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"arch": "resnet18", "pretrained": True}, "no published weights of resnet18: leave --pretrained out"),
        ({"pretrained": True}, "no published weights of digits-cnn"),
        ({"arch": "resnet18", "checkpoint": "w.pt"}, "name the file as MODEL"),
        ({"arch": "resnet50"}, "but there is torchvision/resnet50"),
        ({"arch": "torchvision/resnet51"}, "Did you mean 'resnet50'"),
        ({"arch": "torchvision/googlenet"}, "auxiliary classifiers"),
        ({"model": "torchvision/inception_v3"}, "auxiliary classifiers"),
        ({"arch": "torchvision/resnet18:num_classes=3"}, "leave num_classes out"),
        ({"arch": "torchvision/resnet18:weights=none", "pretrained": True}, "leave one out"),
        ({"arch": "torchvision/resnet18:weights=DEFAULT"}, "add --pretrained"),
        ({"arch": "torchvision/resnet18:weights=V9", "pretrained": True}, "has no weights 'V9'"),
        ({"arch": "torchvision/resnet18", "pretrained": True, "checkpoint": "absent.pt"}, "absent.pt"),
        ({"resize": "64:65", "data": "imagefolder:x"}, "--resize is '64:65'"),
        ({"resize": "64", "data": "cifar10"}, "cifar10 has arrays"),
        ({"arch": "timm/"}, "timm"),
    ],
)
def test_starts_that_make_no_sense_are_one_sentence(settings, said):
    recipe = Recipe(**settings)
    with pytest.raises(UserError, match=said) as caught:
        from_checkpoint(recipe) if recipe.model else from_scratch(recipe, pictures())
    assert "\n" not in str(caught.value)


def test_grey_images_are_refused_by_colour_networks():
    with pytest.raises(UserError, match="takes images of 3 channels, but those of arrays have 1: save them in color"):
        from_scratch(Recipe(arch="torchvision/resnet18"), pictures(channels=1))


def test_timm(monkeypatch, tmp_path):
    timm = pytest.importorskip("timm", reason="the timm extra is not installed")
    assert resize_of(Recipe(arch="timm/resnet10t")) == Resize(201, 176, "bicubic")
    with pytest.raises(UserError, match="Invalid pretrained tag"):
        resize_of(Recipe(arch="timm/resnet10t.nonsense"))
    one, again = (from_scratch(Recipe(arch="timm/resnet10t"), pictures()) for _ in range(2))
    assert check_fits(one.network, "resnet10t", pictures()) == 3
    assert one.head == ("module.fc.weight", "module.fc.bias")
    assert torch.equal(one.network.module.fc.weight, again.network.module.fc.weight)
    torch.save(weights := timm.create_model("resnet10t").state_dict(), tmp_path / "w.pt")
    recipe = Recipe(arch="timm/resnet10t", pretrained=True, checkpoint=str(tmp_path / "w.pt"))
    start = from_scratch(recipe, pictures())
    assert same_but_for(start.head, start.network, weights)
    assert start.normalization == IMAGENET


def save(folder, start, data, resize=None):
    """The folder that `defend` would write."""
    recipe = Recipe(arch=start.architecture)
    write_weights(folder / WEIGHTS, start.network.module, start.normalization)
    write_card(
        folder / CARD,
        ModelCard(
            architecture=start.architecture,
            num_classes=len(data.class_names),
            input_shape=data.image_shape,
            class_names=start.class_names,
            normalization=start.normalization,
            resize=resize,
            trained_by=None,
            recipe=recipe,
            seed=0,
            versions=versions(),
            data=TrainingData(name=data.name, split=data.split, training=len(data), holdout=0, sha256=None),
        ),
    )


@pytest.fixture
def photographs(tmp_path):
    """An image folder of three kinds, whose files differ in size."""
    for kind, colour in (("apple", "red"), ("leaf", "green"), ("sky", "blue")):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for width in (70, 90):
            Image.new("RGB", (width, 80), colour).save(tmp_path / "photos" / kind / f"{width}.png")
    return tmp_path / "photos"


def test_a_folder_that_is_loaded_answers_as_the_network_that_was_trained(published, photographs, tmp_path):
    published("resnet18")
    recipe = Recipe(arch="torchvision/resnet18", pretrained=True, data=f"imagefolder:{photographs}", resize="72:64")
    data = load_dataset(recipe.data, resize=resize_of(recipe))
    start = from_scratch(recipe, data)
    (tmp_path / "out").mkdir()
    save(tmp_path / "out", start, data, data.resize)
    classifier = load_classifier(str(tmp_path / "out"))
    assert (classifier.class_names, classifier.normalization) == (["apple", "leaf", "sky"], IMAGENET)
    assert (classifier.resize, classifier.input_shape) == (Resize(72, 64), (3, 64, 64))
    images = load_dataset(recipe.data, resize=classifier.resize, class_names=classifier.class_names).images(range(6))
    torch.testing.assert_close(classifier(images), start.network.eval()(images))


def test_cards_keep_every_kind_of_resize_and_may_have_none(tmp_path):
    start, data = from_scratch(Recipe(arch="cnn-medium"), pictures()), pictures()
    assert data.resize is None
    for resize in (None, Resize(72, 64), Resize((30, 40)), Resize(224, interpolation="bicubic")):
        save(tmp_path, start, data, resize)
        assert read_card((tmp_path / CARD).read_bytes()).resize == resize
        assert load_classifier(str(tmp_path)).resize == resize
    content = json.loads((tmp_path / CARD).read_text())
    del content["resize"]
    assert read_card(json.dumps(content)).resize is None
    (tmp_path / CARD).write_text(json.dumps({**content, "resize": "much"}))
    with pytest.raises(UserError, match="has an invalid resize"):
        load_classifier(str(tmp_path))


def test_what_is_trained_from_a_folder_of_ours_loads_by_itself_again(tmp_path):
    quick = {"samples": 200, "batch_size": 32, "epochs": 1, "method": "standard"}
    run_training(Recipe(**quick, arch="digits-cnn"), tmp_path / "first", runtime=RuntimeSettings(device="cpu"))
    run_training(
        Recipe(**quick, model=str(tmp_path / "first")), tmp_path / "second", runtime=RuntimeSettings(device="cpu")
    )
    assert read_card((tmp_path / "second" / CARD).read_bytes()).architecture == "digits-cnn"
    images = load_dataset("digits").images(range(5))
    assert load_classifier(str(tmp_path / "second"))(images).shape == (5, 10)
