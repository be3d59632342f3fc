"""What users install is the wheel, not the checkout."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import robustbench_local

ROOT = Path(__file__).resolve().parents[2]
LIST_ATTACKS = """
import runpy, sys
sys.argv = ["robust", "list", "attacks"]
try:
    runpy.run_module("robustbench_local", run_name="__main__")
finally:
    print(sys.modules["robustbench_local.attacks"].__file__, file=sys.stderr)
"""


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
        "py.typed",
    ):
        assert f"robustbench_local/{needed}" in names
    assert not any(part.startswith("test") for name in names for part in name.split("/"))


def test_the_wheel_states_its_version_and_its_command(wheel):
    about = f"robustbench_local-{robustbench_local.__version__}.dist-info"
    archive = zipfile.ZipFile(wheel)
    assert f"Version: {robustbench_local.__version__}\n" in archive.read(f"{about}/METADATA").decode()
    assert "robust = robustbench_local.cli:main" in archive.read(f"{about}/entry_points.txt").decode()


def test_a_clean_environment_beside_a_foreign_attacks_folder(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}))
    # The dependencies of this environment. Editable installs in these folders are not followed through this file.
    dependencies = [entry for entry in sys.path if Path(entry).name == "site-packages"]
    (site / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    zipfile.ZipFile(wheel).extractall(site)
    (tmp_path / "work" / "attacks").mkdir(parents=True)
    (tmp_path / "work" / "attacks" / "__init__.py").write_text("raise SystemExit('the foreign attacks were imported')")
    ran = subprocess.run(
        [python, "-c", LIST_ATTACKS], cwd=tmp_path / "work", capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert {"fgsm", "pgd", "fast/1"} <= {line.split()[0] for line in ran.stdout.splitlines()}
    assert ran.stderr.strip() == str(site / "robustbench_local" / "attacks" / "__init__.py")


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
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "SECURITY.md",
        ".github",
        ".pre-commit-config.yaml",
    }
    assert {path.split("/")[0] for path in listed.stdout.splitlines()} <= allowed
