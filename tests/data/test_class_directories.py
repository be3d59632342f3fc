"""Names of class directories become labels: numbers as numbers, from 0 or 1, with gaps."""

import pytest

from robustbench_local.data.class_directories import for_outputs, label_directories
from robustbench_local.errors import UserError


def labels(names, class_names=None, outputs=None):
    return list(label_directories(sorted(names), class_names, "set", outputs).labels)


@pytest.mark.parametrize(
    ("names", "outputs", "expected"),
    [
        (map(str, range(12)), 12, [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]),
        (["0", "1", "3"], 4, [0, 1, 3]),
        (["1", "2", "3"], 3, [0, 1, 2]),
        (["1", "2", "3"], None, [0, 1, 2]),
        (["1", "2", "3"], 4, [1, 2, 3]),  # 0 is missing, or means the background
        (["1", "3", "4"], 4, [0, 2, 3]),
        (["2", "5"], 10, [2, 5]),
        (["00000", "00007", "00042"], 43, [0, 7, 42]),
        (["00001", "00043"], 43, [0, 42]),
        (["00014", "00033"], None, [14, 33]),
        (["cat", "dog"], 5, [0, 1]),
        (["1", "dog"], 5, [0, 1]),
        (["1990", "2020"], None, [0, 1]),  # years are no class numbers while no model has so many classes
    ],
)
def test_numbers_are_read_as_numbers(names, outputs, expected):
    assert labels(names, outputs=outputs) == expected


def test_the_models_class_names_win_over_numbers():
    assert labels(["1", "2"], ["2", "1", "0"]) == [1, 0]
    assert labels(["01", "02"], ["2", "1", "0"]) == [1, 0]
    assert labels(["0", "2"], ["ape", "bee", "cat"]) == [0, 2]
    assert labels(["1", "3"], ["ape", "bee", "cat"]) == [0, 2]


@pytest.mark.parametrize(
    ("names", "outputs", "slug"),
    [
        (map(str, range(11)), 10, "more-directories-than-classes"),
        ("abcd", 3, "more-directories-than-classes"),
        (["0", "10"], 10, "directory-number-out-of-range"),
        (["2", "11"], 10, "directory-number-out-of-range"),
        (["1", "01"], 10, "class-directories-overlap"),
    ],
)
def test_directories_that_cannot_be_classes_are_refused(names, outputs, slug):
    with pytest.raises(UserError) as caught:
        labels(names, outputs=outputs)
    assert caught.value.slug == slug


def test_class_names_keep_their_places():
    padded = label_directories(["00000", "00002"], None, "set", 4)
    assert padded.class_names == ("00000", "00001", "00002", "00003")
    shifted = label_directories(["1", "3"], None, "set", 3)
    assert shifted.class_names == ("1", "2", "3")
    assert "1 to 3 without 2, read as the classes 0 to 2" in shifted.text


def test_a_models_outputs_decide_what_was_open():
    tentative = label_directories([str(n) for n in range(1, 10)], None, "set")
    assert tentative.labels == tuple(range(9))
    assert for_outputs(tentative, 10).labels == tuple(range(1, 10))
    years = label_directories(["1990", "2020"], None, "set")
    assert for_outputs(years, 3000).labels == (1990, 2020)
    named = label_directories(["dog"], ["cat", "dog"], "set")
    assert for_outputs(named, 2) is named
