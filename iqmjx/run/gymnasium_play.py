"""Plays a policy in Gymnasium's own environments, on plain MuJoCo."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import numpy as np

from iqmjx import envs, evaluation
from iqmjx.envs import Env, physics, vector
from iqmjx.errors import UsageError
from iqmjx.run import video
from iqmjx.run.trained_policy import TrainedPolicy


def twin(name: str) -> type[Env] | None:
    """The class of a task that Gymnasium has as well; None where it has not.

    Args:
        name: any spelling that `envs.resolve` takes.
    """
    task = envs.task_class(name)
    return task if task is not None and task.gymnasium_id is not None else None


def make(task: type[Env], **options: Any) -> gymnasium.Env:
    """Gymnasium's own environment of a task, with options of `gymnasium.make`.

    Raises:
        UsageError: where Gymnasium has none.
    """
    if task.gymnasium_id is None:
        raise UsageError(f"Gymnasium has no environment for {task.__name__}")
    gymnasium.register_envs(importlib.import_module(task.gymnasium_package))
    with physics.quiet_compilation(), warnings.catch_warnings():
        # The version is the task's, whatever others there are.
        warnings.filterwarnings("ignore", message=".*is out of date")
        return gymnasium.make(task.gymnasium_id, **options)


class Recorder:
    """Keeps the positions that an environment of Gymnasium goes through in an episode.

    Attributes:
        scene: what of the task is drawn.
        positions: MuJoCo's qpos [nq], one for each call of `keep`.
    """

    def __init__(self, env: gymnasium.Env, task: type[Env]):
        """Nothing kept yet.

        Args:
            env: as `make` returns it.
            task: its class.
        """
        self._world: Any = env.unwrapped
        self._names = task.model_fields
        self.scene = video.Scene(self._world.model, task.camera, self._world.dt)
        self._model_fields: dict[str, np.ndarray] = {}
        self.positions: list[np.ndarray] = []

    def keep(self) -> None:
        """Keeps the present state; for each control step, before it."""
        if not self.positions:
            for name in self._names:
                self._model_fields[name] = np.array(getattr(self._world.model, name))
        self.positions.append(np.array(self._world.data.qpos))

    def episode(self, caption: str) -> video.Episode:
        """What was kept."""
        return video.Episode(np.stack(self.positions), self._model_fields, caption)


def play(
    env: gymnasium.Env,
    policy: TrainedPolicy,
    *,
    episodes: int,
    deterministic: bool,
    seed: int,
    watch: Callable[[int], None] = lambda _episode: None,
) -> evaluation.Episodes:
    """Plays whole episodes in one of Gymnasium's own environments, and closes it.

    Args:
        env: as `make` returns it.
        policy: what chooses the actions.
        episodes: how many to play, one after another.
        deterministic: act by the policy's mode rather than sample.
        seed: of the first reset and of the sampled actions.
        watch: called with an episode's number before each of its control steps.
    """
    act = chooser(policy, deterministic=deterministic, seed=seed)

    def choose(episode: int, obs: np.ndarray) -> np.ndarray:
        watch(episode)
        return act(episode, obs)

    played = play_episodes(env, choose, episodes, seed)
    env.close()
    return played


def chooser(
    policy: TrainedPolicy, *, deterministic: bool, seed: int
) -> Callable[[int, np.ndarray], np.ndarray]:
    """A policy as `play_episodes` asks for it; arguments as those of `play`."""
    key = jax.random.key(seed)

    def choose(_episode: int, obs: np.ndarray) -> np.ndarray:
        nonlocal key
        key, act_key = jax.random.split(key)
        return policy(obs, None if deterministic else act_key)

    return choose


def play_episodes(
    env: gymnasium.Env,
    choose: Callable[[int, np.ndarray], np.ndarray],
    episodes: int,
    seed: int | None,
) -> evaluation.Episodes:
    """Plays whole episodes, one after another.

    One whose world diverges ends there, as in `evaluation.play`.

    Args:
        env: Gymnasium's environment; stays open.
        choose: the action for an episode's number and an observation.
        episodes: how many.
        seed: of the first reset; None goes on with the environment's own numbers.
    """
    returns, lengths = np.zeros(episodes), np.zeros(episodes, int)
    valid, succeeded = np.ones(episodes, bool), np.zeros(episodes, bool)
    told = False  # whether the task says what success is
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed if episode == 0 else None)
        done = False
        while not done:
            action = choose(episode, obs)
            with physics.silence:
                obs, reward, terminated, truncated, info = env.step(action)
            lengths[episode] += 1
            told |= "success" in info
            if _has_diverged(env, action, obs, float(reward)):
                valid[episode] = False
                break
            returns[episode] += float(reward)
            succeeded[episode] |= bool(info.get("success", False))
            done = terminated or truncated
    return evaluation.Episodes(returns, lengths, valid, succeeded if told else None)


def _has_diverged(
    env: gymnasium.Env, action: np.ndarray, obs: np.ndarray, reward: float
) -> bool:
    """Whether the world diverged in a step; as `vector.has_diverged`.

    MuJoCo's warnings are of the whole episode: a reset forgets them.
    """
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    reach = vector.LARGEST_CONTROL * np.maximum(np.abs(space.low), np.abs(space.high))
    data = getattr(env.unwrapped, "data", None)
    warned = data is not None and data.warning.number[list(physics.BAD_STATE)].any()
    finite = np.isfinite(obs).all() and np.isfinite(reward)
    return bool(warned or not finite or not (np.abs(action) <= reach).all())
