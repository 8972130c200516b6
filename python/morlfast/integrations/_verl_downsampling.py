"""D3S and PODS in verl's V1 trainer: which rollouts an update is of, and which of their tokens.

`morlfast.integrations.verl` hands verl's modules to `extend_trainer`, `extend_losses` and `extend_legacy_trainer` when
they are imported. What these replace is as before unless the configuration has `morlfast.d3s` or `morlfast.pods`.

A selection is of the batch that the trainer computes advantages of at once. In its mode `separate_async` that is one
mini-batch, `parameter_sync_step` times a step: `d3s.rollouts` are of each of them, and an update always takes a whole
one, so that leaving rows out saves no time there.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from morlfast.downsampling import D3S, PODS, D3SSchedule, LinearSchedule
from morlfast.integrations import _rebind

_D3S_OPTIONS = (
    "rollouts",
    "ratio",
    "total_steps",
    "rollout_scope",
    "token_scope",
    "entropy",
    "loss_denominator",
    "at_least",
    "threshold",
    "zero_advantages",
)
_PODS_OPTIONS = ("k", "method", "renormalize")

# How the trainer tells its workers what to select: one more entry beside verl's own of a batch.
_RULES = "morlfast_select_tokens"

_step: ContextVar[_Step | None] = ContextVar("step", default=None)


def down_sampling(config: Any) -> D3S | PODS | None:
    """What `morlfast.d3s` or `morlfast.pods` of a trainer's configuration asks for; ValueError for what cannot be."""
    section = config.get("morlfast")
    if not section:
        return None
    if len(section) != 1 or not set(section) <= {"d3s", "pods"}:
        raise ValueError(f"morlfast: expected one of d3s, pods, got {', '.join(map(str, section))}")
    if "pods" in section:
        return PODS(**_options("pods", section["pods"], _PODS_OPTIONS, "k"))
    options = _options("d3s", section["d3s"], _D3S_OPTIONS, "ratio")
    rollouts, ratio = options.pop("rollouts", None), options.pop("ratio")
    schedule = D3SSchedule(_budget("rollouts", rollouts), _budget("ratio", ratio))
    d3s = D3S(schedule, **{"entropy": "old", **options})
    _check_entropies(d3s, config)
    return d3s


