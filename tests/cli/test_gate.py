import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from robustbench_local.cli import main


@pytest.fixture(scope="module")
def evaluated(results, tmp_path_factory):
    """Results of the two bundled classifiers on the test digits, and of the better one for L2."""
    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(results, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        command = ["attack", "digits-cnn-robust", "--norm", "l2", "--eps", "0.5", "--output", "l2.json"]
        patched.setattr(sys, "argv", ["robust", *command])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
    return folder


@pytest.fixture
def gate(robust, evaluated, tmp_path):
    """The command, in a folder with those results."""
    shutil.copytree(evaluated, tmp_path, dirs_exist_ok=True)
    for name in ("weak", "strong", "l2"):
        shutil.copy(f"{name}.json", f"{name}-copy.json")
    return lambda *arguments: robust("gate", *arguments)


def listing():
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["strong.json", "--gate", "digits"], 0),
        (["weak.json", "--gate", "digits"], 3),
        (["strong.json", "--gate", "digits", "--min-robust", "0.88"], 4),
        (["weak.json", "--gate", "digits", "--require", "standard"], 5),
        (["l2.json", "--gate", "digits"], 5),
        (["weak.json", "--baseline", "strong.json", "--max-drop", "2/100"], 3),
        (["strong.json", "--baseline", "weak.json", "--max-drop", "0"], 0),
        (["weak.json", "--baseline", "weak-copy.json", "--max-drop", "0"], 4),
        (["few.json", "--baseline", "weak.json", "--max-drop", "0.1"], 5),
        (["strong.json", "l2.json", "--min-clean", "0.9"], 0),
        (
            [
                "strong.json",
                "l2.json",
                "--max-drop",
                "0.05",
                "--baseline",
                "l2-copy.json",
                "--baseline",
                "strong-copy.json",
            ],
            0,
        ),
    ],
)
def test_exit_codes_and_nothing_is_written(gate, arguments, code):
    before = listing()
    ended = gate(*arguments)
    words = {0: "pass", 3: "fail", 4: "undecided", 5: "not comparable"}
    assert ended.code == code
    assert f"gate: {words[code]}" in ended.err
    assert ended.out == ""
    assert listing() == before


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "Missing argument"),
        (["weak.json"], "no-limit"),
        (["gone.json", "--min-clean", "0.1"], "gone.json"),
        (["weak.json", "--gate", "nowhere"], "unknown-gate"),
        (["weak.json", "--max-drop", "0.1"], "baseline-not-named"),
        (["weak.json", "--baseline", "strong.json"], "baseline-without-drop"),
        (["weak.json", "--baseline", "strong.json", "--min-clean", "0.1"], "baseline-without-drop"),
        (["weak.json", "--min-clean", "0.1", "--require", "strong"], "unknown-suite"),
        (["weak.json", "strong.json", "--min-clean", "0.1"], "duplicate-threat-model"),
        (["weak.json", "--min-clean", "0.1", "--alpha", "0.6"], "alpha-out-of-range"),
        (["weak.json", "--min-robust", "40%"], "limit-not-a-fraction"),
        (["weak.json", "weak.json", "--min-clean", "0.1"], "duplicate-result"),
        (["weak.json", "--gate", "l2.json"], "result-file-as-gate"),
        *(
            (
                ["weak.json", "--baseline", "strong.json", "--max-drop", "1", "--json", "--output", name],
                "output-is-input",
            )
            for name in ("weak.json", "./weak.samples.jsonl", "strong.json", "strong.samples.jsonl")
        ),
        (["weak.json", "--min-clean", "0.1", "--json", "--format", "junit"], "conflicting-formats"),
        (["weak.json", "--min-clean", "0.1", "--output", "x"], "output-without-format"),
        (["weak.json", "--min-clean", "0.1", "--format", "junit", "--output", "."], "it is a directory"),
        (["weak.json", "--min-clean", "0.1", "--format", "xml"], "'xml'"),
        (["weak.json", "--min-clean", "0.1", "--update-baseline"], "baseline-not-named"),
        (["weak.json", "--min-clean", "0.1", "--update-baseline", "--baseline", "weak.json"], "result-is-baseline"),
        (
            ["weak.json", "l2.json", "--min-clean", "0.1", "--update-baseline", "--baseline", "n.json"],
            "duplicate-baseline",
        ),
    ],
)
def test_bad_usage_is_one_sentence(gate, arguments, word):
    before = listing()
    ended = gate(*arguments)
    assert ended.code == 2
    assert word in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert listing() == before


