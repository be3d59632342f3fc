"""What stands beside the code says what the code says."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

import robustbench_local
from robustbench_local.results.schema import SampleRecord

ROOT = Path(__file__).resolve().parents[2]


def result_fields():
    schema = json.loads((ROOT / "docs" / "result.schema.json").read_text())
    for part in (schema, *schema["$defs"].values()):
        yield from part.get("properties", {})
    yield from SampleRecord.model_fields


def test_the_glossary_explains_every_field_of_a_result():
    glossary = (ROOT / "docs" / "glossary.md").read_text()
    assert not {field for field in result_fields() if f"`{field}`" not in glossary}


def test_terms_of_the_glossary_are_in_order():
    table = (ROOT / "docs" / "glossary.md").read_text().split("## Terms")[1].split("## ")[0]
    terms = [term.lower() for term in re.findall(r"^\| ([^|`]+?) \|", table, re.M)][1:]
    assert len(terms) > 50
    assert terms == sorted(terms)


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == robustbench_local.__version__
    assert project.get("version", robustbench_local.__version__) == robustbench_local.__version__
    assert f"\n## {robustbench_local.__version__} " in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").iterdir()), ids=lambda path: path.name)
def test_workflows_are_what_github_takes(path):
    vendored = pytest.importorskip("check_jsonschema")
    folder = Path(vendored.__file__).parent / "builtin_schemas" / "vendor"
    schema = json.loads((folder / "github-workflows.json").read_text())
    content = {"on" if key is True else key: value for key, value in yaml.safe_load(path.read_text()).items()}
    jsonschema.validators.validator_for(schema)(schema).validate(content)


def test_the_matrix_starts_at_the_oldest_supported_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    for name in ("torch", "torchvision"):
        (oldest,) = [each.split(">=")[1] for each in project["dependencies"] if each.startswith(f"{name}>=")]
        assert f'"{name}=={oldest}.*"' in workflow


def test_links_between_documents_lead_somewhere():
    broken = set()
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            if not (document.parent / link).exists():
                broken.add(f"{document.name}: {link}")
    assert not broken


@pytest.mark.parametrize(
    ("target", "commands"),
    [("test", ["ruff check", "ruff format --check", "mypy", "-m pytest"]), ("demo", ["robust attack"])],
)
def test_the_commands_of_the_readme_do_something(target, commands, tmp_path):
    dry = subprocess.run(
        ["make", "--dry-run", target, f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not [command for command in commands if command not in dry.stdout]
