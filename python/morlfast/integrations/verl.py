"""Advantages of verl: estimators of its registry by names of their own, and its own functions replaced.

A plugin of verl (entry point `verl.plugins`): wherever morlfast is installed beside verl, `algorithm.adv_estimator` may
be `morlfast_grpo`, `morlfast_gdpo` and the other keys of `ESTIMATORS`. `patch()` puts the functions here in place of
verl's of the same names, so that `grpo`, `gdpo`, `gae`, ... are computed by them too.

Nothing of verl is imported before it is used, so that workers which compute no advantages pay nothing.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

import morlfast
from morlfast.integrations import Patch, check_version
from morlfast.returns import discounted_returns, gae, whiten

CHECKED_VERSIONS = ("0.9.1",)

Estimate = tuple[Tensor, Tensor]

# What V1's trainer leaves in its queue and `morlfast_gdpo` asks for: the values of each reward, by name.
_rewards: ContextVar[Mapping[str, Any] | None] = ContextVar("rewards", default=None)


def compute_grpo_outcome_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Any,
    epsilon: float = 1e-6,
    norm_adv_by_std_in_grpo: bool = True,
    config: Any = None,
    **kwargs: Any,
) -> Estimate:
    """GRPO, or Dr. GRPO without `norm_adv_by_std_in_grpo`: advantages (N, T), twice the same tensor.

    The functions here have verl's arguments: `token_level_rewards` (N, T), of which each row's sum is its score;
    `response_mask` (N, T) of any type; `index`, the uid of each row's prompt, strings in a NumPy object array or any
    labels that `morlfast.group_advantages` takes. Rules and errors are those of its preset "verl".

    >>> rewards, mask = torch.tensor([[0.0, 1.0], [0.0, 3.0]]), torch.tensor([[1, 1], [1, 0]])
    >>> compute_grpo_outcome_advantage(rewards, mask, ["a", "a"], norm_adv_by_std_in_grpo=False)[0]
    tensor([[-1., -1.],
            [ 1.,  0.]])
    """
    scale = None if norm_adv_by_std_in_grpo else "none"
    return _outcome("grpo", token_level_rewards, response_mask, index, eps=epsilon, scale=scale)


def compute_grpo_vectorized_outcome_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Any,
    epsilon: float = 1e-6,
    norm_adv_by_std_in_grpo: bool = True,
    config: Any = None,
    **kwargs: Any,
) -> Estimate:
    """As `compute_grpo_outcome_advantage`, without verl's own conversion of `index`, which may merge labels."""
    return compute_grpo_outcome_advantage(
        token_level_rewards, response_mask, index, epsilon, norm_adv_by_std_in_grpo, config
    )


def compute_gdpo_outcome_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Any,
    epsilon: float = 1e-6,
    norm_adv_by_std_in_grpo: bool = True,
    config: Any = None,
    non_tensor_batch: Mapping[str, Any] | None = None,
    batch: Any = None,
    **kwargs: Any,
) -> Estimate:
    """GDPO of the rewards `config.gdpo_reward_keys`, weighted by `config.gdpo_reward_weights`.

    Each reward has one value a row, in `non_tensor_batch`, or in the queue of verl's V1 trainer, which does not hand
    them on. Without a `config`, and without keys where nobody has the rewards one by one, `token_level_rewards` are the
    only reward, as in verl; with keys and without their values, ValueError, where verl silently does the same. Nothing
    else of `batch` is needed. ValueError also for fewer than two tokens, which verl cannot whiten either.
    """
    fetched = _rewards.get()
    values = fetched if non_tensor_batch is None else {**non_tensor_batch, **(fetched or {})}
    keys = config.get("gdpo_reward_keys") if config is not None else None
    rules: dict[str, Any] = {"eps": epsilon, "scale": None if norm_adv_by_std_in_grpo else "none"}
    if config is None or (not keys and values is None):
        return _whitened("gdpo", token_level_rewards, response_mask, index, **rules)
    rewards = _reward_columns(keys, values, token_level_rewards)
    weights = config.get("gdpo_reward_weights")
    if weights is not None:
        weights = torch.tensor([float(weight) for weight in weights], dtype=torch.float32, device=rewards.device)
    return _whitened("gdpo", token_level_rewards, response_mask, index, rewards=rewards, weights=weights, **rules)


