"""`robust predict`: what a classifier sees in image files, and the sentence for every file it cannot read."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from robustbench_local.data import load_dataset
from robustbench_local.models import Classifier, build_architecture, load_classifier
from robustbench_local.models.predict import predict


@pytest.fixture
def digits(tmp_path):
    """Six test digits as 8×8 files, and what the bundled classifier says of what the files hold."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    pixels = (load_dataset("digits").images(range(6)) * 255).round().to(torch.uint8)
    for number, image in enumerate(pixels):
        folder = tmp_path / "photos" / ("more" if number > 3 else "")
        Image.fromarray(image[0].numpy()).save(folder / f"{number}.png")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return load_classifier("digits-cnn")(pixels.float() / 255).double().softmax(1)


def test_one_line_for_every_image(robust, digits):
    ended = robust("predict", "digits-cnn", "photos/3.png", "photos/0.png", "--device", "cpu")
    expected = [f"photos/{row}.png: {int(digits[row].argmax())} {float(digits[row].max()):.1%}" for row in (3, 0)]
    assert ended.code == 0
    assert ended.out.splitlines() == expected


def test_a_folder_and_the_next_likely_classes_as_json(robust, digits):
    ended = robust("predict", "digits-cnn", "photos", "--top", "3", "--json", "--device", "cpu")
    assert ended.code == 0
    answers = json.loads(ended.out)
    assert [answer["path"] for answer in answers] == [
        f"photos/{name}" for name in ("0.png", "1.png", "2.png", "3.png", "more/4.png", "more/5.png")
    ]
    for answer, row in zip(answers, digits, strict=True):
        likely, labels = row.topk(3)
        assert [guess["label"] for guess in answer["guesses"]] == labels.tolist()
        assert [guess["name"] for guess in answer["guesses"]] == [str(label) for label in labels.tolist()]
        assert [guess["probability"] for guess in answer["guesses"]] == pytest.approx(likely.tolist(), abs=1e-6)


def test_more_classes_than_there_are_means_all(robust, digits):
    (answer,) = json.loads(robust("predict", "digits-cnn", "photos/0.png", "--top", "50", "--json").out)
    assert len(answer["guesses"]) == 10
    assert sum(guess["probability"] for guess in answer["guesses"]) == pytest.approx(1)


def test_pictures_are_brought_to_the_models_size_and_colours(robust, digits, tmp_path):
    # Every pixel four times as wide and high: squeezing it back gives the digit again.
    small = np.asarray(Image.open(tmp_path / "photos" / "2.png"))
    Image.fromarray(np.kron(small, np.ones((4, 4), np.uint8))).convert("RGB").save(tmp_path / "big.png")
    (answer,) = json.loads(robust("predict", "digits-cnn", "big.png", "--json", "--device", "cpu").out)
    assert answer["guesses"][0]["label"] == int(digits[2].argmax())
    # The crop of --resize looks at the middle alone, so it says something else.
    (cropped,) = json.loads(robust("predict", "digits-cnn", "big.png", "--resize", "32:8", "--json").out)
    assert cropped["guesses"][0]["probability"] != pytest.approx(answer["guesses"][0]["probability"], abs=1e-6)


def test_a_network_of_any_size_sees_pictures_as_they_are(robust, tmp_path):
    torch.manual_seed(0)
    network = build_architecture("cnn-medium", 4).eval()
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    wanted = []
    for size in ((20, 30), (24, 24)):
        pixels = np.random.default_rng(size[0]).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{size[0]}.png")
        wanted.append(network(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255).softmax(1).max(1))
    ended = robust("predict", "net.safetensors", "--arch", "cnn-medium", "20.png", "24.png", "--json")
    guesses = [answer["guesses"][0] for answer in json.loads(ended.out)]
    assert [guess["label"] for guess in guesses] == [int(each.indices) for each in wanted]
    likely = [each.values.item() for each in wanted]
    assert [guess["probability"] for guess in guesses] == pytest.approx(likely, abs=1e-6)
    assert all(guess["name"] is None for guess in guesses)


def test_a_folder_of_defend_names_its_classes_and_resizes_as_in_training(robust, tmp_path):
    torch.manual_seed(0)
    network = build_architecture("cnn-medium", 3)
    network.linear.bias.data[1] += 50  # sure of the second class, whatever it sees
    folder = tmp_path / "run"
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    card = {
        "schema": "robustbench-local/checkpoint/1",
        "architecture": "cnn-medium",
        "input_shape": [3, 16, 16],
        "class_names": ["apple", "leaf", "sky"],
        "normalization": None,
        "resize": {"resize": 20, "crop": 16},
    }
    (folder / "model.json").write_text(json.dumps(card))
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[2:18, 2:18] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert robust("predict", "run", "a.png").out == "a.png: leaf 100.0%\n"
    # What the crop leaves is one grey: the frame around it was not seen.
    Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(tmp_path / "b.png")
    network.linear.bias.data[1] -= 50
    save_file(network.state_dict(), folder / "model.safetensors")
    framed, whole = (
        json.loads(robust("predict", "run", file, "--json", *more).out)[0]["guesses"]
        for file, more in (("a.png", ()), ("b.png", ("--resize", "16")))
    )
    assert framed == whole


def test_the_weights_of_a_file_are_chosen_by_key_and_said(robust, digits, tmp_path):
    plain, robust_one = (load_classifier(name).module.state_dict() for name in ("digits-cnn", "digits-cnn-robust"))
    torch.save({"raw": {"module": plain}, "ema": robust_one}, tmp_path / "w.pt")
    command = "predict", "digits-cnn", "photos/0.png", "--checkpoint", "w.pt", "--json", "--device", "cpu"
    refused = robust(*command)
    assert refused.code == 2
    assert "[ambiguous-checkpoint]" in refused.err
    assert "'raw.module'" in refused.err
    assert "'ema' (averaged)" in refused.err
    chosen = robust(*command, "--checkpoint-key", "raw")
    assert chosen.code == 0
    assert chosen.err == "weights: w.pt, key 'raw.module'\n"
    assert json.loads(chosen.out)[0]["guesses"][0]["probability"] == pytest.approx(float(digits[0].max()), abs=1e-6)
    unknown = robust(*command, "--checkpoint-key", "swa")
    assert "[unknown-checkpoint-key]" in unknown.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("absent.png",), "there is no image absent.png"),
        (("photos/notes.txt",), "photos/notes.txt is damaged"),
        (("empty",), "the directory empty has no images"),
        (("deep.png",), "deep.png has more than 8 bits"),
        (("photos/0.png", "--resize", "8:9"), "--resize is '8:9'"),
        (("photos/0.png", "--resize", "30"), "cannot take images of 1×30×30"),
        (("photos/0.png", "--device", "abacus"), "abacus"),
        (("photos/0.png", "--normalize", "imagenet"), "normalized for 3"),
        ((), "Missing argument 'IMAGE...'"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(robust, digits, tmp_path, arguments, said):
    (tmp_path / "empty").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    ended = robust("predict", "digits-cnn", *arguments)
    assert ended.code == 2
    assert said in ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err


def test_a_model_that_is_not_finite_or_takes_no_picture_is_refused(digits, tmp_path):
    from robustbench_local.errors import UserError

    class Broken(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1) / 0

    file = tmp_path / "photos" / "0.png"
    with pytest.raises(UserError, match="not finite"):
        predict(Classifier(Broken()), [file])
    with pytest.raises(UserError, match="5 channels, but files have 1 or 3"):
        predict(Classifier(torch.nn.Conv2d(5, 3, 8)), [file])
