"""Results, records, settings and descriptions that were written to be read wrongly."""

from __future__ import annotations

import json
import os

import pytest
import valid_files
from click.testing import CliRunner

from robustbench_local.cli.attack import attack_command
from robustbench_local.cli.options import read_options
from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import MOST_DESCRIPTION, MOST_SETTINGS, parse_json, parse_yaml, printable
from robustbench_local.models.loaders.bundled import apply_metadata, description_beside
from robustbench_local.models.loaders.loaded_model import LoadedModel
from robustbench_local.numbers import parse_count, parse_number
from robustbench_local.results.reading import LONGEST_LINE, read_result, read_samples
from robustbench_local.training.model_card import read_card
from robustbench_local.training.recipe import resolve_recipe

DEEP = 200_000
ESCAPE = "\x1b]0;owned\x07\x1b[2J"
NINES = "9" * 5000


def written(path, text):
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return path


def result_with(**changes) -> str:
    content = valid_files.result()
    for place, value in changes.items():
        where = content
        *outer, last = place.split("__")
        for key in outer:
            where = where[key]
        where[last] = value
    return json.dumps(content)


def test_the_valid_files_are_valid(tmp_path):
    path = written(tmp_path / "result.json", result_with())
    written(tmp_path / "result.samples.jsonl", valid_files.samples())
    assert len(read_samples(read_result(path), path)) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * DEEP, "nested too deeply"),
        ('{"a":' * DEEP, "nested too deeply"),
        (result_with().replace('"seconds": 0.5', f'"seconds": {NINES}', 1), "is not JSON"),
        (result_with().replace('"seconds": 0.5', f'"seconds": {"9" * 4000}', 1), "hundreds of digits"),
        (result_with().replace('"seconds": 0.5', '"seconds": NaN', 1), "NaN"),
        (result_with().replace('"seconds": 0.5', '"seconds": -Infinity', 1), "-Infinity"),
        (result_with().replace('"created"', '"clean_accuracy": {}, "created"'), "'clean_accuracy' is given twice"),
        (result_with(model__name=ESCAPE), r"control character '\\x1b'"),
        (result_with(model__name="\ud800"), r"control character '\\ud800'"),
        (result_with(model__name="ok\u202egnp.exe"), r"control character '\\u202e'"),
        (result_with(config={ESCAPE: 1}), r"control character '\\x1b'"),
        (result_with(attacks=[{"name": ESCAPE}]), r"control character '\\x1b'"),
        (result_with(schema=ESCAPE), r"control character '\\x1b'"),
        (result_with(schema="x" * 10**6), "schema is 'xxx.*…"),
        (result_with(robust_accuracy__n=10**300), "not a valid result"),
        ("\x00" * 100, "is not JSON"),
        ("", "is not JSON"),
    ],
    ids=range(17),
)
def test_results(tmp_path, text, said):
    with pytest.raises(UserError, match=said) as caught:
        read_result(written(tmp_path / "result.json", text))
    told = str(caught.value)
    assert len(told) < 1000
    assert told == printable(told)
    assert told.encode()


