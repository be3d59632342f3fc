"""The examples of docs/ci.md and action.yml: their YAML against the services' schemas, their shell parts run."""

import importlib.resources
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BASH = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c"]
ROBUST = """#!/usr/bin/env bash
# The real program, but an attack that is given the same arguments again is not run again.
set -eo pipefail
if [ "$1" != attack ]; then exec "$REAL" "$@"; fi
key=$(printf '%s\\n' "${@:1:$#-2}" | cksum | cut -d ' ' -f 1)
if [ ! -e "$CACHE/$key.json" ]; then "$REAL" "${@:1:$#-2}" --output "$CACHE/$key.json"; fi
output=${!#}
samples="$(basename "$output" .json).samples.jsonl"
mkdir -p "$(dirname "$output")"
cp "$CACHE/$key.samples.jsonl" "$(dirname "$output")/$samples"
sed "s/$key.samples.jsonl/$samples/" "$CACHE/$key.json" > "$output"
"""


def example(name):
    """The block of docs/ci.md whose first line is a comment with that name."""
    blocks = re.findall(r"^```\w+\n# (.+?)\n(.*?)^```$", (ROOT / "docs" / "ci.md").read_text(), re.M | re.S)
    return dict(blocks)[name]


def schema(name):
    vendored = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / f"{name}.json"
    return json.loads(vendored.read_text())


def parsed(text):
    """YAML as GitHub reads it, for which `on` is a word."""
    content = yaml.safe_load(text)
    return {"on" if key is True else key: value for key, value in content.items()}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (".github/workflows/robust.yml", "github-workflows"),
        (".github/workflows/robust-by-hand.yml", "github-workflows"),
        (".gitlab-ci.yml", "gitlab-ci"),
        ("action.yml", "github-actions"),
    ],
)
def test_the_yaml_is_what_the_services_take(name, kind):
    text = (ROOT / "action.yml").read_text() if name == "action.yml" else example(name)
    jsonschema.validators.validator_for(schema(kind))(schema(kind)).validate(parsed(text))


def test_the_hook_has_what_pre_commit_asks_for():
    ((repository,),) = parsed(example(".pre-commit-config.yaml")).values()
    (hook,) = repository["hooks"]
    assert repository["repo"] == "local"
    assert {"id", "name", "entry", "language"} <= hook.keys()
    assert hook["language"] == "system"
    assert re.search(hook["files"], "net.py")


