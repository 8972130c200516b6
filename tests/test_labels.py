"""Groups named by labels: equal ones are one group, no others are."""

from __future__ import annotations

import doctest
import enum
import uuid

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morlfast import _labels
from morlfast._labels import group_labels, label_digests

UUIDS = [uuid.UUID(int=i) for i in (0, 7, 2**127)]
# No two of them are equal, and their hashes, texts or bytes often are.
DIFFERENT = [0, 1, -1, -2, 2**61 - 1, 2**70, "", "0", "1", "a", "é", "\ud800", b"", b"1", b"a", b"a\0", *UUIDS]
DIFFERENT += [(), (1,), ("1",), (1, "a"), ("a", 1), ((1, "a"),), ("", ""), ("",), "(1,)", str(UUIDS[1]), UUIDS[1].bytes]


def first_equal_row(labels) -> list[int]:
    return [next(j for j, other in enumerate(labels) if other == label) for label in labels]


def rows_of(digests: torch.Tensor) -> list[int]:
    return first_equal_row([tuple(row) for row in digests.tolist()])


@given(st.lists(st.sampled_from(DIFFERENT), max_size=30))
def test_equal_labels_are_one_group_and_no_others(labels):
    want = first_equal_row(labels)
    got = group_labels(labels, len(labels))
    assert got.dtype == torch.int64
    assert got.tolist() == want
    digests = label_digests(labels, len(labels))
    assert digests.dtype == torch.int64
    assert digests.shape == (len(labels), 2)
    assert rows_of(digests) == want


def test_different_labels_stay_different():
    assert first_equal_row(DIFFERENT) == list(range(len(DIFFERENT)))
    assert group_labels(DIFFERENT, len(DIFFERENT)).tolist() == list(range(len(DIFFERENT)))
    assert rows_of(label_digests(DIFFERENT, len(DIFFERENT))) == list(range(len(DIFFERENT)))


@pytest.mark.parametrize("make", [list, tuple, lambda x: np.array(x, object), np.array])
@pytest.mark.parametrize(
    "labels", [["b", "a", "b"], [b"b", b"a", b"b"], [5, -3, 5], [UUIDS[1], UUIDS[0], UUIDS[1]]], ids=type
)
def test_containers(make, labels):
    container = make(labels)
    assert group_labels(container, 3).tolist() == [0, 1, 0]
    torch.testing.assert_close(label_digests(container, 3), label_digests(labels, 3), rtol=0, atol=0)


def test_tuples_in_an_object_array():
    labels = np.empty(3, object)
    labels[:] = [("task", 1), ("task", 2), ("task", 1)]
    assert group_labels(labels, 3).tolist() == [0, 1, 0]


def test_numpy_strings_and_integers_equal_those_of_python():
    labels = [np.str_("a"), "a", np.int64(3), 3, np.uint8(3)]
    assert group_labels(labels, 5).tolist() == [0, 0, 2, 2, 2]
    assert rows_of(label_digests(labels, 5)) == [0, 0, 2, 2, 2]


def test_other_hashable_labels():
    class Task(enum.Enum):
        MATHS = 1
        CODE = 2

    labels = [Task.CODE, frozenset({1}), Task.MATHS, Task.CODE, frozenset({1})]
    assert group_labels(labels, 5).tolist() == [0, 1, 2, 0, 1]
    with pytest.raises(TypeError, match=r"group_ids: with process_group= expected strings.*CODE"):
        label_digests(labels, 5)


def test_the_example_of_the_docstring_holds():
    results = doctest.testmod(_labels)
    assert results.attempted > 0
    assert results.failed == 0


def test_no_rows():
    assert group_labels([], 0).shape == (0,)
    assert label_digests(np.array([], object), 0).shape == (0, 2)


@pytest.mark.parametrize("seed", ["1", "2"])
def test_digests_do_not_depend_on_the_process(run_python, monkeypatch, seed):
    monkeypatch.setenv("PYTHONHASHSEED", seed)
    labels = ["prompt", b"prompt", 17, uuid.UUID(int=5), ("prompt", 3)]
    printed = run_python(
        "from uuid import UUID\n"
        "from morlfast._labels import label_digests\n"
        f"print(label_digests({labels!r}, 5).tolist())"
    )
    assert printed == f"{label_digests(labels, 5).tolist()}\n"


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["a", 1.5], "float"),
        ([1, float("nan")], "float"),
        ([1, True], "bool"),
        (["a", None], "NoneType"),
        ([1, np.float64(1)], "float64"),
        ([1, np.bool_(True)], "bool"),
        ([1, 1j], "complex"),
        (["a", torch.tensor(1)], "Tensor"),
        ([("a", 1), ("a", 1.0)], "float"),
        ([("a", 1), (("a", None), 1)], "NoneType"),
    ],
)
def test_labels_that_equal_others_by_conversion_are_refused(labels, kind):
    with pytest.raises(TypeError, match=rf"^group_ids: expected .*labels, got .* in row 1; {kind}_? is no label$"):
        group_labels(labels, 2)


@pytest.mark.parametrize("label", [["a"], {"a": 1}, np.zeros(2), ("a", ["b"])], ids=repr)
def test_labels_without_a_hash(label):
    with pytest.raises(TypeError, match=r"^group_ids: expected .*labels, got .* in row 2, which has no hash$"):
        group_labels(["a", "b", label], 3)


@pytest.mark.parametrize(
    "labels",
    [np.array([0.5, 1.0]), np.array([True, False]), np.array(["2026-01-01"] * 2, "M8[D]"), "ab", b"ab", {1, 2}],
)
def test_arrays_and_containers_of_other_types(labels):
    with pytest.raises(TypeError, match=r"^group_ids: expected integers, or a list or array of strings.*, got a "):
        group_labels(labels, 2)


@pytest.mark.parametrize("labels", [["a"], ["a"] * 3, np.array([["a"], ["b"]], object), np.array(["a"] * 3)])
def test_wrong_shapes(labels):
    with pytest.raises(ValueError, match=r"^group_ids: expected shape \(2,\), one label a rollout, got \("):
        group_labels(labels, 2)
