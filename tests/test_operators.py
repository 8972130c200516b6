"""The operators under torch's machinery: opcheck, compile, export, and tensors without plain memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import morlfast
import pytest
import torch

F64 = torch.float64
# box_decomposition, whose shape depends on the data, has its own tests.
NAMES = [
    "hypervolume",
    "hypervolume_gradient",
    "hypervolume_contributions",
    "hypervolume_improvement",
    "hypervolume_subset",
    "non_dominated_sort",
    "is_non_dominated",
    "dominance_counts",
    "is_dominated_by",
    "best_points",
    "farthest_query",
    "group_advantages",
    "group_rows",
    "linear_scan",
    "gae",
    "whiten",
    "select_rollouts",
    "select_tokens",
    "token_histogram",
    "select_tokens_above",
    "token_logprobs",
    "token_logprobs_gradient",
]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


FRONTS = normal(3, 2, 9, 3).double()
IDS = torch.tensor([4, -1, 4, 7, 7, -1, 4, 4])
FLAGS = normal(8, 5, seed=2) > -0.5

RAGGED = torch.tensor([[0, 9], [3, 1], [2, 2]])
QUERIES = normal(3, 2, 5, 3, seed=7).double()
VIOLATIONS = normal(3, 2, 9, seed=8).double().clamp(min=0)


def volume(points: torch.Tensor, **options: Any) -> dict[str, Any]:
    ref_point = torch.ones(points.shape[-1], dtype=F64)
    return {
        "points": points,
        "ref_point": ref_point,
        "lengths": None,
        "maximize": False,
        "nan_raises": True,
        "max_memory": 2**30,
    } | options


def whole(points: torch.Tensor, **options: Any) -> dict[str, Any]:
    return volume(points, **({"part": 0, "parts": 1} | options))


def ranked(points: torch.Tensor, **options: Any) -> dict[str, Any]:
    return sets(points, violations=None, stop_after=0) | options


def sets(points: torch.Tensor, **options: Any) -> dict[str, Any]:
    return {"points": points, "lengths": None, "maximize": False, "nan_raises": True} | options


def best(queries: torch.Tensor, points: torch.Tensor, kind: int, **options: Any) -> dict[str, Any]:
    return {"queries": queries, "points": points, "kind": kind, "lengths": None, "with_rows": False} | options


def farthest(queries: torch.Tensor, points: torch.Tensor, kind: int, **options: Any) -> dict[str, Any]:
    return {"queries": queries, "points": points, "kind": kind, "lengths": None, "query_lengths": None} | options


RULES = {"aggregate": 0, "baseline": 1, "scale": 1, "eps": 1e-4, "eps_to": 0, "ddof": 1, "singleton": 0}
RULES |= {"zero_variance": 0, "least_std": 0.0, "nan": 0, "whiten": 0, "whiten_eps": 0.0, "whiten_eps_to": 0}
RULES |= {"whiten_ddof": 1}


def group(rewards: torch.Tensor, **options: Any) -> dict[str, Any]:
    tensors = dict.fromkeys(("weights", "group_ids", "offsets", "lengths", "mask"))
    return {"rewards": rewards, "group_size": 0} | tensors | RULES | options


def scan(x: torch.Tensor, a: torch.Tensor, **options: Any) -> dict[str, Any]:
    return {"x": x, "a": a, "initial": None, "mask": None, "reverse": True, "carry": False} | options


def estimate(rewards: torch.Tensor, values: torch.Tensor, **options: Any) -> dict[str, Any]:
    names = ("gammas", "lams", "returns_lams", "mask", "terminated", "done", "next_values", "bootstrap", "finished")
    numbers = {"gamma": 0.99, "lam": 0.95, "returns_lam": None, "repeat_last": False, "carry": False}
    return {"rewards": rewards, "values": values} | dict.fromkeys(names) | numbers | options


def whitening(values: torch.Tensor, **options: Any) -> dict[str, Any]:
    rules = {"eps": 1e-8, "eps_to": 1, "ddof": 1, "shift_mean": True, "outside": False}
    return {"values": values, "mask": None} | rules | options


def tokens(entropies: torch.Tensor, **options: Any) -> dict[str, Any]:
    settings = {"ratio": 0.3, "scope": 0, "group_size": 0, "group_ids": None, "offsets": None}
    settings |= {"at_least": 0, "quantile": False}
    return {"advantages": normal(8), "entropies": entropies, "mask": FLAGS} | settings | options


def rollouts(rewards: torch.Tensor, k: int, **options: Any) -> dict[str, Any]:
    settings = {"group_size": 0, "group_ids": None, "offsets": None, "method": 0, "uniform": None}
    return {"rewards": rewards, "k": k} | settings | options


def segmented(entropies: torch.Tensor, **options: Any) -> dict[str, Any]:
    tensors = {"advantages": normal(8), "entropies": entropies, "mask": FLAGS, "segments": torch.arange(8) % 3}
    return tensors | options


LOGITS = normal(2, 4, 9, seed=4)
TOKENS = torch.tensor([[0, 8, -100, 3], [5, 5, 1, 0]])


def logprobs(logits: torch.Tensor, **options: Any) -> dict[str, Any]:
    settings = {"temperature": 1.0, "first_token": 0, "partial": False, "entropy": True, "ignore_index": -100}
    return {"logits": logits, "tokens": TOKENS} | settings | options


def logprobs_gradient(logits: torch.Tensor, **options: Any) -> dict[str, Any]:
    wide = F64 if logits.dtype is F64 else torch.float32
    gradients = {name: normal(2, 4, seed=5).to(wide) for name in ("grad_log_probs", "grad_entropies")}
    sums = {"log_sums": logits.double().logsumexp(-1), "entropies": normal(2, 4, seed=6).abs().to(wide)}
    settings = {"temperature": 1.0, "first_token": 0, "ignore_index": -100}
    return {"logits": logits, "tokens": TOKENS} | sums | gradients | settings | options


WIDE = normal(2, 7, 5, seed=3).double()
HYPERVOLUME = [
    whole(FRONTS),
    whole(FRONTS[..., :2].float(), lengths=RAGGED, maximize=True, nan_raises=False),
    whole(FRONTS[0, 0, :, :1]),
    whole(FRONTS[:0]),
    whole(WIDE, max_memory=1, part=1, parts=2),
]

# By name, so that no test depends on the order of a schema.
SAMPLES: dict[str, list[dict[str, Any]]] = {
    "hypervolume": HYPERVOLUME,
    "hypervolume_gradient": HYPERVOLUME,
    "hypervolume_contributions": [
        volume(FRONTS, ignore_dominated=False),
        volume(FRONTS.float(), lengths=RAGGED, maximize=True, nan_raises=False, ignore_dominated=True),
        volume(WIDE, ignore_dominated=True),
    ],
    "hypervolume_improvement": [
        volume(FRONTS, candidates=normal(3, 2, 20, 1, 3, seed=4).double()),
        volume(WIDE[0].float(), candidates=normal(4, 2, 5, seed=5), maximize=True, nan_raises=False),
    ],
    "hypervolume_subset": [volume(FRONTS, k=4), volume(WIDE.float(), k=0), volume(FRONTS, k=3, lengths=RAGGED)],
    "non_dominated_sort": [
        ranked(FRONTS),
        ranked(FRONTS.transpose(0, 1).float(), maximize=True, nan_raises=False),
        ranked(FRONTS.float(), lengths=RAGGED, violations=VIOLATIONS, stop_after=4),
        ranked(FRONTS[0, 0, :, :2], stop_after=1),
        ranked(FRONTS[:, :, :0]),
    ],
    "is_non_dominated": [
        sets(FRONTS, deduplicate=False),
        sets(FRONTS.transpose(0, 1).float(), maximize=True, nan_raises=False, deduplicate=True),
        sets(FRONTS[..., :2], lengths=RAGGED, deduplicate=True),
        sets(FRONTS[:0], deduplicate=False),
    ],
    "dominance_counts": [
        sets(FRONTS),
        sets(FRONTS.transpose(0, 1).float(), maximize=True, nan_raises=False),
        sets(FRONTS[..., :2], lengths=RAGGED),
        sets(FRONTS[:, :, :0]),
    ],
    "is_dominated_by": [
        sets(QUERIES, others=FRONTS, weakly=False),
        sets(QUERIES.float(), others=FRONTS.float(), lengths=RAGGED, maximize=True, nan_raises=False, weakly=True),
        sets(QUERIES[:, :, :0], others=FRONTS, weakly=False),
        sets(QUERIES, others=FRONTS[:, :, :0], weakly=True),
    ],
    "best_points": [
        best(QUERIES, FRONTS, kind=0),
        best(QUERIES.transpose(0, 1).float(), FRONTS.transpose(0, 1).float(), kind=2, with_rows=True),
        best(QUERIES.abs(), FRONTS, kind=5, lengths=RAGGED, with_rows=True),
        *(best(QUERIES[0, 0], FRONTS[0, 0], kind=kind) for kind in (1, 3, 4)),
        best(QUERIES, FRONTS[:, :, :0], kind=1, with_rows=True),
    ],
    "farthest_query": [
        farthest(QUERIES, FRONTS, kind=3),
        farthest(QUERIES.transpose(0, 1).float(), FRONTS.transpose(0, 1).float(), kind=2),
        farthest(QUERIES, FRONTS, kind=4, lengths=RAGGED, query_lengths=torch.tensor([[5, 0], [1, 2], [4, 3]])),
        *(farthest(QUERIES[0, 0].abs(), FRONTS[0, 0].abs(), kind=kind) for kind in (1, 5)),
        farthest(QUERIES[:, :, :0], FRONTS, kind=1),
    ],
    "group_advantages": [
        group(normal(8), group_size=4),
        group(normal(8, 3), group_ids=IDS, weights=torch.ones(3, dtype=F64), baseline=2, scale=2),
        group(normal(8, 3).bfloat16(), group_size=2, weights=torch.ones(8, 3, dtype=F64), aggregate=1, ddof=0),
        group(normal(3, 8).double().T, group_ids=IDS.int(), aggregate=1, scale=3, whiten=1),
        group(normal(8), offsets=torch.tensor([0, 3, 3, 8]), mask=FLAGS.long(), baseline=4, whiten=2),
        group(normal(8), group_size=8, mask=FLAGS.T.contiguous().T, lengths=torch.arange(8), baseline=5),
        group(normal(8), group_size=1, mask=FLAGS[:, :0]),
    ],
    "group_rows": [{"rows": torch.arange(12).reshape(4, 3) % 6}, {"rows": FLAGS[:, :3].int()}, {"rows": IDS[:0, None]}],
    "linear_scan": [
        scan(normal(4, 9), normal(4, 9, seed=1)),
        scan(normal(9, 4).double().T, torch.full((1, 1), 0.9, dtype=F64).expand(4, 9), initial=normal(4), carry=True),
        scan(normal(8, 5).bfloat16(), normal(8), mask=FLAGS.long(), reverse=False),
        scan(normal(4, 0), normal(4, 0)),
    ],
    "gae": [
        estimate(normal(8, 5), normal(8, 5, seed=1)),
        estimate(normal(8, 5), normal(5, 8).double().T, mask=FLAGS.int(), carry=True, lams=normal(8).abs()),
        estimate(normal(8, 5), normal(8, 5), terminated=FLAGS, done=~FLAGS, next_values=normal(8, 5), returns_lam=1.0),
        estimate(normal(8, 5).half(), normal(8, 5).half(), bootstrap=normal(8), finished=FLAGS[:, 0], repeat_last=True),
    ],
    "whiten": [
        whitening(normal(8, 5)),
        whitening(normal(5, 8).double().T, mask=FLAGS.float(), eps_to=2, ddof=0, outside=True),
        whitening(normal(0, 5).bfloat16(), shift_mean=False),
    ],
    "select_tokens": [
        tokens(normal(8, 5, seed=1)),
        tokens(normal(8, 5), advantages=normal(8, 5), mask=FLAGS.float(), scope=1, group_size=4),
        tokens(normal(5, 8).double().T, mask=FLAGS.long(), scope=1, group_ids=IDS),
        tokens(normal(8, 5).bfloat16(), ratio=1.0, scope=2),
        tokens(normal(8, 5), scope=1, offsets=torch.tensor([0, 3, 3, 8]), at_least=4),
        tokens(normal(8, 5), quantile=True),
    ],
    "select_rollouts": [
        rollouts(normal(8), 2, group_size=4),
        rollouts(normal(16).double()[::2], 3, group_ids=IDS, method=1),
        rollouts(
            normal(8).half(), 1, offsets=torch.tensor([0, 3, 3, 8]), method=3, uniform=normal(8).double().sigmoid()
        ),
        rollouts(normal(0), 0, group_size=1, method=2),
    ],
    "token_histogram": [
        segmented(normal(8, 5, seed=1), prefixes=torch.zeros(3, dtype=torch.int64), level=0),
        segmented(normal(5, 8).double().T, prefixes=torch.tensor([0xBF, 0x3F, 0]), level=1, mask=FLAGS.long()),
    ],
    "select_tokens_above": [
        segmented(normal(8, 5), thresholds=torch.tensor([2**31, -1, 0]), ties=torch.tensor([1, 0, 2])),
        segmented(normal(8, 5).double(), thresholds=torch.tensor([-(2**63), -1, 0]), ties=torch.tensor([1, 0, 2])),
    ],
    "token_logprobs": [
        logprobs(LOGITS),
        logprobs(normal(2, 5, 9)[:, :-1].bfloat16(), entropy=False),
        logprobs(normal(9, 4, 2).double().permute(2, 1, 0), temperature=0.7),
        logprobs(LOGITS[..., :4].half(), first_token=2, partial=True),
    ],
    "token_logprobs_gradient": [
        logprobs_gradient(LOGITS),
        logprobs_gradient(normal(2, 5, 9)[:, :-1].bfloat16(), grad_entropies=None, entropies=torch.empty(0)),
        logprobs_gradient(normal(9, 4, 2).double().permute(2, 1, 0), temperature=0.7, grad_log_probs=None),
        logprobs_gradient(LOGITS[..., :4], first_token=2),
    ],
}

PUBLIC: dict[str, tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]] = {
    "hypervolume": (
        lambda z, r: morlfast.hypervolume(z, r, maximize=True),
        (FRONTS, torch.zeros(3, dtype=F64)),
    ),
    "hypervolume mixed senses": (
        lambda z, r: morlfast.hypervolume(z, r, maximize=[True, False, True]),
        (FRONTS.float(), torch.zeros(2, 3)),
    ),
    "hypervolume lengths": (
        lambda z, n: morlfast.hypervolume(z, 1.0, maximize=False, lengths=n, nan="worst"),
        (FRONTS, RAGGED),
    ),
    "hypervolume_contributions": (lambda z: morlfast.hypervolume_contributions(z, 1.0, maximize=False), (WIDE,)),
    "hypervolume_improvement": (
        lambda c, z: morlfast.hypervolume_improvement(c, z, 1.0, maximize=False),
        (normal(20, 5, seed=6).double(), WIDE[0]),
    ),
    "non_dominated_sort": (lambda z: morlfast.non_dominated_sort(z, maximize=[True, False, True]), (FRONTS,)),
    "non_dominated_sort constraints": (
        lambda z, g, n: morlfast.non_dominated_sort(z, maximize=True, constraints=g, stop_after=4, lengths=n),
        (FRONTS.float(), normal(3, 2, 9, 2, seed=8), RAGGED),
    ),
    "is_non_dominated": (lambda z: morlfast.is_non_dominated(z, maximize=False, deduplicate=True), (FRONTS,)),
    "is_non_dominated mask": (
        lambda z, kept: morlfast.is_non_dominated(z, maximize=True, mask=kept, nan="worst"),
        (FRONTS, normal(3, 2, 9, seed=9) > 0),
    ),
    "dominance_counts": (lambda z: morlfast.dominance_counts(z, maximize=[True, False, True]), (FRONTS,)),
    "is_dominated_by": (
        lambda z, w: morlfast.is_dominated_by(z, w, maximize=[True, False, True], weakly=True),
        (QUERIES, FRONTS[0, 0].float()),
    ),
    "expected_utility": (
        lambda z, w: morlfast.expected_utility(z, w, maximize=True, nan="worst"),
        (FRONTS, normal(20, 3, seed=10).double().softmax(-1)),
    ),
    "epsilon_indicator": (
        lambda z, r: morlfast.epsilon_indicator(z, r, maximize=False, nan="worst"),
        (FRONTS, FRONTS[0, 0] - 0.5),
    ),
    "group_advantages": (lambda r: morlfast.group_advantages(r, 4), (normal(8),)),
    "group_advantages gdpo": (
        lambda r, w, g: morlfast.group_advantages(r, group_ids=g, weights=w, method="gdpo"),
        (normal(8, 3), torch.ones(3), IDS),
    ),
    "group_advantages tokens": (
        lambda r, g, v: morlfast.group_advantages(r, group_ids=g, mask=v, preset="verl", method="gdpo", eps=1e-3),
        (normal(8, 3), IDS, FLAGS.long()),
    ),
    "group_advantages prompts": (
        lambda r, p, n: morlfast.group_advantages(r, group_ids=p, lengths=n, num_tokens=6, preset="nemo"),
        (normal(8), IDS[:, None].expand(8, 3) + torch.arange(3), IDS.clamp(0, 6)),
    ),
    "gae": (
        lambda r, v, m: morlfast.gae(r, v, gamma=0.99, lam=0.95, mask=m).advantages,
        (WIDE[0], WIDE[1], WIDE[0] > 0),
    ),
    "discounted_returns": (lambda r, g: morlfast.discounted_returns(r, g), (WIDE[0], WIDE[1].sigmoid())),
    "whiten": (lambda a, m: morlfast.whiten(a, m), (WIDE[0], WIDE[0] > 0)),
    "select_tokens": (lambda a, h, v: morlfast.select_tokens(a, h, v, 0.3), (normal(8), normal(8, 5), FLAGS)),
    "select_tokens groups": (
        lambda a, h, v, g: morlfast.select_tokens(a, h, v, 0.3, scope="group", group_ids=g),
        (normal(8), normal(8, 5), FLAGS, IDS),
    ),
    "select_tokens bounds": (
        lambda s, v, b: morlfast.select_tokens(None, None, v, 0.3, scope="group", offsets=b, score=s, at_least=2),
        (normal(8, 5), FLAGS, torch.tensor([0, 3, 3, 8])),
    ),
    "select_rollouts": (lambda r: morlfast.select_rollouts(r, 2, group_size=4).mask, (normal(8),)),
    "select_rollouts groups": (lambda r, g: morlfast.select_rollouts(r, 2, group_ids=g).indices, (normal(8), IDS)),
    "filter_zero_variance": (
        lambda r, g: morlfast.filter_zero_variance(r, group_ids=g, least_std=1e-6).mask,
        (normal(8), IDS),
    ),
    "token_logprobs": (
        lambda x, t: morlfast.token_logprobs(x, t, temperature=0.7).entropies,
        (LOGITS, TOKENS),
    ),
    "linear_token_logprobs": (
        lambda h, w, t: morlfast.linear_token_logprobs(h, w, t).log_probs,
        (normal(2, 4, 6), normal(9, 6), TOKENS),
    ),
}


def operator(name: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.morlfast, name).default


# Registration.


@pytest.mark.parametrize("name", NAMES)
def test_schemas_come_from_the_extension(name):
    exported = morlfast._C.schemas[name]
    schema = torch._C.parse_schema(exported if exported.startswith(name) else f"{name}{exported}")
    registered = operator(name)._schema
    assert [(a.name, str(a.type)) for a in registered.arguments] == [(a.name, str(a.type)) for a in schema.arguments]
    assert [str(r.type) for r in registered.returns] == [str(r.type) for r in schema.returns]
    for sample in SAMPLES[name]:
        assert {a.name for a in registered.arguments} == sample.keys()


@pytest.mark.parametrize(("name", "sample"), [(name, i) for name in NAMES for i in range(len(SAMPLES[name]))])
def test_opcheck(name, sample):
    torch.library.opcheck(operator(name), (), SAMPLES[name][sample])


@pytest.mark.parametrize("name", NAMES)
def test_fakes_give_the_shape_dtype_and_strides_of_the_result(name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    for sample in SAMPLES[name]:
        real = operator(name)(**sample)
        with FakeTensorMode() as mode:
            fake = operator(name)(
                **{k: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for k, x in sample.items()}
            )
        for r, f in zip(*[x if isinstance(x, tuple) else (x,) for x in (real, fake)], strict=True):
            assert (r.shape, r.dtype, r.stride()) == (f.shape, f.dtype, f.stride())


def test_the_operator_that_writes_into_a_tensor():
    sample = group(normal(8), group_size=4, mask=FLAGS)
    out = torch.full(FLAGS.shape, torch.nan)
    assert torch.ops.morlfast.group_advantages_out(out=out, **sample) is None
    assert torch.equal(out, torch.ops.morlfast.group_advantages(**sample))
    torch.library.opcheck(operator("group_advantages_out"), (), {"out": out, **sample})
    compiled = torch.compile(
        lambda r, m, o: morlfast.group_advantages(r, 4, mask=m, out=o), fullgraph=True, backend="aot_eager"
    )
    written = torch.full(FLAGS.shape, torch.nan)
    compiled(sample["rewards"], FLAGS, written)
    assert torch.equal(written, out)


def test_the_gradient_operator_gives_the_value_too():
    for sample in SAMPLES["hypervolume_gradient"]:
        value, grad_points = torch.ops.morlfast.hypervolume_gradient(**sample)
        assert torch.equal(value, torch.ops.morlfast.hypervolume(**sample))
        assert grad_points.shape == sample["points"].shape
        assert grad_points.dtype == sample["points"].dtype
        assert grad_points.is_contiguous()


# Compile and export.


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", PUBLIC)
def test_compile_without_a_graph_break(name, dynamic):
    function, inputs = PUBLIC[name]
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert torch.equal(compiled(*inputs), function(*inputs))
    if dynamic and name in ("hypervolume", "non_dominated_sort", "is_non_dominated", "dominance_counts"):
        longer = (torch.cat([inputs[0], inputs[0] - 0.5], dim=-2), *inputs[1:])
        assert torch.equal(compiled(*longer), function(*longer))


@pytest.mark.parametrize(
    "name",
    [
        "hypervolume lengths",
        "non_dominated_sort",
        "non_dominated_sort constraints",
        "is_dominated_by",
        "group_advantages gdpo",
        "group_advantages tokens",
        "select_tokens",
    ],
)
def test_compile_with_inductor(name):
    function, inputs = PUBLIC[name]
    torch._dynamo.reset()
    assert torch.equal(torch.compile(function, fullgraph=True)(*inputs), function(*inputs))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_hypervolume_is_differentiable(backend):
    def loss(points: torch.Tensor, ref_point: torch.Tensor) -> torch.Tensor:
        return morlfast.hypervolume(points, ref_point, maximize=False).log1p().sum()

    torch._dynamo.reset()
    points, ref = FRONTS.clone().requires_grad_(), torch.ones(3, dtype=F64, requires_grad=True)
    eager = torch.autograd.grad(loss(points, ref), (points, ref))
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    torch.testing.assert_close(torch.autograd.grad(compiled(points, ref), (points, ref)), eager)


def test_a_compiled_function_still_names_the_nan_row():
    points = FRONTS[0, 0].clone()
    points[7, 1] = float("nan")
    torch._dynamo.reset()
    compiled = torch.compile(PUBLIC["non_dominated_sort"][0], fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="7"):
        compiled(points)


@pytest.mark.parametrize("name", PUBLIC)
def test_export(name):
    function, inputs = PUBLIC[name]

    class Module(torch.nn.Module):
        def forward(self, *args: torch.Tensor) -> torch.Tensor:
            return function(*args)

    program = torch.export.export(Module(), inputs)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert any(target.startswith("morlfast.") for target in targets)
    assert torch.equal(program.module()(*inputs), function(*inputs))


def test_export_with_a_dynamic_batch():
    class Module(torch.nn.Module):
        def forward(self, points: torch.Tensor) -> torch.Tensor:
            return morlfast.hypervolume(points, 1.0, maximize=False)

    fronts = normal(6, 9, 3).double()
    shape = {"points": {0: torch.export.Dim("batch"), 1: torch.export.Dim("n")}}
    program = torch.export.export(Module(), (fronts,), dynamic_shapes=shape)
    for points in (fronts, normal(11, 30, 3, seed=1).double()):
        expected = morlfast.hypervolume(points, 1.0, maximize=False)
        assert torch.equal(program.module()(points), expected)


# The number of selected rows is not known without values.
@pytest.mark.parametrize("name", [name for name in PUBLIC if "rollouts" not in name and "variance" not in name])
def test_meta_tensors_give_meta_results(name):
    function, inputs = PUBLIC[name]
    real, meta = function(*inputs), function(*[x.to("meta") for x in inputs])
    assert meta.is_meta
    assert (meta.shape, meta.dtype) == (real.shape, real.dtype)


@pytest.mark.parametrize("name", PUBLIC)
def test_parameters_and_inference_tensors_are_tensors(name):
    function, inputs = PUBLIC[name]
    expected = function(*inputs)
    with torch.inference_mode():
        assert torch.equal(function(*[x.clone() for x in inputs]), expected)
    wrapped = [torch.nn.Parameter(x, requires_grad=x.is_floating_point()) for x in inputs]
    assert torch.equal(function(*wrapped), expected)


@pytest.mark.parametrize("name", PUBLIC)
def test_lazily_negated_tensors_are_read_with_their_sign(name):
    function, inputs = PUBLIC[name]
    lazy = [torch._neg_view(-x) if x.is_floating_point() else x for x in inputs]
    assert torch.equal(function(*lazy), function(*inputs))


# Whatever comes, a result or an exception: never a crash. Each script prints a case before it runs it.

PRELUDE = f"""
import sys
import warnings

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._pytree import tree_leaves

