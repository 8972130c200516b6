"""Weights on the simplex: lattices, well-spread sets, samples, neighbours, and weights that follow the front."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from morlfast._arguments import (
    as_float32_or_64,
    as_integer,
    as_integers,
    as_minimization,
    as_number,
    as_points,
    as_ref_point,
    same_device,
)

# --- lattices ---


def simplex_lattice(
    objectives: int, partitions: int, *, dtype: torch.dtype = torch.float64, device: Any = None
) -> Tensor:
    r"""All weights whose entries are multiples of 1 / partitions.

    .. math:: \{k / H : k \in \mathbb{N}_0^m,\ k_1 + \dots + k_m = H\}

    The k are integer compositions: no row is lost to floating-point comparisons, and each entry is rounded once. Work
    and memory are proportional to the result.

    Args:
        objectives: m >= 1.
        partitions: H >= 0. With 0 the one row is 1 / m everywhere.
        dtype: float32 or float64.
        device: where the result lives.

    Returns:
        (C(H + m - 1, m - 1), m), rows in ascending lexicographic order.

    Raises:
        TypeError: for arguments of other types.
        ValueError: for m < 1 or H < 0.

    Source: Das and Dennis (1998).

    >>> simplex_lattice(3, 2)
    tensor([[0.0000, 0.0000, 1.0000],
            [0.0000, 0.5000, 0.5000],
            [0.0000, 1.0000, 0.0000],
            [0.5000, 0.0000, 0.5000],
            [0.5000, 0.5000, 0.0000],
            [1.0000, 0.0000, 0.0000]], dtype=torch.float64)
    """
    objectives, dtype = _as_objectives(objectives), _as_dtype(dtype)
    partitions = _at_least(0, partitions, "partitions")
    if partitions == 0:
        return torch.full((1, objectives), 1 / objectives, dtype=dtype, device=device)
    return (_compositions(objectives, partitions, device).double() / partitions).to(dtype)


def layered_simplex_lattice(
    objectives: int,
    partitions: Sequence[int],
    scales: Sequence[float],
    *,
    dtype: torch.dtype = torch.float64,
    device: Any = None,
) -> Tensor:
    r"""Lattices one inside the other, each shrunk towards the centre of the simplex.

    .. math:: \bigcup_l \ \{s_l w + (1 - s_l) / m : w \in \mathrm{lattice}(H_l)\}

    The layers come in the order given. A row that agrees with an earlier one to 1e-12 in every entry is left out; the
    comparison is O(n^2 m) in bounded pieces and waits for the device.

    Args:
        objectives: m >= 1.
        partitions: H of each layer, at least one.
        scales: s of each layer, in [0, 1]; 1 is the whole simplex.
        dtype: float32 or float64.
        device: where the result lives.

    Returns:
        (n, m), n the number of different rows.

    Raises:
        TypeError: for arguments of other types.
        ValueError: for layers without a scale, no layers, scales outside [0, 1], and as `simplex_lattice`.

    Source: Deb and Jain (2014) for two layers.

    >>> layered_simplex_lattice(3, (1, 1), (1.0, 0.5))
    tensor([[0.0000, 0.0000, 1.0000],
            [0.0000, 1.0000, 0.0000],
            [1.0000, 0.0000, 0.0000],
            [0.1667, 0.1667, 0.6667],
            [0.1667, 0.6667, 0.1667],
            [0.6667, 0.1667, 0.1667]], dtype=torch.float64)
    """
    objectives, dtype = _as_objectives(objectives), _as_dtype(dtype)
    for name, value in (("partitions", partitions), ("scales", scales)):
        if not hasattr(value, "__len__"):
            raise TypeError(f"{name}: expected one value for each layer, got {value!r}")
    if len(partitions) == 0 or len(partitions) != len(scales):
        raise ValueError(
            f"partitions, scales: expected one of each for at least one layer, got {len(partitions)} and {len(scales)}"
        )
    layers = []
    for layer, scale in zip(partitions, scales, strict=True):
        scale = as_number(scale, "scales")
        if not 0 <= scale <= 1:
            raise ValueError(f"scales: expected values in [0, 1], got {scale}")
        layers.append(simplex_lattice(objectives, layer, device=device) * scale + (1 - scale) / objectives)
    rows = torch.cat(layers)
    return rows[_is_first(rows, 1e-12)].to(dtype)


def incremental_simplex_lattice(
    objectives: int, count: int, *, dtype: torch.dtype = torch.float64, device: Any = None
) -> Tensor:
    r"""Weights in shells around the centre of the simplex: few in its interior even for many objectives.

    .. math:: \Big\{\frac{m k + (p - q) \mathbf{1}}{m p} : 0 \le q \le p,\ k \in \mathbb{N}_0^m,\ \sum_j k_j = q,\
        \min_j k_j = 0\Big\}

    Shell q has C(q + m - 1, m - 1) - C(q - 1, m - 1) rows, so that counts lie closer together than those of the full
    lattice.

    Args:
        objectives: m >= 1.
        count: number of rows, one that p shells have.
        dtype: float32 or float64.
        device: where the result lives.

    Returns:
        (count, m), rows in ascending lexicographic order. One row is the centre.

    Raises:
        TypeError: for arguments of other types.
        ValueError: for a count that no p gives; the message names the nearest counts.

    Source: Takagi, Takadama and Sato (2020).

    >>> incremental_simplex_lattice(3, 4)
    tensor([[0.0000, 0.0000, 1.0000],
            [0.0000, 1.0000, 0.0000],
            [0.3333, 0.3333, 0.3333],
            [1.0000, 0.0000, 0.0000]], dtype=torch.float64)
    """
    objectives, dtype = _as_objectives(objectives), _as_dtype(dtype)
    count = _at_least(1, count, "count")
    if objectives == 1 and count > 1:
        raise ValueError(f"count: expected 1, the only count for one objective, got {count}")
    shells, total, inner = 0, 1, 0
    while total < count:
        shells, inner = shells + 1, total
        total += math.comb(shells + objectives - 1, objectives - 1) - math.comb(shells - 1, objectives - 1)
    if total != count:
        raise ValueError(f"count: expected a number of rows that shells give, such as {inner} or {total}, got {count}")
    if shells == 0:
        return torch.full((1, objectives), 1 / objectives, dtype=dtype, device=device)
    rows = [torch.full((1, objectives), shells, dtype=torch.int64, device=device)]
    for shell in range(1, shells + 1):
        compositions = _compositions(objectives, shell, device)
        compositions = compositions[(compositions == 0).any(-1)]
        rows.append(compositions * objectives + (shells - shell))
    return _lexicographic(torch.cat(rows).double() / (objectives * shells)).to(dtype)


def _compositions(objectives: int, total: int, device: Any) -> Tensor:
    """All k in N^m with sum `total`, (C(total + m - 1, m - 1), m), lexicographic."""
    rows = torch.zeros((1, 0), dtype=torch.int64, device=device)
    rest = torch.full((1,), total, dtype=torch.int64, device=device)
    for column in range(1, objectives):
        size = math.comb(total + column, column)
        repeats = rest + 1
        starts = (repeats.cumsum(0) - repeats).repeat_interleave(repeats, output_size=size)
        entry = torch.arange(size, device=device) - starts
        rows = torch.cat([rows.repeat_interleave(repeats, dim=0, output_size=size), entry[:, None]], dim=1)
        rest = rest.repeat_interleave(repeats, output_size=size) - entry
    return torch.cat([rows, rest[:, None]], dim=1)


# --- sets that minimize the Riesz s-energy ---


def riesz_weights(
    objectives: int,
    count: int,
    *,
    seed: int = 0,
    power: float | None = None,
    starts: int | None = None,
    rounds: int | None = None,
    iterations: int = 500,
    dtype: torch.dtype = torch.float64,
    device: Any = None,
) -> Tensor:
    r"""Any number of well-spread weights: the simplex with the smallest Riesz s-energy found.

    .. math:: \min_{w_1, \dots, w_n \in \Delta^{m-1}} \ \log \frac{2}{n (n - 1)} \sum_{i < k} \|w_i - w_k\|^{-s}

    Minimized in float64 by the spectral projected gradient method, whose projection onto the simplex gives exact zeros:
    100 iterations from ``starts`` sets of far-apart samples (with the corners of the simplex), and to the end from the
    best. From three objectives on there are many local minima; each of ``rounds`` then tries eight sets in which one of
    the most crowded rows is moved to one of the largest holes. Two objectives have one minimum, which is found from the
    lattice. An iteration takes O(n^2 m) work and O(n^2) memory for each of the sets that are minimized at once.

    Results are kept for the last 64 combinations of arguments, and each call returns a copy of its own. On one machine,
    with one number of threads, equal arguments give equal weights, cached or not.

    Args:
        objectives: m >= 1.
        count: n >= 1.
        seed: of the samples, which are drawn on the CPU whatever the device.
        power: s > 0, 2 m when None.
        starts: number of sets to begin with; None: 4, and 1 beyond 1000 rows.
        rounds: of moved rows, each about as long as the rest; None: 4, and 0 beyond 200 rows.
        iterations: limit of the last minimization; an energy that stops falling ends each before.
        dtype: float32 or float64.
        device: where the energy is minimized and the result lives.

    Returns:
        (n, m), rows in ascending lexicographic order. One row is the centre.

    Raises:
        TypeError: for arguments of other types.
        ValueError: for arguments out of range, and several rows for one objective.

    Sources: Blank, Deb, Dhebar, Bandaru and Seada (2021) for the energy of reference directions and s = 2 m; Birgin,
    Martínez and Raydan (2000) for the method.

    >>> riesz_weights(2, 5)
    tensor([[0.0000, 1.0000],
            [0.2491, 0.7509],
            [0.5000, 0.5000],
            [0.7509, 0.2491],
            [1.0000, 0.0000]], dtype=torch.float64)
    """
    objectives, dtype = _as_objectives(objectives), _as_dtype(dtype)
    count = _at_least(1, count, "count")
    if objectives == 1 and count > 1:
        raise ValueError(f"count: expected 1, there is one weight for one objective, got {count}")
    weights = _riesz_weights(
        objectives,
        count,
        as_integer(seed, "seed"),
        _as_power(power, objectives),
        (4 if count <= 1000 else 1) if starts is None else _at_least(1, starts, "starts"),
        (4 if count <= 200 else 0) if rounds is None else _at_least(0, rounds, "rounds"),
        _at_least(0, iterations, "iterations"),
        torch.empty(0, device=device).device,
    )
    return weights.to(dtype, copy=True)


def riesz_energy(weights: Any, *, power: float | None = None) -> Tensor:
    r"""Logarithm of the mean Riesz s-energy of the pairs of each set.

    .. math:: \log \frac{2}{n (n - 1)} \sum_{i < k} \|w_i - w_k\|^{-s}

    Args:
        weights: (..., n, m), float32 or float64; array-likes are taken too. Not only weights: any points.
        power: s > 0, 2 m when None.

    Returns:
        Batch shape, in the dtype of ``weights``, computed in float64. Equal rows give inf, fewer than two rows -inf,
        NaN gives NaN. Differentiable where rows differ. O(n^2) memory.

    Raises:
        TypeError, ValueError: as `riesz_weights`.

    Source: as `riesz_weights`.

    >>> riesz_energy([[0.0, 1.0], [1.0, 0.0]], power=2)
    tensor(-0.6931, dtype=torch.float64)
    """
    points = as_points(weights, "weights")
    dtype, points = points.dtype, points.double()
    n, m = points.shape[-2:]
    power = _as_power(power, m)
    if n < 2:
        return torch.full(points.shape[:-2], -math.inf, dtype=dtype, device=points.device)
    i, k = torch.triu_indices(n, n, 1, device=points.device)
    squared = (points[..., i, :] - points[..., k, :]).square().sum(-1)
    energy = torch.logsumexp(squared.log() * (-power / 2), -1) - math.log(n * (n - 1) / 2)
    return energy.to(dtype)


@functools.lru_cache(maxsize=64)
def _riesz_weights(
    objectives: int,
    count: int,
    seed: int,
    power: float,
    starts: int,
    rounds: int,
    iterations: int,
    device: torch.device,
) -> Tensor:
    if count == 1:
        return torch.full((1, objectives), 1 / objectives, dtype=torch.float64, device=device)
    if objectives == 2:
        best = _minimize_energy(simplex_lattice(2, count - 1, device=device)[None], power, iterations)[0][0]
    else:
        generator = torch.Generator(device="cpu").manual_seed(seed)
        best, energy = _lowest(*_minimize_energy(_far_apart(objectives, count, starts, generator, device), power, 100))
        if count > objectives:  # fewer stay at corners
            for _ in range(rounds):
                moved = _minimize_energy(_with_moved_rows(best, power, generator), power, 50)
                best, energy = _lowest(torch.cat([best[None], moved[0]]), torch.cat([energy, moved[1]]))
            best = _minimize_energy(best[None], power, iterations)[0][0]
    return _lexicographic(best / best.sum(-1, keepdim=True))


def _lowest(sets: Tensor, energies: Tensor) -> tuple[Tensor, Tensor]:
    lowest = energies.argmin().reshape(1)
    return sets[lowest][0], energies[lowest]


def _samples(
    objectives: int, batch: int, count: int, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Drawn on the CPU, so that they are the same everywhere: uniform on the simplex, and on random faces of it."""
    shape, cpu = (batch, count, objectives), torch.device("cpu")
    variates = torch.empty(shape, dtype=torch.float64, device=cpu).exponential_(generator=generator)
    on_face = torch.rand(shape, dtype=torch.float32, device=cpu, generator=generator) < 0.5
    on_face[..., 0] |= ~on_face.any(-1)
    faces = variates * on_face
    inside = variates / variates.sum(-1, keepdim=True)
    return inside.to(device), (faces / faces.sum(-1, keepdim=True)).to(device)


