import importlib.resources
import itertools
from pathlib import Path

import pytest

from robustbench_local.errors import UserError
from robustbench_local.gates.config import is_gate_file, list_gates, read_gate
from robustbench_local.gates.decide import decide
from robustbench_local.gates.gate import ClassFloors
from robustbench_local.gates.limits import Outcome
from robustbench_local.io.settings import parse_settings

WHOLE = """
require: standard/1
alpha: 1/50
baseline: [old/linf.json, /elsewhere/l2.json]
min-clean: 4/5
max_drop: 2/100
threat_models:
  - norm: linf
    eps: 8/255
    min_robust: 0.40
    min_class_robust: {default: 0.2, stop: 3/5, 14: 0.6, "15": 0.7}
  - {norm: l2, eps: 0.5, source: 14, target: 5, reject: 43, min_clean: 0.9, max_drop: 0, min_class_clean: 0.5,
     baseline: own.json, require: fast}
"""


def gate_file(folder, text):
    path = folder / "gate.yaml"
    path.write_text(text)
    return str(path)


def test_a_gate_file(tmp_path):
    gate = read_gate(gate_file(tmp_path, WHOLE))
    linf, l2 = gate.limits
    assert (gate.alpha, gate.source) == (0.02, tmp_path / "gate.yaml")
    assert (linf.threat.norm, linf.threat.eps, linf.threat.eps_text) == ("linf", 8 / 255, "8/255")
    assert (linf.min_clean, linf.min_robust, linf.max_drop, linf.require) == (0.8, 0.4, 0.02, "standard/1")
    assert linf.min_class_robust == ClassFloors(0.2, {"stop": 0.6, 14: 0.6, "15": 0.7})
    assert linf.baselines == (tmp_path / "old/linf.json", Path("/elsewhere/l2.json")), "relative to the gate file"
    assert l2.threat.name == "L2 0.5, 14 → 5, rejection class 43"
    assert (l2.min_clean, l2.min_robust, l2.max_drop, l2.require) == (0.9, None, 0.0, "fast")
    assert l2.min_class_clean == ClassFloors(0.5)
    assert l2.baselines == (tmp_path / "own.json",)


def test_flags_win_over_the_file(tmp_path):
    flags = {"min_clean": 0.1, "min_robust": None, "alpha": 0.01, "baselines": (Path("b.json"),), "require": "fast/1"}
    for limits in (gate := read_gate(gate_file(tmp_path, WHOLE), flags)).limits:
        assert limits.min_clean == 0.1
        assert limits.baselines == (Path("b.json"),)
        assert limits.require == "fast/1"
    assert gate.limits[0].min_robust == 0.4
    assert gate.alpha == 0.01
    assert read_gate(gate_file(tmp_path, WHOLE), {"baselines": ()}).limits[1].baselines == (tmp_path / "own.json",)