warnings.simplefilter("ignore")
sys.path[:0] = {__file__.rsplit("/", 1)[0]!r},
import test_operators as t
import morlfast


def attempt(label, call, make=lambda: ()):
    try:
        arguments = make()
    except Exception:
        return  # torch has no such tensor
    print(label, end=": ", flush=True)
    try:
        # Reading every element would fault if the memory were not there.
        for x in tree_leaves(call(*arguments)):
            if type(x) is torch.Tensor and not x.is_meta:
                x.sum().item()
    except Exception as error:
        print(type(error).__name__, str(error)[:200].replace(chr(10), " "), flush=True)
    else:
        print("result", flush=True)


class Plain(torch.Tensor):
    pass


fake = FakeTensorMode(allow_non_fake_inputs=True)
KINDS = {{
    "fake": fake.from_tensor,
    "meta": lambda x: x.to("meta"),
    "functional": torch._to_functional_tensor,
    "sparse": lambda x: x.to_sparse(),
    "sparse csr": lambda x: x.to_sparse_csr(),
    "mkldnn": lambda x: x.float().to_mkldnn(),
    "quantized": lambda x: torch._empty_affine_quantized(x.shape, scale=1.0, zero_point=0, dtype=torch.qint8),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "jagged": lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
    "zero tensor": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    "negated view": torch._neg_view,
    "subclass": lambda x: x.as_subclass(Plain),
    "wrapper subclass": lambda x: TwoTensor(x.contiguous(), x.contiguous()),
    "parameter": lambda x: torch.nn.Parameter(x, requires_grad=x.is_floating_point()),
    "buffer": torch.nn.Buffer,
    "uninitialized": lambda x: torch.nn.UninitializedParameter(),
    "shared memory": lambda x: x.clone().share_memory_(),
}}