def _options(name: str, given: Any, known: Sequence[str], needed: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ValueError(f"morlfast.{name}: expected options {', '.join(known)}, got {given!r}")
    unknown = [option for option in given if option not in known]
    if unknown:
        raise ValueError(f"morlfast.{name}: expected options of {', '.join(known)}, got {', '.join(map(str, unknown))}")
    if given.get(needed) is None:
        raise ValueError(f"morlfast.{name}.{needed}: expected a value, got none")
    return dict(given.items())


def _budget(name: str, value: Any) -> Any:
    """A number, or [start, end] on the way from the first step to the last."""
    if value is None or not isinstance(value, Sequence) or isinstance(value, str):
        return value
    if len(value) != 2:
        raise ValueError(f"morlfast.d3s.{name}: expected a number or [start, end], got {list(value)}")
    return LinearSchedule(*value)


def _least_ratio(d3s: D3S) -> float:
    ratio = d3s.schedule.linear()[1]
    return min(ratio.start, ratio.end)


def _needs_entropies(d3s: D3S, whose: str) -> bool:
    return d3s.entropy == whose and _least_ratio(d3s) < 1


def _check_entropies(d3s: D3S, config: Any) -> None:
    """ValueError where verl does not have those that are asked for."""
    if _needs_entropies(d3s, "old"):
        correction = config.algorithm.get("rollout_correction")
        if correction and correction.get("bypass_mode", False):
            raise ValueError(
                "morlfast.d3s: expected algorithm.rollout_correction.bypass_mode=False, got True: verl then computes "
                "nothing of the old policy, and so no entropies; morlfast.d3s.entropy=current needs none of it"
            )
    if not _needs_entropies(d3s, "current"):
        return
    actor = config.actor_rollout_ref.actor
    if not actor.calculate_entropy and actor.entropy_coeff == 0:
        raise ValueError(
            "morlfast.d3s.entropy=current: expected actor_rollout_ref.actor.calculate_entropy=True, got False"
        )
    if d3s.token_scope == "group":
        raise ValueError(
            "morlfast.d3s.token_scope: expected batch or sequence with entropy=current, got group; the current "
            "policy's entropies are there micro-batch by micro-batch, which do not hold whole groups"
        )
    if (actor.get("megatron") or {}).get("dynamic_context_parallel", False):
        raise ValueError(
            "morlfast.d3s.entropy=current: expected actor_rollout_ref.actor.megatron.dynamic_context_parallel=False, "
            "got True: verl's data-parallel groups are then not those that a micro-batch is spread over"
        )
    countable = d3s.at_least == 0 and d3s.threshold == "exact" and d3s.zero_advantages == "keep"
    if d3s.loss_denominator == "kept" and not (countable and _least_ratio(d3s) > 0):
        raise ValueError(
            "morlfast.d3s.loss_denominator=kept: expected at_least=0, threshold=exact, zero_advantages=keep and a "
            "ratio above 0 with entropy=current, where a loss is divided before all its tokens are selected"
        )


# ---- the trainer ----


class _Step:
    """What one step selects, from when its advantages are computed to its updates."""

    def __init__(self, method: D3S | PODS, progress: float, entropies: Tensor | None) -> None:
        self.method, self.progress, self.entropies = method, progress, entropies
        self.rollouts: Tensor | None = None  # (N,) bool
        self.tokens: Tensor | None = None  # (N, T) bool
        self.metrics: dict[str, float] = {}

    @property
    def drops(self) -> bool:
        """Whether what is not selected leaves the masks, and rows without a token the update."""
        return isinstance(self.method, PODS) or self.method.loss_denominator == "kept"

    def select(self, data: Any, keys: Sequence[str], estimate: Callable[[Tensor], Any]) -> None:
        """From a batch whose advantages were just computed; `estimate(rows)` computes those of some rows alone."""
        batch, uids = data.batch, data.non_tensor_batch["uid"]
        mask = batch["response_mask"] != 0
        final, last = _final_rows(keys)
        scored = mask.any(1) & final
        if isinstance(self.method, PODS):
            rewards = batch["token_level_rewards"].sum(1, dtype=torch.float64)
            rollouts = self.method.select(torch.where(scored, rewards, torch.nan), group_ids=uids).mask
        else:
            rollouts = self.method.select_rollouts(
                batch["advantages"], mask=mask & final[:, None], group_ids=uids, progress=self.progress
            ).mask
        self.metrics["morlfast/kept_rollouts"] = float(rollouts.sum() / scored.sum().clamp(min=1))
        self.rollouts = rollouts[last]
        kept = mask & self.rollouts[:, None]
        if isinstance(self.method, PODS):
            self._renormalize(data, estimate)
        elif not _needs_entropies(self.method, "current"):
            advantages = batch["advantages"]
            entropies = torch.ones_like(advantages) if self.entropies is None else self.entropies
            kept = self.method.select_tokens(
                advantages, entropies, mask, rollouts=self.rollouts, group_ids=uids, progress=self.progress
            )
        if not self.drops:
            batch["advantages"] = torch.where(kept, batch["advantages"], 0)
        self.tokens = kept
        self.metrics["morlfast/kept_tokens"] = float(kept.sum() / mask.sum().clamp(min=1))

    def _renormalize(self, data: Any, estimate: Callable[[Tensor], Any]) -> None:
        assert isinstance(self.method, PODS)
        assert self.rollouts is not None
        if not self.method.renormalize:
            return
        rows = self.rollouts.nonzero().squeeze(1)
        selected = estimate(rows).batch if len(rows) > 0 else None
        for name in ("advantages", "returns"):
            values = torch.zeros_like(data.batch[name])
            if selected is not None:
                values[rows] = selected[name].to(values.dtype)
            data.batch[name] = values

    def write_masks(self, trainer_base: ModuleType, batch: Any) -> None:
        """verl masks its losses with `response_mask` and divides them by the number of tokens in `loss_mask`."""
        assert self.tokens is not None
        queue, names = trainer_base.tq, ["response_mask", "loss_mask"]
        masks = queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
        for name in names:
            masks[name] = trainer_base.response_to_nested(self.tokens.to(masks[name].dtype), masks[name])
        queue.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=masks)

    def rows_of_update(self, batch: Any, multiple: int, parts: int, trainer_base: ModuleType) -> Any:
        """The rows with tokens, filled up to a multiple with the shortest of the others, or None without any.

        Fewer than `multiple` are filled in, so that every mini-batch has a token whichever rows it is of.
        """
        assert self.tokens is not None
        lengths = [tag["seq_len"] for tag in batch.tags]
        kept = self.tokens.any(1)
        rows = kept.nonzero().squeeze(1).tolist()
        if not rows:
            return None
        others = sorted((~kept).nonzero().squeeze(1).tolist(), key=lengths.__getitem__)
        rows += others[: -len(rows) % multiple]
        selected = batch.select_keys([batch.keys[row] for row in sorted(rows)])
        work = trainer_base.calculate_workload(torch.tensor([tag["seq_len"] for tag in selected.tags]))
        ranks = trainer_base.get_seqlen_balanced_partitions(work, k_partitions=parts, equal_size=True)
        selected.reorder([row for rank in ranks for row in rank])
        return selected


