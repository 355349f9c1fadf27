"""Config: everything that decides what a run computes, validated."""

from __future__ import annotations

import dataclasses
import difflib
import fractions
import math
from collections.abc import Callable, Mapping
from typing import Any

from iqmjx import envs
from iqmjx.errors import UsageError
from iqmjx.settings import LARGEST_INT, check, refuse, setting

_ENV_STEPS = 2**53
"""The most env steps: counted on the host, and spread over a run in float64."""
_ROWS = 2**30
"""The most rows in the rings of all seeds: one index (int32) runs over them end to end,
and a ring's counters pass its end by an insert."""
_SOME_ROWS = 2**15
"""Of replay, for advice: they fit any machine."""
_SEEDS = 128
"""The most seeds: each has files open and policies of its own."""
_BY_OTHERS = math.inf
"""The most that a setting may be whose range follows from others: see `Config`'s
checks."""
_TIMES = 10**6
"""The most evaluations, or checkpoints: they are laid out before the first."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run: those that every run has, and its algorithm's own.

    Their names are those of the command's flags, where the algorithm's stand beside the
    others (`Config.of`, `Config.flat`).

    Attributes:
        algorithm: an instance of the algorithm class's `Settings`.

    Raises:
        UsageError: on construction, where a value is out of range or two do not fit
            together; the message names the flag and the fix.
    """

    env: str = setting(
        "humanoid",
        "Task: humanoid (or Humanoid-v5), package.module:Class, brax:ant, "
        "playground:CheetahRun.",
    )
    algo: str = setting(
        "iq",
        "iq, m_iq (IQ with munchausen 0.9), pcl and trust_pcl (IQ with residual, and "
        "with munchausen 0 and 0.9), sac, or package.module:Class.",
    )
    seed: int = setting(
        0, "Seed of everything random in the run.", at_least=0, at_most=_BY_OTHERS
    )
    num_seeds: int = setting(
        1,
        "Independent agents trained in one program, from --seed on.",
        at_least=1,
        at_most=_SEEDS,
        before=1,
    )
    physics: str = setting(
        "auto",
        "Engine: native, mjx, warp, or auto by platform (CPU: native, CUDA: warp).",
    )

    num_timesteps: int = setting(
        2_000_000,
        "Env steps to train for; rounded up to whole chunks.",
        at_least=1,
        at_most=_BY_OTHERS,
    )
    num_envs: int = setting(128, "N, parallel worlds.", at_least=1, at_most=_BY_OTHERS)
    num_shards: int = setting(
        0,
        "Parts that worlds and replay are divided into, a multiple of the number of "
        "devices; what is learned depends on it, not on the devices. 0: one per "
        "device.",
        at_least=0,
        at_most=_BY_OTHERS,
        before=1,
    )
    episode_length: int = setting(1000, "Time limit, control steps.", at_least=1)
    chunk_steps: int = setting(
        64,
        "T, vector steps in one call of the compiled program.",
        at_least=1,
        at_most=_BY_OTHERS,
    )

    batch_size: int = setting(256, "B, transitions in one update.", at_least=1)
    grad_updates_per_step: int = setting(
        8, "K, updates per vector step.", at_least=1, at_most=_BY_OTHERS
    )
    min_replay_size: int = setting(
        8192,
        "Transitions gathered with random actions before learning starts.",
        at_least=0,
        at_most=_BY_OTHERS,
    )
    exploration_steps: int = setting(
        2**17,
        "Env steps over which the share of random actions falls from 1 to 0.",
        at_least=0,
        at_most=_ENV_STEPS,
    )
    noise_hold_steps: int = setting(
        1,
        "Control steps for which the last world draws its actions with the same noise; "
        "the first draws anew at every step, and those between hold it for lengths in "
        "equal ratios.",
        at_least=1,
        at_most=2**20,
        before=1,
    )
    max_replay_size: int = setting(
        2**20,
        "C, replay capacity in transitions; a multiple of num_envs.",
        at_most=_BY_OTHERS,
    )
    normalize_observations: bool = setting(
        True, "Normalize observations by their running mean and variance."
    )

    normalize_rewards: bool = setting(
        False,
        "Divide rewards by the size of their discounted sums so far, so that settings "
        "in units of reward fit every task.",
        before=False,
    )

    num_evals: int = setting(
        10,
        "Evaluations, the first before training and the last at its end; 0 for none.",
        at_least=0,
        at_most=_TIMES,
    )
    num_eval_envs: int = setting(
        16,
        "M, episodes per evaluation, for each of the two modes of acting.",
        at_least=1,
    )
    num_checkpoints: int = setting(
        4,
        "Checkpoints of the whole state, the last at the end of training; 0 for none.",
        at_least=0,
        at_most=_TIMES,
    )
    video_every: int = setting(
        0,
        "Record an episode of every so many evaluations, from the first on, to videos/ "
        "in the run's folder; 0 for none.",
        at_least=0,
        before=0,
    )
    loggers: tuple[str, ...] = setting(
        ("tensorboard",),
        "Where metrics go besides metrics.jsonl: tensorboard, wandb, trackio, or "
        "package.module:Class.",
        before=("tensorboard",),
    )

    algorithm: Any = dataclasses.field(kw_only=True)

    def __post_init__(self):
        check(self)
        object.__setattr__(self, "env", task_name(self.env))
        engine = _named("physics", self.physics, envs.resolve_physics, self.env)
        object.__setattr__(self, "physics", engine)
        kind = _settings_class(self.algo)
        if not isinstance(self.algorithm, kind):
            refuse("algo", self.algo, f"its settings are a {kind.__qualname__}")
        if self.normalize_rewards and not hasattr(self.algorithm, "discounting"):
            fix = f"--algo {self.algo} has no discounting: give false"
            refuse("normalize_rewards", True, fix)
        self._check_videos()
        self._check_seeds()
        self._check_chunks()
        self._check_replay()
        self._check_shards()
        self._check_counters()

    def _check_videos(self) -> None:
        if self.video_every and not self.num_evals:
            fix = "with --num_evals 0 there is nothing to record; give 0"
            refuse("video_every", self.video_every, fix)
        if self.video_every and envs.task_class(self.env) is None:
            fix = f"{self.env} brings its own engine, which is not drawn; give 0"
            refuse("video_every", self.video_every, fix)

    def _check_seeds(self) -> None:
        last = LARGEST_INT - (self.num_seeds - 1)
        if self.seed > last:
            with_seeds = f"with --num_seeds {self.num_seeds}"
            refuse("seed", self.seed, f"{with_seeds}, give at most {last}")

    def _check_replay(self) -> None:
        most = _ROWS // self.num_seeds
        if self.num_envs > most:
            limit = f"{_ROWS} rows of replay for --num_seeds {self.num_seeds}"
            fix = f"there is room for {limit}; give at most {most}, such as"
            refuse("num_envs", self.num_envs, f"{fix} {Config.num_envs}")
        most -= most % self.num_envs
        size = self.max_replay_size
        if not 1 <= size <= most or size % self.num_envs:
            near = size if 1 <= size <= most else _SOME_ROWS
            least = self.warm_up_steps if self.min_replay_size <= near else 1
            near = max(near // self.num_envs, least, 1) * self.num_envs
            fix = f"it must be a multiple of --num_envs {self.num_envs} and at most"
            refuse("max_replay_size", size, f"{fix} {most}, such as {min(near, most)}")
        if self.min_replay_size > self.max_replay_size:
            limit = f"--max_replay_size {self.max_replay_size}"
            refuse("min_replay_size", self.min_replay_size, f"give at most {limit}")

    def _check_shards(self) -> None:
        divided = math.gcd(self.num_envs, self.batch_size)  # replay is, by num_envs
        if self.num_shards and divided % self.num_shards:
            small = [n for n in range(1, math.isqrt(divided) + 1) if not divided % n]
            fits = [n for s in small for n in (s, divided // s) if n <= self.num_shards]
            refuse(
                "num_shards",
                self.num_shards,
                f"it must divide --num_envs {self.num_envs} and --batch_size "
                f"{self.batch_size}, as {max(fits)} does",
            )

    def _check_chunks(self) -> None:
        """Holds the env steps of a chunk, counted in int32, to its numbers."""
        if self.env_steps_per_chunk > LARGEST_INT:
            flag, other = self._larger_first("chunk_steps", "num_envs")
            most = LARGEST_INT // getattr(self, other)
            fit = min(most, getattr(Config, flag))
            fix = f"with --{other} {getattr(self, other)}, give at most {most}, such as"
            refuse(flag, getattr(self, flag), f"{fix} {fit}")

    def _larger_first(self, *names: str) -> list[str]:
        """Names of settings by how many times their defaults they are."""

        def times(name):
            return fractions.Fraction(getattr(self, name), getattr(Config, name))

        return sorted(names, key=times, reverse=True)

    def _check_counters(self) -> None:
        """Holds what a run counts in int32 to its numbers."""
        chunk, updates = self.chunk_steps, self.grad_updates_per_step
        if chunk * updates > LARGEST_INT:
            most = LARGEST_INT // chunk
            fit = min(most, Config.grad_updates_per_step)
            fix = f"with --chunk_steps {chunk}, give at most {most}, such as {fit}"
            refuse("grad_updates_per_step", updates, fix)
        counted = max(self.num_updates, self.num_vector_steps)
        blamed, _ = self._larger_first("num_timesteps", "grad_updates_per_step")
        if self.num_updates > LARGEST_INT and blamed == "grad_updates_per_step":
            most = LARGEST_INT // (self.num_updates // updates)
            told = f"with --num_timesteps {self.num_timesteps} there are more updates"
            fit = min(most, Config.grad_updates_per_step)
            fix = f"{told} than {LARGEST_INT}; give at most {most}, such as {fit}"
            refuse("grad_updates_per_step", updates, fix)
        if counted > LARGEST_INT or self.num_timesteps > _ENV_STEPS:
            chunks = min(
                LARGEST_INT // (chunk * updates),
                (LARGEST_INT - self.warm_up_steps) // chunk,
            )
            most = min(self.env_steps_after(chunks), _ENV_STEPS)
            refuse(
                "num_timesteps",
                self.num_timesteps,
                f"vector steps and updates are counted up to {LARGEST_INT}; give at "
                f"most {most}",
            )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Config:
        """A config of flat values, by flag name; the other settings are the defaults.

        Raises:
            UsageError: for a setting that the run's algorithm does not have, and as the
                class.
        """
        algo = values.get("algo", cls.algo)
        known = setting_fields(algo)
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, cutoff=0.8)
                has = f"its settings: {', '.join(own_fields(algo))}"
                hint = f"did you mean {' or '.join(near)}?" if near else has
                refuse(name, values[name], f"--algo {algo} does not have it; {hint}")
        own = {name: values[name] for name in own_fields(algo) if name in values}
        shared = {name: values[name] for name in values if name not in own}
        return cls(**shared, algorithm=_settings_class(algo)(**own))

    def flat(self) -> dict[str, Any]:
        """All settings by flag name, the algorithm's among them."""
        own = own_fields(self.algo)
        return {
            name: getattr(self.algorithm if name in own else self, name)
            for name in setting_fields(self.algo)
        }

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
    def num_vector_steps(self) -> int:
        """Vector steps in the whole run, the warm-up's among them."""
        return self.warm_up_steps + self.num_chunks * self.chunk_steps

    @property
    def num_updates(self) -> int:
        """Updates in the whole run."""
        return self.num_chunks * self.chunk_steps * self.grad_updates_per_step

    @property
    def replay_ratio(self) -> float:
        """Transitions trained on per env step, K * B / N."""
        return self.grad_updates_per_step * self.batch_size / self.num_envs


SCHEDULE = ("num_timesteps", "num_evals", "num_checkpoints", "video_every", "loggers")
"""Settings that say when a run ends, and when and where it is looked at: not what it
learns on the way (but for a learning rate that falls until num_timesteps).
"""


def task_name(spelling: str) -> str:
    """`envs.resolve`, with errors that name the flag."""
    return _named("env", spelling, envs.resolve)


def _named(name: str, value: str, resolve: Callable[..., str], *before: str) -> str:
    """`resolve(*before, value)`, with errors that name the flag."""
    try:
        return resolve(*before, value)
    except UsageError as error:
        refuse(name, value, str(error))


def setting_fields(algo: str) -> dict[str, dataclasses.Field[Any]]:
    """The settings of a run with an algorithm, by flag name: Config's, then its own.

    Raises:
        UsageError: for an unknown algorithm, or one with a setting of Config's name.
    """
    fields = {field.name: field for field in dataclasses.fields(Config)}
    del fields["algorithm"]
    own = own_fields(algo)
    if taken := sorted(fields.keys() & own):
        reason = f"its settings have names that every run has: {', '.join(taken)}"
        refuse("algo", algo, reason)
    return fields | own


def own_fields(algo: str) -> dict[str, dataclasses.Field[Any]]:
    """The settings that an algorithm has of its own, by flag name."""
    return {field.name: field for field in dataclasses.fields(_settings_class(algo))}


def _settings_class(algo: str) -> type[Any]:
    from iqmjx import agents  # which are built from a Config

    return agents.find(algo).Settings
