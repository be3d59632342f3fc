import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def compared(robust, results, tmp_path):
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    return lambda *arguments: robust("compare", *arguments)


def test_compare(compared):
    ended = compared("strong.json", "weak.json")
    assert ended.code == 0
    assert ended.out == ""
    for words in ("digits (360 images), L∞ 0.1", "from strong.json to weak.json", "robust after", "lost: ", "class 9"):
        assert words in ended.err
    machine = compared("strong.json", "weak.json", "--format", "json")
    content = json.loads(machine.out)
    assert machine.code == 0
    assert content == json.loads(compared("strong.json", "weak.json", "--json").out)
    lost = sum(flip["lost"] for flip in content["pair"]["flips"])
    drop = content["models"][0]["robust_accuracy"]["correct"] - content["models"][1]["robust_accuracy"]["correct"]
    assert lost - (len(content["pair"]["flips"]) - lost) == drop > 0
    assert [model["groups"] for model in content["models"]] == ["a", "b"]

    refused = compared("strong.json", "few.json", "--json")
    assert refused.code == 5
    assert "samples-differ" in json.loads(refused.out)["refusals"][0]["slug"]
    assert not json.loads(refused.out)["comparable"]

    Path("broken.json").write_text("{")
    for arguments, word in (
        (["strong.json"], "too-few-results"),
        (["strong.json", "strong.json"], "duplicate-result"),
        ([], "Missing"),
        (["strong.json", "gone.json"], "gone.json"),
        (["strong.json", "broken.json"], "result-not-json"),
        (["strong.json", "weak.json", "--json", "--format", "terminal"], "conflicting-formats"),
    ):
        bad = compared(*arguments)
        assert bad.code == 2
        assert word in bad.err
        assert "Traceback" not in bad.err
        assert bad.out == ""
