"""Every Triton kernel compiles without a GPU, spills nothing and stays within its register budget.

The gate compiles for sm_90; ``MORLFAST_ALL_ARCHS=1`` compiles for every architecture that the package
supports. Triton's interpreter replaces the compiler, so under ``TRITON_INTERPRET=1`` these tests are skipped.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton.language")  # this folder alone would answer to "triton"
import triton

if triton.knobs.runtime.interpret:
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

from morlfast._triton import advantages, indicators, logprobs, pareto, returns, rollouts, tokens
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 86, 89, 90, 100, 120) if os.environ.get("MORLFAST_ALL_ARCHS") == "1" else (90,)
# What a block may use without opting in to more.
SHARED_LIMIT = 48 * 1024


@dataclass(frozen=True)
class Case:
    name: str
    kernel: Any
    pointers: dict[str, str]  # element type of each pointer; absent ones are passed as None
    constants: dict[str, Any]
    registers: int
    options: dict[str, Any]
    strides_of_one: tuple[str, ...] = ()
    aligned: tuple[str, ...] = ()  # numbers that are multiples of 16
    fused: bool = False  # products and sums may be rounded once


def _advantages(
    name: str,
    kernel: Any,
    registers: int,
    reward: str,
    *pointers: str,
    options: dict[str, Any] = advantages.OPTIONS,
    **constants: Any,
) -> Case:
    elements = {"lengths_ptr": "i64", "order_ptr": "i64", "bounds_ptr": "i64", "counts_ptr": "i64", "mask_ptr": "i1"}
    elements |= dict.fromkeys(["batch_ptr", "records_ptr", "scores_ptr"], "fp64") | {"weights_ptr": "fp32"}
    whitened_next = kernel is advantages.group_kernel and "records_ptr" in pointers
    elements |= {"rewards_ptr": reward, "out_ptr": "fp64" if whitened_next else reward}
    own = {name: elements[name] for name in pointers}
    return Case(name, kernel, own, constants, registers, options, ("mask_col",), ("columns", "mask_row"))


def _tokens(name: str, kernel: Any, registers: int, score: str, mask: str, absent: str = "", **constants: Any) -> Case:
    elements = {"advantages_ptr": score, "entropies_ptr": score, "mask_ptr": mask, "out_ptr": "i1"}
    elements |= {"histogram_ptr": "i64" if "given_ptr" not in absent else "i32", "equal_ptr": "i32"}
    names = [p.name for p in kernel.params if p.name.endswith("_ptr") and p.name not in absent.split()]
    tile = constants["R"] * constants["WIDTH"] if "R" in constants else constants.get("WIDTH", 0)
    return Case(
        name,
        kernel,
        {p: elements.get(p, "i64") for p in names},
        constants,
        registers,
        tokens.launch_options(tile) if tile else tokens.OPTIONS,
        strides_of_one=("entropy_col", "mask_col"),
        fused=constants.get("QUANTILE", False),
    )


def _rollouts(name: str, kernel: Any, reward: str, options: dict[str, Any], **constants: Any) -> Case:
    elements = {"rewards_ptr": reward, "out_ptr": "i1", "values_ptr": "fp64", "sums_ptr": "fp64"}
    absent = ("sums_ptr",) if constants.get("METHOD") else ()
    names = [p.name for p in kernel.params if p.name.endswith("_ptr") and p.name not in absent]
    own = {p: elements.get(p, "i64") for p in names}
    return Case(name, kernel, own, constants, rollouts.OPTIONS["maxnreg"], options)


def _sort(
    name: str,
    kernel: Any,
    registers: int,
    element: str,
    options: dict[str, Any],
    absent: tuple[str, ...] = (),
    **constants: Any,
) -> Case:
    elements = dict.fromkeys(["points_ptr", "others_ptr", "values_ptr"], element)
    elements |= dict.fromkeys(["order_ptr", "targets_ptr", "lengths_ptr"], "i64") | {"violations_ptr": "fp64"}
    if kernel is pareto.columns_kernel:
        elements["columns_ptr"] = element
    if constants.get("COUNT") is False:
        elements["result_ptr"] = "i1"
    names = [p.name for p in kernel.params if p.name.endswith("_ptr") and p.name not in absent]
    return Case(name, kernel, {p: elements.get(p, "i32") for p in names}, constants, registers, options)


def _best(name: str, kernel: Any, registers: int, element: str, rows: bool, **constants: Any) -> Case:
    elements = {"least_ptr": "fp64", "lengths_ptr": "i64", "least_rows_ptr": "i64", "rows_ptr": "i64"}
    names = [p.name for p in kernel.params if p.name.endswith("_ptr") and (rows or "rows" not in p.name)]
    return Case(name, kernel, {p: elements.get(p, element) for p in names}, constants, registers, indicators.OPTIONS)


def _group(
    name: str,
    reward: str,
    k: int,
    group: int,
    *pointers: str,
    tokens: bool = False,
    **rules: Any,
) -> Case:
    """Compiled as group_advantages_out launches it."""
    elements = max(advantages.GROUP_TILE, k)
    members = min(group, elements // k)
    groups, written = elements // (members * k), members
    if tokens:
        rows = min(advantages.ROWS, elements // k)
        written = min(members, rows)
        groups = rows // written
    size = int(reward[2:]) // 8
    rules = {"SUMMED": True, "BASELINE": 1, "SCALE": 1, "EPS_TO": 0, "SINGLETON": 0, "ZERO_VARIANCE": 0} | rules
    options = advantages.group_options(elements, size if tokens else 0)
    return _advantages(
        f"group-{name}-{reward}-{k}x{group}",
        advantages.group_kernel,
        options["maxnreg"],
        reward,
        *("rewards_ptr", "out_ptr", *pointers, *(["mask_ptr"] if tokens else [])),
        options=options,
        **{"NAN": 0, "BY_TOKEN": False, "OF_GROUP": True, **rules},
        P=groups,
        L=members,
        LW=written,
        K=k,
        C=min(advantages.CHUNKS, advantages.TILE // (1 if rules["SUMMED"] else k)),
        W=advantages.COLUMNS * 4 // max(4, size) if tokens else 0,
        SPAN=advantages.SPAN,
    )


_IDS = ("order_ptr", "bounds_ptr")
_NEMO: dict[str, Any] = {"BASELINE": 2, "SCALE": 3, "EPS_TO": 1}
_WORST = _NEMO | {"SUMMED": False, "BASELINE": 4, "BY_TOKEN": True, "NAN": 3, "SINGLETON": 1, "ZERO_VARIANCE": 1}
GROUPED = [
    _group("grpo", "fp32", 1, 8),
    _group("grpo-ids", "fp32", 8, advantages.UNKNOWN_GROUP, "weights_ptr", *_IDS),
    _group("rloo", "bf16", 1, 16, BASELINE=2, SCALE=0),
    _group("batch", "fp16", 4, 8, "weights_ptr", "batch_ptr", BASELINE=3, SCALE=2),
    _group("gdpo", "fp32", 8, 16, "weights_ptr", "records_ptr", SUMMED=False),
    _group(
        "gdpo-batch-ids",
        "fp64",
        64,
        advantages.UNKNOWN_GROUP,
        "weights_ptr",
        "records_ptr",
        "batch_ptr",
        *_IDS,
        SUMMED=False,
        SCALE=2,
    ),
    _group("nemo", "fp32", 1, 16, **_NEMO),
    _group(
        "opo-ids", "fp32", 1, advantages.UNKNOWN_GROUP, "lengths_ptr", *_IDS, BASELINE=4, SCALE=0, SINGLETON=1, NAN=1
    ),
    _group("runner-up", "fp32", 1, 8, BASELINE=5, SCALE=1, SINGLETON=2, ZERO_VARIANCE=2, NAN=2),
    _group("worst", "fp64", 8, advantages.UNKNOWN_GROUP, "weights_ptr", "records_ptr", "lengths_ptr", *_IDS, **_WORST),
    _group("worst", "fp32", 512, 8, "weights_ptr", "records_ptr", "lengths_ptr", *_IDS, **_WORST),
    _group("tokens", "fp32", 1, 16, tokens=True),
    _group("tokens-nemo", "fp64", 1, 16, tokens=True, **_NEMO),
    _group("tokens-gdpo", "bf16", 8, 64, "weights_ptr", tokens=True, SUMMED=False),
    _group("tokens-spread", "bf16", 1, 1, tokens=True, BASELINE=0, SCALE=0, OF_GROUP=False),
]
BATCHED = [
    *[
        _advantages(
            f"chunk-{'summed' if summed else 'each'}-{k}",
            advantages.chunk_statistics_kernel,
            168,
            "fp32",
            *("rewards_ptr", "weights_ptr", "records_ptr"),
            SUMMED=summed,
            NAN=0,
            L=advantages.TILE // k,
            K=k,
        )
        for summed, k in [(True, 1), (True, 4), (False, 4), (False, 512)]
    ],
    *[
        _advantages(
            f"finish-{reward}{'-white' if white else ''}{'-tokens' if tokens else ''}",
            advantages.finish_kernel,
            128,
            reward,
            *("scores_ptr", "out_ptr", *(["mask_ptr"] if tokens else []), *(["records_ptr"] if white else [])),
            EPS_TO=0,
            R=advantages.ROWS if tokens else advantages.TILE,
            C=advantages.RECORDS,
            W=advantages.COLUMNS // (2 if reward == "fp64" else 1) if tokens else 0,
            SPAN=advantages.SPAN,
        )
        for reward, white, tokens in [("fp32", True, False), ("fp32", True, True), ("fp64", False, True)]
    ],
    _advantages("count", advantages.count_kernel, 128, "fp32", "mask_ptr", "counts_ptr", R=4, W=512),
    _advantages("sum", advantages.sum_kernel, 128, "fp32", "rewards_ptr", "scores_ptr", NAN=0, R=4, W=128),
]
_CONTIGUOUS = "order_ptr group_ptr bounds_ptr"
_BY_TAU = ("histogram_kernel", "below_kernel")
SELECTED = [
    *[
        _tokens(
            f"{kernel.fn.__name__}-{score}-{mask}-{stacked}x{width}{'' if absent else '-segments'}",
            kernel,
            128,
            score,
            mask,
            f"{absent} given_ptr" if kernel is tokens.histogram_kernel else absent,
            **({"QUANTILE": quantile} if kernel.fn.__name__ in _BY_TAU else {}),
            WIDE=score == "fp64",
            R=stacked,
            WIDTH=width,
        )
        for kernel in (tokens.histogram_kernel, tokens.below_kernel, tokens.tie_kernel, tokens.select_kernel)
        for score, mask, stacked, width, absent, quantile in [
            ("fp32", "i1", 1, tokens.TILE, _CONTIGUOUS, False),
            ("fp32", "i1", 1, tokens.TILE, "order_ptr", True),
            ("bf16", "fp32", 1, 128, "", False),
            ("fp64", "i64", 16, tokens.TILE // 16, _CONTIGUOUS, True),
        ]
        if quantile or kernel is not tokens.below_kernel
    ],
    *[
        _tokens(
            f"histogram_kernel-given-{score}",
            tokens.histogram_kernel,
            128,
            score,
            "i1",
            "order_ptr bounds_ptr prefix_ptr remaining_ptr",
            QUANTILE=False,
            WIDE=score == "fp64",
            R=1,
            WIDTH=tokens.TILE,
        )
        for score in ("fp32", "fp64")
    ],
    *[
        _tokens(
            f"threshold_kernel-{wide}-{quantile}",
            tokens.threshold_kernel,
            128,
            "fp32",
            "i1",
            "given_ptr" if quantile else "given_ptr below_ptr",
            QUANTILE=quantile,
            WIDE=wide,
        )
        for wide, quantile in [(False, False), (False, True), (True, True)]
    ],
]
ROWS = [
    _tokens(
        f"row_kernel-{score}-{mask}-{width}{'-quantile' if quantile else ''}",
        tokens.row_kernel,
        128,
        score,
        mask,
        QUANTILE=quantile,
        WIDE=score == "fp64",
        WIDTH=width,
    )
    for score, mask, width, quantile in [
        ("fp32", "i1", tokens.TILE, False),
        ("fp32", "i1", tokens.TILE, True),
        ("bf16", "bf16", 128, False),
        ("fp64", "i32", tokens.TILE, False),
        ("fp64", "i1", tokens.TILE, True),
    ]
]
SELECTED_ROLLOUTS = [
    *[
        _rollouts(
            f"rollouts-{reward}-method{method}-{groups}x{lanes}",
            rollouts.group_kernel,
            reward,
            rollouts.group_options(groups * lanes),
            METHOD=method,
            WIDE=reward in ("fp64", "i64"),
            P=groups,
            L=lanes,
        )
        for reward, method, groups, lanes in [
            ("fp32", 0, rollouts.TILE // 64, 64),
            ("bf16", 0, rollouts.TILE, 1),
            ("i64", 0, rollouts.TILE // 8, 8),
            ("fp32", 0, 1, rollouts.GROUP_LIMIT),
            ("fp64", 0, 1, rollouts.GROUP_LIMIT),
            ("fp16", 1, rollouts.TILE // 16, 16),
            ("fp64", 2, rollouts.TILE // 16, 16),
        ]
    ],
    _rollouts("split_kernel", rollouts.split_kernel, "fp64", rollouts.SPLIT_OPTIONS, C=rollouts.CHUNK),
]
SMALL = [
    _sort(
        f"small_kernel-{element}-{size}{'-violations' if violations else ''}",
        pareto.small_kernel,
        128,
        element,
        pareto.small_options(size),
        absent=() if violations else ("violations_ptr", "lengths_ptr"),
        MAXIMIZE=size == 64,
        SIZE=size,
    )
    for element, size, violations in [
        ("fp32", 16, False),
        ("fp32", 32, True),
        ("fp32", pareto.SMALL, False),
        ("fp64", pareto.SMALL, False),
        ("fp64", pareto.SMALL, True),
    ]
]
BLOCKS = [
    _sort(
        f"block_kernel-{columns}-{block}-{targets}",
        pareto.block_kernel,
        pareto.block_options(columns)["maxnreg"],
        "fp32",
        pareto.block_options(columns),
        BLOCK=block,
        TARGETS=targets,
        SOURCES=pareto.SOURCES,
        SETTLED=pareto.SETTLED,
        COLUMNS=columns,
    )
    for columns in range(pareto.UNROLLED)
    for block, targets in [(pareto.BLOCK, pareto.TARGETS), (128, 128)]
]
WINDOWS = [
    _sort(
        f"{kernel.fn.__name__}-{columns}",
        kernel,
        128,
        "fp32",
        pareto.TILE_OPTIONS,
        absent=("lows_ptr",) if columns in (1, 2) else ("table_ptr",),
        BUCKETS=pareto.BUCKETS,
        BUCKET=pareto.WINDOW // pareto.BUCKETS,
        SOURCES=pareto.SOURCES,
        TABLE=columns in (1, 2),
        **constants,
    )
    for kernel, columns, constants in [
        (pareto.bucket_kernel, 2, {}),
        (pareto.bucket_kernel, 3, {}),
        *[
            (pareto.window_kernel, columns, {"TARGETS": pareto.FEW_TARGETS, "COLUMNS": columns})
            for columns in range(pareto.UNROLLED)
        ],
    ]
]
DOMINANCE = [
    _sort(
        f"pair_kernel-{element}-{m}-relation{relation}{'-count' if count else ''}",
        pareto.pair_kernel,
        168,
        element,
        pareto.PAIR_OPTIONS,
        MAXIMIZE=maximize,
        RELATION=relation,
        COUNT=count,
        OWN=own,
        CHUNK=pareto.CHUNK,
        TARGETS=pareto.FEW_TARGETS,
        SOURCES=pareto.SOURCES,
        M=m,
    )
    for element, m in [("fp32", 2), ("fp32", 3), ("fp64", 3), ("fp32", 0), ("fp64", 0)]
    for relation, count, own, maximize in [(0, True, True, False), (2, False, True, True), (1, False, False, False)]
]
ORDERED = [
    _sort(kernel.fn.__name__, kernel, 128, "fp64", pareto.OPTIONS, SIZE=pareto.ROWS, **constants)
    for kernel, constants in [
        (pareto.columns_kernel, {"MAXIMIZE": True}),
        (pareto.number_kernel, {}),
        (pareto.fresh_kernel, {}),
        (pareto.distinct_kernel, {}),
        (pareto.level_kernel, {}),
        (pareto.rank_kernel, {}),
    ]
]
BEST = [
    *[
        _best(
            f"best_kernel-{element}-kind{kind}-{m}{'-rows' if rows else ''}",
            indicators.best_kernel,
            168,
            element,
            rows,
            KIND=kind,
            QUERIES=indicators.QUERIES,
            POINTS=indicators.POINTS,
            M=m,
        )
        for element, rows, m in [
            ("fp64", True, indicators.UNROLLED),
            ("fp32", True, 0),
            ("fp32", False, indicators.UNROLLED),
        ]
        for kind in range(indicators.KINDS)
    ],
    _best("join_kernel", indicators.join_kernel, 64, "fp32", True, NEGATED=True, SIZE=indicators.JOINED),
]
_ROWS = {"R": returns.ROWS, "W": returns.WIDTH}
_TOKENS = {"R": 1, "W": returns.TILE}


def _returns(name: str, kernel: Any, element: str, *absent: str, **constants: Any) -> Case:
    elements = dict.fromkeys(["mask_ptr", "terminated_ptr", "done_ptr", "finished_ptr"], "i1")
    elements |= {"records_ptr": "fp64"}
    pointers = [p.name for p in kernel.params if p.name.endswith("_ptr") and p.name not in absent]
    columns = tuple(p.name for p in kernel.params if p.name.endswith("_col"))
    strides = ("columns", *(p.name for p in kernel.params if p.name.endswith("_row")))
    own = {p: elements.get(p, element) for p in pointers}
    return Case(name, kernel, own, constants, returns.OPTIONS["maxnreg"], returns.OPTIONS, columns, strides)


RETURNS = [
    _returns("scan-fp32", returns.scan_kernel, "fp32", "initial_ptr", REVERSE=True, CARRY=False, **_ROWS),
    _returns("scan-fp64-forward", returns.scan_kernel, "fp64", REVERSE=False, CARRY=True, **_ROWS),
    _returns(
        "gae-fp32-mask",
        returns.gae_kernel,
        "fp32",
        *("gammas_ptr", "lams_ptr", "returns_lams_ptr", "terminated_ptr", "done_ptr", "next_values_ptr"),
        *("bootstrap_ptr", "finished_ptr"),
        **{"DECOUPLED": False, "REPEAT_LAST": False, "CARRY": False, **_ROWS},
    ),
    _returns(
        "gae-bf16-next-values",
        returns.gae_kernel,
        "bf16",
        *("gammas_ptr", "lams_ptr", "returns_lams_ptr", "mask_ptr", "bootstrap_ptr", "finished_ptr"),
        **{"DECOUPLED": False, "REPEAT_LAST": False, "CARRY": True, **_ROWS},
    ),
    _returns(
        "gae-fp64-everything",
        returns.gae_kernel,
        "fp64",
        "next_values_ptr",
        **{"DECOUPLED": True, "REPEAT_LAST": True, "CARRY": True, **_ROWS},
    ),
    _returns("token-statistics", returns.token_statistics_kernel, "fp32", **_TOKENS),
    _returns(
        "whiten",
        returns.whiten_kernel,
        "fp32",
        **{"EPS_TO": 2, "SHIFT_MEAN": False, "OUTSIDE": False, "C": returns.RECORDS, **_TOKENS},
    ),
]
_LANES = {"R": logprobs.LOADS, "L": logprobs.LANES}


def _logprobs(name: str, kernel: Any, element: str, *absent: str, strided: bool = False, **constants: Any) -> Case:
    elements = {"tokens_ptr": "i64", "logits_ptr": element, "grad_ptr": element, "log_sums_ptr": "fp64"}
    results = "fp64" if element == "fp64" else "fp32"
    pointers = {
        p.name: elements.get(p.name, results) for p in kernel.params if p.name.endswith("_ptr") and p.name not in absent
    }
    options = logprobs.MERGE_OPTIONS if kernel is logprobs.merge_kernel else logprobs.OPTIONS
    ones = () if strided else ("logit_col", "token_row")
    sizes = ("vocabulary", "logit_batch", "logit_row")
    return Case(name, kernel, pointers, constants, logprobs.OPTIONS["maxnreg"], options, ones, sizes, fused=True)


LOGPROBS = [
    *[
        _logprobs(
            f"logprobs-{element}{'' if entropy else '-alone'}",
            logprobs.forward_kernel,
            element,
            *("records_ptr", *(() if entropy else ("entropies_ptr",))),
            **{"ENTROPY": entropy, "PARTIAL": False, "E": elements, **_LANES},
        )
        for element, elements, entropy in [("bf16", 8, True), ("bf16", 8, False), ("fp32", 4, True)]
    ],
    _logprobs(
        "logprobs-fp64-parts", logprobs.forward_kernel, "fp64", **{"ENTROPY": True, "PARTIAL": True, "E": 2, **_LANES}
    ),
    _logprobs(
        "logprobs-fp16-strided",
        logprobs.forward_kernel,
        "fp16",
        "records_ptr",
        strided=True,
        **{"ENTROPY": True, "PARTIAL": True, "E": 1, **_LANES},
    ),
    _logprobs("logprobs-merge", logprobs.merge_kernel, "bf16", PARTIAL=False, P=logprobs.SPLITS),
    _logprobs("logprobs-gradient-bf16", logprobs.gradient_kernel, "bf16", TILE=logprobs.TILE),
    _logprobs(
        "logprobs-gradient-fp32-alone",
        logprobs.gradient_kernel,
        "fp32",
        *("entropies_ptr", "grad_entropies_ptr"),
        TILE=logprobs.TILE,
    ),
    _logprobs(
        "logprobs-gradient-fp64-strided", logprobs.gradient_kernel, "fp64", strided=True, TILE=logprobs.TILE // 8
    ),
]
PARETO = [*SMALL, *BLOCKS, *WINDOWS, *DOMINANCE, *ORDERED, *BEST]
CASES = [*GROUPED, *BATCHED, *RETURNS, *SELECTED, *ROWS, *SELECTED_ROLLOUTS, *PARETO, *LOGPROBS]


def compile_kernel(case: Case, architecture: int) -> Any:
    """Compiles as a launch would: aligned pointers, None and strides of 1 known at compile time, sizes not."""
    signature, constants, aligned = {}, dict(case.constants), {}
    for position, parameter in enumerate(case.kernel.params):
        name = parameter.name
        if parameter.is_constexpr or name in case.constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            if name in case.pointers:
                signature[name] = f"*{case.pointers[name]}"
                aligned[(position,)] = [["tt.divisibility", 16]]
            else:
                signature[name], constants[name] = "constexpr", None
        elif name in case.strides_of_one:
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = parameter.annotation_type or "i32"
            if name in case.aligned:
                aligned[(position,)] = [["tt.divisibility", 16]]
    return triton.compile(
        ASTSource(case.kernel, signature, constants, aligned),
        target=GPUTarget("cuda", architecture, 32),
        options=case.options,
    )


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    report = subprocess.run(
        [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", report)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_fits(case: Case, architecture: int, tmp_path: Path) -> None:
    compiled = compile_kernel(case, architecture)
    used = resources(compiled.asm["cubin"], tmp_path)
    assert used["STACK"] == 0, f"spills: {used}"
    assert used["REG"] <= case.registers, used
    assert compiled.metadata.shared <= SHARED_LIMIT, compiled.metadata.shared
    # Fused, w * r - pivot of equal rewards would not be zero.
    assert case.fused or "fma.rn.f" not in compiled.asm["ptx"]


@pytest.mark.parametrize("case", [c for c in GROUPED + BATCHED if "tokens" in c.name], ids=lambda case: case.name)
def test_tokens_move_sixteen_bytes_at_a_time(case: Case) -> None:
    ptx = compile_kernel(case, 90).asm["ptx"]
    assert re.search(r"ld\.global\.v[24]\.b32", ptx)  # the mask, of bytes, as many as the result has elements
    assert re.search(r"st\.global\.(v4\.b32|v2\.b64)", ptx)


@pytest.mark.parametrize(
    "case", [c for c in LOGPROBS if "strided" not in c.name and "merge" not in c.name], ids=lambda case: case.name
)
def test_logits_are_read_sixteen_bytes_at_a_time_and_reduced_by_threads_alone(case: Case) -> None:
    compiled = compile_kernel(case, 90)
    assert re.search(r"ld\.global\.(v4\.b32|v2\.b64)", compiled.asm["ptx"])
    if case.kernel is logprobs.gradient_kernel:
        assert re.search(r"st\.global\.(v4\.b32|v2\.b64)", compiled.asm["ptx"])
        return
    # After the loop, threads are merged: a maximum and one or two sums, through 32 lanes and 4 warps.
    sums = 1 + case.constants["ENTROPY"]
    words = 2 if case.pointers["logits_ptr"] == "fp64" else 1
    assert compiled.asm["ptx"].count("shfl.sync") <= (5 + 2) * (1 + sums) * words


@pytest.mark.parametrize("k", [4, 64])
def test_objectives_are_added_in_one_order(k: int) -> None:
    """Or a score would not be the same to the bit in the pass for statistics and in the pass for results."""
    orders = set()
    for case in (
        _group("tokens", "fp32", k, 64, "weights_ptr", tokens=True),
        _group("rows", "fp32", k, 8, "weights_ptr"),
        next(case for case in BATCHED if case.name == "chunk-summed-4"),
    ):
        if case.constants["K"] != k:
            continue
        code = compile_kernel(case, 90).asm["ttgir"]
        layouts = dict(re.findall(r"^(#\w+) = #ttg\.blocked<(.*)>$", code, re.MULTILINE))
        sums = r'"tt\.reduce"\([^)]*\) <\{axis = 2 : i32(?:(?!tt\.reduce\").)*?tensor<\w+xf64, (#\w+)>\)'
        for name in re.findall(sums, code, re.DOTALL):
            places = re.findall(r"= \[\d+, \d+, (\d+)\]", layouts[name])
            orders.add(tuple(places[:3]))  # elements, lanes and warps along the objectives
    assert len(orders) == 1


def test_every_kernel_has_a_case() -> None:
    kernels = {
        function
        for module in (advantages, returns, rollouts, tokens, pareto, indicators, logprobs)
        for name, function in vars(module).items()
        if name.endswith("_kernel")
    }
    assert kernels == {case.kernel for case in CASES}
