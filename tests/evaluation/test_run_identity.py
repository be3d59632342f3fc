"""A run is resumed with its own settings only, from its journal as from its result."""

import json
import zlib

import pytest

from robustbench_local import ThreatModel, evaluate, load_classifier, load_dataset
from robustbench_local.attacks import FGSM, PGD
from robustbench_local.engine.journal import journal_path
from robustbench_local.engine.observer import Observer
from robustbench_local.errors import UserError
from robustbench_local.gates.stopping import GateStoppingRule

THREAT = ThreatModel("linf", "0.1")
ATTACKS = [FGSM(), PGD(steps=3)]
SETTINGS = {"attacks": ATTACKS, "diagnostics": False, "device": "cpu", "batch_size": 16}


def rule(floor):
    return GateStoppingRule("gate.yaml", 0.05, None, floor)


CHANGES = {
    "diagnostics switched off": {"diagnostics": True},
    "another stopping rule": {"stopping_rule": rule(0.5)},
    "another set of attacks": {"attacks": [FGSM()]},
    "another seed": {"seed": 1},
    "another set of samples": {"samples": 30},
}


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits").subset(range(48))


@pytest.fixture(scope="module")
def model():
    return load_classifier("digits-cnn-robust")


class Interrupting(Observer):
    """Stops the run at the second attack, when the first has been recorded."""

    def begin(self, stage, total, done=0):
        if stage.startswith("pgd"):
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def interrupted(model, digits, tmp_path_factory):
    output = tmp_path_factory.mktemp("interrupted") / "r.json"
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, digits, THREAT, output=output, observer=Interrupting(), **SETTINGS)
    return output


@pytest.fixture(scope="module")
def completed(model, digits, tmp_path_factory):
    output = tmp_path_factory.mktemp("completed") / "r.json"
    evaluate(model, digits, THREAT, output=output, **SETTINGS)
    return output


@pytest.mark.parametrize("difference", CHANGES)
@pytest.mark.parametrize("left", ["interrupted", "completed"])
def test_other_settings_are_refused_with_what_differs(model, digits, request, left, difference):
    output = request.getfixturevalue(left)
    path = journal_path(output) if left == "interrupted" else output
    before = path.read_bytes()
    with pytest.raises(UserError, match=difference) as caught:
        evaluate(model, digits, THREAT, output=output, resume=True, **{**SETTINGS, **CHANGES[difference]})
    assert caught.value.slug == "resume-other-run"
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_a_run_with_diagnostics_does_not_continue_without_them(model, digits, tmp_path):
    output, settings = tmp_path / "r.json", {**SETTINGS, "diagnostics": True}
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, digits, THREAT, output=output, observer=Interrupting(), **settings)
    with pytest.raises(UserError, match="diagnostics switched on"):
        evaluate(model, digits, THREAT, output=output, resume=True, **SETTINGS)


def test_another_stopping_rule_does_not_continue_a_run(model, digits, tmp_path):
    output = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, digits, THREAT, output=output, observer=Interrupting(), stopping_rule=rule(0.5), **SETTINGS)
    with pytest.raises(UserError, match="another stopping rule"):
        evaluate(model, digits, THREAT, output=output, resume=True, stopping_rule=rule(0.6), **SETTINGS)


def outcome(evaluation):
    return evaluation.samples, [(report.name, report.fooled) for report in evaluation.result.attacks]


def test_a_journal_from_before_the_settings_were_recorded_is_continued(model, digits, completed, tmp_path):
    output = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, digits, THREAT, output=output, observer=Interrupting(), **SETTINGS)
    lines = journal_path(output).read_bytes().splitlines(keepends=True)
    header = json.loads(lines[0].partition(b" ")[2])
    del header["binding"]["diagnostics"], header["binding"]["stopping_rule"]
    content = json.dumps(header).encode()
    journal_path(output).write_bytes(b"".join([b"%08x %s\n" % (zlib.crc32(content), content), *lines[1:]]))
    resumed = evaluate(model, digits, THREAT, output=output, resume=True, **SETTINGS)
    whole = evaluate(model, digits, THREAT, output=completed, resume=True, **SETTINGS)
    assert outcome(resumed) == outcome(whole)


@pytest.mark.parametrize("missing", ["binding", "assess", "until"])
def test_a_result_without_a_readable_fingerprint_is_refused(model, digits, completed, tmp_path, missing):
    content = json.loads(completed.read_text())
    del content["config"][missing]
    output = tmp_path / "r.json"
    output.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        evaluate(model, digits, THREAT, output=output, resume=True, **SETTINGS)
    assert caught.value.slug == "resume-other-run"


def test_resuming_needs_an_output(model, digits):
    with pytest.raises(UserError) as caught:
        evaluate(model, digits, THREAT, resume=True, **SETTINGS)
    assert caught.value.slug == "resume-without-output"