def test_flags_win_over_the_gate_file(gate):
    Path("ci").mkdir()
    shutil.copy("strong.json", "ci/base.json")
    shutil.copy("strong.samples.jsonl", "ci/strong.samples.jsonl")
    Path("ci/gate.yaml").write_text("min_clean: 0.995\nbaseline: base.json\nmax_drop: 0.02\n")
    assert gate("strong.json", "--gate", "ci/gate.yaml").code != 0
    assert gate("strong.json", "--gate", "ci/gate.yaml", "--min-clean", "0.9").code == 0
    assert gate("weak.json", "--gate", "ci/gate.yaml", "--min-clean", "0.9").code == 3
    assert gate("weak.json", "--gate", "ci/gate.yaml", "--min-clean", "0.9", "--baseline", "weak-copy.json").code == 0


def test_the_gate_file_is_not_written_over(gate):
    Path("gate.yaml").write_text("min_clean: 0.1")
    output = Path("..") / Path.cwd().name / "gate.yaml"
    ended = gate("weak.json", "--gate", "gate.yaml", "--format", "sarif", "--output", output)
    assert ended.code == 2
    assert "output-is-input" in ended.err
    assert Path("gate.yaml").read_text() == "min_clean: 0.1"


def test_every_result_has_a_heading(gate):
    assert "digits-cnn-robust on digits, L∞ 0.1 (strong.json)" in gate("strong.json", "--min-clean", "0.1").err
    ended = gate("strong.json", "l2.json", "--min-robust", "0.7", "--min-clean", "0.9")
    assert "digits-cnn-robust on digits, L∞ 0.1 (strong.json)" in ended.err
    assert "digits-cnn-robust on digits, L2 0.5 (l2.json)" in ended.err


