"""Journals written by version 0.1.0: continued to the same outcome, or refused in one sentence, never misread."""

import json
import shutil
import zlib
from pathlib import Path

import pytest

from robustbench_local import ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks import APGD, FGSM, PGD
from robustbench_local.engine.journal import journal_path
from robustbench_local.engine.observer import Observer
from robustbench_local.errors import UserError

JOURNALS = Path(__file__).parent / "journals"
THREAT = ThreatModel("linf", 0.1)
ATTACKS = [PGD(steps=5), APGD(steps=5, targets=3, loss="dlr")]


class Progress(Observer):
    """Remembers how much of every stage was finished before."""

    def __init__(self):
        self.done, self.advanced = {}, 0

    def begin(self, stage, total, done=0):
        self.done[stage] = done

    def advance(self, finished, robust):
        self.advanced += finished


@pytest.fixture(scope="module")
def model():
    return load_classifier("digits-cnn-robust")


def placed(name, folder):
    output = folder / "r.json"
    shutil.copy(JOURNALS / f"{name}-0.1.0.samples.jsonl.partial", journal_path(output))
    return output


@pytest.mark.parametrize("diagnostics", [False, True])
def test_a_journal_of_an_earlier_version_is_continued(model, tmp_path, diagnostics):
    """It does not say whether diagnostics were on, and holds none of their attacks: both are the same run."""
    digits, progress = load_dataset("digits").subset(range(40)), Progress()
    settings = {"attacks": ATTACKS, "diagnostics": diagnostics, "batch_size": 16, "device": "cpu"}
    output = placed("attacks", tmp_path)
    resumed = evaluate(model, digits, THREAT, **settings, output=output, resume=True, observer=progress)
    whole = evaluate(model, digits, THREAT, **settings)
    assert resumed.samples == whole.samples
    assert [(each.name, each.fooled, each.forward_passes) for each in resumed.result.attacks] == [
        (each.name, each.fooled, each.forward_passes) for each in whole.result.attacks
    ]
    assert progress.done["clean"] == 40
    assert progress.done["pgd:steps=5"] == 39
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "r.samples.jsonl"]


def test_what_an_earlier_session_finished_is_no_speed(model, tmp_path):
    """Passes and seconds of a result are those of all sessions; progress is that of this one."""
    digits, progress = load_dataset("digits").subset(range(40)), Progress()
    output = placed("attacks", tmp_path)
    lines = [json.loads(line[9:]) for line in journal_path(output).read_bytes().splitlines()]
    lines[-1]["seconds"] = 100.0
    texts = [json.dumps(line).encode() for line in lines]
    journal_path(output).write_bytes(b"".join(b"%08x %s\n" % (zlib.crc32(text), text) for text in texts))
    settings = {"attacks": ATTACKS, "diagnostics": False, "batch_size": 16, "device": "cpu"}
    cost = evaluate(model, digits, THREAT, **settings, output=output, resume=True, observer=progress).result.cost
    plain = Progress()
    evaluate(model, digits, THREAT, **settings, observer=plain)
    assert 0 < progress.advanced < plain.advanced
    assert progress.advanced + sum(progress.done.values()) == plain.advanced
    assert cost.image_steps_per_second == pytest.approx(cost.backward_passes / cost.seconds)
    assert 100 < cost.seconds < 130, "the seconds of both sessions"


@pytest.mark.parametrize(
    ("diagnostics", "attacks", "words"),
    [(False, [FGSM()], "diagnostics"), (True, [PGD()], "set of attacks"), (True, [FGSM(), FGSM()], "set of attacks")],
)
def test_a_journal_of_other_settings_is_refused(model, tmp_path, diagnostics, attacks, words):
    digits, output = load_dataset("digits").subset(range(12)), placed("diagnostics", tmp_path)
    before = journal_path(output).read_bytes()
    with pytest.raises(UserError) as refusal:
        evaluate(model, digits, THREAT, attacks=attacks, diagnostics=diagnostics, output=output, resume=True)
    assert refusal.value.slug == "resume-other-run"
    assert words in str(refusal.value)
    assert journal_path(output).read_bytes() == before


def test_diagnostics_of_an_earlier_version_are_continued(model, tmp_path):
    digits, output = load_dataset("digits").subset(range(12)), placed("diagnostics", tmp_path)
    settings = {"attacks": [FGSM()], "device": "cpu"}
    resumed = evaluate(model, digits, THREAT, **settings, output=output, resume=True)
    assert resumed.samples == evaluate(model, digits, THREAT, **settings).samples