@pytest.mark.parametrize(
    "name", ["../result.samples.jsonl", "/etc/passwd", "..", ".", "", "a/b", "link.jsonl", "pipe", "a\0b"]
)
def test_the_record_stays_in_its_own_folder(tmp_path, name):
    folder = tmp_path / "inside"
    folder.mkdir()
    for place in (tmp_path, folder / "a"):
        place.mkdir(exist_ok=True)
        written(place / "result.samples.jsonl", valid_files.samples())
    written(folder / "a" / "b", valid_files.samples())
    (folder / "link.jsonl").symlink_to(tmp_path / "result.samples.jsonl")
    os.mkfifo(folder / "pipe")
    path = written(folder / "result.json", result_with(samples_file=name))
    with pytest.raises(UserError, match=r"own directory|is a directory|device or a pipe|control character"):
        read_samples(read_result(path), path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (valid_files.samples() * 400, "more lines than the 3 samples"),
        ("x" * (LONGEST_LINE + 1), "a line of more than"),
        (valid_files.samples().replace("pgd:steps=5", "\\u001b[2J"), "control character"),
        (valid_files.samples().replace('"step"', '"\\u001b[2J": 0, "step"'), r"line 1 is not .*\\x1b\[2J"),
        ("[" * 9000, "line 1 is not a sample record"),
        (valid_files.samples().replace('"index": 1', f'"index": {NINES}'), "line 2 is not a sample record"),
        (valid_files.samples().replace('"index": 1', '"index": 0'), "different samples"),
        ("\udc80", "is not a text file|is not a sample record"),
    ],
    ids=range(8),
)
def test_records(tmp_path, text, said):
    path = written(tmp_path / "result.json", result_with())
    written(tmp_path / "result.samples.jsonl", text)
    with pytest.raises(UserError, match=said) as caught:
        read_samples(read_result(path), path)
    assert str(caught.value) == printable(caught.value)


def bomb(levels: int, width: int = 9) -> str:
    """A billion laughs: every line nine times the one before."""
    lines = ["l0: &l0 [ha]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


YAML = [
    (bomb(30), "references"),
    ("a: &a [*a]", "references"),
    ("a: &a {b: 1}\nc: {<<: *a}", "references"),
    ("a: !!python/object/apply:os.system ['touch owned']", "could not determine a constructor"),
    ("a: !!python/name:os.system", "could not determine a constructor"),
    ("[" * DEEP, "nested too deeply"),
    ("{a: " * 20_000, "nested too deeply"),
    ("seed: 1\nseed: 2", "'seed' is given twice"),
    ("- " * 20_000, "nested too deeply"),
    ("eps: 2001-13-45", "month must be in"),
    ("eps: !!int ''", "cannot read|not valid"),
    ("eps: !!bool maybe", "cannot read|not valid"),
    ("eps: !!timestamp x", "cannot read|not valid"),
    (f"seed: {NINES}", "cannot read|not valid"),
    (f"seed: 0x{NINES}", "hundreds of digits"),
    ('data: "\\ud800"', "control character"),
    ('data: "\\e[2J"', "control character"),
    ('"\\e[2J": 1', "control character"),
    ('data: "a\\0b"', "control character"),
    ("a" * (MOST_SETTINGS + 1), "262,144"),
    ("\n".join(f"a{i}: 1" for i in range(9000)), "there is no setting"),
    ("just words", "holds no settings"),
    ("", "holds no settings"),
]


@pytest.mark.parametrize(("text", "said"), YAML, ids=range(len(YAML)))
@pytest.mark.parametrize("kind", ["config", "recipe"])
def test_settings(tmp_path, kind, text, said):
    path = written(tmp_path / "settings.yaml", text)
    with pytest.raises(UserError, match=said) as caught:
        read_options(attack_command, path) if kind == "config" else resolve_recipe(str(path), {})
    told = str(caught.value)
    assert len(told) < 10_000
    assert told == printable(told)
    assert told.encode()


@pytest.mark.parametrize(
    "text",
    [
        "1e999999999",
        "1/1e999999999",
        "-1E+99999999",
        "1e0009999999",
        "9" * 10**6,
        "1e1_0000",
        "1e-999999999/1",
        "nan",
        "inf",
        "1/0",
        "1/2/3",
        "",
        "0x10",
        "1e９９９９９９９９９",
        "1/1e٩٩٩٩٩٩٩٩٩",
        "½",
    ],
)
def test_numbers_are_not_worked_out_to_all_their_digits(text):
    with pytest.raises(ValueError, match="is not a number") as caught:
        parse_number(text)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("text", ["²", "٣", "-1", "+1", " 1", "1_0", "", "1.0", NINES, "1001"])
def test_counts_are_plain_digits(text):
    with pytest.raises(ValueError, match="is not a whole number") as caught:
        parse_count(text, 1, 1000)
    assert len(str(caught.value)) < 250
    assert parse_count("007", 1, 1000) == 7


@pytest.mark.parametrize("text", [NINES, "²", f"8:{NINES}", "8:²"])
def test_sizes_are_plain_digits(text):
    with pytest.raises(UserError) as caught:
        Resize.parse(text)
    assert caught.value.slug == "invalid-resize"
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "changes",
    [
        {"normalization": {"mean": "evil"}},
        {"normalization": []},
        {"normalization": {"mean": [1]}},
        {"normalization": {"mean": [0.1] * 1000, "std": [0.1] * 1000}},
        {"class_names": "abc"},
        {"class_names": [1, 2]},
        {"class_names": ["x"] * 200_000},
        {"input_shape": [1, 8]},
        {"input_shape": [1, 8, 10**9]},
        {"input_shape": [1, 0, 8]},
        {"resize": {"resize": 10**9}},
        {"resize": {"resize": -1}},
        {"resize": {"resize": [8, 10**8]}},
        {"resize": {"resize": 8, "interpolation": "evil"}},
        {"resize": 7},
        {"normalization": {"mean": [[]], "std": [1]}},
    ],
)
def test_descriptions_beside_weights(changes):
    with pytest.raises(UserError) as caught:
        apply_metadata(LoadedModel(valid_files.network()), {**valid_files.card(), **changes})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps({**valid_files.card(), "class_names": [ESCAPE]}), "control character"),
        (json.dumps({**valid_files.card(), "class_names": ["\ud800"]}), "control character"),
        ("[" * DEEP, "nested too deeply"),
        ('{"schema": 1, "schema": "robustbench-local/checkpoint/1"}', "given twice"),
    ],
)
def test_descriptions_that_are_read_wrongly(tmp_path, text, said):
    written(tmp_path / "model.json", text)
    with pytest.raises(UserError, match=said):
        description_beside(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=said):
        read_card(text)


