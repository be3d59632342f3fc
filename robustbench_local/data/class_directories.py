"""From the names of class directories to labels: the model's class names, numbers, or their order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from robustbench_local.data.class_names import match_class_names
from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import printable

_NUMBER = re.compile(r"[0-9]{1,9}")
_MOST_GAPS = 100
"""Numbers with more gaps than this, and fewer directories than gaps, are no class numbers unless a model has them."""


@dataclass(frozen=True)
class ClassDirectories:
    """Class directories with their labels.

    names and labels: one per directory, sorted by name. numbering: `"names"` (of the model's classes), `"numbers"` (of
    the classes) or `"order"` (labels count the sorted names). class_names: in label order.
    """

    root: str
    names: tuple[str, ...]
    labels: tuple[int, ...]
    numbering: Literal["names", "numbers", "order"]
    class_names: tuple[str, ...]

    @property
    def text(self) -> str:
        """How numbers were read, one sentence; "" where they were not."""
        if self.numbering != "numbers":
            return ""
        numbers = [int(name) for name in self.names]
        low, high = min(numbers), max(numbers)
        gaps = high - low + 1 - len(numbers)
        missing = sorted(set(range(low, high + 1)) - set(numbers))[:8]
        listed = f" without {', '.join(map(str, missing))}{' …' if gaps > len(missing) else ''}" if gaps else ""
        return (
            f"the class directories are numbers, {low} to {high}{listed}, read as the classes {min(self.labels)} to "
            f"{max(self.labels)}"
        )


def label_directories(
    names: Sequence[str], class_names: Sequence[str] | None, root: str, outputs: int | None = None
) -> ClassDirectories:
    """Label directories. names: sorted. class_names: the model's, or None. outputs: how many classes the model has.

    Names that are all numbers are class numbers, unless they are names of the model's classes. They count from 1 where
    there is no 0 and the largest is the number of outputs (without a model: of directories), else from 0.
    Raises UserError for names that match no class, and for more directories, or larger numbers, than there are outputs.
    """
    if outputs is not None and len(names) > outputs:
        raise UserError(
            f"{printable(root)} has {len(names)} class directories, but the model has {outputs} outputs: remove the "
            "directories that are no classes of the model",
            slug="more-directories-than-classes",
        )
    numbered = all(map(_NUMBER.fullmatch, names))
    if class_names is not None:
        values = {int(name): name for name in class_names if _NUMBER.fullmatch(name)}
        by_value = [values.get(int(name), name) for name in names] if numbered else list(names)
        if not numbered or set(by_value) <= set(class_names):
            labels = match_class_names(by_value, list(class_names), root)
            return ClassDirectories(root, tuple(names), tuple(labels), "names", tuple(class_names))
        outputs = outputs or len(class_names)
    if numbered and (outputs is not None or _dense(names)):
        return _numbered(names, class_names, root, outputs)
    return ClassDirectories(root, tuple(names), tuple(range(len(names))), "order", tuple(names))


def for_outputs(directories: ClassDirectories, outputs: int) -> ClassDirectories:
    """The same directories, labeled for a model with so many outputs. Raises UserError like `label_directories`."""
    if directories.numbering == "names":
        return directories
    return label_directories(directories.names, None, directories.root, outputs)


def _dense(names: Sequence[str]) -> bool:
    return max(map(int, names)) <= max(2 * len(names), len(names) + _MOST_GAPS)


def _numbered(
    names: Sequence[str], class_names: Sequence[str] | None, root: str, outputs: int | None
) -> ClassDirectories:
    numbers = [int(name) for name in names]
    high = max(numbers)
    first = int(0 not in numbers and high == (len(numbers) if outputs is None else outputs))
    if len(set(numbers)) < len(numbers):
        one, other = next((a, b) for a in names for b in names if a < b and int(a) == int(b))
        raise UserError(
            f"the directories {one!r} and {other!r} in {printable(root)} are the same number: merge them",
            slug="class-directories-overlap",
        )
    if outputs is not None and high - first >= outputs:
        raise UserError(
            f"the directory {names[numbers.index(high)]!r} in {printable(root)} is a number beyond the model's "
            f"{outputs} outputs: number the directories by the model's classes, 0 to {outputs - 1}",
            slug="directory-number-out-of-range",
        )
    width = len(names[0]) if len({len(name) for name in names}) == 1 else 0
    count = outputs or high - first + 1
    texts = list(class_names or (f"{number + first:0{width}}" for number in range(count)))
    labels = tuple(number - first for number in numbers)
    return ClassDirectories(root, tuple(names), labels, "numbers", tuple(texts))
