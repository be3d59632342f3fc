import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_local.errors import UserError
from robustbench_local.results.compare import compare, group_letters, letter, two_sided
from robustbench_local.statistics.intervals import drop_bounds, holm, mcnemar

NAMES = ["stop", "yield"]


def test_two_results_sample_by_sample(make_result, tmp_path):
    before = make_result(tmp_path / "a.json", 500, classes=NAMES)
    now = make_result(tmp_path / "b.json", 500, clean=880, flipped=[*range(30), 600, 601], classes=NAMES)
    comparison = compare([before, now])
    pair = comparison.pair
    assert (pair.robust.lost, pair.robust.gained, pair.robust.n) == (30, 2, 1000)
    assert (pair.robust.before, pair.robust.now, pair.robust.change) == pytest.approx((0.5, 0.472, -0.028))
    low, high = drop_bounds(30, 2, 1000, 0.025)
    assert (pair.robust.low, pair.robust.high) == (-high, -low)
    assert pair.robust.high < 0
    assert pair.robust.p == pytest.approx(2 * mcnemar(30, 2))
    assert pair.robust.p_mid < pair.robust.p
    assert (pair.clean.lost, pair.clean.gained) == (20, 0)
    assert {flip.index: flip.lost for flip in pair.flips} == {**dict.fromkeys(range(30), True), 600: False, 601: False}
    flip = next(flip for flip in pair.flips if flip.index == 601)
    assert (flip.name, flip.label, flip.broken_by) == ("yield (1)", 1, "pgd")
    assert [(each.name, each.robust.lost, each.robust.gained, each.robust.n) for each in pair.classes] == [
        ("stop (0)", 15, 1, 500),
        ("yield (1)", 15, 1, 500),
    ]
    assert [each.clean.lost for each in pair.classes] == [10, 10]


def test_the_order_of_the_results_is_the_sign_of_the_change(make_result, tmp_path):
    worse = make_result(tmp_path / "a.json", 400)
    better = make_result(tmp_path / "b.json", 500)
    there, back = compare([worse, better]).pair.robust, compare([better, worse]).pair.robust
    assert there.change == -back.change == pytest.approx(0.1)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.p == back.p


def test_what_each_attack_left(make_result, tmp_path):
    one = make_result(tmp_path / "a.json", 500, attacks=[("fgsm", 250), ("pgd", 100), ("pgd", 50)])
    other = make_result(tmp_path / "b.json", 500, attacks=[("fgsm", 200), ("pgd", 195), ("square", 5)])
    lines = [(each.attack, each.left, each.fooled) for each in compare([one, other]).attacks]
    assert lines == [
        ("fgsm", [0.65, 0.7], [250, 200]),
        ("pgd", [0.8, 0.705], [100, 195]),
        ("pgd", [0.85, None], [50, None]),
        ("square", [None, 0.895], [None, 5]),
    ]


def test_several_models_in_groups(make_result, tmp_path):
    # Nested sets of robust samples: 500, 505 and 700; then one that is as good as the best by other samples.
    paths = [make_result(tmp_path / f"{robust}.json", robust) for robust in (500, 700, 505)]
    paths.append(make_result(tmp_path / "other.json", 500, flipped=[*range(10), *range(500, 702)], clean=900))
    comparison = compare(paths)
    assert [each.path.stem for each in comparison.ranked] == ["700", "other", "505", "500"]
    assert [each.groups for each in comparison.ranked] == ["a", "a", "b", "b"]
    raw = [
        two_sided(10, 2),
        two_sided(195, 0),
        two_sided(200, 0),
        two_sided(197, 10),
        two_sided(202, 10),
        two_sided(5, 0),
    ]
    assert list(comparison.p_values) == list(itertools.combinations(range(4), 2))
    assert list(comparison.p_values.values()) == pytest.approx(holm(raw))
    assert comparison.pair is None
    assert comparison.to_dict()["pair"] is None