def no_storage(x):
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x
"""


def test_strange_tensors_never_crash_the_public_functions(run_python):
    printed = run_python(
        PRELUDE
        + """
for name, (f, inputs) in t.PUBLIC.items():
    for kind, make in KINDS.items():
        for i, x in enumerate(inputs):
            attempt(f"{name}, {kind} {i}", f, lambda: (*inputs[:i], make(x), *inputs[i + 1 :]))
        attempt(f"{name}, {kind} all", f, lambda: [make(x) for x in inputs])
    batched = [x.expand(2, *x.shape) for x in inputs]
    first_only = (0,) + (None,) * (len(inputs) - 1)
    number = lambda *a: f(*a).double().sum()
    attempt(f"{name}, vmap", lambda: torch.func.vmap(f)(*batched))
    attempt(f"{name}, vmap of one", lambda: torch.func.vmap(f, first_only)(batched[0], *inputs[1:]))
    attempt(f"{name}, grad", lambda: torch.func.grad(number)(*inputs))
    attempt(f"{name}, jvp", lambda: torch.func.jvp(f, inputs, tuple(torch.ones_like(x) for x in inputs)))
    attempt(f"{name}, jacrev", lambda: torch.func.jacrev(f)(*inputs))
    attempt(f"{name}, jacfwd", lambda: torch.func.jacfwd(f)(*inputs))
    attempt(f"{name}, hessian", lambda: torch.func.hessian(number)(*inputs))
    attempt(f"{name}, functionalize", lambda: torch.func.functionalize(f)(*inputs))
    attempt(f"{name}, trace", lambda: torch.jit.trace(f, inputs)(*inputs))
    attempt(f"{name}, make_fx", lambda: make_fx(f)(*inputs)(*inputs))
    with fake:
        attempt(f"{name}, fake mode", lambda: f(*[fake.from_tensor(x) for x in inputs]))