def compute_rloo_outcome_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Any,
    epsilon: float = 1e-6,
    config: Any = None,
    **kwargs: Any,
) -> Estimate:
    """RLOO; in a group of one the score itself."""
    return _outcome("rloo", token_level_rewards, response_mask, index)


def compute_rloo_vectorized_outcome_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Any,
    epsilon: float = 1e-6,
    config: Any = None,
    **kwargs: Any,
) -> Estimate:
    """RLOO; in a group of one 0, unlike `compute_rloo_outcome_advantage`."""
    return _outcome("rloo_vectorized", token_level_rewards, response_mask, index)


def compute_opo_outcome_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Any,
    epsilon: float = 1e-6,
    config: Any = None,
    **kwargs: Any,
) -> Estimate:
    """OPO: less the group's mean score, weighted by the tokens of each response."""
    return _outcome("opo", token_level_rewards, response_mask, index)


def compute_gpg_outcome_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Any,
    epsilon: float = 1e-6,
    f_norm: float = 1.0,
    alpha: float = 1.0,
    config: Any = None,
    **kwargs: Any,
) -> Estimate:
    """GPG: less the group's mean, times N over the number of scores that are not 0, over `f_norm`.

    `alpha` is not looked at, as in verl.
    """
    scores = token_level_rewards.sum(dim=-1)
    factor = len(scores) / torch.count_nonzero(scores).clamp(min=1) / f_norm
    return _outcome("gpg", token_level_rewards, response_mask, index, rewards=scores, weights=factor.reshape(1))


def compute_grpo_passk_outcome_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Any,
    epsilon: float = 1e-6,
    norm_adv_by_std_in_grpo: bool = True,
    config: Any = None,
    **kwargs: Any,
) -> Estimate:
    """Pass@k: the best of a group gets its lead over the second, over the group's deviation; all others get 0.

    Whether it is divided says `config.norm_adv_by_std_in_grpo`, as in verl. ValueError for a group of one.
    """
    divided = config.get("norm_adv_by_std_in_grpo", True) if config is not None else norm_adv_by_std_in_grpo
    scale = None if divided else "none"
    return _outcome("pass_at_k", token_level_rewards, response_mask, index, eps=epsilon, scale=scale)


def compute_reinforce_plus_plus_baseline_outcome_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Any,
    epsilon: float = 1e-6,
    config: Any = None,
    **kwargs: Any,
) -> Estimate:
    """REINFORCE++ with the group's mean as baseline, whitened over tokens; ValueError for fewer than two tokens."""
    return _whitened("reinforce_pp_baseline", token_level_rewards, response_mask, index)


def compute_reinforce_plus_plus_outcome_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, config: Any = None, **kwargs: Any
) -> Estimate:
    """REINFORCE++: returns discounted by `config.gamma`, and these whitened over tokens as advantages.

    Tokens outside the mask are skipped. ValueError for fewer than two tokens.
    """
    _check_tokens(response_mask)
    returns = discounted_returns(token_level_rewards.detach(), config.gamma, mask=response_mask)
    return whiten(returns, response_mask), returns


def compute_gae_advantage_return(
    token_level_rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: Any, lam: Any
) -> Estimate:
    """Generalized advantages, whitened over tokens, and the critic's returns; both (N, T).

    Tokens outside the mask are skipped; they have verl's numbers, which its losses mask. ValueError for fewer than two
    tokens inside.
    """
    _check_tokens(response_mask)
    with torch.no_grad():
        advantages, returns = gae(
            token_level_rewards, values, gamma=gamma, lam=lam, mask=response_mask, outside="carry"
        )
    return whiten(advantages, response_mask, outside="whiten"), returns