@pytest.mark.parametrize(("better", "groups"), [(5, ["a", "a"]), (6, ["a", "b"])])
def test_models_are_told_apart_by_the_exact_test(make_result, tmp_path, better, groups):
    # Of six samples that changed sides all went one way: 2 / 2**6 is below 0.05, 2 / 2**5 is not.
    paths = [make_result(tmp_path / "a.json", 500), make_result(tmp_path / "b.json", 500 + better)]
    assert [each.groups for each in compare(paths).ranked] == groups


@pytest.mark.parametrize(
    ("count", "alike", "letters"),
    [
        (2, set(), ["a", "b"]),
        (2, {(0, 1)}, ["a", "a"]),
        (3, {(0, 1), (1, 2)}, ["a", "ab", "b"]),
        (3, {(0, 2)}, ["a", "b", "a"]),
        (4, {(0, 1), (0, 2), (1, 2), (2, 3)}, ["a", "a", "ab", "b"]),
    ],
)
def testgroup_letters(count, alike, letters):
    assert group_letters(count, alike) == letters


@given(
    st.integers(2, 7).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.sampled_from(list(itertools.combinations(range(n), 2)))))
    )
)
def test_models_share_a_letter_exactly_where_they_are_alike(drawn):
    count, alike = drawn
    letters = group_letters(count, alike)
    assert all(letters)
    for one, other in itertools.combinations(range(count), 2):
        assert bool(set(letters[one]) & set(letters[other])) == ((one, other) in alike)


def test_letters_do_not_run_out():
    assert [letter(number) for number in (0, 25, 26, 52)] == ["a", "z", "a1", "a2"]


@pytest.mark.parametrize(
    ("changes", "slug"),
    [
        ({"threat_model.eps": 0.2, "threat_model.eps_text": "1/5"}, "threat-models-differ"),
        ({"protocol.sha256": "b"}, "protocols-differ"),
        ({"data.split": "train"}, "data-differ"),
        ({"data.sha256": "1" * 64}, "samples-differ"),
        ({"sequential": {"gate": "g", "order_seed": 0, "looks": [1000]}}, "stopped-by-gate"),
        ({"verdict": {"status": "not-trusted", "reasons": ["masked"]}}, "verdict-not-trusted"),
    ],
)
def test_what_cannot_be_compared(make_result, tmp_path, changes, slug):
    paths = [
        make_result(tmp_path / "a.json", 500),
        make_result(tmp_path / "b.json", 500, changes=changes),
        make_result(tmp_path / "c.json", 500),
    ]
    comparison = compare(paths)
    (refusal,) = comparison.refusals
    assert refusal.slug == slug
    assert str(paths[1]) in refusal.sentence
    assert not comparison.ranked
    content = comparison.to_dict()
    assert content["comparable"] is False
    assert content["reasons"] == [refusal.sentence]
    assert content["refusals"] == [{"slug": slug, "sentence": refusal.sentence}]


def test_what_is_no_comparison(make_result, tmp_path):
    path = make_result(tmp_path / "a.json", 500)
    with pytest.raises(UserError) as refused:
        compare([path])
    assert refused.value.slug == "too-few-results"
    with pytest.raises(UserError) as refused:
        compare([path, tmp_path / ".." / tmp_path.name / "a.json"])
    assert refused.value.slug == "duplicate-result"


def test_settings_that_differ_are_shown_to_the_digit_that_does(make_result, tmp_path):
    custom = {"name": "custom", "version": None}
    one, other = "a" * 63 + "0", "a" * 63 + "1"
    paths = [
        make_result(tmp_path / f"{sha[-1]}.json", 500, changes={"protocol": {**custom, "sha256": sha}})
        for sha in (one, other)
    ]
    (reason,) = compare(paths).refusals
    assert reason.slug == "protocols-differ"
    for value in (one, other, "custom"):
        assert value in reason.sentence


def test_a_record_that_is_not_there_is_named_with_its_result(make_result, tmp_path):
    paths = [make_result(tmp_path / f"{name}.json", 500) for name in "ab"]
    paths[1].with_suffix(".samples.jsonl").unlink()
    with pytest.raises(UserError, match=r"the per-sample record of .*b\.json"):
        compare(paths)