def test_each_format_goes_to_stdout_or_whole_into_a_file(gate, monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    for style in ("json", "junit", "sarif", "github"):
        ended = gate("weak.json", "--gate", "digits", "--format", style)
        assert ended.code == 3
        assert "gate: fail" in ended.err
        in_file = gate("weak.json", "--gate", "digits", "--format", style, "--output", f"out/gate.{style}")
        assert in_file.code == 3
        assert in_file.out == ""
        content = Path(f"out/gate.{style}").read_text()
        if style != "junit":  # which has the time in it
            assert content == ended.out
    assert Path("out/gate.json").read_text() == gate("weak.json", "--gate", "digits", "--json").out
    assert ElementTree.parse("out/gate.junit").getroot().tag == "testsuites"
    assert len(list(Path("out").iterdir())) == 4, "and nothing half-written beside them"


def test_the_step_summary_is_appended_where_github_says(gate, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    assert gate("weak.json", "--baseline", "strong.json", "--max-drop", "0.02", "--format", "github").code == 3
    assert gate("weak.json", "--min-clean", "0.9").code == 0
    text = Path("summary.md").read_text()
    assert text.count("## ") == 1 + text.count("### ")
    assert "robust gate: fail" in text
    assert text.count("| lost |") == 10


def test_update_baseline_takes_the_place_of_the_old_one(gate, robust):
    shutil.copy("weak.json", "main.json")
    shutil.copy("weak.samples.jsonl", "main.samples.jsonl")
    limits = ("--baseline", "main.json", "--max-drop", "0.02")
    ended = gate("strong.json", *limits, "--update-baseline", "--json")
    assert ended.code == 0
    assert "baseline updated: main.json" in ended.err
    assert json.loads(ended.out)["updated"] == ["main.json"]
    assert Path("main.samples.jsonl").read_bytes() == Path("strong.samples.jsonl").read_bytes()
    content = json.loads(Path("main.json").read_text())
    assert content["model"]["name"] == "digits-cnn-robust"
    assert content["samples_file"] == "main.samples.jsonl"
    assert gate("strong.json", *limits).code == 0
    assert gate("weak.json", *limits).code == 3


@pytest.mark.parametrize(("name", "code"), [("weak", 3), ("few", 5)])
def test_update_baseline_leaves_it_where_the_gate_does_not_pass(gate, name, code):
    shutil.copy("strong.json", "main.json")
    before = listing()
    ended = gate(f"{name}.json", "--baseline", "main.json", "--max-drop", "0.02", "--update-baseline")
    assert ended.code == code
    assert "baseline not updated" in ended.err
    assert listing() == before


def test_the_first_baseline_is_made_of_the_result(gate):
    Path("gate.yaml").write_text(
        "max_drop: 0.02\nthreat_models:\n- {norm: linf, eps: 0.1, baseline: base/linf.json}\n"
        "- {norm: l2, eps: 1/2, baseline: base/l2.json, min_clean: 0.9}\n"
    )
    results = ("strong.json", "l2.json", "--gate", "gate.yaml")
    assert gate(*results).code == 4, "the first result has only drops, which nothing was compared with"
    ended = gate(*results, "--update-baseline")
    assert ended.code == 0
    assert "base/linf.json yet" in ended.err
    assert "base/l2.json yet" in ended.err
    assert sorted(path.name for path in Path("base").iterdir()) == [
        "l2.json",
        "l2.samples.jsonl",
        "linf.json",
        "linf.samples.jsonl",
    ]
    assert gate(*results).code == 0


def test_a_baseline_that_cannot_be_written_is_whole(gate, monkeypatch):
    shutil.copy("weak.json", "main.json")
    shutil.copy("weak.samples.jsonl", "main.samples.jsonl")
    Path("main.json").write_text(Path("main.json").read_text().replace("weak.samples", "main.samples"))
    before, sync, calls = listing(), os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "the disk is full")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    ended = gate("strong.json", "--baseline", "main.json", "--max-drop", "0.02", "--update-baseline")
    assert ended.code == 2
    assert "the disk is full" in ended.err
    assert listing() == before


@pytest.mark.parametrize(
    ("extra", "code", "word"),
    [
        (["--min-clean", "0.9"], 0, "pass"),
        (["--min-clean", "0.999"], 3, "fail"),
        (["--min-clean", "0.985"], 4, "undecided"),
        ([], 4, "undecided"),
        (["--min-clean", "0.9", "--require-baseline"], 5, "not comparable"),
    ],
)
def test_a_first_pull_request_has_no_baseline(gate, monkeypatch, extra, code, word):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    Path("gate.yaml").write_text("baseline: ci/main.json\nmax_drop: 0.02\n")
    ended = gate("strong.json", "--gate", "gate.yaml", "--format", "github", *extra)
    assert ended.code == code
    text = Path("summary.md").read_text()
    assert f"robust gate: {word}" in text
    for output in (ended.out, ended.err, text.replace("&#95;", "_")):
        assert "ci/main.json" in output


def test_the_gate_needs_no_torch(evaluated):
    commands = [
        ["gate", "--help"],
        ["gate", "strong.json", "--gate", "digits"],
        ["gate", "strong.json", "--gate", "digits", "--format", "sarif"],
        ["gate", "strong.json", "--gate", "digits", "--format", "junit"],
        ["gate", "strong.json", "--baseline", "weak.json", "--max-drop", "0", "--format", "github"],
        ["gate", "strong.json", "--baseline", "gone.json", "--max-drop", "0", "--min-clean", "0.9", "--json"],
        ["compare", "strong.json", "weak.json", "--json"],
    ]
    code = (
        "import json, sys, robustbench_local.cli as c\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['robust', *arguments]\n"
        "    try: c.main()\n"
        "    except SystemExit as ended: assert ended.code == 0, (arguments, ended.code)\n"
        "    heavy = {'torch', 'torchvision', 'art', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "    assert not heavy, (arguments, heavy)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)],
        cwd=evaluated,
        capture_output=True,
        text=True,
        env={**os.environ, "GITHUB_STEP_SUMMARY": os.devnull},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