def test_a_description_without_end_is_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    assert description_beside(tmp_path / "pipe.safetensors") is None
    with (tmp_path / "big.json").open("wb") as file:
        file.truncate(MOST_DESCRIPTION + 1)
    assert description_beside(tmp_path / "big.safetensors") is None


def test_sizes_out_of_a_description_stay_sensible():
    for sizes in ((0, None), (10**6, None), (8, 10**6), ((8, 10**6), None)):
        with pytest.raises(UserError) as caught:
            Resize(*sizes)
        assert caught.value.slug == "resize-out-of-range"


@pytest.mark.parametrize("kind", ["pipe", "sparse", "device", "folder", "absent"])
def test_files_that_never_end_or_never_answer(tmp_path, kind):
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(2**36)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    slug = {"sparse": "file-too-large", "absent": "no-such-file"}.get(kind, "not-a-plain-file")
    for read in (read_result, lambda path: read_options(attack_command, path)):
        with pytest.raises(UserError) as caught:
            read(path)
        assert caught.value.slug == slug
    with pytest.raises(UserError) as caught:
        resolve_recipe(str(path), {})
    assert caught.value.slug in (slug, "unknown-recipe")


def test_parsing_keeps_what_is_plain():
    assert parse_json('{"a": [1, "ü\\n\\t", null, 1e5, true]}') == {"a": [1, "ü\n\t", None, 1e5, True]}
    assert parse_yaml("a: [1, 'ü', ~, 0.1]\n? 1\n: 2-3") == {"a": [1, "ü", None, 0.1], 1: "2-3"}
    assert printable("a\nü\x1b[2J\u202e") == "a\nü\\x1b[2J\\u202e"


def test_a_hostile_setting_ends_the_command_in_one_line(tmp_path):
    path = written(tmp_path / "settings.yaml", 'model: "\\e[2J\\ud800"')
    done = CliRunner().invoke(attack_command, ["--config", str(path)])
    assert isinstance(done.exception, UserError)
    assert "\x1b" not in str(done.exception)
