"""The floors of a gate for one result: of all samples, and of single classes."""

from __future__ import annotations

from pathlib import Path

from robustbench_local.gates.gate import ClassFloors, Limits
from robustbench_local.gates.limits import Check, Floor, refused
from robustbench_local.results.pairing import class_label
from robustbench_local.results.reason import Reason
from robustbench_local.results.schema import ClassReport, Result


def whole_floors(result: Result, limits: Limits) -> list[Floor]:
    """The floors on the accuracies of all samples."""
    return [
        Floor(
            rule, name, accuracy.correct, accuracy.n, limit, result.data.available, finite=result.sequential is not None
        )
        for rule, name, accuracy, limit in (
            ("min_robust", "robust accuracy", result.robust_accuracy, limits.min_robust),
            ("min_clean", "clean accuracy", result.clean_accuracy, limits.min_clean),
        )
        if limit is not None
    ]


def class_floors(result: Result, path: Path, limits: Limits) -> tuple[list[Floor], list[Check]]:
    """The floors on the accuracies of single classes, and the refusals of those that cannot be decided."""
    floors: list[Floor] = []
    refusals: list[Check] = []
    for rule, of_rule in (("min_class_robust", limits.min_class_robust), ("min_class_clean", limits.min_class_clean)):
        limited_classes, unknown = _class_limits(of_rule, rule, result, path)
        refusals += unknown
        if limited_classes and result.sequential is not None and result.data.n < result.data.available:
            reason = Reason(
                "classes-of-stopped-run",
                "the evaluation stopped when a gate was decided, and how many images of each class the rest of the "
                "split has is not recorded: limit classes in runs without --until-gate",
            )
            refusals.append(refused(rule, "accuracy of single classes", reason))
            continue
        floors += [_class_floor(result, rule, each, limit) for each, limit in limited_classes]
    return floors, refusals


def _class_floor(result: Result, rule: str, each: ClassReport, limit: float) -> Floor:
    robust = rule == "min_class_robust"
    accuracy = each.robust_accuracy if robust else each.clean_accuracy
    of = f" of class {class_label(each.label, each.name)}"
    return Floor(
        f"{rule}:{each.label}",
        f"{'robust' if robust else 'clean'} accuracy{of}",
        accuracy.correct,
        accuracy.n,
        limit,
        # A subset is stratified: it has the class proportions of its split.
        round(accuracy.n * result.data.available / result.data.n),
        finite=result.sequential is not None,
        of=of,
    )


def _class_limits(
    floors: ClassFloors, rule: str, result: Result, path: Path
) -> tuple[list[tuple[ClassReport, float]], list[Check]]:
    """Each limited class with its limit, and a refusal for each limit whose class the result does not have."""
    limit_by_label: dict[int, float] = {}
    refusals = []
    for key, limit in floors.single.items():
        labels = [each.label for each in result.per_class if each.name == key]
        if not labels and str(key).isdecimal():
            labels = [each.label for each in result.per_class if str(each.label) == str(key)]
        if not labels:
            reason = Reason("unknown-class", f"{path} has no samples of that class")
        elif len(labels) > 1:
            reason = Reason("ambiguous-class", f"{path} has {len(labels)} classes of that name, so give the label")
        elif labels[0] in limit_by_label:
            reason = Reason("duplicate-class", "another line limits the same class")
        else:
            limit_by_label[labels[0]] = limit
            continue
        sentence = f"{rule} limits class {key!r}, but {reason.sentence}"
        refusals.append(refused(f"{rule}:{key}", f"accuracy of class {key}", Reason(reason.slug, sentence)))
    limits = [(each, limit_by_label.get(each.label, floors.default)) for each in result.per_class]
    return [(each, limit) for each, limit in limits if limit is not None], refusals
