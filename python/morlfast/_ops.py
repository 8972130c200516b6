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
from morlfast._arguments import same_device

_library = torch.library.Library("morlfast", "DEF")
for _name, _schema in _C.schemas.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, getattr(_C, _name), "CPU")
    # No derivative at operator level (`autograd.Function` stands outside); nothing to run or warn about there.
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")

_operators = torch.ops.morlfast
hypervolume: Callable[..., Tensor] = _operators.hypervolume.default
hypervolume_gradient: Callable[..., tuple[Tensor, Tensor]] = _operators.hypervolume_gradient.default
hypervolume_contributions: Callable[..., Tensor] = _operators.hypervolume_contributions.default
hypervolume_improvement: Callable[..., Tensor] = _operators.hypervolume_improvement.default
hypervolume_subset: Callable[..., Tensor] = _operators.hypervolume_subset.default
box_decomposition: Callable[..., tuple[Tensor, Tensor, Tensor]] = _operators.box_decomposition.default
best_points: Callable[..., tuple[Tensor, Tensor]] = _operators.best_points.default
farthest_query: Callable[..., Tensor] = _operators.farthest_query.default
non_dominated_sort: Callable[..., Tensor] = _operators.non_dominated_sort.default
is_non_dominated: Callable[..., Tensor] = _operators.is_non_dominated.default
dominance_counts: Callable[..., Tensor] = _operators.dominance_counts.default
is_dominated_by: Callable[..., Tensor] = _operators.is_dominated_by.default
group_advantages: Callable[..., Tensor] = _operators.group_advantages.default
group_advantages_out: Callable[..., None] = _operators.group_advantages_out.default
group_rows: Callable[..., Tensor] = _operators.group_rows.default
linear_scan: Callable[..., Tensor] = _operators.linear_scan.default
gae: Callable[..., tuple[Tensor, Tensor]] = _operators.gae.default
whiten: Callable[..., Tensor] = _operators.whiten.default
select_rollouts: Callable[..., Tensor] = _operators.select_rollouts.default
select_tokens: Callable[..., Tensor] = _operators.select_tokens.default
token_histogram: Callable[..., Tensor] = _operators.token_histogram.default
select_tokens_above: Callable[..., Tensor] = _operators.select_tokens_above.default
token_logprobs: Callable[..., tuple[Tensor, Tensor, Tensor]] = _operators.token_logprobs.default
token_logprobs_gradient: Callable[..., Tensor] = _operators.token_logprobs_gradient.default


# --- fakes: shapes and dtypes of results ---


def _fake_hypervolume(points: Tensor, *others: object, **options: object) -> Tensor:
    return points.new_empty(points.shape[:-2])


def _fake_hypervolume_gradient(points: Tensor, *others: object, **options: object) -> tuple[Tensor, Tensor]:
    return points.new_empty(points.shape[:-2]), points.new_empty(points.shape)


def _fake_hypervolume_contributions(points: Tensor, *others: object, **options: object) -> Tensor:
    return points.new_empty(points.shape[:-1])


def _fake_hypervolume_improvement(candidates: Tensor, *others: object, **options: object) -> Tensor:
    return candidates.new_empty(candidates.shape[:-2])


def _fake_hypervolume_subset(points: Tensor, k: int, *others: object, **options: object) -> Tensor:
    return points.new_empty((*points.shape[:-2], k), dtype=torch.int64)


