"""Fewer rollouts and tokens in TRL's `GRPOTrainer`: D3S and PODS between its generation and its loss."""

from __future__ import annotations

import copy
import math
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from accelerate.utils import broadcast
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from morlfast.downsampling import D3S, PODS, D3SSchedule

# What divides a loss: the tokens of its rollout, of its micro-batch, of all that was generated. The others divide by
# no count of tokens.
_PER_ROLLOUT, _PER_MICRO_BATCH, _PER_GENERATION = {"grpo", "sapo"}, {"bnpo"}, {"dapo", "cispo", "vespo"}

_IMAGES = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)

# What stands in the columns that another process has and this one lacks: nothing that the loss counts, and a ratio
# that is no correction.
_FILLING = {
    "prompt_mask": 0,
    "completion_mask": 0,
    "tool_mask": 0,
    "old_per_token_logps": 0,
    "sampling_per_token_logps": 0,
    "ref_per_token_logps": 0,
    "importance_sampling_ratio": 1,
    "advantages": 0,
    "group_ids": 0,
}

_Trainer: Any = object  # behind which a trainer stands, so that it has all of a GRPOTrainer's attributes


class DownSampling(_Trainer):  # type: ignore[misc]
    """What `MultiObjectiveMixin` does with `down_sampling`."""

    down_sampling: D3S | PODS | None = None
    top_entropy_quantile: float
    _selected_with: D3S | PODS | None = None  # the rollouts in use, when they were generated,
    _progress = 0.0  # and how far training was
    _micro_batch: dict[str, Any] | None = None  # whose loss is being computed, where its tokens are selected

    def _check_down_sampling(self) -> None:
        """That the trainer's arguments allow what was asked for."""
        method, rows = self.down_sampling, self.args.generation_batch_size
        if method is None:
            return
        if isinstance(method, PODS):
            self._check_k(method.k, rows)
            return
        if not isinstance(method, D3S):
            raise TypeError(f"down_sampling: expected D3S, PODS or None, got {type(method).__name__}")
        size = rows if method.rollout_scope == "batch" else self.num_generations
        for progress in (0.0, 1.0):
            if (rollouts := method.budget(progress).rollouts) is not None and rollouts > size:
                raise ValueError(
                    f"down_sampling: expected a budget of at most the {size} rollouts of a {method.rollout_scope}, "
                    f"got {rollouts}"
                )
        if self.args.top_entropy_quantile < 1:
            raise ValueError(
                f"top_entropy_quantile: expected its default 1.0 with D3S, which selects tokens itself, got "
                f"{self.args.top_entropy_quantile}"
            )
        if method.loss_denominator == "kept":
            if self.loss_type not in _PER_ROLLOUT | _PER_MICRO_BATCH | _PER_GENERATION:
                raise ValueError(
                    f'loss_denominator: expected "all" of D3S with loss_type={self.loss_type!r}, which divides by no '
                    'number of tokens, got "kept"'
                )
            if self._counts_ahead(method) and method.threshold == "quantile":
                raise ValueError(
                    f'threshold: expected "exact" of D3S with loss_type={self.loss_type!r} and loss_denominator="kept",'
                    ' since tokens are counted before their current entropies are known, got "quantile"'
                )

    # ---- rollouts ----

    def _select_rollouts(self, rewards: Tensor, advantages: Tensor, lengths: Tensor | None) -> Tensor | None:
        """Rows (K,), ascending, among all processes' rewards (N, M) and advantages (N,); the same on every process.

        `lengths` (N,) are in tokens that the loss counts: 0 of a truncated rollout that is masked. None will do without
        down-sampling.
        """
        self._check_down_sampling()  # the attributes may be others by now
        self._selected_with = method = self.down_sampling
        self._progress = min(self.state.global_step / max(self.state.max_steps, 1), 1.0)
        if method is None or lengths is None:
            return None
        rows, size = len(advantages), self.num_generations
        is_empty = lengths == 0
        unscored = rewards.isnan().all(1) | is_empty
        if isinstance(method, PODS):
            k = method.k
            weighted = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
            mask = method.select(weighted.masked_fill(unscored, math.nan), group_size=size).mask
        else:
            size = rows if method.rollout_scope == "batch" else size
            rollouts, _ = method.schedule.linear()
            unit = self._unit(rows // size)
            k = size if rollouts is None else max(math.floor(rollouts(self._progress) / unit + 0.5), 1) * unit
            rounded = copy.copy(method)
            rounded.schedule = D3SSchedule(k, method.schedule.ratio)
            scored = advantages.masked_fill(unscored, math.nan)
            mask = rounded.select_rollouts(scored, group_size=self.num_generations, progress=self._progress).mask
        # Where fewer than k count, the first of the others too: all micro-batches shall have equally many rows.
        place = (~mask).to(torch.uint8) + is_empty  # selected, with tokens, without
        order = place.view(-1, size).argsort(dim=1, stable=True)[:, :k].sort(1).values
        selected = (order + torch.arange(0, rows, size, device=order.device)[:, None]).flatten()
        return broadcast(selected) if self.accelerator.num_processes > 1 else selected  # a method may draw

    def _unit(self, groups: int) -> int:
        """Of what k of each group is a multiple, so that all processes' micro-batches have equally many rows."""
        parts = self.accelerator.num_processes * self.args.steps_per_generation
        return int(parts // math.gcd(parts, groups))

    def _may_move(self, rows: int) -> bool:
        """Whether a process may have more than its share of the selected rows, in this generation or another."""
        method, size = self._selected_with, self.num_generations
        if isinstance(method, D3S):
            if method.schedule.rollouts is None:
                return False
            size = rows if method.rollout_scope == "batch" else size
        return bool(rows // size % self.accelerator.num_processes)

    def _check_k(self, k: int, rows: int) -> None:
        groups = rows // self.num_generations
        unit = self._unit(groups)
        if not 0 < k <= self.num_generations or k % unit != 0:
            raise ValueError(
                f"down_sampling: expected 0 < k <= num_generations={self.num_generations} and k a multiple of {unit}, "
                f"for {groups} groups to fill {self.args.steps_per_generation} steps_per_generation on "
                f"{self.accelerator.num_processes} processes evenly, got {k}"
            )

    def _down_sampled(self, output: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        """This process's share of the selected rows, and which of their tokens, where that is known by now."""
        method, process = self._selected_with, self.accelerator.process_index
        held = len(output["advantages"])  # by each process
        if self._may_move(held * self.accelerator.num_processes):
            _refuse_images(output, self.accelerator)
        output["generated_items"] = output["num_items_in_batch"]
        if isinstance(method, D3S) and method.token_scope == "group":
            everyones = torch.arange(process * held, (process + 1) * held, device=rows.device)
            output["group_ids"] = everyones // self.num_generations
        shares = rows.view(self.accelerator.num_processes, -1)
        own = shares[process]
        if torch.equal(shares // held, torch.arange(len(shares), device=rows.device)[:, None].expand_as(shares)):
            output = _take_rows(output, own - process * held)
        else:
            output = _take_rows(_rows_of_processes(output, self.accelerator, self._tokenizer.pad_token_id), own)
        output["num_items_in_batch"] = self.accelerator.gather(counted_tokens(output).sum()).sum()

        metrics = self._metrics["train"]
        metrics["frac_rollouts_trained"].append(rows.numel() / (held * len(shares)))
        if isinstance(method, PODS):
            metrics["frac_tokens_trained"].append((output["num_items_in_batch"] / output["generated_items"]).item())
        elif isinstance(method, D3S) and method.entropy == "old":
            kept = self._select_tokens(method, output, self._entropies(output))
            output["selected_tokens"] = kept
            output["kept_items"] = self.accelerator.gather(kept.sum()).sum()
        return output

    # ---- tokens ----

    def _entropies(self, batch: dict[str, Any]) -> Tensor:
        """(B, T) of the policy as it is, in chunks of a micro-batch like TRL's own log-probabilities."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        attention_mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        entropies: Tensor
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            _, entropies, _ = self._get_per_token_logps_and_entropies(
                self.model,
                ids,
                attention_mask,
                batch["completion_ids"].shape[1],
                batch_size=self.args.per_device_train_batch_size,
                compute_entropy=True,
                **{name: batch.get(name) for name in _IMAGES},
            )
        return entropies

    def _select_tokens(self, method: D3S, batch: dict[str, Any], entropies: Tensor) -> Tensor:
        return method.select_tokens(
            batch["advantages"],
            entropies,
            counted_tokens(batch),
            group_ids=batch.get("group_ids"),
            process_group=dist.group.WORLD if self.accelerator.num_processes > 1 else None,
            progress=self._progress,
        )

    def _counts_ahead(self, method: D3S | PODS | None) -> TypeGuard[D3S]:
        """Whether a loss needs the number of tokens kept of a whole generation before their entropies are known."""
        return (
            isinstance(method, D3S)
            and method.entropy == "current"
            and method.loss_denominator == "kept"
            and self.loss_type in _PER_GENERATION
        )

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        method = self._selected_with
        if self.model.training and self._counts_ahead(method) and "kept_items" not in inputs:
            kept = torch.zeros((), dtype=torch.int64, device=inputs["advantages"].device)
            for batch in self._buffered_inputs:  # how many are kept does not depend on their scores
                scores = torch.ones_like(batch["completion_ids"], dtype=torch.float32)
                kept += self._select_tokens(method, batch, scores).sum()
            everyones = self.accelerator.gather(kept).sum()
            for batch in self._buffered_inputs:
                batch["kept_items"] = everyones
        return inputs

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss: Tensor
        if not isinstance(self._selected_with, D3S) or not self.model.training:
            loss = super()._compute_loss(model, inputs)
            return loss
        quantile: float = self.top_entropy_quantile
        self._micro_batch = dict(inputs)
        self.top_entropy_quantile = 0.0  # so that TRL asks for a mask, before it looks at the advantages
        try:
            loss = super()._compute_loss(model, self._micro_batch)
        finally:
            self._micro_batch, self.top_entropy_quantile = None, quantile
        return loss

    def get_high_entropy_mask(self, entropies: Tensor, mask: Tensor, threshold: float) -> Tensor:
        """The tokens that D3S keeps where it trains; otherwise those that TRL keeps."""
        batch, method = self._micro_batch, self._selected_with
        if batch is None or not isinstance(method, D3S):
            own: Tensor = super().get_high_entropy_mask(entropies, mask, threshold)
            return own
        kept: Tensor = (
            batch["selected_tokens"] if method.entropy == "old" else self._select_tokens(method, batch, entropies)
        )
        if method.loss_denominator == "kept":
            # Each loss is proportional to the sizes of advantages, which KL penalty and entropy bonus do not see.
            batch["advantages"] = batch["advantages"] * self._kept_factor(batch, mask, kept)
        everyones = self.accelerator.gather(kept.sum()).sum() * self.args.steps_per_generation
        self._metrics["train"]["frac_tokens_trained"].append((everyones / batch["generated_items"]).item())
        return kept

    def _kept_factor(self, batch: dict[str, Any], mask: Tensor, kept: Tensor) -> Tensor:
        """By how much a loss over kept tokens is larger than over all, (B,) or a scalar."""
        if self.loss_type in _PER_ROLLOUT:
            every, own = mask.sum(1), kept.sum(1)
        elif self.loss_type in _PER_MICRO_BATCH:
            every, own = mask.sum(), kept.sum()
        else:
            every, own = batch["num_items_in_batch"], batch["kept_items"]
        return every.clamp(min=1) / own.clamp(min=1)


def counted_tokens(batch: dict[str, Any]) -> Tensor:
    """(B, T) tokens that the loss counts: not padding, not a tool's."""
    mask: Tensor = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


def _take_rows(batch: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """The batch of `rows` (K,) alone: tensors, lists, and the images of each row; scalars stay."""
    listed = rows.tolist()

    def taken(values: Any) -> Any:
        if isinstance(values, Tensor):
            return values[rows] if values.dim() > 0 else values
        return values if values is None else [values[row] for row in listed]

    by_row = split_pixel_values_by_grid(batch)
    merged: dict[str, Any] = unsplit_pixel_values_by_grid({name: taken(values) for name, values in by_row.items()})
    return merged


def _rows_of_processes(batch: dict[str, Any], accelerator: Any, pad_token_id: int) -> dict[str, Any]:
    """The batches of all processes, in their order, as one on each; prompts are padded on the left."""
    filling = {**_FILLING, "prompt_ids": pad_token_id, "completion_ids": pad_token_id}

    def gathered(name: str, values: Tensor) -> Tensor:
        if values.dim() > 1:
            left = name.startswith("prompt_")
            values = accelerator.pad_across_processes(values, dim=1, pad_index=filling[name], pad_first=left)
        everyones: Tensor = accelerator.gather(values.contiguous())
        return everyones

    return {name: values if _is_scalar(values) else gathered(name, values) for name, values in batch.items()}


def _refuse_images(batch: dict[str, Any], accelerator: Any) -> None:
    """ValueError on all processes where any has what `_rows_of_processes` cannot move: or the others would wait."""
    known = {*_FILLING, "prompt_ids", "completion_ids"}
    others = [name for name, values in batch.items() if name not in known and not _is_scalar(values)]
    flag = torch.tensor([len(others)], device=batch["advantages"].device)
    if accelerator.gather(flag).any():
        came = others[0] if others else "images on another one"
        raise ValueError(
            f"down_sampling: expected a batch of text, since selected rollouts change their process, got {came}; "
            "select in groups, and let each process hold whole ones"
        )


def _is_scalar(values: Any) -> bool:
    return isinstance(values, Tensor) and values.dim() == 0
