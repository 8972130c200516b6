"""Every operator of morlfast: its schema, its fake, and the implementation for each device.

The schemas come from the compiled module, where the kernels' arguments are, so they exist once. The nanobind callables
are registered with torch's dispatcher as they are: 1.6 µs a call against 14 µs for `torch.library.custom_op`.
Triton kernels are imported when the first CUDA tensor arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

if not hasattr(Tensor, "__dlpack_c_exchange_api__"):
    raise ImportError(f"morlfast needs torch >= 2.10 (DLPack exchange API), found torch {torch.__version__}")

from morlfast import _C

_library = torch.library.Library("morlfast", "DEF")
for _name, _schema in _C.schemas.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, getattr(_C, _name), "CPU")
    # No derivative at operator level (`autograd.Function` stands outside); nothing to run or warn about there.
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")

_operators = torch.ops.morlfast
hypervolume: Callable[..., Tensor] = _operators.hypervolume.default
hypervolume_gradient: Callable[..., tuple[Tensor, Tensor]] = _operators.hypervolume_gradient.default
non_dominated_sort: Callable[..., Tensor] = _operators.non_dominated_sort.default
group_advantages: Callable[..., Tensor] = _operators.group_advantages.default
select_tokens: Callable[..., Tensor] = _operators.select_tokens.default


# --- fakes: shapes and dtypes of results ---


def _fake_hypervolume(
    points: Tensor,
    ref_point: Tensor,
    maximize: bool = False,
    nan_raises: bool = True,
    lengths: Tensor | None = None,
) -> Tensor:
    return points.new_empty(points.shape[:-2])


def _fake_hypervolume_gradient(
    points: Tensor,
    ref_point: Tensor,
    maximize: bool = False,
    nan_raises: bool = True,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return points.new_empty(points.shape[:-2]), points.new_empty(points.shape)


def _fake_non_dominated_sort(points: Tensor, maximize: bool = False, nan_raises: bool = True) -> Tensor:
    return points.new_empty(points.shape[:-1], dtype=torch.int32)


def _fake_group_advantages(
    rewards: Tensor,
    group_size: int,
    group_ids: Tensor | None = None,
    weights: Tensor | None = None,
    method: int = 0,
    scale: int = 1,
    eps: float = 1e-4,
    ddof: int = 1,
) -> Tensor:
    return rewards.new_empty(rewards.shape[:1])


def _fake_select_tokens(
    advantages: Tensor,
    entropies: Tensor,
    mask: Tensor,
    ratio: float,
    scope: int = 0,
    group_size: int = 0,
    group_ids: Tensor | None = None,
) -> Tensor:
    return entropies.new_empty(entropies.shape, dtype=torch.bool)


for _fake in (
    _fake_hypervolume,
    _fake_hypervolume_gradient,
    _fake_non_dominated_sort,
    _fake_group_advantages,
    _fake_select_tokens,
):
    torch.library.register_fake(f"morlfast::{_fake.__name__.removeprefix('_fake_')}", _fake, lib=_library)


# --- CUDA: Triton where the work is dense tiles, CUDA C++ where it is irregular ---


def _cuda_hypervolume(
    points: Tensor,
    ref_point: Tensor,
    maximize: bool = False,
    nan_raises: bool = True,
    lengths: Tensor | None = None,
) -> Tensor:
    return _cuda_value_and_gradient(points, ref_point, maximize, nan_raises, lengths, False)[0]


def _cuda_hypervolume_gradient(
    points: Tensor,
    ref_point: Tensor,
    maximize: bool = False,
    nan_raises: bool = True,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    value, gradient = _cuda_value_and_gradient(points, ref_point, maximize, nan_raises, lengths, True)
    assert gradient is not None
    return value, gradient


def _cuda_value_and_gradient(
    points: Tensor,
    ref_point: Tensor,
    maximize: bool,
    nan_raises: bool,
    lengths: Tensor | None,
    gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    if nan_raises:
        raise ValueError("nan_raises: a CUDA operator must not wait for the device to look for NaN; pass False")
    from morlfast._cuda import hypervolume as kernels

    return kernels.hypervolume(points, ref_point, maximize, lengths, gradient)


def _triton(family: str, name: str) -> Callable[..., Tensor]:
    """The launcher of that name, whose arguments are the operator's; Triton is imported when a CUDA tensor arrives."""

    def kernel(*arguments: object) -> Tensor:
        launcher: Callable[..., Tensor] = getattr(import_module(f"morlfast._triton.{family}"), name)
        return launcher(*arguments)

    return kernel


_library.impl("hypervolume", _cuda_hypervolume, "CUDA")
_library.impl("hypervolume_gradient", _cuda_hypervolume_gradient, "CUDA")
_library.impl("non_dominated_sort", _triton("pareto", "non_dominated_sort"), "CUDA")
_library.impl("group_advantages", _triton("advantages", "group_advantages"), "CUDA")
_library.impl("select_tokens", _triton("tokens", "select_tokens"), "CUDA")
