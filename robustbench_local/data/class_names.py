"""Class directories matched with a model's classes by their names."""

from __future__ import annotations

import re
from collections import defaultdict

from robustbench_local.errors import UserError, nearest

_WORDNET_ID = re.compile(r"n\d{8}")
_IMAGENET_CLASSES = 1000


def match_class_names(directories: list[str], class_names: list[str], root: str) -> list[int]:
    """The index in `class_names` (the model's) of every class directory of `root`, in the order of `directories`.

    A name matches exactly, or else without regard to case, spaces and punctuation (`traffic_light`, `Traffic light`),
    because not every class name can name a directory. The 1,000 WordNet directories of ImageNet are the exception:
    sorted, they are the class order of every ImageNet model. Raises UserError for a name that matches no class or
    several, and for two names that match the same class.
    """
    if len(directories) == len(class_names) == _IMAGENET_CLASSES and all(map(_WORDNET_ID.fullmatch, directories)):
        return [sorted(directories).index(directory) for directory in directories]
    exact, folded = defaultdict(list), defaultdict(list)
    for index, name in enumerate(class_names):
        exact[name].append(index)
        folded[_fold(name)].append(index)
    matches = [_match(name, exact.get(name) or folded.get(_fold(name), []), class_names, root) for name in directories]
    for second, index in enumerate(matches):
        first = matches.index(index)
        if first != second:
            raise UserError(
                f"the directories {directories[first]!r} and {directories[second]!r} in {root} both match the model's "
                f"class {class_names[index]!r}: merge them",
                slug="class-directories-overlap",
            )
    return matches


def _match(directory: str, candidates: list[int], class_names: list[str], root: str) -> int:
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise UserError(
            f"the directory {directory!r} in {root} matches several classes of the model (numbers "
            f"{', '.join(map(str, candidates))}): give the samples as npz:PATH with numbered labels instead",
            slug="class-name-ambiguous",
        )
    raise UserError(
        f"the directory {directory!r} in {root} is no class of the model, which has {len(class_names)} "
        f"({', '.join(class_names[:8])}{', …' if len(class_names) > 8 else ''}): rename it to the model's class."
        f"{nearest(directory, class_names)}",
        slug="class-not-in-model",
    )


def _fold(name: str) -> str:
    # Word characters of any script stay. `_` separates words here, though \w contains it.
    return re.sub(r"[\W_]+", " ", name).strip().casefold()