def test_limits_without_threat_models_hold_for_any_result(make_result, tmp_path):
    gate = read_gate(gate_file(tmp_path, "min_robust: 1/2\n"))
    paths = [make_result(tmp_path / f"{norm}.json", 600, changes={"threat_model.norm": norm}) for norm in ("l1", "l2")]
    assert [check.outcome for check in decide(gate, paths).checks] == [Outcome.PASS] * 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["holds no settings"]),
        ("[1]", ["holds no settings"]),
        ("a: b: c", ["not valid YAML"]),
        ("alpha: 0.05", ["gives no limit"]),
        ("min_robust: 40", ["min_robust is 40", "0.40 for 40 %"]),
        ("min_robust: 40%", ["min_robust is '40%'", "0.40 for 40 %"]),
        ("min_robust: x/y", ["'x/y' is not a number"]),
        ("min_robust: 1/0", ["'1/0' is not a number"]),
        ("min_robust: yes", ["must be a number"]),
        ("min_robust: .nan", ["0.40 for 40 %"]),
        ("min_robust: .inf", ["0.40 for 40 %"]),
        ("min_robust: [0.4]", ["min_robust"]),
        ("min_robust: 0.4\nmin_robust: 0.5", ["'min_robust' is given twice"]),
        ("min_robst: 0.4", ["no setting 'min_robst'", "Did you mean 'min_robust'?"]),
        ("min_robust: 0.4\nalpha: 0.5", ["alpha is 0.5"]),
        ("min_robust: 0.4\nalpha: 0", ["alpha is 0"]),
        ("min_robust: 0.4\nrequire: strong", ["unknown suite 'strong'"]),
        ("min_robust: 0.4\nrequire: 1", ["require is 1"]),
        ("str: 1", ["no setting 'str'"]),
        ("max_drop: 0.02", ["names no baseline"]),
        ("baseline: 3\nmax_drop: 0.1", ["baseline"]),
        ("min_class_robust: {stop: 2}", ["min_class_robust, stop is 2", "0.40 for 40 %"]),
        ("min_class_robust: {-1: 0.2}", ["min_class_robust"]),
        ("min_class_robust: {}", ["gives no limit"]),
        ("min_class_robust: {null: 0.2}", ["min_class_robust"]),
        ("min_robust: 0.1\nthreat_models: [{norm: linf}]", ["threat model 1, eps is missing"]),
        ("min_robust: 0.1\nthreat_models: 3", ["threat_models is 3"]),
        ("min_robust: 0.1\nthreat_models: [3]", ["threat model 1 is 3"]),
        ("min_robust: 0.1\nthreat_models: [{norm: l7, eps: 1}]", ["threat model 1, norm is 'l7'"]),
        ("min_robust: 0.1\nthreat_models: [{norm: l2, eps: x}]", ["'x' is not a number"]),
        ("min_robust: 0.1\nthreat_models: [{norm: l2, eps: -1}]", ["at least 0"]),
        ("min_robust: 0.1\nthreat_models: [{norm: l2, eps: 1, source: 3}]", ["a source needs a target"]),
        ("min_robust: 0.1\nthreat_models: [{norm: l2, eps: 1/2}, {norm: l2, eps: 0.5}]", ["L2 0.5 twice"]),
        ("threat_models: [{norm: l2, eps: 1, min_robust: 0.1}, {norm: l1, eps: 1}]", ["no limit for L1 1"]),
        ("min_robst: 1\nmin_clean: 7\nthreat_models: [{eps: 1}]", ["min_robst", "min_clean is 7", "norm is missing"]),
        ("min_robust: !!python/object/apply:os.getcwd []", ["not valid YAML"]),
        ("min_robust: 2020-99-99", ["YAML"]),
        ("min_robust: " + "[" * 2000, ["nested too deeply"]),
        ("min_robust: 0x" + "f" * 4000, ["gate.yaml"]),
        ("min_class_robust: {0x" + "f" * 4000 + ": 0.1}", ["min_class_robust"]),
        ("min_robust: 0.1\nthreat_models: [{norm: l2, eps: 0x" + "f" * 4000 + "}]", ["gate.yaml"]),
        ("min_robust: " + "9" * 5000, ["not valid YAML"]),
        ("? [1]\n: 2", ["not valid YAML"]),
        ("{1: 2}", ["there is no setting '1'"]),
        ("&a min_robust: *a", ["min_robust"]),
        ("\x07: 1", ["not valid YAML"]),
        ("min_robust: 0.1\nthreat_models:\n  - &a {norm: l2, eps: 1, min_clean: [*a]}", ["min_clean"]),
    ],
)
def test_bad_gate_files_are_refused_in_one_sentence(tmp_path, text, words):
    with pytest.raises(UserError) as refused:
        read_gate(gate_file(tmp_path, text))
    message = str(refused.value)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message
    assert len(message) < 1000


def test_references_that_multiply_do_not_multiply_the_message(tmp_path):
    lines = [f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in itertools.pairwise("abcdefghij")]
    bomb = "a: &a [x, x]\n" + "".join(lines)
    with pytest.raises(UserError) as refused:
        read_gate(gate_file(tmp_path, bomb + "min_robust: *j\nmin_class_robust: *j\n"))
    assert len(str(refused.value)) < 2000


