"""What a policy class can represent: a bandit whose two dimensions must agree.

    python launch/coordination.py

The reward is 1 near (-0.4, -0.4) and near (0.4, 0.4), and nothing elsewhere. IQ learns
it from uniform actions with each policy class; the table and the figure
(of our run: launch/results/coordination.*) hold what each learns, and could at best:

- The soft-optimal policy is softmax(r / temperature). The autoregressive policy and the
  flow can be it, up to their bins and splines.
- With independent dimensions, IQ's Q-value is a sum of one function of each: the loss
  is least for the sum of the reward's main effects (its mean over the other dimension).
- With a Gaussian it is a quadratic without cross terms: the least-squares one.

The last two are computed by quadrature, and training must arrive there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from iqmjx import agents, command_line, presets, strict_json
from iqmjx.commands import cli
from iqmjx.replay import Transition

FLAGS = flags.FlagValues()
_OUT = command_line.path(
    FLAGS, "out", "checkpoints/coordination", "Table and figure, without their endings."
)

CLASSES = ("multicategorical", "autoregressive", "gaussian", "flow")
_BINNED = CLASSES[:2]
TEMPERATURE = 0.1
NUM_BINS = 11
_WIDTH = 0.2
_MODES = ((-0.4, -0.4), (0.4, 0.4))
_FINE = 400  # quadrature cells per dimension of the box


class Grid(NamedTuple):
    """Points of the plane and how much area each stands for."""

    points: np.ndarray  # [P, 2]
    area: float


class Learned(NamedTuple):
    """A policy as probabilities of a grid's points."""

    grid: Grid
    probability: np.ndarray  # [P]

    @property
    def expected_reward(self) -> float:
        """E[r], of the action clipped to the box."""
        return float(self.probability @ reward(self.grid.points))

    @property
    def soft_value(self) -> float:
        """E[r] + temperature * entropy: differential for densities."""
        positive = self.probability[self.probability > 0]
        entropy = -np.sum(positive * np.log(positive / self.grid.area))
        return self.expected_reward + TEMPERATURE * float(entropy)


def reward(action: Any, lib: Any = np) -> Any:
    """Reward of actions [..., 2], in NumPy or jax.numpy."""
    clipped = lib.clip(action, -1, 1)
    squares = [lib.square(clipped - lib.asarray(mode)).sum(-1) for mode in _MODES]
    return sum(lib.exp(-square / (2 * _WIDTH**2)) for square in squares)


def grid(name: str, num_bins: int = NUM_BINS) -> Grid:
    """The bins of a discrete class (area 1), else cells of the box.

    Of a wider box for the Gaussian.
    """
    if name in _BINNED:
        line, area = np.linspace(-1, 1, num_bins), 1.0
    else:
        reach = 3 if name == "gaussian" else 1
        line = ((np.arange(_FINE * reach) + 0.5) * 2 / _FINE) - reach
        area = (2 / _FINE) ** 2
    return Grid(
        np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2), area
    )


def best(name: str) -> Learned:
    """The policy that minimizes IQ's loss on uniform actions, within the class."""
    where = grid(name)
    r = reward(where.points)
    if name == "multicategorical":
        square = r.reshape(NUM_BINS, NUM_BINS)
        effects = square.mean(1)[:, None] + square.mean(0)[None, :]
        q = effects.ravel()
    elif name == "gaussian":
        inside = grid("flow").points
        fit, *_ = np.linalg.lstsq(_quadratic(inside), reward(inside), rcond=None)
        q = _quadratic(where.points) @ fit
    else:
        q = r
    weight = np.exp((q - q.max()) / TEMPERATURE)
    return Learned(where, weight / weight.sum())


def learn(name: str, *, num_bins: int = NUM_BINS, steps: int = 4000) -> Learned:
    """Trains IQ on uniform actions, and returns its policy."""
    config = presets.resolve(
        {
            "env": "hopper",
            "policy": name,
            "temperature": TEMPERATURE,
            "target_entropy": 0.0,
            "num_bins": num_bins,
            "hidden_sizes": (64, 64),
            "advantage_scale": 2.0,
            "learning_rate": 3e-3,
            "learning_rate_decay": 1.0,
            "num_timesteps": steps,
            "num_envs": 1,
            "chunk_steps": 1,
            "min_replay_size": 0,
            "grad_updates_per_step": 1,
        },
        "cpu",
    ).config
    agent: Any = agents.make(config, 1, 2)

    def update(learner, key):
        action_key, key = jax.random.split(key)
        action = agent.policy.random(action_key, 512)
        control = agent.policy.control(action)
        batch = Transition(
            obs=jnp.ones((512, 1)),
            action=action,
            reward=reward(control, jnp),
            discount=jnp.zeros(512),
            weight=jnp.ones(512),
            next_obs=jnp.ones((512, 1)),
        )
        return agent.update(learner, batch, key)[0], None

    @jax.jit
    def train(key):
        init_key, key = jax.random.split(key)
        return jax.lax.scan(update, agent.init(init_key), jax.random.split(key, steps))

    learner, _ = train(jax.random.key(0))
    where = grid(name, num_bins)
    points = jnp.asarray(where.points, jnp.float32)
    if agent.policy.action_dtype == jnp.int8:
        points = jnp.round((points + 1) * (num_bins - 1) / 2).astype(jnp.int8)
    log_prob = jax.jit(agent.policy.log_prob)(
        learner.params.policy, jnp.ones((len(points), 1)), points, TEMPERATURE
    )
    return Learned(where, np.exp(np.asarray(log_prob, float)) * where.area)


def main() -> None:
    """Runs the command."""
    out = Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    rows, policies = [], {}
    for name in CLASSES:
        policies[name] = learned = learn(name)
        limit = best(name)
        optimum = best("autoregressive" if name in _BINNED else "flow")
        rows.append(
            {
                "policy": name,
                "expected reward": learned.expected_reward,
                "of the class's best": limit.expected_reward,
                "of the optimum": optimum.expected_reward,
                "soft value": learned.soft_value,
                "soft value of the class's best": limit.soft_value,
                "soft value of the optimum": optimum.soft_value,
            }
        )
        print(strict_json.dumps(rows[-1]))
    out.with_suffix(".json").write_text(strict_json.dumps(rows, indent=1) + "\n")
    draw(policies, out.with_suffix(".png"))
    print(f"{out.with_suffix('.json')}, {out.with_suffix('.png')}")


def draw(policies: dict[str, Learned], path: Path) -> None:
    """Draws the reward, and the density of each policy on the box."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 5, figsize=(13, 3), layout="constrained")
    box = grid("flow")
    panels = {"reward": Learned(box, reward(box.points))} | policies
    for axis, (name, panel) in zip(axes, panels.items(), strict=True):
        side = round(len(panel.probability) ** 0.5)
        reach = np.abs(panel.grid.points).max()
        axis.imshow(
            panel.probability.reshape(side, side).T,
            origin="lower",
            extent=(-reach, reach) * 2,
        )
        axis.set(title=name, xlim=(-1, 1), ylim=(-1, 1), xlabel="first dimension")
    axes[0].set_ylabel("second dimension")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _quadratic(points: np.ndarray) -> np.ndarray:
    """Features 1, a_i, a_i^2."""
    return np.column_stack([np.ones(len(points)), points, np.square(points)])


if __name__ == "__main__":
    cli.run(sys.modules[__name__], sys.argv[1:])
