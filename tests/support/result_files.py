"""Result files without an evaluation, for tests that read them."""

import json

from robustbench_local.results.schema import (
    Accuracy,
    AttackReport,
    ClassReport,
    Cost,
    DataInfo,
    ModelInfo,
    Protocol,
    Result,
    SampleRecord,
    ThreatModelInfo,
    Verdict,
)


def write_result(path, robust, *, n=1000, clean=900, changes=None, flipped=(), classes=None, attacks=()):
    """A result file with `robust` of n samples robust, except that the `flipped` ones are the other way round.

    classes: names; sample i is of class i modulo their number. changes: by field, or "section.field". attacks: names,
    and how many samples each fooled; by default PGD fooled all that were fooled.
    """
    path.parent.mkdir(exist_ok=True, parents=True)
    classes = classes or [None]
    records = [
        _record(index, n, index % len(classes), index < clean, (index < robust) != (index in flipped))
        for index in range(n)
    ]
    samples = path.with_suffix(".samples.jsonl")
    samples.write_text("\n".join(record.model_dump_json() for record in records) + "\n")
    fooled = sum(_is_correct(record) and not record.robust for record in records)
    reports = [_attack(name, fooled, clean, n) for name, fooled in attacks or [("pgd", fooled)]]
    content = json.loads(_result(records, classes, reports, samples.name).to_json())
    for key, value in (changes or {}).items():
        section, _, field = key.partition(".")
        content[section] = {**content[section], field: value} if field else value
    path.write_text(json.dumps(content))
    return path


def _record(index, n, label, clean, robust):
    correct = clean or robust
    return SampleRecord(
        index=index,
        input_sha256=f"{index:064x}",
        label=label,
        clean_prediction=label if correct else label + 1,
        adversarial_prediction=None,
        robust=robust,
        broken_by="pgd" if correct and not robust else None,
        restart=None,
        step=None,
        distance=None,
        clean_margin=1.0,
        margin=1.0 + index / n if robust else -1.0,
    )


def _is_correct(record):
    return record.clean_prediction == record.label


def _accuracies(records):
    correct = sum(_is_correct(record) for record in records)
    robust = sum(record.robust for record in records)
    n = len(records)
    return {"clean_accuracy": Accuracy.of(correct, n), "robust_accuracy": Accuracy.of(robust, n)}


def _attack(name, fooled, clean, n):
    return AttackReport(
        name=name,
        parameters={},
        restarts=1,
        attacked=clean,
        fooled=fooled,
        unconfirmed=0,
        robust_accuracy_after=(clean - fooled) / n,
        forward_passes=1,
        backward_passes=1,
        seconds=1,
    )


def _result(records, classes, attacks, samples_file):
    n = len(records)
    return Result(
        created="2026-01-01T00:00:00+00:00",
        model=ModelInfo(name="m", sha256="0" * 64, classes=10, parameters=1, normalization=None),
        data=DataInfo(name="d", split="test", n=n, available=n, sha256="0" * 64, subset_seed=None, lossy=False),
        threat_model=ThreatModelInfo(norm="linf", eps=0.1, eps_text="0.1", box=(0, 1), goal="untargeted"),
        protocol=Protocol(name="fast", version=1, sha256="a"),
        **_accuracies(records),
        per_class=[
            ClassReport(label=label, name=name, **_accuracies(records[label :: len(classes)]))
            for label, name in enumerate(classes)
        ],
        attacks=attacks,
        diagnostics=[],
        verdict=Verdict(status="trusted", reasons=[]),
        samples_file=samples_file,
        cost=Cost(
            forward_passes=1,
            backward_passes=1,
            forward_passes_per_image=1,
            backward_passes_per_image=1,
            seconds=1,
            image_steps_per_second=1,
            peak_memory_bytes=1,
        ),
        environment={},
        config={},
    )
