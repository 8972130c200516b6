"""What several families say in the same words: points, NaN policy, objectives, groups of rollouts."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import Any, Literal

import torch
from torch import Tensor

NanPolicy = Literal["raise", "worst"]


def as_tensor(values: Any, name: str, **options: Any) -> Tensor:
    """`torch.as_tensor`, with an error that names the argument."""
    if any(stride < 0 for stride in getattr(values, "strides", ())):  # which torch has not
        values = values.copy()
    try:
        return torch.as_tensor(values, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected a tensor or an array of numbers, got {values!r:.80} ({error})") from error


def as_float32_or_64(values: Any, name: str, **options: Any) -> Tensor:
    """float32 and float64 as they are; integers and Python's numbers as float64."""
    if isinstance(values, Tensor):
        tensor = values
    elif isinstance(values, bool):
        raise TypeError(f"{name}: expected float32, float64 or integers, got a bool")
    else:
        dtype = None if hasattr(values, "dtype") else torch.float64  # Python's floats are doubles
        tensor = as_tensor(values, name, dtype=dtype, **options)
        if dtype is not None and as_tensor(values, name).dtype is torch.bool:
            raise TypeError(f"{name}: expected float32, float64 or integers, got bools")
    dtype = tensor.dtype
    if dtype is torch.float64 or dtype is torch.float32:
        return tensor
    if dtype.is_floating_point or dtype.is_complex or dtype is torch.bool:
        raise TypeError(f"{name}: expected float32, float64 or integers, got {dtype}")
    return tensor.to(torch.float64)


def as_points(
    points: Any, name: str = "points", *, least_objectives: int = 0, device: torch.device | None = None
) -> Tensor:
    """A float32 or float64 tensor (..., n, m)."""
    tensor = as_float32_or_64(points, name) if device is None else as_float32_or_64(points, name, device=device)
    if tensor.dim() < 2:
        raise ValueError(f"{name}: expected shape (..., n, m), got {tuple(tensor.shape)}")
    if tensor.shape[-1] < least_objectives:
        raise ValueError(f"{name}: expected at least one objective, got shape {tuple(tensor.shape)}")
    return tensor


def as_minimization(
    points: Tensor, maximize: bool | Sequence[bool], *vectors: Tensor
) -> tuple[bool, Tensor, tuple[Tensor, ...]]:
    """One sense for all objectives. Mixed senses are minimized: maximized columns are negated, in `vectors` too."""
    if maximize is True or maximize is False:
        return maximize, points, vectors
    senses = objective_senses(maximize, points.shape[-1])
    if all(senses) or not any(senses):
        return all(senses), points, vectors
    signs = torch.ones(len(senses), dtype=points.dtype, device=points.device)
    for k, maximized in enumerate(senses):  # on the device: a copy from the host would wait for it
        if maximized:
            signs[k : k + 1].neg_()
    return False, points * signs, tuple(vector * signs.to(vector.dtype) for vector in vectors)


def objective_senses(maximize: Any, objectives: int) -> list[bool]:
    values = maximize.tolist() if hasattr(maximize, "tolist") else maximize
    if isinstance(values, bool):
        return [values] * objectives
    if not isinstance(values, (list, tuple)) or not all(isinstance(v, bool) for v in values):
        raise TypeError(f"maximize: expected a bool or one bool for each objective, got {maximize!r}")
    if len(values) != objectives:
        raise ValueError(f"maximize: expected {objectives} values, one for each objective, got {len(values)}")
    return list(values)


def as_lengths_or_mask(
    lengths: Any, mask: Any, points: Tensor, lengths_name: str = "lengths"
) -> tuple[Tensor | None, Tensor | None]:
    """int64 lengths of the batch shape, or a bool mask (..., n); neither, or one of them."""
    if lengths is not None and mask is not None:
        raise ValueError("lengths, mask: expected at most one of them, got both")
    batch = points.shape[:-2]
    if lengths is not None:
        tensor = as_integers(lengths, lengths_name, "points", points)
        if tensor.shape != batch:
            raise ValueError(f"{lengths_name}: expected the batch shape {tuple(batch)}, got {tuple(tensor.shape)}")
        return tensor.to(torch.int64).contiguous(), None
    if mask is not None:
        tensor = mask if isinstance(mask, Tensor) else as_tensor(mask, "mask", device=points.device)
        if tensor.dtype is not torch.bool:
            raise TypeError(f"mask: expected bool, got {tensor.dtype}")
        same_device("points", points, "mask", tensor)
        if tensor.shape != points.shape[:-1]:
            raise ValueError(f"mask: expected shape {tuple(points.shape[:-1])}, got {tuple(tensor.shape)}")
        return None, tensor
    return None, None


def check_lengths(lengths: Tensor, n: int, name: str = "lengths") -> None:
    """ValueError for the first that is not in 0..n, where looking costs nothing."""
    if not lengths.is_cpu or torch.compiler.is_compiling():
        return
    wrong = lengths[(lengths < 0) | (lengths > n)]
    if len(wrong) > 0:
        raise ValueError(f"{name}: expected values from 0 to {n}, got {int(wrong[0])}")


def masked(points: Tensor, mask: Tensor | None, maximize: bool) -> Tensor:
    """Points outside the mask are moved to the bad end of every objective, where none of them counts."""
    if mask is None:
        return points
    return torch.where(mask[..., None], points, -math.inf if maximize else math.inf)


def nan_raises(nan: NanPolicy | None, points: Tensor, lengths: Tensor | None = None, name: str = "points") -> bool:
    """Whether the operator shall raise for NaN: by default on the CPU; a GPU must not synchronize to look."""
    check_nan_policy(nan)
    if nan is None:
        return not points.is_cuda
    if nan == "worst" or not points.is_cuda:
        return nan == "raise"
    is_nan = torch.isnan(points).any(-1)
    if lengths is not None:
        is_nan &= torch.arange(points.shape[-2], device=points.device) < lengths[..., None]
    raise_for_nan(is_nan, name)
    return False


