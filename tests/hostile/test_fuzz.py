"""Every parser takes an input or refuses it with a sentence: any value anywhere, noise, and inputs nearly right."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
import valid_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustbench_local.io.safe_read import parse_json, parse_yaml, printable, reject_control_characters
from robustbench_local.numbers import parse_number

RUNS = 10_000
EXAMPLES = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
DOCUMENTS = {
    "result": valid_files.result(),
    "model-json": valid_files.card(),
    "config": {"data": "digits", "eps": "8/255", "attack": ["fgsm"], "seed": 3, "download": False},
    "recipe": {"method": "trades:beta=6+awp", "eps": 0.1, "epochs": 3, "lr": "1/10", "pretrained": False},
    "gate": {"alpha": 0.05, "threat_models": [{"norm": "linf", "eps": "8/255", "min_class_robust": {"stop": 0.5}}]},
}


def require(name: str) -> None:
    if name == "onnx":
        for package in ("onnx", "onnx2torch"):
            pytest.importorskip(package, reason="the onnx extra is not installed")


def places(value, path=()):
    """The way to every value inside."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*path, key)
        yield from places(item, (*path, key))


def replaced(document, path, value):
    content = json.loads(json.dumps(document))
    where = content
    for key in path[:-1]:
        where = where[key]
    where[path[-1]] = value
    return content


@pytest.mark.parametrize("name", DOCUMENTS)
def test_any_value_anywhere(name):
    ways = list(places(DOCUMENTS[name]))

    @EXAMPLES
    @given(st.sampled_from(ways), VALUES)
    def test(path, value):
        content = json.dumps(replaced(DOCUMENTS[name], path, value)).encode()  # which is YAML, too
        with fuzz.scratch() as folder:
            fuzz.feed(fuzz.target(name), content, folder)

    test()


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_noise(name):
    require(name)

    @EXAMPLES
    @given(st.binary(max_size=200), st.integers(0, 10**6))
    def test(noise, at):
        seed = fuzz.target(name).seeds[0]
        with fuzz.scratch() as folder:
            for content in (noise, seed[: at % len(seed)] + noise, seed + noise):
                fuzz.feed(fuzz.target(name), content, folder)

    test()


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_inputs_that_are_nearly_right(name):
    require(name)
    parser = fuzz.target(name)
    with fuzz.scratch() as folder:
        for seed in parser.seeds[:1] if name == "options" else parser.seeds:
            assert fuzz.feed(parser, seed, folder), "a valid file is refused, so mutations of it do not get far"
    inputs, _ = fuzz.run(name, runs=300, seconds=1.5)
    assert inputs >= 10


def test_what_is_raised_is_found(monkeypatch):
    def broken(path: Path):
        if path.read_bytes().startswith(b"x"):
            raise KeyError("x")

    monkeypatch.setattr(
        fuzz,
        "target",
        lambda name: fuzz.Target(".t", [b"a" * 3], lambda old, random: random.choice((b"x", b"y", b"z")), broken),
    )
    with pytest.raises(AssertionError, match=r"planted, seed 0, input \d+: b'x'"):
        fuzz.run("planted", runs=100)


def test_the_corpus_is_small():
    files = [path for path in fuzz.CORPUS.rglob("*") if path.is_file()]
    assert files
    assert sum(path.stat().st_size for path in files) < 100_000
    assert {path.parent.name for path in files} <= set(fuzz.TARGETS)


def parsed(parse, text):
    """The value and no message, or no value and the message of a ValueError."""
    try:
        return parse(text), ""
    except ValueError as error:
        return None, str(error)


@EXAMPLES
@given(st.text() | VALUES.map(repr) | VALUES.map(json.dumps))
def test_texts(text):
    for parse in (parse_json, parse_yaml):
        value, message = parsed(parse, text)
        assert message == printable(message)
        json.dumps(value, default=str).encode()
    assert printable(printable(text)) == printable(text) == reject_control_characters(printable(text))


@EXAMPLES
@given(st.text(alphabet="0123456789eE+-./_ nainf", max_size=30) | st.floats().map(str) | st.fractions().map(str))
def test_numbers(text):
    number, message = parsed(parse_number, text)
    if number is None:
        assert "is not a number" in message
    else:
        assert isinstance(number, float)
        assert math.isclose(number, parse_number(str(number)), rel_tol=1e-12)


@pytest.mark.soak
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_ten_thousand_inputs_that_look_for_new_code(name, tmp_path, capsys):
    require(name)
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("guided fuzzing needs the fuzz extra (atheris)")
    done = subprocess.run(
        [sys.executable, str(Path(fuzz.__file__)), name, "--runs", str(RUNS), "--guided", str(tmp_path / "kept")],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=3600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["inputs"] >= RUNS
    with capsys.disabled():
        print(
            f"\n{name}: {counts['inputs']:,} inputs, {counts['taken']:,} taken, the others refused with a sentence, "
            f"{len(list((tmp_path / 'kept').iterdir())):,} reached new code"
        )
