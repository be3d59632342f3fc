"""Usage errors that need no torch: each is refused with its slug in a fresh interpreter that never loads torch."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import typing

import click
import pytest

from robustbench_local.cli import source_registry
from robustbench_local.cli.attack import attack_command
from robustbench_local.defenses import ADD_ONS, OBJECTIVES
from robustbench_local.engine.protocol import OWN_ATTACKS
from robustbench_local.models.catalog import INPUT_DEFENSES, load_entry

RUN = """
import contextlib, io, json, sys
import robustbench_local.cli as cli
outcomes = []
for arguments in json.load(sys.stdin):
    sys.argv, err = ["robust", *arguments], io.StringIO()
    try:
        with contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        outcomes.append((end.code, err.getvalue(), "torch" in sys.modules))
print(json.dumps(outcomes))
"""
# A tiny number as well: as an exact fraction it has as many digits as a huge one.
HUGE = ("1e999999999", "9" * 5000, "1e-999999999")
CODE = ("f.py:net", "--data")
CASES = {
    "eps no number": ("attack --eps small", "invalid-eps"),
    "eps with two bars": ("attack --eps 8/255/2", "invalid-eps"),
    "eps negative": ("attack --eps -0.1", "invalid-eps"),
    "eps not a number": ("attack --eps nan", "invalid-eps"),
    "eps of gray levels": ("attack --eps 8", "invalid-eps"),
    "no usual eps": ("attack --norm l2", "eps-missing"),
    "eps of a recipe": ("defend --eps small", "invalid-eps"),
    "norm": ("attack --norm l3", "'l3' is not one of"),
    "norm of defend": ("defend --norm l3", "'l3' is not one of"),
    "suite": ("attack --suite fats", "unknown-suite"),
    "suite version": ("attack --suite fast/9", "unknown-suite-version"),
    "suite version no number": ("attack --suite fast/one", "unknown-suite-version"),
    "suite of defend": ("defend --suite fats", "unknown-suite"),
    "attack": ("attack --attack pdg", "unknown-attack"),
    "attack of the toolbox": ("attack --attack art/Deepfol", "unknown-attack"),
    "setting of an attack": ("attack --attack pgd:step=3", "'steps'"),
    "setting no number": ("attack --attack pgd:steps=many", "'many'"),
    "setting without value": ("attack --attack pgd:steps", "'pgd:steps'"),
    "file of an attack": ("attack --attack gone.py:mine", "gone.py"),
    "file of an attack with settings": ("attack --attack gone.py:mine:steps=3", "gone.py"),
    "file without a function": ("attack --attack f.py", "function-not-named"),
    "method": ("defend --method trade", "unknown-method"),
    "add-on": ("defend --method trades+wap", "unknown-add-on"),
    "method instead of an add-on": ("defend --method trades+mart", "unknown-add-on"),
    "nothing behind the plus": ("defend --method trades+", "unknown-add-on"),
    "nothing before the plus": ("defend --method +awp", "unknown-method"),
    "add-on alone": ("defend --method awp", "add-on-without-method"),
    "setting of a method": ("defend --method trades:bet=1", "'beta'"),
    "input defense": ("attack --defense jpg", "unknown-input-defense"),
    "setting of an input defense": ("doctor --defense jpeg:qualty=3", "'quality'"),
    "bundled model": ("attack digit-cnn", "unknown-model"),
    "bundled model of doctor": ("doctor digit-cnn", "unknown-model"),
    "bundled model of predict": ("predict digit-cnn f.py", "unknown-model"),
    "bundled model of defend": ("defend digit-cnn", "unknown-model"),
    "architecture of defend": ("defend --arch resnet81", "unknown-model"),
    "teacher": ("defend --method rslad --teacher digit-cnn", "unknown-model"),
    "hub name without hub": ("attack resnet50", "torchvision/resnet50"),
    "file of the model": ("attack gone.pt --arch cnn-small", "gone.pt"),
    "file of the factory": ("attack gone.py:net --data digits", "gone.py"),
    "checkpoint": ("attack f.py:net --checkpoint gone.pt --data digits", "gone.pt"),
    "checkpoint of defend": ("defend f.py:net --checkpoint gone.pt", "gone.pt"),
    "image": ("predict digits-cnn gone.png", "file-not-found"),
    "dataset": ("attack f.py:net --data cifra10", "'cifar10'"),
    "dataset of defend": ("defend --data cifra10", "'cifar10'"),
    "npz": ("attack f.py:net --data npz:gone.npz", "npz-not-a-file"),
    "npz of doctor": ("doctor f.py:net --data npz:gone.npz", "npz-not-a-file"),
    "imagefolder": ("attack f.py:net --data imagefolder:gone", "imagefolder-not-a-directory"),
    "imagefolder is a file": ("attack f.py:net --data imagefolder:f.py", "imagefolder-not-a-directory"),
    "eval data": ("defend --eval-data npz:gone.npz", "npz-not-a-file"),
    "config": ("attack --config gone.yaml", "gone.yaml"),
    "recipe": ("defend --config gone.yaml", "gone.yaml"),
    "gate": ("attack --until-gate gone.yaml", "--until-gate 'gone.yaml'"),
    "gate file as config": ("attack --config gate.yaml", "wrong-kind-of-config"),
    "gate file as recipe": ("defend --config gate.yaml", "wrong-kind-of-config"),
    "recipe as config": ("attack --config recipe.yaml", "wrong-kind-of-config"),
    "recipe as gate": ("attack --until-gate recipe.yaml", "wrong-kind-of-config"),
    "options as recipe": ("defend --config options.yaml", "wrong-kind-of-config"),
    "precision": ("attack --precision fp16", "'fp16' is not one of"),
    "precision of another device": ("attack --precision tf32 --device cpu", "precision-needs-cuda"),
    "device": ("attack --device gpu9", "unknown-device"),
    "device of predict": ("predict digits-cnn f.py --device gpu9", "unknown-device"),
    "device of defend": ("defend --device gpu9", "unknown-device"),
    "normalize": ("attack --normalize imagnet", "'imagenet'"),
    "resize": ("attack f.py:net --data imagefolder:. --resize 8:9", "--resize"),
    "resize of arrays": ("attack --resize 8", "--resize"),
    "batch size": ("attack --batch-size 0", "invalid-batch-size"),
    "suite and attack": ("attack --suite fast --attack pgd", "suite-and-attacks"),
    "resume without output": ("attack --resume", "resume-without-output"),
    "resume of a training": ("defend --resume", "resume-without-output"),
    "gate and samples": ("attack --until-gate digits --samples 10", "samples-and-stopping-rule"),
    "source without target": ("attack --source 3", "source-without-target"),
    "model missing": ("attack --data cifar10", "model-missing"),
    "data missing": ("attack f.py:net", "data-missing"),
}
EXTRAS = {
    "timm": ("attack timm/resnet50 --data digits", "timm"),
    "onnx2torch": ("attack some.onnx --data digits", "onnx"),
    "tensorboard": ("defend --tensorboard", "tensorboard"),
}
NUMERIC = {
    "attack": (
        *("--eps", "--target", "--source", "--reject", "--samples", "--seed", "--batch-size", "--num-classes"),
        *("--attack=pgd:steps=", "--attack=pgd:step-size=", "--defense=jpeg:quality=", "--normalize=0.5:"),
    ),
    "doctor": ("--num-classes", "--resize"),
    "predict": ("digits-cnn", "f.py", "--num-classes", "--resize", "--top"),
    "defend": (
        *("--eps", "--samples", "--eval-samples", "--epochs", "--batch-size", "--accumulate", "--lr", "--momentum"),
        *("--warmup", "--eps-warmup", "--clip-norm", "--label-smoothing", "--average", "--holdout", "--seed"),
        *("--workers", "--method=pgd-at:steps=", "--weight-decay"),
    ),
    "gate": ("f.py", "--min-robust", "--min-clean", "--max-drop", "--alpha"),
}


def numeric_cases():
    for command, options in NUMERIC.items():
        leading = [option for option in options if not option.startswith("-")]
        for option in options:
            for value in HUGE:
                both = [f"{option}{value}"] if option.endswith(("=", ":")) else [option, value]
                if option.startswith("-"):
                    yield [command, *leading, *both]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Exit code, stderr and whether torch is loaded, for the arguments of every case: all in one fresh process."""
    folder = tmp_path_factory.mktemp("early")
    (folder / "f.py").write_text("")
    (folder / "some.onnx").write_text("x")
    (folder / "gate.yaml").write_text("min_clean: 0.5\n")
    (folder / "recipe.yaml").write_text("method: trades\nepochs: 3\n")
    (folder / "options.yaml").write_text("attack: [pgd]\neps: 0.1\n")
    # An extra that is installed loads torch, which the later cases in the same process must not find.
    missing = [text for package, (text, _) in EXTRAS.items() if importlib.util.find_spec(package) is None]
    cases = [text.split() for text in (*(text for text, _ in CASES.values()), *missing)] + list(numeric_cases())
    ran = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(cases),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return {tuple(case): outcome for case, outcome in zip(cases, json.loads(ran.stdout), strict=True)}


