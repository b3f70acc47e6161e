"""How often the gate is right, with its own functions and default settings, next to the rule "new is better than old".

    pytest -s -m benchmark tests/benchmarks/bench_gate.py        about 30 minutes on one idle core

Scores are binormal, image AUROC of the champion 0.97; the scores of two models on the same image correlate by 0.85.
The champion is also the anchor in the first table. In the second, 180 nights follow each other: a candidate's true
AUROC is the champion's plus a step of mean -0.002 and deviation 0.004, and at most that of the first champion, for a
recipe does not get better by itself. "Best" is the highest true AUROC of any version that was promoted.
"""

from dataclasses import replace

import numpy as np
import pytest

from components.core.contracts import Verdict
from tests.helpers.gate_simulation import DEFAULT, Drift, drift, share_text, tally

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(0)]

_SIZES = (30, 60, 150, 400)
_TRIALS = {(30, 0.02): 2000, (150, 0.02): 1000, (400, 0.0): 250, (400, 0.02): 250}
_RUNS = 24
_SUPERIORITY = replace(DEFAULT, mode="superiority")
_LIMITS = {("superiority", 0.0): dict.fromkeys(_SIZES, 0.08), ("non_inferiority", 0.02): {30: 0.03, 150: 0.01}}


def test_promotions_of_equal_and_of_worse_models() -> None:
    print("\n  per class  mode              candidate        promoted by the gate   inconclusive  rejected  new > old")
    wrong = []
    for per_class in _SIZES:
        for settings in (DEFAULT, _SUPERIORITY):
            for worse in (0.0, 0.02):
                trials = _TRIALS.get((per_class, worse), 500)
                verdicts, naive = tally(range(trials), per_class=per_class, worse=worse, settings=settings)
                num = verdicts[Verdict.PROMOTE]
                name = "2 points worse" if worse else "equal"
                undecided, rejected = (verdicts[v] / trials for v in (Verdict.INCONCLUSIVE, Verdict.REJECT))
                print(
                    f"  {per_class:>9}  {settings.mode:<16}  {name:<15}  {share_text(num, trials):<21}  "
                    f"{undecided:>12.1%}  {rejected:>8.1%}  {naive / trials:>8.1%}",
                    flush=True,
                )
                limit = _LIMITS.get((settings.mode, worse), {}).get(per_class, 1.0)
                if num > limit * trials:
                    wrong.append(f"{per_class} {settings.mode} {name}: {num} of {trials}, allowed {limit:.0%}")
    assert not wrong


@pytest.mark.parametrize("new_golden", [False, True])
def test_180_nights_of_slight_downward_drift(new_golden: bool) -> None:
    which = "another golden set every night" if new_golden else "one golden set for all nights, as in the product"
    print(f"\n  {which}; 150 good and 150 defective images, {_RUNS} times 180 nights")
    print("  rule                           final AUROC  best - final: mean   95 % of runs   within 0.005   promotions")
    no_anchor = replace(DEFAULT, anchor_margins={})
    rules = {
        "new > old": None,
        "not inferior to the champion": no_anchor,
        "the gate (champion and anchor)": DEFAULT,
    }
    world = Drift(new_golden=new_golden)
    gaps = {}
    for name, settings in rules.items():
        quick = None if settings is None else replace(settings, bootstrap_samples=200)
        walks = [drift(seed, world, settings=quick) for seed in range(_RUNS)]
        gap = gaps[name] = np.array([walk.best - walk.final for walk in walks])
        print(
            f"  {name:<30} {np.mean([w.final for w in walks]):>11.4f}  {gap.mean():>18.4f}  "
            f"{np.quantile(gap, 0.95):>13.4f}  {np.mean(gap <= 0.005):>13.0%}  "
            f"{np.mean([w.promotions for w in walks]):>11.1f}",
            flush=True,
        )
    assert gaps["the gate (champion and anchor)"].mean() <= 0.005


def test_without_a_ceiling_the_best_one_by_chance_is_not_recognised() -> None:
    print("\n  candidates may truly get better, up to 0.999; one golden set of 150 + 150, 12 times 180 nights")
    walks = [drift(s, Drift(ceiling=0.999), settings=replace(DEFAULT, bootstrap_samples=200)) for s in range(12)]
    final, anchor, best, promotions = (
        np.mean([getattr(walk, name) for walk in walks]) for name in ("final", "anchor", "best", "promotions")
    )
    print(
        f"  the gate: final {final:.4f}, last anchor {anchor:.4f}, best by chance {best:.4f}, promoted {promotions:.1f}"
    )
    assert anchor - final <= 0.005