def extend_trainer(trainer_base: ModuleType, rewards_of: Callable[[Tensor], AbstractContextManager[None]]) -> None:
    """Let `PPOTrainer` of verl's V1, and every trainer derived from it, select.

    Within `rewards_of(rows)` an estimator that fetches rewards by itself has those of some rows.
    """
    trainer = trainer_base.PPOTrainer
    initialize, compute = trainer.__init__, trainer._compute_advantage
    estimate = trainer_base.compute_advantage_for_multi_trajectories
    # All of them before the first is replaced: a verl without one of them is left as it is.
    updates = {
        "_update_actor": _update_of_selected(trainer._update_actor, _actor, trainer_base),
        "_update_critic": _update_of_selected(trainer._update_critic, _critic, trainer_base),
    }

    @functools.wraps(initialize)
    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        down_sampling(config)  # before anything is loaded
        initialize(self, config, *args, **kwargs)

    @functools.wraps(estimate)
    def compute_advantage_for_multi_trajectories(data: Any, batch_keys: Sequence[str], **options: Any) -> Any:
        data = estimate(data, batch_keys=batch_keys, **options)
        step = _step.get()
        if step is not None:

            def of_rows(rows: Tensor) -> Any:
                with rewards_of(rows):
                    keys = [batch_keys[row] for row in rows.tolist()]
                    return estimate(data.select_idxs(rows), batch_keys=keys, **options)

            step.select(data, batch_keys, of_rows)
        return data

    @functools.wraps(compute)
    def _compute_advantage(self: Any, batch: Any, metrics: dict[str, Any]) -> Any:
        method = down_sampling(self.config)
        if method is None:
            return compute(self, batch, metrics)
        step = self._morlfast_step = _Step(method, *_inputs(self, method, batch, trainer_base.tq))
        token = _step.set(step)
        try:
            batch = compute(self, batch, metrics)
        finally:
            _step.reset(token)
        if step.tokens is None:
            raise RuntimeError(
                f"morlfast: {type(self).__name__}._compute_advantage computed no advantages by verl's "
                "compute_advantage_for_multi_trajectories, so that nothing could be selected"
            )
        if step.drops:
            step.write_masks(trainer_base, batch)
        metrics.update(step.metrics)
        return batch

    trainer.__init__ = __init__
    trainer._compute_advantage = _compute_advantage
    vars(trainer_base)[estimate.__name__] = compute_advantage_for_multi_trajectories
    for name, update in updates.items():
        setattr(trainer, name, update)


