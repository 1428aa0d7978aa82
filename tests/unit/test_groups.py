"""Groups never straddle the split, and a split that is given back stays what it was."""

from __future__ import annotations

import hashlib

import pytest

from tf_finetune import examples
from tf_finetune.errors import DataError, UsageError
from tf_finetune.examples import LEFT_OUT, TRAINING, VALIDATION, Example, Examples

RATIO, SEED = 0.3, 7


def digest_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def numbered(numbers, group=lambda number: "", num_classes: int = 2) -> Examples:
    """Returns examples whose digests are those of their numbers; class number % K."""
    items = [
        Example(f"{number}.jpg", number % num_classes, f"text {number}", digest_of(number), group(number))
        for number in numbers
    ]
    names = tuple(f"class {label}" for label in range(num_classes))
    return Examples(names, tuple(sorted(items, key=lambda example: example.digest)))


def sides(whole: Examples, groups=None) -> dict[str, str]:
    training, validation = examples.split(whole, RATIO, SEED, groups)
    assert len(training) + len(validation) == len(whole)
    found = {example.digest: TRAINING for example in training.items}
    return {**found, **{example.digest: VALIDATION for example in validation.items}}


def alike(*sets) -> dict[str, str]:
    """Returns the groups of sets of numbers: each digest to the smallest of its set."""
    return {digest_of(one): min(map(digest_of, members)) for members in sets for one in members}


def test_near_duplicates_take_the_side_of_the_smallest_digest():
    alone = sides(numbered(range(200)))
    sets = [range(start, start + 4) for start in range(0, 200, 4)]
    together = sides(numbered(range(200)), alike(*sets))
    decided = 0
    for members in sets:
        (side,) = {together[digest_of(one)] for one in members}
        assert side == alone[min(map(digest_of, members))]
        decided += len({alone[digest_of(one)] for one in members}) == 2
    assert decided > 10  # Else nothing was held together.


def test_groups_that_the_user_names_stay_together_and_join_near_duplicates():
    named = sides(numbered(range(60), lambda number: f"person {number // 6}"))
    for person in range(10):
        assert len({named[digest_of(6 * person + number)] for number in range(6)}) == 1
    assert len(set(named.values())) == 2
    bridge = alike([0, 6])
    joined = sides(numbered(range(60), lambda number: f"person {number // 6}"), bridge)
    assert len({joined[digest_of(number)] for number in range(12)}) == 1


def test_an_empty_group_is_no_group():
    assert sides(numbered(range(60), lambda number: "")) == sides(numbered(range(60)))


def test_added_examples_move_nothing_else():
    before = sides(numbered(range(400)))
    after = sides(numbered(range(440)), alike([400, 401], [402, 403, 404]))
    assert {digest: after[digest] for digest in before} == before


def test_a_class_that_is_one_group_is_in_training_only(caplog):
    whole = numbered(range(40), lambda number: "all" if number % 2 else "")
    found = sides(whole)
    assert {found[digest_of(number)] for number in range(1, 40, 2)} == {TRAINING}


def again(whole: Examples, earlier, groups=None) -> dict[str, str]:
    parts = examples.split_again(whole, RATIO, SEED, earlier, groups)
    assert sum(map(len, parts)) == len(whole)
    names = (TRAINING, VALIDATION, LEFT_OUT)
    return {one.digest: name for name, part in zip(names, parts, strict=True) for one in part.items}


def test_what_was_split_before_stays_and_newcomers_follow_their_groups():
    earlier = {digest_of(number): (VALIDATION if number < 10 else TRAINING) for number in range(40)}
    groups = alike([0, 40], [20, 41], [1, 21, 42])
    found = again(numbered(range(43)), earlier, groups)
    assert {number: found[digest_of(number)] for number in (0, 40, 20, 41)} == {
        0: VALIDATION,
        40: VALIDATION,
        20: TRAINING,
        41: TRAINING,
    }
    # 42 is like 1, which was in validation, and like 21, which was in training.
    assert (found[digest_of(42)], found[digest_of(1)], found[digest_of(21)]) == (TRAINING, LEFT_OUT, TRAINING)
    others = set(range(40)) - {1}
    assert {number: found[digest_of(number)] for number in others} == {
        number: earlier[digest_of(number)] for number in others
    }


def test_what_was_left_out_stays_so_and_a_group_on_both_sides_without_newcomers_is_let_be():
    earlier = {digest_of(number): (VALIDATION if number < 10 else TRAINING) for number in range(40)}
    earlier[digest_of(3)] = LEFT_OUT
    found = again(numbered(range(40)), earlier, alike([4, 30]))
    assert found == earlier


def test_new_classes_are_repaired_and_known_ones_are_not():
    earlier = {digest_of(number): TRAINING for number in range(0, 20, 2)}  # A class without validation: so be it.
    new = numbered([*range(0, 20, 2), 101, 103])
    found = again(new, earlier)
    assert {found[digest_of(number)] for number in range(0, 20, 2)} == {TRAINING}
    assert {found[digest_of(101)], found[digest_of(103)]} == {TRAINING, VALIDATION}


def test_a_split_is_read_as_it_was_written(tmp_path):
    whole = numbered(range(30))
    training, validation, left_out = examples.split_again(
        whole, RATIO, SEED, {digest_of(1): VALIDATION, digest_of(2): TRAINING}, alike([1, 2, 3])
    )
    assert len(left_out) == 1
    file = tmp_path / "split.csv"
    parts = {"training": training, "validation": validation, "left_out": left_out, "test": numbered([100, 101])}
    examples.write_split(file, parts)
    found = examples.read_split(file)
    assert found == {one.digest: name for name, part in parts.items() if name != "test" for one in part.items}


def test_formulas_in_names_are_made_harmless(tmp_path):
    whole = Examples(("=a", "b"), (Example("@x.jpg", 0, "", digest_of(0)), Example("b.jpg", 1, "", digest_of(1))))
    examples.write_split(tmp_path / "split.csv", {"training": whole})
    text = (tmp_path / "split.csv").read_text()
    assert ",'@x.jpg,'=a," in text
    assert ",b.jpg,b," in text


ROW = f"training,a.jpg,a,{digest_of(1)}\n"
HEAD = "split,id,label,sha256\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "expected the columns split,id,label,sha256"),
        ("a,b\n", "expected the columns split,id,label,sha256"),
        (HEAD + ROW.replace("training", "here"), "cannot be read as a split.csv"),
        (HEAD + ROW.replace(digest_of(1), "12"), "cannot be read as a split.csv"),
        (HEAD + "training,a.jpg,a\n", "cannot be read as a split.csv"),
        (HEAD + ROW.replace("a.jpg", '"a.jpg'), "cannot be read as a split.csv"),
        (HEAD + ROW + ROW.replace("training", "validation"), "line 3: the same content is in "),
    ],
)
def test_what_is_no_split_is_told(tmp_path, content, told):
    file = tmp_path / "split.csv"
    file.write_text(content)
    with pytest.raises(DataError, match="--split") as caught:
        examples.read_split(file)
    assert told in str(caught.value)


def test_a_missing_split_is_told(tmp_path):
    with pytest.raises(UsageError, match="there is no such file"):
        examples.read_split(tmp_path / "split.csv")
