"""Tuned settings, as plain Python: what a preset changes from `Config`'s defaults.

Later layers win: defaults, then the task's time limit, then the preset, then its
settings for the task, then the algorithm, then the preset's for that algorithm on that
task, then the flags. launch/results/recipe.md has the runs that the numbers come from.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from iqmjx import envs
from iqmjx.config import Config

PRESETS: dict[str, dict[str, Any]] = {
    # Few worlds, small batches: on a CPU the updates are what time goes into, and two
    # of 128 did better than one of 256 (one seed: launch/results/halfcheetah.md).
    # The target entropy is, in bins, about that of SAC's -1 nat per dimension. Where
    # there are falls, the value stays attainable only on data as fresh as the short
    # replay's. Value and advantage learn in proportion to their sizes.
    "cpu": {
        "learning_rate": 1e-3,
        "anneal_learning_rate": True,
        "num_envs": 128,
        "grad_updates_per_step": 16,
        "batch_size": 128,
        "temperature": 0.1,
        "target_entropy": 0.3,
        "exploration_steps": 2**15,
        "max_replay_size": 2**15,
        "advantage_scale": 1.0,
        "value_scale": 30.0,
    },
    # Many worlds, large batches: on a GPU both cost little more than small ones. What
    # learned on CPUs is carried over (the replay in steps of each world, 256) and
    # learns humanoid at this scale (launch/results/gpu.md); nothing is tuned here yet.
    "gpu": {
        "learning_rate": 1e-3,
        "anneal_learning_rate": True,
        "temperature": 0.1,
        "target_entropy": 0.3,
        "advantage_scale": 1.0,
        "value_scale": 30.0,
        "num_envs": 4096,
        "num_timesteps": 20_000_000,
        "grad_updates_per_step": 16,
        "batch_size": 8192,
        "target_rate": 0.02,
        "average_rate": 1e-3,
        "min_replay_size": 2**17,
        "exploration_steps": 2**20,
        "max_replay_size": 2**20,
        "num_eval_envs": 64,
    },
    # The paper's setting (Sec. 6): plain networks, one update of 256 per env step.
    "paper": {
        "num_envs": 1,
        "num_timesteps": 20_000_000,
        "chunk_steps": 1000,
        "batch_size": 256,
        "grad_updates_per_step": 1,
        "min_replay_size": 10_000,
        "max_replay_size": 1_000_000,
        "exploration_steps": 0,
        "average_rate": 1.0,
        "scaled_softmax": False,
        "layer_norm": False,
        "zero_last_layer": False,
        "normalize_observations": False,
    },
}

_LONGER_REPLAY = {"exploration_steps": 2**17, "max_replay_size": 2**17}

TASKS: dict[tuple[str, str], dict[str, Any]] = {
    ("cpu", "halfcheetah"): {"learning_rate": 2e-3, **_LONGER_REPLAY},
    # Discounted by 0.99, a faster gait that falls after 500 steps is worth as much.
    ("cpu", "hopper"): {"discounting": 0.995},
    ("cpu", "walker2d"): _LONGER_REPLAY,
    # Its physics costs five times the cheetah's, an update twice: more worlds and fewer
    # updates for each keep the env-step rate at about 1,600 on two cores. As the
    # learning rate nears 0 the policy gets worse, but not its average over 20k updates.
    ("cpu", "humanoid"): {
        "num_envs": 256,
        "chunk_steps": 32,
        "grad_updates_per_step": 12,
        "average_rate": 5e-5,
    },
    # The paper's for the Adroit hand.
    **{
        ("paper", task): {"temperature": 1e-3, "learning_rate": 3e-5}
        for task in ("door", "hammer", "pen", "relocate")
    },
}

ALGORITHMS: dict[str, dict[str, Any]] = {
    "iq": {},
    # Its entropy weighs (1 - munchausen) * temperature: at the same entropy temperature
    # and advantages are ten times IQ's.
    "m_iq": {"munchausen": 0.9, "advantage_scale": 1.0, "value_scale": 1.0},
    # The paper's temperature for them.
    "pcl": {"temperature": 1e-4, "target_entropy": 0.0},
    "trust_pcl": {"munchausen": 0.9, "temperature": 1e-4, "target_entropy": 0.0},
    "sac": {
        "policy": "tanh_gaussian",
        "temperature": 1.0,
        "target_entropy": 0.0,
        "value_scale": 1.0,  # as published
    },
}

ALGORITHMS_ON_TASKS: dict[tuple[str, str, str], dict[str, Any]] = {
    # A held pen is paid ten times what the five tasks pay for a step: so much larger
    # is all that has the rewards' unit.
    (preset, "pen", "m_iq"): {
        "value_scale": 300.0,
        "advantage_scale": 10.0,
        "temperature": 1.0,
    }
    for preset in ("cpu", "gpu")
}


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A config, and where each of its values comes from."""

    config: Config
    preset: str
    sources: dict[str, str]  # field name -> default | task | preset | algo ... | flag


def resolve(given: dict[str, Any], preset: str = "auto") -> Resolved:
    """Layers the preset, the task's and the algorithm's settings and the given values.

    Args:
        given: values the user gave, by Config field.
        preset: a name in PRESETS, or `auto`: gpu on GPUs and TPUs, else cpu.

    Raises:
        ValueError: for an unknown preset, and as Config.
    """
    if preset == "auto":
        preset = "cpu" if jax.default_backend() == "cpu" else "gpu"
    if preset not in PRESETS:
        raise ValueError(f"--preset {preset}: choose one of auto, {', '.join(PRESETS)}")
    task = envs.resolve(given.get("env", Config.env))
    algo = given.get("algo", Config.algo)
    settings = TASKS.get((preset, task.removesuffix("sparse")), {})
    layers = [
        (f"task {task}", {"episode_length": envs.REGISTRY[task].episode_length}),
        (f"preset {preset}", PRESETS[preset]),
        (f"preset {preset}, task {task}", settings),
        (f"algo {algo}", ALGORITHMS.get(algo, {})),
        (
            f"preset {preset}, task {task}, algo {algo}",
            ALGORITHMS_ON_TASKS.get((preset, task, algo), {}),
        ),
        ("flag", given),
    ]
    values: dict[str, Any] = {}
    sources = {field.name: "default" for field in dataclasses.fields(Config)}
    for source, layer in layers:
        values.update(layer)
        sources.update(dict.fromkeys(layer, source))
    return Resolved(Config(**values), preset, sources)
