"""One source, several instruction sets: the same bits from each."""

from __future__ import annotations

import os
import subprocess
import sys

from morlfast import _C

PROGRAM = """
import hashlib, torch, morlfast
from morlfast import group_advantages, hypervolume, non_dominated_sort, select_rollouts, select_tokens, token_logprobs

generator = torch.Generator().manual_seed(0)
def rand(*shape, dtype=torch.float64):
    return torch.rand(*shape, generator=generator, dtype=dtype)

points = (rand(3, 1500, 6) * 16).round()
rewards = rand(999, 7, dtype=torch.float32)
rewards[::5, 2] = torch.nan
advantages, entropies = rand(40, 3000).float() - 0.5, (rand(40, 3000) * 64).round().float()
mask = rand(40, 3000) < 0.7
logits, tokens = (rand(3, 5, 5000) - 0.5) * 40, torch.arange(15).view(3, 5)
logits.requires_grad_()

def gradient(dtype):
    found = token_logprobs(logits.to(dtype), tokens, temperature=0.8)
    return torch.autograd.grad((found.log_probs + found.entropies).sum(), logits)[0]

results = [
    non_dominated_sort(points, maximize=False),  # bitsets
    non_dominated_sort(points[:, :700], maximize=True),  # pairs
    hypervolume(points[..., :3], 16.0, maximize=False),
    *(group_advantages(rewards, 9, method="gdpo", scale=scale) for scale in ("group", "batch", "none")),
    select_tokens(advantages, entropies, mask, 0.3),
    select_tokens(advantages.double(), entropies, mask, 0.3, scope="sequence"),
    select_tokens(advantages, entropies, mask, 0.3, threshold="quantile"),
    select_rollouts(advantages[0], 100, scope="batch").mask,
]
for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    results += [*token_logprobs(logits.detach().to(dtype), tokens, temperature=0.8), gradient(dtype)]
digest = hashlib.sha256()
for result in results:
    digest.update(result.numpy().tobytes())
print(morlfast._C.build_info["simd"], digest.hexdigest())
"""


def test_every_level_gives_the_same_bits():
    supported = _C.build_info["simd_levels"].split()
    supported = supported[: supported.index(_C.build_info["simd"]) + 1]
    digests = set()
    for level in supported:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "MORLFAST_SIMD": level},
            capture_output=True,
            text=True,
            check=True,
        )
        used, digest = done.stdout.split()
        assert used == level
        digests.add(digest)
    assert len(digests) == 1