def _far_apart(objectives: int, count: int, starts: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """(starts, count, m): the corners, then of 20 samples a row the one farthest from all before, again and again."""
    inside, _ = _samples(objectives, starts, 20 * count, generator, device)
    corners = torch.eye(objectives, dtype=torch.float64, device=device).expand(starts, -1, -1)
    candidates = torch.cat([corners, inside], dim=1)
    distances = torch.full(candidates.shape[:2], math.inf, dtype=torch.float64, device=device)
    row = torch.zeros((starts, 1, 1), dtype=torch.int64, device=device)
    rows = []
    for _ in range(count):
        chosen = candidates.gather(1, row.expand(-1, 1, objectives))
        rows.append(chosen)
        distances = torch.minimum(distances, (candidates - chosen).square().sum(-1))
        row = distances.argmax(-1)[:, None, None]
    return torch.cat(rows, dim=1)


_MOVES = 8


def _with_moved_rows(points: Tensor, power: float, generator: torch.Generator) -> Tensor:
    """(_MOVES, n, m): in each set one of the rows with the most energy lies where there would be the least."""
    n, m = points.shape
    inside, faces = _samples(m, 1, 20 * n, generator, points.device)
    candidates = torch.cat([inside[0], faces[0]])
    between = _squared_distances(points, points).fill_diagonal_(math.inf)
    crowded = torch.logsumexp(between.log() * (-power / 2), -1).topk(min(_MOVES, n)).indices
    energies = torch.logsumexp(_squared_distances(candidates, points).log() * (-power / 2), -1)
    holes = energies.topk(_MOVES, largest=False).indices
    holes = holes[torch.randint(_MOVES, crowded.shape, device="cpu", generator=generator).to(points.device)]
    sets = points.repeat(crowded.shape[0], 1, 1)
    return sets.scatter_(1, crowded[:, None, None].expand(-1, 1, m), candidates[holes][:, None])


_MEMORY = 10  # energies that a step may not exceed
_PATIENCE = 25  # iterations between looks at whether the energy still falls


def _minimize_energy(points: Tensor, power: float, iterations: int) -> tuple[Tensor, Tensor]:
    """Spectral projected gradient (Birgin et al. 2000, SPG2) on sets (B, n, m), each with a step length of its own."""
    energy, gradient = _energy_and_gradient(points, power)
    best, lowest = points, energy
    recent = energy.expand(_MEMORY, -1).clone()
    # First step: the fastest point moves by a tenth of the smallest distance that is usual among n points.
    reach = 0.1 * points.shape[-2] ** (-1 / max(1, points.shape[-1] - 1))
    step = reach / gradient.norm(dim=-1).amax(-1).clamp(min=1e-300)
    before = lowest
    for iteration in range(1, iterations + 1):
        direction = _project(points - step[:, None, None] * gradient) - points
        slope = (direction * gradient).sum((-2, -1))
        ceiling = recent.amax(0)
        part = torch.ones_like(energy)
        for _ in range(20):
            moved = points + part[:, None, None] * direction
            moved_energy, moved_gradient = _energy_and_gradient(moved, power)
            too_high = ~(moved_energy <= ceiling + 1e-4 * part * slope)
            if not bool(too_high.any()):
                break
            # Minimum of the parabola through what is known along the direction, within safe bounds.
            parabola = -0.5 * part.square() * slope / (moved_energy - energy - part * slope)
            part = torch.where(too_high, parabola.nan_to_num(0).clamp(min=0.1 * part, max=0.5 * part), part)
        change, bend = moved - points, moved_gradient - gradient
        curvature = (change * bend).sum((-2, -1))
        spectral = change.square().sum((-2, -1)) / curvature
        step = torch.where(curvature > 0, spectral, math.inf).clamp(min=1e-14, max=1e3)
        points, energy, gradient = moved, moved_energy, moved_gradient
        recent[iteration % _MEMORY] = energy
        lower = energy < lowest
        lowest = torch.where(lower, energy, lowest)
        best = torch.where(lower[:, None, None], points, best)
        if iteration % _PATIENCE == 0:
            if not bool((lowest < before - 1e-9).any()):
                break
            before = lowest
    return best, lowest


def _energy_and_gradient(points: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Logarithm of the mean energy of (B, n, m), and its gradient. Powers are of ratios, which cannot overflow."""
    n, m = points.shape[-2:]
    squared = points.new_zeros((*points.shape[:-1], n))
    for j in range(m):
        squared += (points[..., :, None, j] - points[..., None, :, j]).square_()
    squared.diagonal(dim1=-2, dim2=-1).fill_(math.inf)
    smallest = squared.amin((-2, -1), keepdim=True)
    terms = (smallest / squared).pow_(power / 2)
    total = terms.sum((-2, -1), keepdim=True)
    energy = total.log() - power / 2 * smallest.log() - math.log(n * (n - 1))
    pulls = terms.div_(squared).div_(total)
    centred = points - 1 / m
    gradient = -2 * power * (pulls.sum(-1, keepdim=True) * centred - pulls @ centred)
    return energy[..., 0, 0], gradient


def _project(points: Tensor) -> Tensor:
    """Nearest points of the simplex (Held, Wolfe and Crowder 1974)."""
    descending = points.sort(dim=-1, descending=True).values
    excess = descending.cumsum(-1) - 1
    share = excess / torch.arange(1, points.shape[-1] + 1, dtype=points.dtype, device=points.device)
    last = (descending > share).sum(-1, keepdim=True) - 1
    return (points - share.gather(-1, last)).clamp(min=0)


# --- samples ---


def sample_weights(
    objectives: int,
    count: int | Sequence[int],
    *,
    distribution: Literal["uniform", "dirichlet", "gaussian"] = "uniform",
    alpha: Any = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
    device: Any = None,
) -> Tensor:
    """Random weights.

    ``"uniform"`` is uniform on the simplex, ``"dirichlet"`` has the density proportional to the product of
    w_j^(alpha_j - 1), and ``"gaussian"`` is |N(0, I)| divided by its sum, which prefers the centre (MORL-Baselines).
    Small ``alpha`` is sampled through logarithms: no row is 0 / 0.

    Args:
        objectives: m >= 1.
        count: number of rows, or a batch shape.
        distribution: as above.
        alpha: concentrations > 0, a number or (m,); for ``"dirichlet"`` only.
        generator: of the random numbers; torch's default one when None.
        dtype: float32 or float64.
        device: where the result lives; the generator's device when None.

    Returns:
        (count, m), or the batch shape + (m,).

    Raises:
        TypeError: for arguments of other types.
        ValueError: for arguments out of range, and ``alpha`` of a distribution that has none.

    Source: Devroye (1986, chapters V and XI) for normalized exponential and gamma variates.

    >>> sample_weights(3, (2, 4), generator=torch.Generator().manual_seed(0)).sum(-1)
    tensor([[1.0000, 1.0000, 1.0000, 1.0000],
            [1.0000, 1.0000, 1.0000, 1.0000]], dtype=torch.float64)
    """
    objectives, dtype = _as_objectives(objectives), _as_dtype(dtype)
    batch = count if isinstance(count, Sequence) else (count,)
    shape = (*(_at_least(0, size, "count") for size in batch), objectives)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator, got {generator!r}")
    if device is None and generator is not None:
        device = generator.device
    if distribution == "dirichlet":
        concentration = as_float32_or_64(alpha, "alpha").to(dtype=torch.float64, device=device)
        if concentration.dim() > 1 or (concentration.dim() == 1 and concentration.shape[0] != objectives):
            raise ValueError(f"alpha: expected a number or shape ({objectives},), got {tuple(concentration.shape)}")
        if not bool(((concentration > 0) & (concentration < math.inf)).all()):
            raise ValueError(f"alpha: expected positive numbers, got {alpha!r}")
        concentration = concentration.expand(shape)
        # Gamma(a) = Gamma(a + 1) U^(1 / a), and -log U is exponential.
        logarithms = torch._standard_gamma(concentration + 1, generator=generator).log()
        exponential = torch.empty(shape, dtype=torch.float64, device=device).exponential_(generator=generator)
        return torch.softmax(logarithms - exponential / concentration, -1).to(dtype)
    if not isinstance(alpha, (int, float)) or alpha != 1:
        raise ValueError(f'alpha: expected distribution="dirichlet" with it, got {distribution!r}')
    samples = torch.empty(shape, dtype=torch.float64, device=device)
    if distribution == "uniform":
        samples.exponential_(generator=generator)
    elif distribution == "gaussian":
        samples.normal_(generator=generator).abs_()
    else:
        raise ValueError(f'distribution: expected "uniform", "dirichlet" or "gaussian", got {distribution!r}')
    return (samples / samples.sum(-1, keepdim=True)).to(dtype)


# --- adaptation ---


def psa_weights(
    weights: Any,
    values: Any,
    archive: Any,
    *,
    maximize: bool | Sequence[bool],
    delta: float = 0.1,
    min_squared_distance: float = 0.01,
    archive_lengths: Any = None,
) -> Tensor:
    r"""Weights that push each policy away from its nearest neighbour on the front (PSA, as MORL/D uses it).

    .. math:: w_j \leftarrow \begin{cases} w_j (1 + \delta) & e_j \text{ at least as good as } c_j \\
        w_j / (1 + \delta) & \text{else} \end{cases} \qquad w \leftarrow w / \|w\|_1

    where c is the archived point nearest to the policy's own value e among those with
    :math:`\|e - c\|^2` above ``min_squared_distance``, which is absolute: scale the values first.

    Args:
        weights: (..., n, m), one row a policy; float32 or float64. Array-likes are taken too.
        values: (..., n, m), what each policy attains.
        archive: (..., k, m), non-dominated values. Rows with a NaN are passed over.
        maximize: whether objectives are maximized; a bool, or one for each objective.
        delta: step > 0.
        min_squared_distance: archived points nearer than this count as the policy itself.
        archive_lengths: integers of the batch shape; only the first so many rows of ``archive`` count.

    Returns:
        (..., n, m) in the dtype of ``weights``. Without such a c a row is only normalized. Equal distances go to the
        lowest row. O(n k) memory, no synchronization.

    Raises:
        TypeError: for dtypes that are neither float32, float64 nor integers.
        ValueError: for shapes that do not fit, delta <= 0, and mixed devices.

    Sources: Czyzżak and Jaszkiewicz (1998); Felten, Talbi and Danoy (2024), whose code has the threshold of 0.01.

    >>> psa_weights([[0.5, 0.5]], [[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], maximize=True)
    tensor([[0.5475, 0.4525]], dtype=torch.float64)
    """
    weights, values, archive = as_points(weights, "weights"), as_points(values, "values"), as_points(archive, "archive")
    _same_objectives(weights, "weights", values=values, archive=archive)
    delta = as_number(delta, "delta")
    if not delta > 0:
        raise ValueError(f"delta: expected a positive number, got {delta}")
    threshold = as_number(min_squared_distance, "min_squared_distance")
    if weights.shape[-2] != values.shape[-2]:
        raise ValueError(f"values: expected {weights.shape[-2]} rows, one for each weight, got {values.shape[-2]}")
    if archive.shape[-2] == 0:
        return _normalized(weights)
    maximized, own, _ = as_minimization(values.detach().double(), maximize)
    _, known, _ = as_minimization(archive.detach().double(), maximize)
    squared = _squared_distances(own, known)
    counts = squared > threshold  # not for NaN
    if archive_lengths is not None:
        lengths = as_integers(archive_lengths, "archive_lengths", "archive", archive)
        if lengths.shape != archive.shape[:-2]:
            raise ValueError(
                f"archive_lengths: expected the batch shape {tuple(archive.shape[:-2])}, got {tuple(lengths.shape)}"
            )
        counts = counts & (torch.arange(archive.shape[-2], device=archive.device) < lengths[..., None, None])
    nearest = torch.where(counts, squared, math.inf).argmin(-1, keepdim=True)
    batch = nearest.shape[:-2]
    closest = known.expand(*batch, *known.shape[-2:]).gather(-2, nearest.expand(*nearest.shape[:-1], known.shape[-1]))
    good = own >= closest if maximized else own <= closest
    adapted = torch.where(good, weights * (1 + delta), weights / (1 + delta))
    adapted = torch.where(counts.any(-1, keepdim=True), adapted, weights)
    return _normalized(adapted)


def _normalized(weights: Tensor) -> Tensor:
    return weights / weights.abs().sum(-1, keepdim=True)


class AdaptedWeights(NamedTuple):
    """Weights (n, m), and for each row the archive's row that it came from, -1 where the subproblem stays (n,)."""

    weights: Tensor
    archive_rows: Tensor


def awa_weights(
    weights: Any,
    values: Any,
    archive: Any,
    ideal_point: Any,
    *,
    maximize: bool | Sequence[bool],
    count: int | None = None,
    epsilon: float = 1e-6,
) -> AdaptedWeights:
    r"""Moves subproblems of the Chebyshev decomposition from crowded to sparse parts of the front (MOEA/D-AWA).

    The sparsity of a point is the product of its distances to the m nearest others (vicinity distance). ``count``
    subproblems leave, one after another, each time the one whose value is least sparse among those left. Their places
    are taken, one after another, by the archive's row that is sparsest with respect to the values left and the rows
    taken before, with the weight for which it is optimal:

    .. math:: w_j \propto 1 / (|f_j - z_j| + \epsilon)

    Args:
        weights: (n, m), float32 or float64. Array-likes are taken too.
        values: (n, m), the value of each subproblem's solution. Rows with a NaN leave first.
        archive: (k, m), the external population of non-dominated values. Rows with a NaN are never taken.
        ideal_point: z, a scalar or (m,).
        maximize: whether objectives are maximized; distances do not depend on it, and it must fit the archive.
        count: how many subproblems may change, 5 % of n (at least one) when None, at most n - 1.
        epsilon: > 0, against division by zero.

    Returns:
        The new weights (in the dtype of ``weights``) and which row of the archive took each place. A place whose best
        candidate has sparsity 0 (it equals a value that is already there) goes back to its own subproblem. Equal
        sparsities go to the lowest row. O((n + k) n) memory, O(count) passes over it, no synchronization.

    Raises:
        TypeError: for dtypes that are neither float32, float64 nor integers.
        ValueError: for shapes that do not fit, count out of range, epsilon <= 0, and mixed devices.

    Source: Qi, Ma, Liu, Jiao, Sun and Wu (2014), sections 3.2 and 3.3, from secondary descriptions: the order of ties
    and what happens to equal points are ours.

    >>> values = torch.tensor([[0.0, 1.0], [0.9, 0.11], [0.91, 0.1], [1.0, 0.0]])
    >>> adapted = awa_weights(torch.rand(4, 2), values, [[0.5, 0.25], [1.0, 0.0]], 0.0, maximize=False, count=1)
    >>> adapted.archive_rows
    tensor([-1, -1,  0, -1])
    >>> adapted.weights[2]
    tensor([0.3333, 0.6667])
    """
    weights, values, archive = as_points(weights, "weights"), as_points(values, "values"), as_points(archive, "archive")
    for name, tensor in (("weights", weights), ("values", values), ("archive", archive)):
        if tensor.dim() != 2:
            raise ValueError(f"{name}: expected two dimensions, got shape {tuple(tensor.shape)}")
    _same_objectives(weights, "weights", values=values, archive=archive)
    n, m = weights.shape
    if values.shape[0] != n:
        raise ValueError(f"values: expected {n} rows, one for each weight, got {values.shape[0]}")
    as_minimization(values, maximize)  # its errors
    ideal_point = as_ref_point(ideal_point, values, "ideal_point")
    epsilon = as_number(epsilon, "epsilon")
    if not epsilon > 0:
        raise ValueError(f"epsilon: expected a positive number, got {epsilon}")
    wanted = max(1, round(n / 20)) if count is None else _at_least(0, count, "count")
    if count is not None and wanted > max(n - 1, 0):
        raise ValueError(f"count: expected at most {max(n - 1, 0)}, one less than there are weights, got {count}")
    device = weights.device
    archive_rows = torch.full((n,), -1, dtype=torch.int64, device=device)
    changes = min(wanted, archive.shape[0], n - 1)
    if changes <= 0:
        return AdaptedWeights(weights.clone(), archive_rows)

    own, known = values.detach().double(), archive.detach().double()
    between = _apart(own, own).fill_diagonal_(math.inf)
    left = torch.ones(n, dtype=torch.bool, device=device)
    places = []
    for step in range(changes):
        near = torch.where(left, between, math.inf).topk(max(1, min(m, n - step - 1)), largest=False).values
        place = torch.where(left, _sparsity(own, near), math.inf).argmin().reshape(1)
        left = left.index_fill(0, place, False)
        places.append(place)

    near = torch.where(left, _apart(known, own), math.inf).topk(min(m, n - changes), largest=False).values
    taken = []
    for _ in range(changes):
        sparsity = _sparsity(known, near)
        row = sparsity.argmax().reshape(1)
        taken.append(torch.where(sparsity[row] > -math.inf, row, -1))
        near = torch.cat([near, _apart(known, known[row])], dim=-1).topk(near.shape[-1], largest=False).values

    rows = torch.cat(taken)
    archive_rows = archive_rows.scatter(0, torch.cat(places), rows)
    inverse = 1 / ((known - ideal_point).abs() + epsilon)
    optimal = (inverse / inverse.sum(-1, keepdim=True)).to(weights.dtype)
    changed = torch.where(archive_rows[:, None] >= 0, optimal[archive_rows.clamp(min=0)], weights)
    return AdaptedWeights(changed, archive_rows)


def _apart(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances; whoever has a NaN is near nobody."""
    return _squared_distances(first, second).nan_to_num(nan=math.inf, posinf=math.inf)


def _sparsity(points: Tensor, near: Tensor) -> Tensor:
    """Logarithm of the product of the distances (n, <= m) to the nearest others; -inf for equal points and NaN."""
    product = near.log().sum(-1).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)  # log 0 + log inf
    return torch.where(points.isnan().any(-1), -math.inf, product)


def ws_transform(weights: Any, *, epsilon: float = 1e-6) -> Tensor:
    r"""Weights whose Chebyshev optimum lies in the direction of the given ones.

    .. math:: w'_j = (1 / w_j) / \textstyle\sum_k (1 / w_k)

    Args:
        weights: (..., m), float32 or float64; array-likes are taken too. Entries below ``epsilon`` are raised to it.
        epsilon: > 0.

    Returns:
        As ``weights``. Applied twice it gives back weights that sum to 1 and lie above ``epsilon``.

    Raises:
        TypeError: for a dtype that is neither float32, float64 nor an integer.
        ValueError: for epsilon <= 0.

    Source: Qi et al. (2014), the WS transformation.

    >>> ws_transform([0.5, 0.25, 0.25])
    tensor([0.2000, 0.4000, 0.4000], dtype=torch.float64)
    """
    weights = as_float32_or_64(weights, "weights")
    epsilon = as_number(epsilon, "epsilon")
    if not epsilon > 0:
        raise ValueError(f"epsilon: expected a positive number, got {epsilon}")
    inverse: Tensor = 1 / weights.clamp(min=epsilon)
    return inverse / inverse.sum(-1, keepdim=True)


# --- neighbourhoods ---


def weight_neighbors(
    weights: Any,
    k: int,
    *,
    metric: Literal["euclidean", "manhattan", "cosine"] = "euclidean",
    include_self: bool = False,
    skip_duplicates: bool = False,
) -> Tensor:
    """The k nearest other weights of each weight.

    Args:
        weights: (n, m), float32 or float64; array-likes are taken too.
        k: in 1..n - 1 (1..n with ``include_self``).
        metric: ``"cosine"`` is 1 minus the cosine of the angle.
        include_self: the row itself comes first, as in MOEA/D.
        skip_duplicates: a weight equal to the row's own, or to a neighbour already listed, is passed over (as in
            MORL/D); the lowest row of equal ones is listed, and -1 where there are not enough.

    Returns:
        int64 (n, k), nearest first, equal distances by row. Memory for the result and a bounded piece of the distance
        matrix, O(n^2 m) work, no synchronization (except with ``skip_duplicates``). Distances are summed in float64 in
        the order of the objectives, so that ties come out as a plain loop has them.

    Raises:
        TypeError: for a dtype that is neither float32, float64 nor an integer.
        ValueError: for other shapes, k out of range, and unknown metrics. NaN distances count as infinite.

    Sources: Zhang and Li (2007); Felten, Talbi and Danoy (2024).

    >>> weight_neighbors([[0.0, 1.0], [0.4, 0.6], [0.5, 0.5], [1.0, 0.0]], 2)
    tensor([[1, 2],
            [2, 0],
            [1, 0],
            [2, 1]])
    """
    weights = as_points(weights, "weights")
    if weights.dim() != 2:
        raise ValueError(f"weights: expected shape (n, m), got {tuple(weights.shape)}")
    n = weights.shape[0]
    k = as_integer(k, "k")
    most = n if include_self else n - 1
    if not 1 <= k <= most:
        raise ValueError(f"k: expected 1 to {most} neighbours for {n} weights, got {k}")
    rows = weights.detach().double() + 0.0  # -0.0 becomes 0.0
    device = weights.device
    copy_of = None
    if skip_duplicates:
        _, copy_of = torch.unique(rows, dim=0, return_inverse=True)
        lowest = torch.full((n,), n, device=device).scatter_reduce(0, copy_of, torch.arange(n, device=device), "amin")
        is_lowest = lowest[copy_of] == torch.arange(n, device=device)
    if metric == "cosine":
        rows = rows / rows.norm(dim=-1, keepdim=True)
    elif metric not in ("euclidean", "manhattan"):
        raise ValueError(f'metric: expected "euclidean", "manhattan" or "cosine", got {metric!r}')
    # Equal directions may differ by a rounding; then the squared chord, 2 (1 - cosine), orders as the cosine does.
    distances_of = _manhattan_distances if metric == "manhattan" else _squared_distances
    neighbors = torch.empty((n, k), dtype=torch.int64, device=device)
    size = max(1, (2**17 if device.type == "cpu" else 2**24) // n)  # what caches hold; few launches
    for start in range(0, n, size):
        own = torch.arange(start, min(start + size, n), device=device)
        distances = distances_of(rows[start : start + size], rows).nan_to_num(nan=math.inf, posinf=math.inf)
        if copy_of is not None:
            distances.masked_fill_((copy_of[own, None] == copy_of) | ~is_lowest, math.inf)
        distances.scatter_(1, own[:, None], -1.0 if include_self else math.inf)
        neighbors[start : start + size] = _smallest(distances, k, skip=skip_duplicates)
    return neighbors


def _smallest(distances: Tensor, k: int, *, skip: bool) -> Tensor:
    """Columns (c, k) of the k smallest of each row of (c, n), ties to the lowest column; skip: -1 for infinite ones."""
    kth = distances.topk(k, largest=False).values[:, -1:]
    below, tied = distances < kth, distances == kth
    taken = below | (tied & (tied.cumsum(-1) <= k - below.sum(-1, keepdim=True)))
    # The j-th column taken goes to place j, all others to place k, which is cut off.
    place = torch.where(taken, taken.cumsum(-1) - 1, k)
    columns = torch.arange(distances.shape[1], device=distances.device).expand_as(distances)
    chosen = columns.new_empty((distances.shape[0], k + 1)).scatter_(1, place, columns)[:, :k]
    sorted_distances, order = distances.gather(1, chosen).sort(dim=1, stable=True)
    chosen = chosen.gather(1, order)
    return torch.where(sorted_distances.isinf(), -1, chosen) if skip else chosen


# --- what the functions share ---


def _squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """(..., n, m) and (..., k, m) -> (..., n, k), summed over the objectives in their order; no (n, k, m) temporary."""
    return _sum_over_objectives(first, second, torch.square)


def _manhattan_distances(first: Tensor, second: Tensor) -> Tensor:
    return _sum_over_objectives(first, second, torch.abs)


def _sum_over_objectives(first: Tensor, second: Tensor, term: Callable[..., Tensor]) -> Tensor:
    columns = second.mT.contiguous()
    total = term(first[..., :1] - columns[..., :1, :])
    for j in range(1, first.shape[-1]):
        difference = first[..., j, None] - columns[..., j, None, :]
        total += term(difference, out=difference)
    return total


def _is_first(rows: Tensor, tolerance: float) -> Tensor:
    """Which rows of (n, m) agree with no earlier one."""
    n = rows.shape[0]
    first = torch.ones(n, dtype=torch.bool, device=rows.device)
    size = max(1, 2**21 // n)
    for start in range(0, n, size):
        own = rows[start : start + size]
        equal = torch.ones((own.shape[0], n), dtype=torch.bool, device=rows.device).tril_(start - 1)
        for j in range(rows.shape[1]):
            equal &= (own[:, None, j] - rows[None, :, j]).abs() <= tolerance
        first[start : start + size] = ~equal.any(-1)
    return first


def _lexicographic(rows: Tensor) -> Tensor:
    for j in reversed(range(rows.shape[1])):
        rows = rows[rows[:, j].argsort(stable=True)]
    return rows


def _as_objectives(objectives: Any) -> int:
    return _at_least(1, objectives, "objectives")


def _at_least(least: int, value: Any, name: str) -> int:
    number = as_integer(value, name)
    if number < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return number


def _as_dtype(dtype: Any) -> torch.dtype:
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype!r}")
    return dtype  # type: ignore[no-any-return]


def _as_power(power: Any, objectives: int) -> float:
    if power is None:
        return 2.0 * objectives
    number = as_number(power, "power")
    if not 0 < number < math.inf:
        raise ValueError(f"power: expected a positive number, got {power}")
    return float(number)


def _same_objectives(first: Tensor, name: str, **others: Tensor) -> None:
    for other_name, other in others.items():
        same_device(name, first, other_name, other)
        if other.shape[-1] != first.shape[-1]:
            raise ValueError(
                f"{other_name}: expected {first.shape[-1]} objectives as in {name}, got shape {tuple(other.shape)}"
            )
