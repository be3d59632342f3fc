"""The catalog of datasets: what an entry of it brings with it, and what a failed download leaves behind."""

import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest

import robustbench_local.data.sets
from robustbench_local.data import catalog, default_eps, list_datasets, load_dataset, require_files, require_known
from robustbench_local.data.catalog import registered_datasets
from robustbench_local.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
OWN_SET = '''"""Two gray squares."""

from robustbench_local.data.catalog import DatasetEntry


def load(request):
    import torch

    from robustbench_local.data.dataset import ArrayDataset

    images = torch.tensor([0.2, 0.8]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)
    return ArrayDataset(images, torch.tensor([0, 1]), name="squares", split=request.split)


DATASET = DatasetEntry(name="squares", description="two gray squares", load=load, default_eps={"linf": "0.25"})
'''


@pytest.fixture
def squares(tmp_path, monkeypatch):
    """A dataset of one's own: one file and one line."""
    (tmp_path / "squares.py").write_text(OWN_SET)
    monkeypatch.setattr(robustbench_local.data.sets, "__path__", [*robustbench_local.data.sets.__path__, str(tmp_path)])
    monkeypatch.setattr(catalog, "MODULES", (*catalog.MODULES, "squares"))
    registered_datasets.cache_clear()
    yield
    sys.modules.pop("robustbench_local.data.sets.squares", None)
    registered_datasets.cache_clear()


@pytest.mark.usefixtures("squares")
def test_one_file_and_one_line_make_a_data_set(robust):
    assert load_dataset("squares", split="train").images([1]).unique().tolist() == [pytest.approx(0.8)]
    assert default_eps("squares", "Linf") == "0.25"
    assert "two gray squares" in robust("list", "datasets").out
    misspelled = robust("attack", "digits-cnn", "--data", "square")
    assert misspelled.code == 2
    assert "Did you mean 'squares'" in misspelled.err
    assert "[unknown-dataset]" in misspelled.err
    with pytest.raises(UserError) as caught:
        load_dataset("squares", split="val")
    assert caught.value.slug == "unknown-split"
    with pytest.raises(UserError) as caught:
        require_files("squares")
    assert caught.value.slug == "resize-without-files"


def test_names_and_default_eps():
    specs = [spec for spec, description in list_datasets() if description]
    assert specs[0] == "digits"
    assert specs[-2:] == ["imagefolder:PATH", "npz:PATH"]
    assert len(specs) == len(catalog.MODULES)
    assert default_eps("digits", "linf") == "0.1"
    assert default_eps("gtsrb", "linf") == "8/255"
    assert default_eps("cifar10", "l2") == "0.5"
    assert default_eps("imagenet", "linf") == "4/255"
    assert default_eps("digits", "l2") is None
    assert default_eps("npz:x.npz", "linf") is None
    for spec in ("imagenet", "gtsrb", "imagefolder:x"):
        require_files(spec)


@pytest.mark.parametrize(
    ("spec", "slug", "advice"),
    [
        ("cifar-10", "unknown-dataset", "Did you mean 'cifar10'"),
        ("Digits", "unknown-dataset", "Did you mean 'digits'"),
        ("digits:x", "unknown-dataset", "'digits:x'"),
        ("mine.npz", "unknown-dataset", "npz:mine.npz"),
        (".", "unknown-dataset", "imagefolder:."),
        ("\x1b[2J", "unknown-dataset", r"x1b"),
        ("npz:", "dataset-without-path", "npz:PATH"),
        ("imagefolder", "dataset-without-path", "imagefolder:PATH"),
    ],
)
def test_unknown_specs_are_refused_with_advice(spec, slug, advice):
    with pytest.raises(UserError, match=advice) as caught:
        load_dataset(spec)
    assert caught.value.slug == slug
    assert "\x1b" not in str(caught.value)
    if slug == "unknown-dataset":
        with pytest.raises(UserError):
            require_known(spec)


def test_the_catalog_is_known_without_torch():
    code = (
        "import sys; from robustbench_local.data import list_datasets, default_eps; list_datasets(); "
        "default_eps('digits', 'linf'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def offline(*_args, **_kwargs):
    raise urllib.error.URLError("no network here")


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", offline)


def failed_download(name, data_dir):
    with pytest.raises(UserError, match="no network here") as caught:
        load_dataset(name, data_dir=data_dir, download=True)
    assert caught.value.slug == "download-failed"


def contents(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "gtsrb"])
def test_a_failed_download_leaves_nothing_behind(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    failed_download(name, None)
    assert contents(tmp_path) == []
    failed_download(name, tmp_path / "new" / "data")
    assert contents(tmp_path) == []


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn", "gtsrb"])
def test_a_failed_download_removes_nothing_that_was_there(tmp_path, name):
    kept = ["FashionMNIST/raw/x", "MNIST/raw/other", "cifar-10-batches-py/x", "gtsrb/x", "mine.txt", "empty/"]
    for path in kept:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).mkdir() if path.endswith("/") else (tmp_path / path).write_text("mine")
    before = contents(tmp_path)
    failed_download(name, tmp_path)
    assert contents(tmp_path) == before


def test_a_download_that_breaks_off_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    """Torchvision writes while it receives; another program may be writing beside it."""

    def broken(root, *, train, download):
        assert train
        assert download
        raw = Path(root) / "CIFAR10-work"
        raw.mkdir(parents=True)
        (raw / "another's").write_text("not ours")
        (Path(root) / "cifar-10-batches-py").mkdir()
        (Path(root) / "cifar-10-batches-py" / "half").write_bytes(b"x")
        (Path(root) / "cifar-10-python.tar.gz").write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr("torchvision.datasets.CIFAR10", broken)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("cifar10", split="train", data_dir=tmp_path / "data", download=True)
    assert contents(tmp_path) == ["data", "data/CIFAR10-work", "data/CIFAR10-work/another's"]