def _fake_box_decomposition(points: Tensor, *others: object, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    *batch, _, m = points.shape
    boxes = torch.library.get_ctx().new_dynamic_size()
    lower, upper = points.new_empty((*batch, boxes, m)), points.new_empty((*batch, boxes, m))
    return lower, upper, points.new_empty(batch, dtype=torch.int64)


def _fake_best_points(
    queries: Tensor, points: Tensor, kind: int, lengths: Tensor | None = None, with_rows: bool = False
) -> tuple[Tensor, Tensor]:
    *batch, count, _ = queries.shape
    rows = queries.new_empty((*batch, count if with_rows else 0), dtype=torch.int64)
    return queries.new_empty((*batch, count)), rows


def _fake_farthest_query(queries: Tensor, *others: object, **options: object) -> Tensor:
    return queries.new_empty(queries.shape[:-2])


def _fake_non_dominated_sort(points: Tensor, *others: object, **options: object) -> Tensor:
    return points.new_empty(points.shape[:-1], dtype=torch.int32)


def _fake_is_non_dominated(points: Tensor, *others: object, **options: object) -> Tensor:
    return points.new_empty(points.shape[:-1], dtype=torch.bool)


def _fake_dominance_counts(points: Tensor, *others: object, **options: object) -> Tensor:
    return points.new_empty(points.shape[:-1], dtype=torch.int32)


def _fake_is_dominated_by(points: Tensor, others: Tensor, *arguments: object, **options: object) -> Tensor:
    return points.new_empty(points.shape[:-1], dtype=torch.bool)


def _fake_group_advantages(
    rewards: Tensor,
    group_size: int,
    group_ids: Tensor | None = None,
    offsets: Tensor | None = None,
    weights: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *rules: object,
    **named_rules: object,
) -> Tensor:
    return rewards.new_empty(rewards.shape[:1] if mask is None else mask.shape)


def _fake_group_advantages_out(rewards: Tensor, out: Tensor, *others: object, **options: object) -> None:
    return None


def _fake_group_rows(rows: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[:1], dtype=torch.int64)


def _check_like(name: str, matrix: Tensor, dims: tuple[int, ...], **others: Tensor | None) -> None:
    """Devices and shapes as the kernels check them: with a tensor of the device meta among its arguments an operator
    runs its fake, whose results are memory of the first argument's device."""
    torch._check_value(matrix.dim() == 2, lambda: f"{name}: expected shape (N, T), got {tuple(matrix.shape)}")
    for other, tensor in others.items():
        if tensor is None:
            continue
        same_device(name, matrix, other, tensor)
        shape, wanted = tensor.shape, matrix.shape
        torch._check_value(
            len(shape) in dims and all(size == own for size, own in zip(shape, wanted, strict=False)),
            lambda other=other, shape=shape: f"{other}: expected the rows and columns of {name}, got {tuple(shape)}",
        )


def _fake_linear_scan(
    x: Tensor, a: Tensor, initial: Tensor | None = None, mask: Tensor | None = None, *options: object, **named: object
) -> Tensor:
    _check_like("x", x, (1, 2), a=a)
    _check_like("x", x, (1,), initial=initial)
    _check_like("x", x, (2,), mask=mask)
    return x.new_empty(x.shape)


def _fake_gae(
    rewards: Tensor,
    values: Tensor,
    gamma: float = 1.0,
    lam: float = 1.0,
    returns_lam: float | None = None,
    gammas: Tensor | None = None,
    lams: Tensor | None = None,
    returns_lams: Tensor | None = None,
    mask: Tensor | None = None,
    terminated: Tensor | None = None,
    done: Tensor | None = None,
    next_values: Tensor | None = None,
    bootstrap: Tensor | None = None,
    finished: Tensor | None = None,
    *options: object,
    **named: object,
) -> tuple[Tensor, Tensor]:
    _check_like("rewards", rewards, (2,), values=values, mask=mask, terminated=terminated, done=done)
    _check_like("rewards", rewards, (2,), next_values=next_values)
    _check_like("rewards", rewards, (1, 2), gammas=gammas, lams=lams, returns_lams=returns_lams)
    _check_like("rewards", rewards, (1,), bootstrap=bootstrap, finished=finished)
    dtype = torch.promote_types(rewards.dtype, values.dtype)
    return rewards.new_empty(rewards.shape, dtype=dtype), rewards.new_empty(rewards.shape, dtype=dtype)


def _fake_whiten(values: Tensor, mask: Tensor | None = None, *options: object, **named: object) -> Tensor:
    _check_like("values", values, (2,), mask=mask)
    return values.new_empty(values.shape)


def _fake_select_rollouts(rewards: Tensor, *others: object, **options: object) -> Tensor:
    return rewards.new_empty(rewards.shape, dtype=torch.bool)


def _fake_select_tokens(advantages: Tensor, entropies: Tensor, *others: object, **options: object) -> Tensor:
    return entropies.new_empty(entropies.shape, dtype=torch.bool)


def _fake_token_histogram(
    advantages: Tensor, entropies: Tensor, mask: Tensor, segments: Tensor, prefixes: Tensor, level: int
) -> Tensor:
    return prefixes.new_empty((*prefixes.shape, 256))


def _fake_select_tokens_above(advantages: Tensor, entropies: Tensor, *others: object) -> Tensor:
    return entropies.new_empty(entropies.shape, dtype=torch.bool)


def _fake_token_logprobs(
    logits: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    first_token: int = 0,
    partial: bool = False,
    entropy: bool = True,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if logits.dtype is torch.float64 else torch.float32
    entropies = logits.new_empty(tokens.shape if entropy else (0,), dtype=dtype)
    return logits.new_empty(tokens.shape, dtype=dtype), entropies, logits.new_empty(tokens.shape, dtype=torch.float64)


def _fake_token_logprobs_gradient(logits: Tensor, *others: object, **options: object) -> Tensor:
    return logits.new_empty(logits.shape)


for _fake in (
    _fake_hypervolume,
    _fake_hypervolume_gradient,
    _fake_hypervolume_contributions,
    _fake_hypervolume_improvement,
    _fake_hypervolume_subset,
    _fake_box_decomposition,
    _fake_best_points,
    _fake_farthest_query,
    _fake_non_dominated_sort,
    _fake_is_non_dominated,
    _fake_dominance_counts,
    _fake_is_dominated_by,
    _fake_group_advantages,
    _fake_group_advantages_out,
    _fake_group_rows,
    _fake_linear_scan,
    _fake_gae,
    _fake_whiten,
    _fake_select_rollouts,
    _fake_select_tokens,
    _fake_token_histogram,
    _fake_select_tokens_above,
    _fake_token_logprobs,
    _fake_token_logprobs_gradient,
):
    torch.library.register_fake(f"morlfast::{_fake.__name__.removeprefix('_fake_')}", _fake, lib=_library)


# --- CUDA: Triton where the work is dense tiles, CUDA C++ where it is irregular ---


def _launcher(kind: str, family: str, name: str) -> Callable[..., object]:
    """The launcher of that name, whose arguments are the operator's; imported when a CUDA tensor arrives."""

    def kernel(*arguments: object, **options: object) -> object:
        launcher: Callable[..., object] = getattr(import_module(f"morlfast.{kind}.{family}"), name)
        return launcher(*arguments, **options)

    return kernel


for _family, _kind, _names in (
    (
        "hypervolume",
        "_cuda",
        (
            "hypervolume",
            "hypervolume_gradient",
            "hypervolume_contributions",
            "hypervolume_improvement",
            "hypervolume_subset",
            "box_decomposition",
        ),
    ),
    ("indicators", "_triton", ("best_points", "farthest_query")),
    ("pareto", "_triton", ("non_dominated_sort", "is_non_dominated", "dominance_counts", "is_dominated_by")),
    ("advantages", "_triton", ("group_advantages", "group_advantages_out", "group_rows")),
    ("returns", "_triton", ("linear_scan", "gae", "whiten")),
    ("rollouts", "_triton", ("select_rollouts",)),
    ("tokens", "_triton", ("select_tokens", "token_histogram", "select_tokens_above")),
    ("logprobs", "_triton", ("token_logprobs", "token_logprobs_gradient")),
):
    for _name in _names:
        _library.impl(_name, _launcher(_kind, _family, _name), "CUDA")