def _outcome(
    method: str, token_rewards: Tensor, mask: Tensor, index: Any, *, rewards: Tensor | None = None, **rules: Any
) -> Estimate:
    if rewards is None:
        rules["token_rewards"] = token_rewards
    advantages = morlfast.group_advantages(rewards, group_ids=index, mask=mask, preset="verl", method=method, **rules)
    return advantages, advantages


def _whitened(method: str, token_rewards: Tensor, mask: Tensor, index: Any, **rules: Any) -> Estimate:
    _check_tokens(mask)
    return _outcome(method, token_rewards, mask, index, **rules)


def _check_tokens(mask: Tensor) -> None:
    # A row has more than one token as a rule, so that the whole mask need not be read for this.
    if int(torch.count_nonzero(mask[:1])) < 2 and int(torch.count_nonzero(mask)) < 2:
        raise ValueError("response_mask: expected two tokens at least, whose advantages have a variance")


def _reward_columns(keys: Sequence[str] | None, values: Mapping[str, Any] | None, like: Tensor) -> Tensor:
    """(N, M), in the float32 that verl takes rewards in."""
    if not keys:
        raise ValueError("algorithm.gdpo_reward_keys: expected the rewards that compute_score returns, by name")
    if values is None:
        raise ValueError(
            f"algorithm.gdpo_reward_keys: {', '.join(keys)} are given, and verl hands only their sum to estimators of "
            'this name here; with its legacy trainer use patch() and adv_estimator="gdpo"'
        )
    missing = [key for key in keys if key not in values]
    if missing:
        raise ValueError(
            f"algorithm.gdpo_reward_keys: no reward {', '.join(missing)} in what compute_score returned; "
            f"there are {', '.join(map(str, values)) or 'none'}"
        )
    columns = np.stack([np.asarray(values[key], dtype=np.float32) for key in keys], axis=1)
    return torch.from_numpy(columns).to(like.device)


def _grpo_of_config(
    token_level_rewards: Tensor, response_mask: Tensor, index: Any, config: Any = None, **kwargs: Any
) -> Estimate:
    """verl reads `algorithm.norm_adv_by_std_in_grpo` for estimators named "grpo" only."""
    divided = config.get("norm_adv_by_std_in_grpo", True) if config is not None else True
    return compute_grpo_outcome_advantage(token_level_rewards, response_mask, index, norm_adv_by_std_in_grpo=divided)


def _dr_grpo(token_level_rewards: Tensor, response_mask: Tensor, index: Any, **kwargs: Any) -> Estimate:
    return compute_grpo_outcome_advantage(token_level_rewards, response_mask, index, norm_adv_by_std_in_grpo=False)


# `algorithm.adv_estimator`: what the plugin registers. GAE is not here, since verl hands values to "gae" only.
ESTIMATORS: Mapping[str, Callable[..., Estimate]] = MappingProxyType(
    {
        "morlfast_grpo": _grpo_of_config,
        "morlfast_dr_grpo": _dr_grpo,
        "morlfast_gdpo": compute_gdpo_outcome_advantage,
        "morlfast_rloo": compute_rloo_outcome_advantage,
        "morlfast_opo": compute_opo_outcome_advantage,
        "morlfast_gpg": compute_gpg_outcome_advantage,
        "morlfast_pass_at_k": compute_grpo_passk_outcome_advantage,
        "morlfast_reinforce_plus_plus": compute_reinforce_plus_plus_outcome_advantage,
        "morlfast_reinforce_plus_plus_baseline": compute_reinforce_plus_plus_baseline_outcome_advantage,
    }
)

