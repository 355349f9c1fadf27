"""Config: everything that decides what a run computes, validated."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from iqmjx import envs
from iqmjx.envs import physics as engines

ALGORITHMS = ("iq", "m_iq", "pcl", "trust_pcl", "sac")
POLICIES = ("multicategorical", "autoregressive", "gaussian", "flow", "tanh_gaussian")


def _setting(default: Any, help: str) -> Any:
    """A dataclass field that knows what its flag's help says."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run; the names are those of the command's flags.

    Raises:
        ValueError: on construction, where a value is out of range or two do not fit
            together; the message names the flag and the fix.
    """

    env: str = _setting("humanoid", "Task, in any spelling (humanoid, Humanoid-v5).")
    algo: str = _setting(
        "iq",
        "iq, m_iq (IQ with munchausen 0.9), pcl and trust_pcl (residual methods, with "
        "munchausen 0 and 0.9), or sac.",
    )
    seed: int = _setting(0, "Seed of everything random in the run.")
    physics: str = _setting(
        "auto",
        "Engine: native, mjx, warp, or auto by platform (CPU: native, CUDA: warp).",
    )

    num_seeds: int = _setting(1, "Independent agents in one program, from --seed on.")
    num_shards: int = _setting(1, "Shards.")
    num_timesteps: int = _setting(
        2_000_000, "Env steps to train for; rounded up to whole chunks."
    )
    num_envs: int = _setting(128, "N, parallel worlds.")
    episode_length: int = _setting(1000, "Time limit, control steps.")
    chunk_steps: int = _setting(
        64, "T, vector steps in one call of the compiled program."
    )

    batch_size: int = _setting(256, "B, transitions in one update.")
    grad_updates_per_step: int = _setting(8, "K, updates per vector step.")
    min_replay_size: int = _setting(
        8192, "Transitions gathered with random actions before learning starts."
    )
    exploration_steps: int = _setting(
        2**17,
        "Transitions over which the share of random actions falls from 1 to 0.",
    )
    max_replay_size: int = _setting(
        2**20, "C, replay capacity in transitions; a multiple of num_envs."
    )

    learning_rate: float = _setting(3e-4, "Adam's step size.")
    anneal_learning_rate: bool = _setting(
        False,
        "Let Adam's step size fall linearly, to 0 at the end of training; resuming "
        "with more --num_timesteps raises it again.",
    )
    discounting: float = _setting(
        0.99, "Discount per control step (the paper's gamma)."
    )
    temperature: float = _setting(
        0.01,
        "Entropy temperature, in units of reward (the paper's tau); the first one "
        "where --target_entropy adapts it.",
    )
    target_entropy: float = _setting(
        0.0,
        "Entropy that the temperature adapts to, as a share of the uniform policy's; "
        "0: constant temperature.",
    )
    munchausen: float = _setting(
        0.0, "Weight of the log-policy in the target, in [0, 1] (the paper's alpha)."
    )
    target_rate: float = _setting(
        0.005, "Polyak rate of the target networks per update (the paper's lambda)."
    )

    average_rate: float = _setting(
        2e-4,
        "Polyak rate per update of the average policy, which greedy evaluations play; "
        "1: the newest policy.",
    )

    policy: str = _setting(
        "multicategorical",
        "Policy class: multicategorical, autoregressive, gaussian or flow; SAC's is "
        "tanh_gaussian.",
    )
    num_bins: int = _setting(11, "n, bins per action dimension.")
    hidden_sizes: tuple[int, ...] = _setting(
        (256, 256), "Widths of the hidden layers of each network."
    )
    scaled_softmax: bool = _setting(
        True,
        "pi = softmax(advantage_scale / A * F / temperature), A action dimensions "
        "(paper Sec. 3.3), rather than softmax(F).",
    )
    advantage_scale: float = _setting(
        0.1,
        "Of the policy network's outputs in the scaled softmax, divided among the "
        "action dimensions: the lower, the slower the advantage learns beside the "
        "value (the paper: A).",
    )
    num_value_networks: int = _setting(
        1,
        "Value networks beside IQ's policy; the lowest of their target values "
        "bootstraps.",
    )
    value_scale: float = _setting(
        1.0,
        "Of the value network's output (SAC: the critics'), in units of reward: near "
        "the size of values, its weights need not grow to reach them.",
    )
    layer_norm: bool = _setting(True, "LayerNorm in the hidden layers.")
    zero_last_layer: bool = _setting(
        True, "Start the policy's output layer at zero: a uniform policy."
    )
    normalize_observations: bool = _setting(
        True, "Normalize observations by their running mean and variance."
    )

    num_evals: int = _setting(
        10,
        "Evaluations, the first before training and the last at its end; 0 for none.",
    )
    num_eval_envs: int = _setting(
        16, "M, episodes per evaluation, for each of the two modes of acting."
    )
    num_checkpoints: int = _setting(
        4,
        "Checkpoints of the whole state, the last at the end of training; 0 for none.",
    )

    def __post_init__(self):
        object.__setattr__(self, "env", envs.resolve(self.env))
        object.__setattr__(self, "physics", engines.resolve(self.physics))
        object.__setattr__(self, "hidden_sizes", tuple(self.hidden_sizes))
        _choice("algo", self.algo, ALGORITHMS)
        _choice("policy", self.policy, POLICIES)
        if (self.algo == "sac") != (self.policy == "tanh_gaussian"):
            mine = "tanh_gaussian" if self.algo == "sac" else ", ".join(POLICIES[:-1])
            _refuse("policy", self.policy, f"--algo {self.algo} takes {mine}")
        if self.algo == "sac" and (self.munchausen or self.target_entropy):
            name = "munchausen" if self.munchausen else "target_entropy"
            _refuse(name, getattr(self, name), "--algo sac does not have it: give 0")
        for name in _POSITIVE:
            if not getattr(self, name) > 0 or not math.isfinite(getattr(self, name)):
                _refuse(name, getattr(self, name), "give a number above 0")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                _refuse(name, getattr(self, name), "give 0 or more")
        for name in (
            "munchausen",
            "discounting",
            "target_rate",
            "average_rate",
            "target_entropy",
        ):
            if not 0 <= getattr(self, name) <= 1:
                _refuse(name, getattr(self, name), "give a number from 0 to 1")
        if not self.hidden_sizes or min(self.hidden_sizes) < 1:
            _refuse("hidden_sizes", self.hidden_sizes, "give widths of 1 or more")
        if not 2 <= self.num_bins <= 127:
            _refuse("num_bins", self.num_bins, "give 2 to 127 (stored as int8)")
        if self.max_replay_size % self.num_envs:
            fit = max(self.max_replay_size // self.num_envs, 1) * self.num_envs
            _refuse(
                "max_replay_size",
                self.max_replay_size,
                f"it must be a multiple of --num_envs {self.num_envs}, such as {fit}",
            )
        for name in ("min_replay_size", "exploration_steps"):
            if getattr(self, name) > self.max_replay_size:
                limit = f"--max_replay_size {self.max_replay_size}"
                _refuse(name, getattr(self, name), f"it must be at most {limit}")

    @property
    def env_steps_per_chunk(self) -> int:
        """Env steps in one chunk, N * T."""
        return self.num_envs * self.chunk_steps

    @property
    def warm_up_steps(self) -> int:
        """Vector steps under random actions, before the first chunk."""
        return -(-self.min_replay_size // self.num_envs)

    @property
    def num_chunks(self) -> int:
        """Chunks of training in the whole run."""
        rest = self.num_timesteps - self.env_steps_after(0)
        return max(-(-rest // self.env_steps_per_chunk), 0)

    @property
    def total_env_steps(self) -> int:
        """Env steps in the whole run: num_timesteps, rounded up to whole chunks."""
        return self.env_steps_after(self.num_chunks)

    def env_steps_after(self, chunks: int) -> int:
        """Env steps of the warm-up and this many chunks."""
        return self.num_envs * (self.warm_up_steps + chunks * self.chunk_steps)

    @property
    def num_updates(self) -> int:
        """Updates in the whole run."""
        return self.num_chunks * self.chunk_steps * self.grad_updates_per_step

    @property
    def replay_ratio(self) -> float:
        """Transitions trained on per env step, K * B / N."""
        return self.grad_updates_per_step * self.batch_size / self.num_envs


_POSITIVE = (
    "num_timesteps",
    "num_envs",
    "episode_length",
    "chunk_steps",
    "batch_size",
    "grad_updates_per_step",
    "max_replay_size",
    "learning_rate",
    "temperature",
    "advantage_scale",
    "value_scale",
    "num_value_networks",
    "num_eval_envs",
)
_NOT_NEGATIVE = (
    "seed",
    "min_replay_size",
    "exploration_steps",
    "num_evals",
    "num_checkpoints",
)

# Settings that say when a run is looked at or ends, not what it learns on the way
# (but for an annealed learning rate, which reaches 0 at num_timesteps).
SCHEDULE = ("num_timesteps", "num_evals", "num_checkpoints")


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        _refuse(name, value, f"choose one of {', '.join(choices)}")


def _refuse(name: str, value, fix: str) -> None:
    raise ValueError(f"--{name} {value}: {fix}")
