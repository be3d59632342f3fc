import json
from pathlib import Path

import pytest


@pytest.fixture
def compared(robust):
    for name, *arguments in (("a", "digits-cnn-robust"), ("b", "digits-cnn"), ("few", "digits-cnn", "--samples", 50)):
        assert robust("attack", *arguments, "--output", f"{name}.json").code == 0
    return lambda *arguments: robust("compare", *arguments)


def test_compare(compared):
    ended = compared("a.json", "b.json")
    assert ended.code == 0
    assert ended.out == ""
    for words in ("digits (360 images), L∞ 0.1", "from a.json to b.json", "robust after", "lost: ", "class 9"):
        assert words in ended.err
    machine = compared("a.json", "b.json", "--format", "json")
    content = json.loads(machine.out)
    assert machine.code == 0
    assert content == json.loads(compared("a.json", "b.json", "--json").out)
    lost = sum(flip["lost"] for flip in content["pair"]["flips"])
    drop = content["models"][0]["robust_accuracy"]["correct"] - content["models"][1]["robust_accuracy"]["correct"]
    assert lost - (len(content["pair"]["flips"]) - lost) == drop > 0
    assert [model["groups"] for model in content["models"]] == ["a", "b"]

    refused = compared("a.json", "few.json", "--json")
    assert refused.code == 5
    assert "samples-differ" in json.loads(refused.out)["refusals"][0]["slug"]
    assert not json.loads(refused.out)["comparable"]

    Path("broken.json").write_text("{")
    for arguments, word in (
        (["a.json"], "too-few-results"),
        (["a.json", "a.json"], "duplicate-result"),
        ([], "Missing"),
        (["a.json", "gone.json"], "gone.json"),
        (["a.json", "broken.json"], "result-not-json"),
        (["a.json", "b.json", "--json", "--format", "terminal"], "conflicting-formats"),
    ):
        bad = compared(*arguments)
        assert bad.code == 2
        assert word in bad.err
        assert "Traceback" not in bad.err
        assert bad.out == ""
