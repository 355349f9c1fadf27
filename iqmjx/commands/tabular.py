"""Checks the paper's theory on random MDPs: python -m iqmjx.tabular.

Prints what it measured of the theorems (Sec. 3), and draws the figure of Theorem 2:
with munchausen = 1 errors average out, with 0 they do not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from absl import flags

from iqmjx import command_line
from iqmjx.theory import tabular

FLAGS = flags.FlagValues()
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the MDPs and errors.", lower_bound=0, flag_values=FLAGS
)
_OUT = command_line.path(FLAGS, "out", "tabular.png", "Where the figure goes.")
_TEMPERATURE = 0.5


def main() -> None:
    """Runs the command."""
    rng = np.random.default_rng(_SEED.value)
    mdp = tabular.random_mdp(rng)
    exact = np.zeros((200, *mdp.reward.shape))
    print("Theorem 1: largest difference between the policies of IQ-DP and MD-VI")
    for munchausen in (0.0, 0.5, 0.9, 1.0):
        weights = munchausen * _TEMPERATURE, (1 - munchausen) * _TEMPERATURE
        implicit = tabular.iq_dp(mdp, munchausen, _TEMPERATURE, exact)
        difference = np.exp(implicit.log_policies)
        difference -= np.exp(tabular.md_vi(mdp, *weights, exact).log_policies)
        gap = tabular.suboptimality(mdp, implicit, munchausen, _TEMPERATURE)[-1]
        print(
            f"  munchausen {munchausen}: {np.abs(difference).max():.1e}; "
            f"after 200 iterations {gap:.1e} from the regularized optimum"
        )
    print("Sec. 3: distance from advantage learning as the temperature falls")
    limit = tabular.advantage_learning(mdp, 0.9, 100)
    for temperature in (1e-1, 1e-2, 1e-3):
        iterates = tabular.iq_dp(mdp, 0.9, temperature, exact[:100])
        near = tabular.implicit_q(iterates, temperature)
        print(f"  temperature {temperature}: {np.abs(near - limit)[1:].max():.1e}")
    print("Theorem 2: |Q* - Q_pi| after 3000 iterations with i.i.d. zero-mean errors")
    curves = {}
    errors = rng.normal(size=(3000, *mdp.reward.shape))
    for munchausen in (0.0, 0.9, 1.0):
        noisy = tabular.iq_dp(mdp, munchausen, _TEMPERATURE, errors)
        gap = tabular.suboptimality(mdp, noisy, munchausen, _TEMPERATURE)[1:]
        bound = tabular.error_bound(mdp, noisy, munchausen, _TEMPERATURE, errors)
        total = bound.errors + bound.remainder
        curves[munchausen] = gap, total
        print(
            f"  munchausen {munchausen}: {gap[-300:].mean():.3f} (mean of the last "
            f"300), bound {total[-300:].mean():.2f}"
        )
    out = Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(curves, out)
    print(out)


def draw(curves: dict[float, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Draws suboptimality (solid) and its bound (dashed) against the iteration."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    for color, (munchausen, (gap, bound)) in enumerate(curves.items()):
        iteration = np.arange(1, len(gap) + 1)
        style = {"color": f"C{color}", "linewidth": 1}
        axes.loglog(iteration, gap, label=f"munchausen {munchausen}", **style)
        axes.loglog(iteration, bound, "--", **style)
    axes.plot([], [], "k--", linewidth=1, label="bound (Theorem 2)")
    axes.set_xlabel("iteration")
    axes.set_ylabel("max |Q* - Q of the policy|")
    axes.set_title("i.i.d. errors: averaged by KL regularization")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)
