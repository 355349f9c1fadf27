"""Tuned settings, as plain Python: what presets, tasks and algorithms change.

A run's settings come from the defaults, then the task's own time limit, then each layer
of LAYERS whose conditions hold, then the flags; later ones win. Layers hold settings by
flag name. What is an algorithm's own is conditioned on it, so that an algorithm from
elsewhere begins with its own defaults. launch/results/recipe.md has the runs that the
numbers come from.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from iqmjx import cpu, envs
from iqmjx.config import Config, setting_fields, task_name
from iqmjx.envs.adroit.hand import AdroitHand
from iqmjx.errors import UsageError

PRESETS = ("cpu", "gpu", "paper")


@dataclasses.dataclass(frozen=True)
class Layer:
    """Settings, and the runs that they are for; None: for any; `amx`: on such a CPU."""

    settings: Mapping[str, Any]
    preset: tuple[str, ...] | None = None
    task: tuple[str, ...] | None = None
    algo: tuple[str, ...] | None = None
    amx: bool = False

    def applies(self, preset: str, task: str, algo: str) -> bool:
        """Whether the conditions hold."""
        pairs = ((self.preset, preset), (self.task, task), (self.algo, algo))
        named = all(wanted is None or name in wanted for wanted, name in pairs)
        return named and (not self.amx or has_amx())

    def source(self, preset: str, task: str, algo: str) -> str:
        """What to call the layer as a value's source: `preset cpu, task hopper`."""
        named = {"preset": preset, "task": task, "algo": algo}
        parts = [f"{n} {named[n]}" for n in named if getattr(self, n)]
        return ", ".join(parts + ["CPU with AMX"] * self.amx)


@functools.cache
def has_amx() -> bool:
    """Whether this CPU multiplies matrices of bfloat16, as XLA uses it on Linux."""
    return "amx_bf16" in cpu.instructions()


_IQ = ("iq", "m_iq", "pcl", "trust_pcl")
_ALL = (*_IQ, "sac")
_ADROIT = tuple(
    name for name, task in envs.REGISTRY.items() if issubclass(task, AdroitHand)
)
_LONGER_REPLAY = {"exploration_steps": 2**17, "max_replay_size": 2**17}

_CPU_AND_GPU = (
    # Few worlds, small batches: on a CPU the updates are what time goes into, and two
    # of 128 did better than one of 256 (one seed: launch/results/halfcheetah.md).
    # Where there are falls, the value stays attainable only on data as fresh as the
    # short replay's.
    Layer(
        preset=("cpu",),
        settings={
            "num_envs": 128,
            "grad_updates_per_step": 16,
            "batch_size": 128,
            "exploration_steps": 2**15,
            "max_replay_size": 2**15,
        },
    ),
    # Many worlds, large batches: on a GPU both cost little more than small ones. What
    # learned on CPUs is carried over (the replay in steps of each world, 256) and
    # learns humanoid at this scale (launch/results/gpu.md); nothing is tuned here yet.
    Layer(
        preset=("gpu",),
        settings={
            "num_envs": 4096,
            "num_timesteps": 20_000_000,
            "grad_updates_per_step": 16,
            "batch_size": 8192,
            "min_replay_size": 2**17,
            "exploration_steps": 2**20,
            "max_replay_size": 2**20,
            "num_eval_envs": 64,
        },
    ),
    Layer(
        preset=("cpu", "gpu"),
        algo=_ALL,
        settings={"learning_rate": 1e-3, "learning_rate_decay": 1.0},
    ),
    # 1.7 times the updates on one core, and on HalfCheetah the scores of float32; other
    # tasks are not compared (recipe.md).
    Layer(
        preset=("cpu",),
        algo=_ALL,
        amx=True,
        settings={"compute_dtype": "bfloat16"},
    ),
    Layer(
        preset=("gpu",),
        algo=_ALL,
        settings={"target_rate": 0.02, "average_rate": 1e-3},
    ),
    # The target entropy is, in bins, about that of SAC's -1 nat per dimension. Value
    # and advantage learn in proportion to their sizes.
    Layer(
        preset=("cpu", "gpu"),
        algo=_IQ,
        settings={
            "temperature": 0.1,
            "target_entropy": 0.3,
            "advantage_scale": 1.0,
            "value_scale": 30.0,
        },
    ),
    Layer(preset=("cpu",), task=("halfcheetah", "walker2d"), settings=_LONGER_REPLAY),
    Layer(
        preset=("cpu",),
        task=("halfcheetah",),
        algo=_ALL,
        settings={"learning_rate": 2e-3},
    ),
    # Discounted by 0.99, a faster gait that falls after 500 steps is worth as much.
    Layer(
        preset=("cpu",),
        task=("hopper",),
        algo=_ALL,
        settings={"discounting": 0.995},
    ),
    # The lower of two values ends the falls; tried on these two tasks alone.
    Layer(
        preset=("cpu",),
        task=("hopper", "walker2d"),
        algo=("iq",),
        settings={"num_value_networks": 2},
    ),
    # A control step of the hand is 10 ms: noise of its own at each step moves nothing.
    # A replay of 32k rows, 256 steps of each world, forgets the door that it opened.
    Layer(
        preset=("cpu",),
        task=_ADROIT,
        settings={"noise_hold_steps": 32, "max_replay_size": 2**17},
    ),
    Layer(
        preset=("gpu",),
        task=_ADROIT,
        settings={"noise_hold_steps": 32, "max_replay_size": 2**22},
    ),
    # Its physics costs five times the cheetah's, an update twice: more worlds and fewer
    # updates for each keep the env-step rate at about 1,600 on two cores. As the
    # learning rate nears 0 the policy gets worse, but not its average over 20k updates.
    Layer(
        preset=("cpu",),
        task=("humanoid",),
        settings={"num_envs": 256, "chunk_steps": 32, "grad_updates_per_step": 12},
    ),
    Layer(
        preset=("cpu",),
        task=("humanoid",),
        algo=_ALL,
        settings={"average_rate": 5e-5},
    ),
)