@pytest.mark.parametrize("case", CASES)
def test_a_usage_error_is_answered_without_torch(outcomes, case):
    text, expected = CASES[case]
    code, err, torch_loaded = outcomes[tuple(text.split())]
    assert code == 2
    assert expected in err
    assert not torch_loaded


@pytest.mark.parametrize("package", EXTRAS)
def test_a_missing_extra_is_named_without_torch(outcomes, package):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    text, extra = EXTRAS[package]
    code, err, torch_loaded = outcomes[tuple(text.split())]
    assert code == 2
    assert "[missing-extra]" in err
    assert f"robustbench-local[{extra}]" in err
    assert not torch_loaded


def test_numbers_with_huge_exponents_are_refused_at_once(outcomes):
    for case in numeric_cases():
        code, err, torch_loaded = outcomes[tuple(case)]
        assert code == 2, (case, err)
        assert "Traceback" not in err, case
        assert not torch_loaded, case


def test_every_whole_number_among_the_options_of_attack_is_tried():
    whole = {
        parameter.opts[0] for parameter in attack_command.params if isinstance(parameter.type, click.types.IntParamType)
    }
    assert whole <= set(NUMERIC["attack"])


@pytest.mark.parametrize(
    ("table", "registry"),
    [
        (source_registry.attack_settings, OWN_ATTACKS),
        (source_registry.method_settings, OBJECTIVES),
        (source_registry.add_on_settings, ADD_ONS),
        (
            source_registry.input_defense_settings,
            {name: load_entry(INPUT_DEFENSES, name, "input_defenses") for name in INPUT_DEFENSES},
        ),
    ],
)
def test_names_and_settings_read_from_source_are_those_of_the_registry(table, registry):
    def settings(kind):
        hints = typing.get_type_hints(kind)
        return {field.name: hints[field.name] for field in dataclasses.fields(kind)}

    assert {name: settings(kind) for name, kind in table().items()} == {
        name: settings(kind) for name, kind in registry.items()
    }


def test_attacks_of_the_toolbox_read_from_source_include_all_that_are_offered():
    from robustbench_local.engine.art_attacks import art_names

    assert set(art_names()) <= source_registry.toolbox_attack_names()


def test_suites_are_those_of_the_gate_files():
    from robustbench_local.attacks.suites import SUITES
    from robustbench_local.results.protocol_order import SUITE_HASHES

    assert set(SUITE_HASHES) == {(name, version) for name, versions in SUITES.items() for version in versions}