def _inputs(trainer: Any, method: D3S | PODS, batch: Any, queue: Any) -> tuple[float, Tensor | None]:
    """How far the training is, and the old policy's entropies (N, T) where they are asked for."""
    if isinstance(method, PODS):
        return 0.0, None
    # The first step has the schedule's start.
    progress = min((trainer.global_steps - 1) / (method.total_steps or trainer.total_training_steps), 1.0)
    if not _needs_entropies(method, "old"):
        return progress, None
    fields = queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["entropy"])
    return progress, fields.to_padded_tensor()["entropy"]


def _final_rows(keys: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(N,) bool: the last output of each session, from which verl has its advantage; and that row for each row."""
    sessions = [_session(key) for key in keys]
    last: dict[str, int] = {}
    for row, (session, output) in enumerate(sessions):
        if output > sessions[last.setdefault(session, row)][1]:
            last[session] = row
    rows = torch.tensor([last[session] for session, _ in sessions], dtype=torch.int64)
    return rows == torch.arange(len(rows)), rows


def _session(key: str) -> tuple[str, int]:
    """verl's agent loops write {uid}_{session}_{output}; any other key is a session of its own."""
    session, _, output = key.rpartition("_")
    return (session, int(output)) if "_" in session and output.isdecimal() else (key, 0)


def _actor(config: Any) -> Any:
    return config.actor_rollout_ref.actor


def _critic(config: Any) -> Any:
    return config.critic


def _update_of_selected(update: Any, model: Callable[[Any], Any], trainer_base: ModuleType) -> Any:
    @functools.wraps(update)
    def of_selected(self: Any, batch: Any, metrics: dict[str, Any]) -> Any:
        step: _Step | None = getattr(self, "_morlfast_step", None)
        if step is None:
            return update(self, batch, metrics)
        rows = batch
        if step.drops:
            parts = max(self.actor_rollout_wg._dispatch_info["actor"]) + 1
            mini_batch = int(model(self.config).ppo_mini_batch_size * self.config.actor_rollout_ref.rollout.n)
            rows = step.rows_of_update(batch, math.lcm(mini_batch, parts), parts, trainer_base)
            metrics["morlfast/update_rows"] = 0 if rows is None else len(rows)
            if rows is None:  # no token to learn from: verl would divide by their number
                return batch
            if str(model(self.config).loss_agg_mode).startswith("seq-mean"):
                _warn_of_rows_without_tokens(self, step, len(rows), update.__name__)
        rules = _rules(step)
        if rules is not None:
            rows.extra_info[_RULES] = rules
        update(self, rows, metrics)
        return batch  # metrics, and the queue's clearing, are of all rows

    return of_selected


def _warn_of_rows_without_tokens(trainer: Any, step: _Step, rows: int, update: str) -> None:
    """Once: verl divides such losses by the rows of a mini-batch, those without a token among them."""
    assert step.tokens is not None
    with_tokens = int(step.tokens.any(1).sum())
    warned = vars(trainer).setdefault("_morlfast_warned", set())
    if with_tokens < rows and update not in warned:
        warned.add(update)
        logging.getLogger(__name__).warning(
            "morlfast: %s has a seq-mean loss_agg_mode, and %d of its %d rows have no token; verl divides by all of "
            "them, so that this step is %.3g times as large as one of the selected rows alone. loss_agg_mode="
            "token-mean has no such factor; a smaller ppo_mini_batch_size brings it nearer to 1",
            update,
            rows - with_tokens,
            rows,
            with_tokens / rows,
        )


def _rules(step: _Step) -> dict[str, Any] | None:
    """What workers select by, where it is their entropies."""
    method = step.method
    if isinstance(method, PODS) or not _needs_entropies(method, "current"):
        return None
    names = ("token_scope", "loss_denominator", "at_least", "threshold", "zero_advantages")
    return {"ratio": method.schedule(step.progress).ratio, **{name: getattr(method, name) for name in names}}


# ---- the workers ----


def extend_losses(losses: ModuleType) -> None:
    """Let `ppo_loss`, which has the current policy's entropies, leave tokens out for every policy loss."""
    original = losses.ppo_loss

    @functools.wraps(original)
    def ppo_loss(config: Any, model_output: Any, data: Any, dp_group: Any = None) -> Any:
        rules = losses.tu.get_non_tensor_data(data=data, key=_RULES, default=None)
        if rules is None:
            return original(config, model_output, data, dp_group)
        selected, kept = _select_in_loss(losses, rules, model_output, data, dp_group)
        loss, metrics = original(config, model_output, selected, dp_group)
        # Its part of the mini-batch's share, which verl sums, over micro-batches without a token too.
        share = losses.Metric(losses.AggregationType.SUM, kept * data["dp_size"] / data["batch_num_tokens"])
        return loss, {**metrics, "actor/morlfast_kept_tokens": share}

    _rebind("verl", {original: ppo_loss})


def _select_in_loss(
    losses: ModuleType, rules: Mapping[str, Any], model_output: Any, data: Any, dp_group: Any
) -> tuple[Any, Tensor]:
    """The micro-batch with fewer tokens, and their number."""
    padding = importlib.import_module("verl.workers.utils.padding")
    entropies = losses.no_padding_2_padding(model_output["entropy"], data).detach()
    padded = data.select("response_mask", "advantages").to_padded_tensor()
    mask = padded["response_mask"] != 0
    rules = {**rules}
    d3s = D3S(D3SSchedule(None, rules.pop("ratio")), **rules)
    kept = d3s.select_tokens(padded["advantages"], entropies, mask, process_group=dp_group)
    selected = data.copy()
    if d3s.loss_denominator == "all":
        advantages = torch.where(kept, padded["advantages"], 0)
        selected["advantages"] = padding.response_to_nested(advantages, data["advantages"])
    else:
        old = data["response_mask"]
        selected["response_mask"] = padding.response_to_nested(kept.to(old.dtype), old)
        # Other micro-batches are not known here, so that this is their number up to one a scope.
        losses.tu.assign_non_tensor(selected, batch_num_tokens=data["batch_num_tokens"] * d3s.budget().ratio)
    return selected, kept.sum()


# ---- verl's older trainer ----


def extend_legacy_trainer(ray_trainer: ModuleType) -> None:
    """Let `RayPPOTrainer` refuse what it would not do: it has thrown the entropies away before there are advantages.

    And all derived from it, some of which do not call its `__init__`.
    """
    trainer = ray_trainer.RayPPOTrainer

    def __init_subclass__(cls: Any, /, **kwargs: Any) -> None:  # noqa: N807
        super(trainer, cls).__init_subclass__(**kwargs)
        _refuse_options(cls)

    trainer.__init_subclass__ = classmethod(__init_subclass__)
    derived = [trainer]
    for cls in derived:  # which grows; those that were there before
        _refuse_options(cls)
        derived += cls.__subclasses__()


def _refuse_options(cls: Any) -> None:
    initialize = vars(cls).get("__init__")
    if initialize is None:
        return

    @functools.wraps(initialize)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        config = kwargs.get("config", args[0] if args else None)
        if isinstance(config, Mapping) and config.get("morlfast"):
            raise ValueError(
                f"morlfast: expected verl's V1 trainer, trainer.use_v1=True, for d3s and pods, got {cls.__name__}"
            )
        initialize(self, *args, **kwargs)

    cls.__init__ = __init__
