"""Probes: cheap attacks of other kinds on a random sample of the images that the suite has left robust.

What they fool no longer counts as robust. From what they find, a bound follows on what they would still take from the
reported number if they ran on every robust image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_local.attacks.randomness import hash_indices
from robustbench_local.attacks.suites import INSET, SUITES, Stage
from robustbench_local.engine.cascade import Cascade, StageRun
from robustbench_local.engine.events import DIAGNOSTIC_STAGES
from robustbench_local.engine.protocol import Step, resolve_attack
from robustbench_local.results.checks import PROBED
from robustbench_local.results.schema import Diagnostic
from robustbench_local.statistics.sampling import most_remaining, share_for

PROBES = (f"bpda:steps=6,loss=margin,inset={INSET}", f"descent:steps=3,inset={INSET}", "square:steps=16,share=0.3")
"""Gradients through whatever stops or reverses them, the loss downhill, and a search without gradients."""
LIMIT = 0.01
"""How much of all images the probes may still take before the reported number cannot be trusted."""
ALPHA = 0.025
"""The probability with which a bound may be wrong, over all looks: half of 5 %; the other is the adaptive attacks'."""
OWN_PROBES = (*PROBES, *(stage.attack for stage in SUITES["fast"][2][1:]))
"""Where attacks of the user's choice ran instead of a suite, also those of a suite."""
NEARLY_ALL = 0.8
"""Where a larger share than this would be asked, all are: that leaves nothing to a bound."""
STRATA, STALLED, LOOKS = 4, 8, 4
"""Strata by margin; images whose margin the suite has lowered least, always asked; looks, each at twice as many."""
FIRST_PROBE = DIAGNOSTIC_STAGES + 300
"""Number of the first look's first stage; journals of earlier versions hold other attacks under the numbers before."""


@dataclass(frozen=True)
class Draw:
    """The robust samples of a block in strata, each in a random order.

    strata: positions, int64 [samples] each. The first stratum, of the images whose margin the suite has lowered least,
    is always asked whole. attacks: the probes that ask them.
    """

    strata: tuple[Tensor, ...]
    attacks: tuple[str, ...] = PROBES

    @property
    def population(self) -> int:
        return sum(map(len, self.strata))

    def asked(self, share: float) -> Tensor:
        """The positions that are asked: of every stratum at least this share, int64 [asked]."""
        stalled, *strata = self.strata
        return torch.cat([stalled, *(stratum[: math.ceil(share * len(stratum))] for stratum in strata)])

    def in_turn(self) -> Tensor:
        """All positions, one of every stratum after the other, int64 [population]."""
        ranks = torch.cat([torch.arange(len(stratum)) for stratum in self.strata])
        return torch.cat(self.strata)[ranks.argsort(stable=True)]