print("done")
"""
    )
    assert printed.endswith("done\n")


def test_strange_tensors_never_crash_the_operators(run_python):
    printed = run_python(
        PRELUDE
        + """
KINDS["no storage"] = no_storage
for name in t.NAMES:
    op = t.operator(name)
    call = lambda sample: op(**sample)
    for s, sample in enumerate(t.SAMPLES[name][:2]):
        tensors = {k: x for k, x in sample.items() if isinstance(x, torch.Tensor)}
        key, first = next(iter(tensors.items()))
        for kind, make in KINDS.items():
            for k, x in tensors.items():
                attempt(f"{name} {s}, {kind} {k}", call, lambda: [sample | {k: make(x)}])
            every = lambda: [sample | {k: make(x) for k, x in tensors.items()}]
            attempt(f"{name} {s}, {kind} all", call, every)
        batched = {k: x.expand(2, *x.shape) for k, x in tensors.items()}
        attempt(f"{name} {s}, vmap", lambda: torch.func.vmap(lambda b: call(sample | b))(batched))
        number = lambda x: tree_leaves(call(sample | {key: x}))[0].double().sum()
        attempt(f"{name} {s}, grad", lambda: torch.func.grad(number)(first))
        attempt(f"{name} {s}, requires grad", number, lambda: [first.clone().requires_grad_()])
