"""Class folders brought into a model's class order by their names."""

from __future__ import annotations

import re
from collections import defaultdict

from robustbench_local.errors import UserError, nearest

_WORDNET_ID = re.compile(r"n\d{8}")
_IMAGENET_CLASSES = 1000


def match_class_names(folders: list[str], class_names: list[str], where: str) -> list[int]:
    """The index among `class_names` (the model's) of every folder, in the order of `folders`.

    A name matches exactly, or else after case, spaces and punctuation are set aside (`traffic_light`, `Traffic light`),
    because not every class name can name a folder. The 1,000 WordNet folders of ImageNet are the exception: sorted,
    they are the class order of every ImageNet model. Raises UserError naming the nearest class.
    """
    if len(folders) == len(class_names) == _IMAGENET_CLASSES and all(map(_WORDNET_ID.fullmatch, folders)):
        return [sorted(folders).index(folder) for folder in folders]
    exact, folded = defaultdict(list), defaultdict(list)
    for index, name in enumerate(class_names):
        exact[name].append(index)
        folded[_fold(name)].append(index)
    matched = [
        _match(folder, exact.get(folder) or folded.get(_fold(folder), []), class_names, where) for folder in folders
    ]
    for second, index in enumerate(matched):
        first = matched.index(index)
        if first != second:
            raise UserError(
                f"The folders {folders[first]!r} and {folders[second]!r} in {where} both name the model's class "
                f"{class_names[index]!r}; merge them."
            )
    return matched


def _match(folder: str, candidates: list[int], class_names: list[str], where: str) -> int:
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        listed = ", ".join(str(index) for index in candidates)
        raise UserError(
            f"The folder {folder!r} in {where} fits several classes of the model (numbers {listed}); "
            "give the samples as npz:PATH with numbered labels instead."
        )
    raise UserError(
        f"The folder {folder!r} in {where} is no class of the model, which knows {len(class_names)} "
        f"({', '.join(class_names[:8])}{', …' if len(class_names) > 8 else ''}).{nearest(folder, class_names)} "
        "Rename the folder to the model's class."
    )


def _fold(name: str) -> str:
    # Word characters of any script stay; `_` is a separator here, whatever \w says.
    return re.sub(r"[\W_]+", " ", name).strip().casefold()