# The paper's settings (Sec. 6), every one that shapes learning, so that no default
# does. What the paper does not give is SAC's (Haarnoja et al. 2018b), as it says.
# Its scores are means over 20 seeds: --num_seeds 20.
_PAPER = (
    Layer(
        preset=("paper",),
        settings={
            "num_timesteps": 20_000_000,
            "num_envs": 1,
            "num_shards": 1,
            "chunk_steps": 1000,
            "batch_size": 256,
            "grad_updates_per_step": 1,
            "min_replay_size": 10_000,
            "exploration_steps": 0,
            "noise_hold_steps": 1,
            "max_replay_size": 1_000_000,
            "normalize_observations": False,
            "normalize_rewards": False,
        },
    ),
    Layer(
        preset=("paper",),
        algo=_ALL,
        settings={
            "learning_rate": 3e-4,
            "learning_rate_decay": 0.0,
            "discounting": 0.99,
            "target_rate": 0.005,
            "average_rate": 1.0,
            "hidden_sizes": (256, 256),
            "layer_norm": False,
            "zero_last_layer": False,
            "value_scale": 1.0,
            "compute_dtype": "float32",
        },
    ),
    # The softmax is Sec. 4's; with --softmax scaled it is Sec. 3.3's.
    Layer(
        preset=("paper",),
        algo=_IQ,
        settings={
            "temperature": 0.01,
            "target_entropy": 0.0,
            "munchausen": 0.0,
            "residual": False,
            "policy": "multicategorical",
            "num_bins": 11,
            "softmax": "raw",
            "advantage_scale": 1.0,
            "num_value_networks": 1,
        },
    ),
    Layer(preset=("paper",), algo=("sac",), settings={"temperature": 1.0}),
    # Lower for IQ, and not for SAC. The value is ours: the paper gives none.
    Layer(
        preset=("paper",),
        task=("humanoid", "walker2d"),
        algo=_IQ,
        settings={"learning_rate": 1e-4},
    ),
    Layer(preset=("paper",), task=_ADROIT, algo=_ALL, settings={"learning_rate": 3e-5}),
    Layer(preset=("paper",), task=_ADROIT, algo=_IQ, settings={"temperature": 1e-3}),
)

_ALGORITHMS = (
    Layer(algo=("m_iq", "trust_pcl"), settings={"munchausen": 0.9}),
    # M-IQ's entropy weighs (1 - munchausen) * temperature: at the same entropy
    # temperature and advantages are ten times IQ's.
    Layer(algo=("m_iq",), settings={"advantage_scale": 1.0, "value_scale": 1.0}),
    # The paper's temperature for residual methods.
    Layer(
        algo=("pcl", "trust_pcl"),
        settings={"residual": True, "temperature": 1e-4, "target_entropy": 0.0},
    ),
    # A held pen and a nail driven in are paid ten times what the five tasks pay for a
    # step: so much larger is all that has the rewards' unit.
    Layer(
        preset=("cpu", "gpu"),
        task=("hammer", "pen"),
        algo=("m_iq",),
        settings={"value_scale": 300.0, "advantage_scale": 10.0, "temperature": 1.0},
    ),
)

LAYERS = (*_CPU_AND_GPU, *_PAPER, *_ALGORITHMS)
"""In order: later ones win."""


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A config, and where each of its values comes from."""

    config: Config
    preset: str
    sources: dict[str, str]  # flag name -> default | task ... | preset ... | flag


def resolve(given: Mapping[str, Any], preset: str = "auto") -> Resolved:
    """Layers what is set for the preset, the task and the algorithm, and given values.

    Args:
        given: values the user gave, by flag name.
        preset: a name in PRESETS, or `auto`: gpu on GPUs and TPUs, else cpu.

    Raises:
        UsageError: for an unknown preset, and as Config.of.
    """
    if preset == "auto":
        preset = "cpu" if jax.default_backend() == "cpu" else "gpu"
    if preset not in PRESETS:
        raise UsageError(f"--preset {preset}: choose one of auto, {', '.join(PRESETS)}")
    task = task_name(given.get("env", Config.env))
    algo = given.get("algo", Config.algo)
    named = {"preset": preset, "task": task, "algo": algo}
    layers = [
        (f"task {task}", {"episode_length": envs.episode_length(task)}),
        *(
            (layer.source(**named), layer.settings)
            for layer in LAYERS
            if layer.applies(**named)
        ),
        ("flag", given),
    ]
    values: dict[str, Any] = {}
    sources = dict.fromkeys(setting_fields(algo), "default")
    for source, layer in layers:
        values.update(layer)
        sources.update(dict.fromkeys(layer, source))
    return Resolved(Config.of(values), preset, sources)
