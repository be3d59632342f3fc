"""Result files written by hand, for tests that read them."""

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
    """A result file with `robust` of n samples standing; `flipped` ones change sides.

    classes: names; sample i is of class i modulo their number. changes: by field, or "section.field". attacks: names,
    and how many fell for each; by default all that fell for PGD.
    """
    path.parent.mkdir(exist_ok=True, parents=True)
    classes = classes or [None]
    kinds = len(classes)
    records = []
    for index in range(n):
        stands = (index < robust) != (index in flipped)
        label = index % kinds
        right = index < clean or stands
        records.append(
            SampleRecord(
                index=index,
                input_sha256=f"{index:064x}",
                label=label,
                clean_prediction=label if right else label + 1,
                adversarial_prediction=None,
                robust=stands,
                broken_by=None if stands or not right else "pgd",
                restart=None,
                step=None,
                distance=None,
                clean_margin=1.0,
                margin=1.0 + index / n if stands else -1.0,
            )
        )
    samples = path.with_suffix(".samples.jsonl")
    samples.write_text("\n".join(record.model_dump_json() for record in records) + "\n")

    def accuracy(members, of):
        return Accuracy.of(sum(of(record) for record in members), len(members))

    def right(record):
        return record.clean_prediction == record.label

    per_class = [
        ClassReport(
            label=label,
            name=name,
            clean_accuracy=accuracy(records[label::kinds], right),
            robust_accuracy=accuracy(records[label::kinds], lambda record: record.robust),
        )
        for label, name in enumerate(classes)
    ]
    fell = sum(right(record) and not record.robust for record in records)
    result = Result(
        created="2026-01-01T00:00:00+00:00",
        model=ModelInfo(name="m", sha256="0" * 64, classes=10, parameters=1, normalization=None),
        data=DataInfo(name="d", split="test", n=n, available=n, sha256="0" * 64, subset_seed=None, lossy=False),
        threat_model=ThreatModelInfo(norm="linf", eps=0.1, eps_text="0.1", box=(0, 1), goal="untargeted"),
        protocol=Protocol(name="fast", version=1, sha256="a"),
        clean_accuracy=accuracy(records, right),
        robust_accuracy=accuracy(records, lambda record: record.robust),
        per_class=per_class,
        attacks=[
            AttackReport(
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
            for name, fooled in attacks or [("pgd", fell)]
        ],
        diagnostics=[],
        verdict=Verdict(status="trusted", reasons=[]),
        samples_file=samples.name,
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
    content = json.loads(result.to_json())
    for key, value in (changes or {}).items():
        section, _, field = key.partition(".")
        content[section] = {**content[section], field: value} if field else value
    path.write_text(json.dumps(content))
    return path