# What patch() replaces, by verl's names in verl.trainer.ppo.core_algos.
_DROP_INS: tuple[Callable[..., Estimate], ...] = (
    compute_grpo_outcome_advantage,
    compute_grpo_vectorized_outcome_advantage,
    compute_gdpo_outcome_advantage,
    compute_rloo_outcome_advantage,
    compute_rloo_vectorized_outcome_advantage,
    compute_opo_outcome_advantage,
    compute_gpg_outcome_advantage,
    compute_grpo_passk_outcome_advantage,
    compute_reinforce_plus_plus_baseline_outcome_advantage,
    compute_reinforce_plus_plus_outcome_advantage,
    compute_gae_advantage_return,
)

_CORE = "verl.trainer.ppo.core_algos"
_V1 = "verl.trainer.ppo.v1.trainer_base"
_IGNORED = "options +morlfast.d3s and +morlfast.pods may be ignored: nothing is then down-sampled"


def patch(*, any_version: bool = False) -> Patch:
    """Let verl compute `grpo`, `gdpo`, `rloo`, ... here, under its own names, called directly or from its registry.

    `with patch():` gives the originals back at its end, `patch()` keeps them replaced until its `undo()`. It works in
    the process that calls it; verl's trainer has its own under Ray. Raises RuntimeError for a version of verl that the
    functions were not checked against, unless `any_version`.
    """
    check_version("verl", CHECKED_VERSIONS, any_version, later_patches=True, extra="verl")
    _watch_trainers()
    return _RegistryPatch("verl", dict(zip(_originals(), _DROP_INS, strict=True)))


@functools.cache
def _originals() -> tuple[Any, ...]:
    """verl's own functions, as they are before any patch."""
    core_algos = importlib.import_module(_CORE)
    return tuple(getattr(core_algos, new.__name__) for new in _DROP_INS)


class _RegistryPatch(Patch):
    """Also of the estimators that verl finds by name."""

    def undo(self) -> None:
        super().undo()
        self._enter_in_registry()

    def _apply(self) -> None:
        super()._apply()
        self._enter_in_registry()

    def _enter_in_registry(self) -> None:
        """Verl's own entries become what its module now has under the same name."""
        core_algos = sys.modules[_CORE]
        registry = core_algos.ADV_ESTIMATOR_REGISTRY
        for name, estimator in registry.items():
            if not name.startswith("morlfast_") and estimator in (*_originals(), *_DROP_INS):
                registry[name] = getattr(core_algos, estimator.__name__)


# ---- the plugin ----


def _register(core_algos: ModuleType) -> None:
    if sys.modules.get(_CORE) is core_algos:
        _originals.cache_clear()  # a reloaded module has functions of its own
    for name, estimator in ESTIMATORS.items():
        core_algos.register_adv_est(name)(estimator)


def _let_v1_fetch_rewards(trainer_base: ModuleType) -> None:
    """verl's V1 trainer hands only the sum of the rewards to its estimators; `morlfast_gdpo` gets each of them."""
    original = trainer_base.PPOTrainer._compute_advantage

    @functools.wraps(original)
    def _compute_advantage(self: Any, batch: Any, metrics: dict[str, Any]) -> Any:
        algorithm = self.config.algorithm
        registry = sys.modules[_CORE].ADV_ESTIMATOR_REGISTRY
        name = getattr(algorithm.adv_estimator, "value", algorithm.adv_estimator)
        if registry.get(name) is not compute_gdpo_outcome_advantage:
            return original(self, batch, metrics)
        with _fetched_rewards(trainer_base.tq, batch, algorithm.get("gdpo_reward_keys") or ()):
            return original(self, batch, metrics)

    trainer_base.PPOTrainer._compute_advantage = _compute_advantage


def _extend_v1(trainer_base: ModuleType) -> None:
    _let_v1_fetch_rewards(trainer_base)
    _downsampling().extend_trainer(trainer_base, _rewards_of)