def check_nan_policy(nan: Any) -> None:
    if nan not in (None, "raise", "worst"):
        raise ValueError(f'nan: expected "raise", "worst" or None, got {nan!r}')


def looks_for_nan(nan: NanPolicy | None, points: Tensor) -> bool:
    """Whether Python looks for NaN here and now: by default on the CPU, but not while tracing, as it breaks graphs."""
    check_nan_policy(nan)
    return nan == "raise" or (nan is None and not points.is_cuda and not torch.compiler.is_compiling())


def raise_for_nan(is_nan: Tensor, name: str) -> None:
    """ValueError that names the first row with a NaN, (..., n); waits for the device."""
    rows = is_nan.nonzero()
    if len(rows) > 0:
        *batch, row = rows[0].tolist()
        where = place_of_row(row, batch)
        raise ValueError(f'{name}: expected no NaN, got NaN in {where}; pass nan="worst" to treat such rows as worst')


def place_of_row(row: int, batch: Sequence[int]) -> str:
    """How errors name one row of a batch."""
    return f"row {row}" + (f" of batch index ({', '.join(map(str, batch))})" if batch else "")


def counting_rows(points: Tensor, lengths: Any, mask: Any, nan: NanPolicy | None) -> tuple[Tensor, bool]:
    """Rows (..., n) that `lengths` or `mask` let in and that have no NaN, and whether NaN raises."""
    raises = looks_for_nan(nan, points)
    n = points.shape[-2]
    lengths, rows = as_lengths_or_mask(lengths, mask, points)
    if rows is None:
        rows = torch.ones(points.shape[:-1], dtype=torch.bool, device=points.device)
    if lengths is not None:
        check_lengths(lengths, n)
        rows = torch.arange(n, device=points.device) < lengths[..., None]
    missing = rows & points.detach().isnan().any(-1)
    if raises:
        raise_for_nan(missing, "points")
    return rows & ~missing, raises


def as_ref_point(value: Any, points: Tensor, name: str = "ref_point") -> Tensor:
    """(m,) or broadcastable to the batch shape + (m,), on the device of the points."""
    objectives = points.shape[-1]
    if isinstance(value, (float, int)) and not isinstance(value, bool):
        return torch.full((objectives,), value, dtype=torch.float64, device=points.device)
    ref_point = as_float32_or_64(value, name, device=points.device)
    if points.device != ref_point.device:
        same_device("points", points, name, ref_point)
    shape = ref_point.shape
    if len(shape) == 1 and shape[0] == objectives:
        return ref_point
    target = (*points.shape[:-2], objectives)
    aligned = zip(reversed(shape), reversed(target), strict=False)
    if len(shape) > len(target) or any(own not in (1, wanted) for own, wanted in aligned):
        raise ValueError(
            f"{name}: expected one value for each of {objectives} objectives, broadcastable to {tuple(target)}, "
            f"got shape {tuple(shape)}"
        )
    return ref_point.expand(*shape[:-1], objectives)


def same_device(first: str, tensor: Tensor, second: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(
            f"{second}: expected the device of {first}, {tensor.device}, got {other.device}; nothing is copied silently"
        )


def as_integers(values: Any, name: str, like_name: str, like: Tensor) -> Tensor:
    """A tensor of integers on the device of `like`."""
    tensor = values if isinstance(values, Tensor) else as_tensor(values, name, device=like.device)
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype is torch.bool:
        if isinstance(values, Tensor) or tensor.numel() > 0:  # an empty list has no integers to show
            raise TypeError(f"{name}: expected integers, got {tensor.dtype}")
        tensor = tensor.to(torch.int64)
    same_device(like_name, like, name, tensor)
    return tensor


def as_group_ids(group_ids: Any, rows: int, like_name: str, like: Tensor) -> Tensor:
    """int32 or int64 ids, one a rollout, on the device of `like`."""
    tensor = as_integers(group_ids, "group_ids", like_name, like)
    if tensor.dim() != 1 or tensor.shape[0] != rows:
        raise ValueError(f"group_ids: expected shape ({rows},), one id a rollout, got {tuple(tensor.shape)}")
    return tensor if tensor.dtype in (torch.int32, torch.int64) else tensor.to(torch.int64)


def as_group_size(group_size: Any, rows: int) -> int:
    size = as_integer(group_size, "group_size")
    if size < 1 or rows % size != 0:
        raise ValueError(f"group_size: expected a positive divisor of the {rows} rollouts, got {group_size}")
    return size


def as_number(value: Any, name: str) -> float:
    if isinstance(value, (float, int, torch.SymInt, torch.SymFloat)):
        return value  # type: ignore[return-value]
    if not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return float(value)


def as_bool(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {value!r}")
    return value


def as_integer(value: Any, name: str) -> int:
    if type(value) is int:  # before a look at an abstract class, which takes longer than a tiny kernel's checks
        number = value
    elif isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    elif not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    else:
        number = int(value)
    if not -(2**63) <= number < 2**63:  # what an operator can be given
        raise ValueError(f"{name}: expected an int of 64 bits, got {number}")
    return number


def check_choice(value: Any, name: str, allowed: Collection[str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")


def as_floating(values: Any, name: str) -> Tensor:
    """A floating-point tensor; integers and bools become float32."""
    tensor = values if isinstance(values, Tensor) else as_tensor(values, name)
    if tensor.is_floating_point():
        return tensor
    if tensor.dtype.is_complex:
        raise TypeError(f"{name}: expected real numbers, got {tensor.dtype}")
    return tensor.to(torch.float32)