def draw(cascade: Cascade, attacks: tuple[str, ...] = PROBES) -> Draw:
    """Divide the robust samples of a block into strata by margin."""
    context, states, robust = cascade.context, cascade.context.states, cascade.robust_positions
    left = states.margin[robust] / states.clean_margin[robust].clamp_min(1e-30)
    count = min(STALLED, len(robust) // STRATA)
    stalled = robust[left.argsort(descending=True, stable=True)[:count]]
    others = robust[~torch.isin(robust, stalled)]

    def in_random_order(positions: Tensor) -> Tensor:
        hashes = hash_indices(context.seed, context.dataset.indices[positions])
        return positions[hashes.argsort(stable=True)]

    return Draw((stalled, *map(in_random_order, others.tensor_split(STRATA))), attacks)


@dataclass(frozen=True)
class Probing:
    """What the probes found. asked: positions, int64 [asked]. share: of every stratum but the first, at least.

    found: how many samples they fooled. remaining: the bound on how many more they would fool among those not asked.
    n: all samples of the block.
    """

    drawn: Draw
    asked: Tensor
    share: float
    found: int
    remaining: int
    n: int

    @property
    def population(self) -> int:
        return self.drawn.population

    @property
    def limit(self) -> int:
        return math.floor(LIMIT * self.n)

    @property
    def suspicious(self) -> bool:
        """Whether the probes may still find more than the limit, or have done so; a single image is none."""
        return self.remaining > self.limit or self.found > max(1, self.limit)


def run_probes(cascade: Cascade, attacks: tuple[str, ...]) -> Probing:
    """Ask a random sample by attacks such as `PROBES`, and more of it while the bound is undecided."""
    drawn, n = draw(cascade, attacks), len(cascade.positions)
    population, limit = drawn.population, math.floor(LIMIT * n)
    share = share_for(limit, population, ALPHA / 2)
    asked, found, remaining = torch.zeros(0, dtype=torch.int64), 0, population
    for look in range(LOOKS):
        share = share if share < NEARLY_ALL else 1.0
        now = drawn.asked(share)
        found += _fooled(_ask(cascade, drawn, now[~torch.isin(now, asked)], look))
        asked = now
        remaining = 0 if len(asked) == population else most_remaining(found, population, share, ALPHA / 2 ** (look + 1))
        if remaining <= limit or found > max(1, limit):
            break
        share *= 2
    return Probing(drawn, asked, share, found, remaining, n)


def ask_more(cascade: Cascade, probing: Probing, least: int) -> Probing:
    """Ask further robust samples, so that at least so many are asked in all, where there are as many."""
    population = probing.population
    if len(probing.asked) >= min(least, population):
        return probing
    share = min(1.0, least / population)
    asked = probing.drawn.asked(share)
    found = probing.found + _fooled(_ask(cascade, probing.drawn, asked[~torch.isin(asked, probing.asked)], LOOKS))
    remaining = 0 if len(asked) == population else most_remaining(found, population, share, ALPHA / 2**LOOKS)
    return replace(probing, asked=asked, share=share, found=found, remaining=remaining)


def ask_rest(cascade: Cascade, probing: Probing) -> Probing:
    """Run the probes on the robust samples that were not asked."""
    rest = cascade.robust_positions
    rest = rest[~torch.isin(rest, probing.asked)]
    found = _fooled(_ask(cascade, probing.drawn, rest, LOOKS))
    return replace(probing, asked=torch.cat([probing.asked, rest]), share=1.0, found=probing.found + found, remaining=0)


def probe_block(cascade: Cascade, first: Probing) -> Probing:
    """Ask the same share of a further block of samples as of the first."""
    drawn, n, share = draw(cascade, first.drawn.attacks), len(cascade.positions), first.share
    asked = drawn.asked(share)
    found = _fooled(_ask(cascade, drawn, asked, 0))
    return Probing(drawn, asked, share, found, most_remaining(found, drawn.population, share, ALPHA), n)


def _ask(cascade: Cascade, drawn: Draw, positions: Tensor, look: int) -> list[StageRun]:
    """Run every probe on those of the positions that are robust, as a look of that number."""
    runs = []
    for number, attack in enumerate(drawn.attacks):
        step = Step(resolve_attack(attack), Stage(attack=attack, role="diagnostic"))
        standing = positions[cascade.context.states.robust[positions]]
        if len(standing):
            runs.append(cascade.run_stage(step, FIRST_PROBE + look * len(drawn.attacks) + number, PROBED, standing))
    return runs


def _fooled(runs: Sequence[StageRun]) -> int:
    return sum(run.fooled for run in runs)


def pooled(parts: Sequence[Probing]) -> Probing:
    """What the probes found in several blocks, as one."""
    found, population = sum(part.found for part in parts), sum(part.population for part in parts)
    share = min(part.share for part in parts)
    asked = torch.cat([part.asked for part in parts])
    remaining = 0 if len(asked) == population else most_remaining(found, population, share, ALPHA)
    drawn = Draw(tuple(stratum for part in parts for stratum in part.drawn.strata))
    return Probing(drawn, asked, share, found, remaining, sum(part.n for part in parts))


def probe_finding(probing: Probing, *, warns: bool) -> Diagnostic:
    """The finding about what the probes have taken and may still take."""
    share = (probing.found + probing.remaining) / probing.n
    more = (
        f"; with 97.5 % confidence they would fool at most {probing.remaining} of the others: run --suite standard"
        if probing.remaining
        else ""
    )
    return Diagnostic(
        slug=PROBED,
        status="warn" if warns else "pass",
        value=share,
        threshold=LIMIT,
        n=len(probing.asked),
        advice=f"probes fooled {probing.found} of {len(probing.asked)} robust images that were asked, of "
        f"{probing.population}{more}"
        if warns
        else "",
    )
