"""The comparison of strength runs, keeps what it has, and believes nobody who leaves the ball."""

import importlib
import json
import os
from pathlib import Path

import pytest
import torch

from robustbench_local import ThreatModel, load_classifier, load_dataset

SUITES = ["robust fast/1", "robust standard/1"]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("strength")


@pytest.fixture
def digits(bench):
    return importlib.import_module("subjects").all_subjects()["digits-cnn"]


def test_rows_are_written_as_they_come_and_kept(bench, digits, tmp_path, capsys):
    path = tmp_path / "strength.json"
    first = bench.compare([digits], SUITES[:1], 20, bench.Record(path))
    both = bench.compare([digits], SUITES, 20, bench.Record(path))
    content = json.loads(path.read_text())
    assert content["rows"] == both
    assert both[0] == first[0]
    assert content["machine"]["cores"] == os.cpu_count()
    for row in both:
        assert row["subject"] == "digits-cnn"
        assert row["images"] == 20
        assert len(row["standing"]) == row["robust"] <= row["clean"] <= 20
        assert row["forward_passes"] > row["backward_passes"] > 0 < row["seconds"]
        assert sum(stage["fooled"] for stage in row["stages"]) == row["clean"] - row["robust"]
    importlib.import_module("plots").show(both, base=SUITES[1], reference=SUITES[0])
    told = capsys.readouterr().out
    assert all(suite in told for suite in SUITES)
    assert "1.000" in told


def test_the_picture_is_drawn(bench, tmp_path):
    pytest.importorskip("matplotlib", reason="the bench extra brings matplotlib")
    row = {
        "subject": "net",
        "norm": "linf",
        "eps": "0.1",
        "images": 10,
        "clean": 9,
        "robust": 5,
        "forward_passes": 90,
        "backward_passes": 80,
    }
    rows = [{**row, "attacker": name} for name in bench.ATTACKERS] + [{**row, "attacker": "none", "error": "gone"}]
    importlib.import_module("plots").draw(rows, tmp_path / "strength.png")
    assert (tmp_path / "strength.png").read_bytes().startswith(b"\x89PNG")


def test_a_failed_attacker_is_a_reason_and_is_tried_again(bench, digits, tmp_path, monkeypatch):
    def broken(model, threat_model, classes):
        raise ImportError("no such package")

    monkeypatch.setitem(bench.PEERS, "broken", bench.Peer(broken, None))
    record = bench.Record(tmp_path / "strength.json")
    [row] = bench.compare([digits], ["broken"], 4, record)
    assert row["error"] == "ImportError: no such package"
    assert record.finished({"attacker": "broken"}) is None


def test_peers_are_counted_and_successes_out_of_bounds_refused(bench):
    classifier, dataset = load_classifier("digits-cnn"), load_dataset("digits").subset(range(20))
    threat_model = ThreatModel("linf", "0.01")

    def far(model, threat_model, classes):
        return lambda images, labels: 1 - images

    row = bench.run_peer(bench.Peer(far, None), classifier, dataset, threat_model)
    assert row["refused"] > 0
    assert row["robust"] == row["clean"]
    row = bench.run_peer(bench.Peer(bench.bare_pgd, None), classifier, dataset, threat_model)
    assert row["backward_passes"] == bench.STEPS * row["clean"]
    assert row["forward_passes"] == bench.STEPS * row["clean"] + 20


def test_a_record_of_another_machine_is_left_alone(bench, tmp_path):
    path = tmp_path / "strength.json"
    path.write_text(json.dumps({"machine": {"threads": torch.get_num_threads() + 1}, "rows": []}))
    with pytest.raises(SystemExit, match="another machine"):
        bench.Record(path)


@pytest.mark.soak
def test_every_picture_of_the_checks_is_drawn(bench, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="the bench extra brings matplotlib")
    pictures = importlib.import_module("masking_pictures")
    monkeypatch.setattr(pictures, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["masking_pictures.py"])
    pictures.main()
    committed = {path.name for path in (Path(__file__).parents[2] / "docs" / "images").iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == committed
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