def test_what_cannot_be_a_gate_file(tmp_path):
    with pytest.raises(UserError, match=r"neither a file nor a bundled gate \(there are cifar10, digits, .*"):
        read_gate("digts")
    with pytest.raises(UserError, match="Did you mean 'digits'"):
        read_gate("digts")
    (tmp_path / "large.yaml").write_text("#" * 300_000)
    with pytest.raises(UserError, match="may have at most"):
        read_gate(str(tmp_path / "large.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        read_gate(str(tmp_path / "binary.yaml"))
    for name in ("\0", "x" * 5000, str(tmp_path)):
        with pytest.raises(UserError):
            read_gate(name)


def test_shipped_gates_begin_with_their_command_and_can_be_read():
    gates = list_gates()
    assert {"digits", "cifar10", "stop-sign"} <= {name for name, _ in gates}
    for name, command in gates:
        assert command.startswith("robust ")
        assert command.endswith(f"gate {name}")
        gate = read_gate(name)
        if "--until-gate" in command:
            continue
        assert len(command.split(" --gate")[0].split()[2:]) == len(gate.limits), "a result for each threat model"
        assert all(not limits.empty for limits in gate.limits)


def test_the_example_in_the_docstring_can_be_read(tmp_path):
    from robustbench_local.gates import config

    text = config.__doc__.partition("\n\n")[2].rpartition("\n\n")[0]
    (limits,) = read_gate(gate_file(tmp_path, text)).limits
    assert limits.min_clean == 0.8
    assert limits.min_class_robust.single == {"stop": 0.6, 14: 0.6}


def test_another_kind_of_file_is_told_as_such(make_result, tmp_path):
    path = make_result(tmp_path / "r.json", 500, n=600, clean=500)
    with pytest.raises(UserError) as refused:
        read_gate(str(path))
    assert refused.value.slug == "result-file-as-gate"
    with pytest.raises(UserError) as refused:
        read_gate(gate_file(tmp_path, "".join(f"setting_{number}: 1\n" for number in range(20))))
    assert str(refused.value).count("no setting") == 10
    assert "and 10 more" in str(refused.value)


def test_a_baseline_can_be_required(tmp_path):
    text = "min_robust: 0.4\nmax_drop: 0.02\nbaseline: b.json\nrequire-baseline: true\n"
    gate = read_gate(gate_file(tmp_path, text + "threat_models: [{norm: l2, eps: 1}, {norm: l1, eps: 1}]\n"))
    assert [limits.require_baseline for limits in gate.limits] == [True, True]
    own = "threat_models: [{norm: l2, eps: 1, require_baseline: false}, {norm: l1, eps: 1}]\n"
    gate = read_gate(gate_file(tmp_path, text + own))
    assert [limits.require_baseline for limits in gate.limits] == [False, True]
    optional = gate_file(tmp_path, text.replace("true", "false"))
    assert not read_gate(optional).limits[0].require_baseline
    assert read_gate(optional, {"require_baseline": True}).limits[0].require_baseline
    for wrong, slug in (
        ("min_robust: 0.4\nrequire_baseline: true", "baseline-not-named"),
        (text.replace("true", "1"), "invalid-setting"),
    ):
        with pytest.raises(UserError, match="require_baseline") as refused:
            read_gate(gate_file(tmp_path, wrong))
        assert refused.value.slug == slug


def test_gate_files_and_configs_are_not_mistaken_for_each_other(tmp_path):
    configs = importlib.resources.files("robustbench_local.configs")
    recipes = [file for file in configs.iterdir() if file.name.endswith(".yaml")]
    assert len(recipes) >= 5
    texts = [file.read_text(encoding="utf-8") for file in recipes]
    texts += ["eps: 8/255\nnorm: linf\n", "suite: standard\ndata: cifar10\n", "batch-size: 64\n"]
    for text in texts:
        assert not is_gate_file(parse_settings(text, "c.yaml"))
        with pytest.raises(UserError, match="--config") as refused:
            read_gate(gate_file(tmp_path, text))
        assert refused.value.slug == "config-as-gate"
    for gate in (file for file in configs.joinpath("gate").iterdir() if file.name.endswith(".yaml")):
        assert is_gate_file(parse_settings(gate.read_text(encoding="utf-8"), gate.name))
    assert is_gate_file(["min-clean"])
    # A threat model that is not under threat_models is a mistake in a gate file.
    with pytest.raises(UserError, match="'norm'") as refused:
        read_gate(gate_file(tmp_path, "norm: linf\neps: 0.1\nmin_robust: 0.4\n"))
    assert refused.value.slug == "unknown-setting"
