"""Groups named by strings, UUIDs and other hashable labels, factorized to integers once."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from numbers import Integral, Number
from operator import attrgetter
from typing import Any
from uuid import UUID

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_EXPECTED = "group_ids: expected integers, or a list or array of strings or other hashable labels"


def group_labels(labels: Any, rows: int) -> Tensor:
    """(N,) int64: the first row with an equal label. Labels in any order; equal as Python has it, but no floats.

    >>> group_labels(["a", "b", "a", 1, "1"], 5)
    tensor([0, 1, 0, 3, 4])
    """
    return torch.from_numpy(_factorize(labels, rows)[1])


def label_digests(labels: Any, rows: int) -> Tensor:
    """(N, 2) int64: 128 bits of BLAKE2b, the same in every process; of strings, bytes, UUIDs, integers and tuples."""
    distinct, first = _factorize(labels, rows)
    digests = np.empty((rows, 2), np.int64)
    for row, label in distinct.items():
        digests[row] = np.frombuffer(_digest(label), "<i8")
    return torch.from_numpy(digests[first])


def _factorize(labels: Any, rows: int) -> tuple[dict[int, Any], NDArray[np.int64]]:
    """Each label by its first row, and the first row of every row's label."""
    values = _values(labels, rows)
    kinds = set(map(type, values))
    _check(kinds, values, range(rows))
    # hash(UUID) is a Python function
    keys = map(attrgetter("int"), values) if kinds == {UUID} else values
    rows_of: dict[Any, int] = {}
    try:
        first = np.fromiter(map(rows_of.setdefault, keys, itertools.count()), np.int64, rows)
    except TypeError:
        row, label = next((i, label) for i, label in enumerate(values) if not _hashable(label))
        raise TypeError(f"{_EXPECTED}, got {label!r:.80} in row {row}, which has no hash") from None
    return {row: values[row] for row in rows_of.values()}, first


def _values(labels: Any, rows: int) -> list[Any]:
    if isinstance(labels, (list, tuple)):
        shape: tuple[int, ...] = (len(labels),)
        values = labels
    else:
        array = np.asarray(labels)
        if array.dtype.kind not in "OUSiu" or isinstance(labels, (str, bytes, dict, set)):
            what = f"{array.dtype} array" if isinstance(labels, np.ndarray) else type(labels).__name__
            raise TypeError(f"{_EXPECTED}, got a {what}")
        shape, values = array.shape, array.tolist()
    if shape != (rows,):
        raise ValueError(f"group_ids: expected shape ({rows},), one label a rollout, got {shape}")
    return list(values)


def _check(kinds: set[type], values: Sequence[Any], rows: Sequence[int]) -> None:
    """TypeError for what equals other labels by rounding or conversion (1 == 1.0 == True), or only itself."""
    for kind in kinds - {str, int, bytes, UUID, tuple}:
        is_number = issubclass(kind, Number) and not issubclass(kind, Integral)
        if is_number or issubclass(kind, (bool, np.bool_, type(None), Tensor)):
            row, value = next((row, value) for row, value in zip(rows, values, strict=True) if type(value) is kind)
            raise TypeError(f"{_EXPECTED}, got {value!r:.80} in row {row}; {kind.__name__} is no label")
    if tuple in kinds:
        nested = [
            (row, item) for row, value in zip(rows, values, strict=True) if type(value) is tuple for item in value
        ]
        _check({type(item) for _, item in nested}, [item for _, item in nested], [row for row, _ in nested])


def _hashable(label: Any) -> bool:
    try:
        hash(label)
    except TypeError:
        return False
    return True


def _digest(label: Any) -> bytes:
    # The tag keeps 1, "1", b"1" and (1,) apart; items of tuples have digests of equal width.
    if isinstance(label, str):
        content = b"s" + label.encode(errors="surrogatepass")
    elif isinstance(label, bytes):
        content = b"b" + label
    elif isinstance(label, Integral):
        content = b"i" + str(int(label)).encode()
    elif isinstance(label, UUID):
        content = b"u" + label.bytes
    elif isinstance(label, tuple):
        content = b"t" + b"".join(map(_digest, label))
    else:
        raise TypeError(
            "group_ids: with process_group= expected strings, bytes, UUIDs, integers or tuples of them, "
            f"got {label!r:.80}"
        )
    return hashlib.blake2b(content, digest_size=16).digest()
