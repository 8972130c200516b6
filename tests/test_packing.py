"""pack_tokens: the kept tokens side by side and back at their places, with gradients, in any mask's dtype."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morlfast.tokens import PackedTokens, pack_tokens, unpack_tokens
from torch.autograd import gradcheck, gradgradcheck

F64 = torch.float64
NAN = math.nan
FLOATS = [torch.float32, F64, torch.bfloat16, torch.float16]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def flags(n: int, t: int, seed: int = 0, share: float = 0.5) -> torch.Tensor:
    return torch.rand(n, t, generator=torch.Generator().manual_seed(seed)) < share


@st.composite
def masks(draw) -> torch.Tensor:
    n, t = draw(st.integers(0, 5)), draw(st.integers(0, 7))
    return flags(n, t, draw(st.integers(0, 2**32)), draw(st.sampled_from([0.0, 0.3, 0.8, 1.0])))


def rooms(mask: torch.Tensor) -> list[int | None]:
    """Sizes that hold the tokens of the mask."""
    count = int(mask.sum())
    return [None, count, count + 1, count + 20]


# What is where.


@given(masks())
def test_indices_and_offsets_are_those_of_a_loop(mask):
    positions, offsets = [], [0]
    for n, row in enumerate(mask.tolist()):
        positions += [n * mask.shape[1] + t for t, valid in enumerate(row) if valid]
        offsets.append(len(positions))
    for size in rooms(mask):
        packed = pack_tokens(mask, size=size)
        assert isinstance(packed, PackedTokens)
        filled = [] if size is None else [mask.numel()] * (size - len(positions))
        assert packed.indices.tolist() == positions + filled
        assert packed.offsets.tolist() == offsets
        assert packed.indices.dtype == packed.offsets.dtype == torch.int64
        assert packed.shape == tuple(mask.shape)


@given(masks(), st.sampled_from([(), (1,), (3,), (2, 0), (2, 3)]))
def test_packing_and_unpacking_are_boolean_indexing(mask, trailing):
    x = normal(*mask.shape, *trailing)
    for size in rooms(mask):
        packed = pack_tokens(mask, size=size)
        values = packed.pack(x)
        count = int(mask.sum())
        assert torch.equal(values[:count], x[mask])
        assert values.shape == (count if size is None else size, *trailing)
        assert not values[count:].any()
        back = packed.unpack(values, fill=-7.0)
        expected = torch.full_like(x, -7.0)
        expected[mask] = x[mask]
        assert torch.equal(back, expected)
        assert torch.equal(unpack_tokens(values, packed, -7.0), back)
        assert torch.equal(packed.unpack(values), torch.where(mask.view(*mask.shape, *[1] * len(trailing)), x, 0.0))


def test_what_unpacking_drops_does_not_matter():
    mask = torch.tensor([[True, False], [False, True]])
    packed = pack_tokens(mask, size=4)
    assert packed.unpack(torch.tensor([1.0, 2.0, NAN, 9.0])).tolist() == [[1.0, 0.0], [0.0, 2.0]]


def test_nan_outside_the_mask_is_not_packed():
    mask = flags(4, 6)
    x = torch.where(mask, normal(4, 6), NAN)
    for size in rooms(mask):
        assert pack_tokens(mask, size=size).pack(x).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bool, *INTEGERS, *FLOATS])
def test_any_nonzero_mask_value_is_a_token(dtype):
    mask = flags(5, 9)
    typed = mask.to(dtype)
    if dtype.is_floating_point:
        typed = torch.where(mask, torch.full_like(typed, -1e-5), torch.full_like(typed, -0.0))
    elif dtype not in (torch.bool, torch.uint8):
        typed = typed * -3
    for size in (None, 30):
        expected, got = pack_tokens(mask, size=size), pack_tokens(typed, size=size)
        assert torch.equal(got.indices, expected.indices)
        assert torch.equal(got.offsets, expected.offsets)


@pytest.mark.parametrize("dtype", [torch.bool, *INTEGERS, *FLOATS])
def test_values_keep_their_dtype(dtype):
    mask, x = flags(5, 9), flags(5, 9, seed=1).to(dtype)
    for size in (None, 30):
        packed = pack_tokens(mask, size=size)
        values = packed.pack(x)
        assert values.dtype == dtype
        assert packed.unpack(values).dtype == dtype
        assert torch.equal(packed.unpack(values), x & mask if dtype is torch.bool else x * mask)


def test_values_of_any_strides():
    mask = flags(5, 8)
    storage = normal(5, 9, 4)
    x = storage[:, :-1]  # as logits that predict the next token: rows do not lie one behind the other
    packed = pack_tokens(mask)
    assert torch.equal(packed.pack(x), x[mask])
    assert torch.equal(packed.pack(x.transpose(0, 1).contiguous().transpose(0, 1)), x[mask])
    assert torch.equal(pack_tokens(mask.T.contiguous().T).indices, packed.indices)
    one = torch.ones(1, 1).expand(5, 8)
    assert torch.equal(packed.pack(one), torch.ones(int(mask.sum())))
    half = packed.pack(x)[:, ::2]
    assert torch.equal(packed.unpack(half), torch.where(mask[..., None], x[..., ::2], 0.0))


def test_inputs_are_left_unchanged():
    mask, x = flags(4, 6), normal(4, 6)
    copies = mask.clone(), x.clone()
    packed = pack_tokens(mask, size=24)
    values = packed.pack(x)
    before = values.clone()
    packed.unpack(values, fill=3.0)
    assert torch.equal(mask, copies[0])
    assert torch.equal(x, copies[1])
    assert torch.equal(values, before)
    assert x._version == values._version == 0


# Gradients.


@pytest.mark.parametrize("trailing", [(), (3,)])
@pytest.mark.parametrize("room", [None, 0, 5])
def test_gradients_are_those_of_finite_differences(room, trailing):
    mask = flags(3, 5)
    packed = pack_tokens(mask, size=None if room is None else int(mask.sum()) + room)
    x = normal(3, 5, *trailing).requires_grad_()
    values = normal(*packed.indices.shape, *trailing, seed=1).requires_grad_()
    for function, argument in ((packed.pack, x), (lambda v: packed.unpack(v, 2.0), values)):
        assert gradcheck(function, (argument,))
        assert gradgradcheck(function, (argument,))


def test_a_head_on_packed_tokens_has_the_gradient_of_the_head_on_all():
    mask, hidden, weight = flags(4, 7), normal(4, 7, 5), normal(5, 3, seed=1)
    gradients = []
    for size in (None, 28, "all"):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if size == "all":
            loss = (h @ w).square()[mask].sum()
        else:
            loss = (pack_tokens(mask, size=size).pack(h) @ w).square().sum()
        loss.backward()
        gradients.append((h.grad, w.grad))
    for got in gradients[:2]:
        assert torch.allclose(got[0], gradients[2][0], rtol=1e-13)
        assert torch.allclose(got[1], gradients[2][1], rtol=1e-13)
    assert not gradients[0][0][~mask].any()


def test_empty_inputs_have_gradients_too():
    for shape in ((0, 5), (4, 0), (0, 0)):
        for size in (None, 0, 3):
            packed = pack_tokens(torch.zeros(shape) > 0, size=size)
            x = torch.zeros(*shape, 2, requires_grad=True)
            values = packed.pack(x)
            assert values.shape == (size or 0, 2)
            values.sum().backward()
            assert x.grad is not None
            back = packed.unpack(torch.ones(size or 0, 2))
            assert back.shape == (*shape, 2)


def test_no_token_is_no_entry():
    packed = pack_tokens(torch.zeros(3, 4))
    assert packed.indices.shape == (0,)
    assert packed.offsets.tolist() == [0, 0, 0, 0]
    assert packed.unpack(torch.zeros(0), fill=1.5).tolist() == [[1.5] * 4] * 3
    assert pack_tokens(torch.zeros(3, 4), size=0).pack(torch.ones(3, 4)).shape == (0,)


# Compiled.


@pytest.mark.parametrize("size", [12, 40])
def test_a_fixed_size_compiles_into_one_graph(size):
    def loss(mask, hidden, weight):
        packed = pack_tokens(mask, size=size)
        return packed.unpack(packed.pack(hidden) @ weight, fill=-1.0), packed

    mask, weight = flags(4, 10, share=0.25), normal(3, 2, seed=1)
    assert int(mask.sum()) <= 12
    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        hidden = normal(4, 10, 3).requires_grad_()
        out, packed = function(mask, hidden, weight)
        out.square().sum().backward()
        results.append((out.detach(), packed.indices, packed.offsets, hidden.grad))
    for expected, got in zip(*results, strict=True):
        assert torch.allclose(got, expected)


def test_a_compiled_graph_packs_the_first_tokens_where_there_are_more():
    compiled = torch.compile(lambda mask: pack_tokens(mask, size=3), fullgraph=True, backend="aot_eager")
    packed = compiled(torch.ones(2, 4))
    assert packed.indices.tolist() == [0, 1, 2]
    assert packed.offsets.tolist() == [0, 3, 3]


# Errors.


def test_more_tokens_than_size_are_an_error():
    with pytest.raises(ValueError, match="size: expected at least the 8 tokens of the mask, got 7"):
        pack_tokens(torch.ones(2, 4), size=7)


@pytest.mark.parametrize(("size", "error"), [(-1, ValueError), (2.0, TypeError), ("3", TypeError), (True, TypeError)])
def test_size_must_be_a_count(size, error):
    with pytest.raises(error, match="size"):
        pack_tokens(torch.ones(2, 4), size=size)


@pytest.mark.parametrize("mask", [None, [[1, 0]], torch.ones(2, 2, dtype=torch.complex64)])
def test_the_mask_must_be_a_real_tensor(mask):
    with pytest.raises(TypeError, match="mask"):
        pack_tokens(mask)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 1)])
def test_the_mask_must_be_rows_of_tokens(shape):
    with pytest.raises(ValueError, match="mask"):
        pack_tokens(torch.ones(shape))


def test_values_must_fit_the_mask():
    packed = pack_tokens(torch.tensor([[1, 0, 1], [0, 1, 0]]))
    for x in (torch.ones(3), torch.ones(3, 2), torch.ones(())):
        with pytest.raises(ValueError, match=r"x: expected shape \(2, 3, \.\.\.\)"):
            packed.pack(x)
    for values in (torch.ones(4), torch.ones(())):
        with pytest.raises(ValueError, match=r"values: expected shape \(3, \.\.\.\)"):
            packed.unpack(values)
    with pytest.raises(TypeError, match="x"):
        packed.pack([[1.0, 2.0, 3.0]] * 2)
    with pytest.raises(TypeError, match="values"):
        unpack_tokens([1.0, 2.0, 3.0], packed)
    with pytest.raises(TypeError, match="packed"):
        unpack_tokens(torch.ones(3), (packed.indices, packed.offsets))
    for function, tensor in ((packed.pack, torch.ones(2, 3)), (packed.unpack, torch.ones(3))):
        with pytest.raises(ValueError, match="device"):
            function(tensor.to("meta"))