print("done")
"""
    )
    assert printed.endswith("done\n")


def test_bad_arguments_of_the_extension_are_type_or_value_errors(run_python):
    printed = run_python(
        PRELUDE
        + """
KINDS["no storage"] = no_storage
OBJECTS = [None, "x", b"x", 1.5, 1j, [], {}, object(), torch, torch.float32, [torch.ones(2)]]
NUMBERS = [-1, -2, 0, 1, 2, 3, 7, 100, 2**31, 2**62, 2**63 - 1, -(2**63), 2**64, True, False]
REALS = [-1.0, 2.0, 1e300, -1e300, float("nan"), float("inf"), -float("inf")]
DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
          torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
          torch.float8_e4m3fn, torch.uint16, torch.uint32, torch.uint64]
SHAPES = [(), (0,), (1,), (3,), (0, 0), (1, 1), (2, 0), (0, 3), (8, 1), (1, 8), (3, 8), (5, 4, 3),
          (2, 3, 9, 4), (1, 2, 3, 4, 5), (2**20, 0, 2**20), (2, 1, 1, 1, 1, 1, 1, 1, 2)]


def bad_tensors(x):
    yield from (lambda y=y: y for y in OBJECTS)
    yield from (lambda make=make: make(x) for make in KINDS.values())
    yield from (lambda dtype=dtype: x.to(dtype) for dtype in DTYPES)
    yield from (lambda shape=shape: torch.ones(shape, dtype=x.dtype) for shape in SHAPES)
    yield lambda: x.numpy()
    yield lambda: torch.full_like(x, float("nan") if x.is_floating_point() else -(2**31))
    yield lambda: torch.full_like(x, float("inf") if x.is_floating_point() else 2**31 - 1)
    yield lambda: x.new_zeros(1).expand(2**40, 2**10, 3)  # sizes whose product overflows


for name in t.NAMES:
    function = getattr(morlfast._C, name)
    call = lambda sample: function(**sample)
    for s, sample in enumerate(t.SAMPLES[name]):
        attempt(f"{name} {s}, good", call, lambda: [sample])
        for k, value in sample.items():
            if isinstance(value, torch.Tensor) or value is None:
                bad = bad_tensors(torch.arange(8) if value is None else value)
            else:
                bad = (lambda x=x: x for x in OBJECTS + NUMBERS + REALS)
            for i, make in enumerate(bad):
                attempt(f"{name} {s}, {k} {i}", call, lambda: [sample | {k: make()}])
    attempt(f"{name}, nothing", function)
    attempt(f"{name}, unknown", call, lambda: [sample | {"unknown": 1}])
print("done")
"""
    )
    *lines, last = printed.splitlines()
    assert last == "done"
    outcomes = dict(line.split(": ", 1) for line in lines)
    assert all(outcome == "result" for case, outcome in outcomes.items() if case.endswith("good")), outcomes
    expected = ("result", "TypeError", "ValueError", "RuntimeError cannot allocate")
    wrong = [f"{case}: {outcome}" for case, outcome in outcomes.items() if not outcome.startswith(expected)]
    assert not wrong, "\n".join(wrong)
