"""What users install is the wheel, not the checkout."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the source distribution, as an index would have it."""
    folder = tmp_path_factory.mktemp("dist")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-2000:]
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_and_nothing_at_the_top(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"robustbench_local"}
    for needed in (
        "attacks/pgd.py",
        "defenses/pgd_at.py",
        "configs/digits-cnn.yaml",
        "cli/attack.py",
        "models/bundled/digits-cnn.safetensors",
        "models/bundled/digits-cnn-robust.json",
    ):
        assert f"robustbench_local/{needed}" in names
    assert not any(part.startswith("test") for name in names for part in name.split("/"))


def test_a_clean_environment_beside_a_foreign_attacks_folder(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}))
    # The dependencies of this environment; the editable install of the checkout is not followed through this file.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    zipfile.ZipFile(wheel).extractall(site)
    (tmp_path / "work" / "attacks").mkdir(parents=True)
    (tmp_path / "work" / "attacks" / "__init__.py").write_text("raise SystemExit('the foreign attacks were imported')")
    ran = subprocess.run(
        [python, "-m", "robustbench_local", "list", "attacks"],
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert {"fgsm", "pgd", "fast/1"} <= {line.split()[0] for line in ran.stdout.splitlines()}
    where = subprocess.run(
        [python, "-c", "import robustbench_local.attacks as a; print(a.__file__)"],
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(site) in where.stdout


def test_the_top_level_is_what_it_should_be():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    allowed = {
        "pyproject.toml",
        "robustbench_local",
        "attacks",
        "defenses",
        "tests",
        "configs",
        "README.md",
        "Makefile",
        "LICENSE",
        "action.yml",
        "benchmarks",
        "docs",
        ".ci",
        ".gitignore",
        "constraints.txt",
    }
    assert {path.split("/")[0] for path in listed.stdout.splitlines()} <= allowed