def test_the_action_gives_inputs_to_its_scripts_as_variables_alone():
    action = parsed((ROOT / "action.yml").read_text())
    for step in action["runs"]["steps"]:
        assert "${{" not in step["run"], "what an input holds would become part of the script"
        for value in step.get("env", {}).values():
            assert re.fullmatch(r"\$\{\{ inputs\.([\w-]+) \}\}", value)[1] in action["inputs"]
    used = {value for step in action["runs"]["steps"] for value in step.get("env", {}).values()}
    assert {f"${{{{ inputs.{name} }}}}" for name in action["inputs"]} == used
    workflow = parsed(example(".github/workflows/robust.yml"))
    (inputs,) = [step["with"] for step in workflow["jobs"]["gate"]["steps"] if step["uses"] == "./robust"]
    assert inputs.keys() <= action["inputs"].keys()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A repository as docs/ci.md describes it, with its first baseline."""
    from robustbench_local import load_dataset

    programs = tmp_path_factory.mktemp("programs")
    (programs / "robust").write_text(ROBUST)
    (programs / "robust").chmod(0o755)
    folder = tmp_path_factory.mktemp("repository")
    with pytest.MonkeyPatch.context() as patched:
        here = Path(sys.executable).parent
        patched.setenv("PATH", os.pathsep.join(map(str, (programs, here, os.environ["PATH"]))))
        patched.setenv("REAL", str(here / "robust"))
        patched.setenv("CACHE", str(programs))
        patched.setenv("OMP_NUM_THREADS", "1")
        yield filled(folder, load_dataset("digits", split="test"))


def filled(folder, digits):
    images = digits.images(list(range(len(digits))))
    np.savez(folder / "test.npz", images=images.numpy(), labels=digits.labels.numpy())
    for name in ("net", "weak"):
        bundled = "digits-cnn-robust" if name == "net" else "digits-cnn"
        (folder / f"{name}.py").write_text(
            f"from robustbench_local import load_classifier\ndef make(): return load_classifier('{bundled}').module\n"
        )
    (folder / "ci").mkdir()
    (folder / "ci" / "gate.yaml").write_text(example("ci/gate.yaml"))
    run(example("the first baseline").replace("git add", "ls"), folder)
    return folder


@pytest.fixture
def repository(prepared, tmp_path):
    folder = tmp_path / "repository"
    subprocess.run(["cp", "-r", prepared, folder], check=True)
    return folder


def run(script, folder, **variables):
    """As a runner does: bash -e, with `robust` and `python` of this environment."""
    ran = subprocess.run(
        [*BASH, script], cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran


def run_action(folder, **settings):
    """The steps of action.yml after the installation; returns the code of the last, its stdout and the outputs."""
    action = parsed((ROOT / "action.yml").read_text())
    inputs = {
        name: settings.pop(name.replace("-", "_"), each.get("default")) for name, each in action["inputs"].items()
    }
    assert not settings
    install, *steps = action["runs"]["steps"]
    assert install["run"] == 'python -m pip install --quiet "$GITHUB_ACTION_PATH"'
    files = {name: str(folder / name.lower()) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for step in steps:
        variables = {name: inputs[value[len("${{ inputs.") : -3]] for name, value in step["env"].items()}
        ran = run(step["run"], folder, **variables, **files)
        if ran.returncode:
            break
    outputs_file = folder / "github_output"
    outputs = dict(line.split("=") for line in outputs_file.read_text().splitlines()) if outputs_file.exists() else {}
    return ran, outputs


ATTACK = "--data npz:test.npz --eps 0.1"


def test_the_documented_workflow(repository):
    workflow = parsed(example(".github/workflows/robust.yml"))
    (inputs,) = [step["with"] for step in workflow["jobs"]["gate"]["steps"] if step["uses"] == "./robust"]
    ran, outputs = run_action(repository, **inputs)
    assert ran.returncode == 0, ran.stderr
    assert outputs == {"outcome": "pass", "exit-code": "0"}
    assert ran.stdout == "::notice title=robust gate::pass: 4 of 4 limits passed\n"
    assert "robust gate: pass" in (repository / "github_step_summary").read_text()
    assert json.loads((repository / "gate.sarif").read_text())["runs"][0]["results"] == []


def test_a_model_that_got_worse_stops_the_action(repository):
    ran, outputs = run_action(repository, model="weak.py:make", attack=ATTACK, gate="ci/gate.yaml", junit="gate.xml")
    assert ran.returncode == 3
    assert outputs == {"outcome": "fail", "exit-code": "3"}
    assert "::error file=ci/gate.yaml" in ran.stdout
    assert ElementTree.parse(repository / "gate.xml").find(".//failure[@type='fail']") is not None


@pytest.mark.parametrize(("allow", "code"), [("false", 4), ("true", 0)])
def test_undecided_is_as_the_input_says(repository, allow, code):
    value = json.loads((repository / "result.json").read_text())["robust_accuracy"]["value"]
    inputs = {"attack": ATTACK, "limits": f"--min-robust {value}", "allow_undecided": allow}
    ran, outputs = run_action(repository, model="net.py:make", **inputs)
    assert ran.returncode == code
    assert outputs["outcome"] == "undecided"
    assert outputs["exit-code"] == "4"


def test_bad_input_and_hostile_input_of_the_action(repository):
    ran, outputs = run_action(repository, model="net.py:make", attack=ATTACK, limits="--min-robust 40")
    assert ran.returncode == 2
    assert outputs == {}
    assert "0.40" in ran.stderr
    ran, outputs = run_action(repository, model="net.py:make", attack=ATTACK, limits="--min-robust '0.9")
    assert ran.returncode != 0, "a limit that cannot be read is not left out"
    assert outputs == {}
    ran, _ = run_action(repository, model="net.py:make", attack=ATTACK, limits="--min-robust 0.4", junit="ci")
    assert ran.returncode == 2
    assert "::error title=robust gate::the junit report could not" in ran.stdout
    hostile = "$(touch taken) `touch taken` ; touch taken #"
    ran, _ = run_action(repository, model=hostile, attack=ATTACK, limits="--min-robust 0.4")
    assert ran.returncode == 2
    ran, _ = run_action(repository, model="net.py:make", attack=ATTACK, limits=f"--min-robust 0.4 --gate '{hostile}'")
    assert ran.returncode == 2
    assert not (repository / "taken").exists()


@pytest.mark.parametrize("name", [".github/workflows/robust-by-hand.yml", ".gitlab-ci.yml", ".pre-commit-config.yaml"])
def test_the_shell_parts_of_the_other_examples(repository, name):
    content = parsed(example(name))
    if name == ".gitlab-ci.yml":
        lines = content["robust"]["script"]
    elif name == ".pre-commit-config.yaml":
        lines = [shlex.join(shlex.split(content["repos"][0]["hooks"][0]["entry"]))]
    else:
        steps = content["jobs"]["gate"]["steps"]
        lines = [step["run"] for step in steps if step.get("run", "").startswith("robust ")]
        assert len(lines) == 2
    ran = run("\n".join(lines), repository)
    assert ran.returncode == 0, ran.stderr
    assert "gate: pass" in ran.stderr
    weak = run("\n".join(lines).replace("net.py", "weak.py"), repository)
    assert weak.returncode == 3
    assert "gate: fail" in weak.stderr
    if name == ".gitlab-ci.yml":
        reported = content["robust"]["artifacts"]["reports"]["junit"]
        assert ElementTree.parse(repository / reported).find(".//failure") is not None