def _downsampling() -> ModuleType:
    return importlib.import_module("morlfast.integrations._verl_downsampling")


@contextmanager
def _rewards_of(rows: Tensor) -> Iterator[None]:
    """Within the block, `compute_gdpo_outcome_advantage` finds those of some rows of the batch."""
    fetched = _rewards.get()
    if fetched is not None:
        fetched = {key: np.asarray(values)[rows.numpy()] for key, values in fetched.items()}
    token = _rewards.set(fetched)
    try:
        yield
    finally:
        _rewards.reset(token)


@contextmanager
def _fetched_rewards(queue: Any, batch: Any, keys: Sequence[str]) -> Iterator[None]:
    """Within the block, `compute_gdpo_outcome_advantage` finds the rewards `keys` of a batch in V1's queue."""
    fields = queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields", *keys])
    # compute_score's values are in a field together; those of a colocated reward model have a field each.
    rows = [getattr(row, "data", row) for row in fields["extra_fields"]]
    scored = [row.get("reward_extra_info", {}) for row in rows]
    values = {}
    for key in keys:
        lacking = [row for row, scores in enumerate(scored) if key not in scores]
        if not lacking:
            values[key] = [scores[key] for scores in scored]
        elif len(lacking) < len(scored):  # a field of this name is then the data set's, not a reward
            raise ValueError(
                f"algorithm.gdpo_reward_keys: expected {key} in what compute_score returns for each row, got none for "
                f"{len(lacking)} of {len(scored)} rows, the first of them row {lacking[0]}"
            )
        elif key in fields.keys():  # noqa: SIM118, a TensorDict
            values[key] = fields[key]
    token = _rewards.set(values)
    try:
        yield
    finally:
        _rewards.reset(token)


class _AfterImport(MetaPathFinder):
    """Calls `then(module)` whenever `name` has been executed: imported, or reloaded. Its errors are logged."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self._name, self._then = name, then
        self._asks_others = False
        sys.meta_path.insert(0, self)
        if name in sys.modules:
            self._call(sys.modules[name])

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != self._name or self._asks_others:
            return None
        self._asks_others = True  # those that ask all finders in turn, as this one does, come back here
        try:
            others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
            specs = (finder.find_spec(fullname, path, target) for finder in others)
            spec = next((found for found in specs if found is not None), None)
        finally:
            self._asks_others = False
        loader = spec.loader if spec is not None else None
        if loader is None or not hasattr(loader, "exec_module"):
            return spec
        execute, own = loader.exec_module, vars(loader).get("exec_module")

        def execute_then(module: ModuleType) -> None:
            if own is None:
                del loader.exec_module  # a module's loader can be pickled
            else:
                loader.exec_module = own  # type: ignore[method-assign]
            execute(module)
            self._call(module)

        loader.exec_module = execute_then  # type: ignore[method-assign]
        return spec

    def _call(self, module: ModuleType) -> None:
        try:
            self._then(module)
        except Exception:
            logging.getLogger(__name__).exception(
                "%s is imported without what morlfast does to it; %s", self._name, _IGNORED
            )


def _plug_in() -> None:
    if importlib.util.find_spec("verl") is None:
        return
    try:
        check_version("verl", CHECKED_VERSIONS, any_version=False, later_patches=True)
    except RuntimeError as error:
        logging.getLogger(__name__).warning(
            "%s; morlfast_grpo and the others are not registered, and %s", error, _IGNORED
        )
        return
    _AfterImport(_CORE, _register)
    _watch_trainers()


@functools.cache
def _watch_trainers() -> None:
    _AfterImport(_V1, _extend_v1)
    _AfterImport("verl.workers.utils.losses", lambda losses: _downsampling().extend_losses(losses))
    _AfterImport("verl.trainer.ppo.ray_trainer", lambda trainer: _downsampling().extend_legacy_trainer(trainer))


_plug_in()
