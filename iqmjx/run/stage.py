"""Where saved policies are played to be seen."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import mujoco
import numpy as np

from iqmjx import evaluation
from iqmjx.envs import Env
from iqmjx.run import gymnasium_play, recording, trained_policy, video
from iqmjx.run.saved_policy import SavedPolicy


class Stage(Protocol):
    """Where a policy is played to be seen, one episode after another.

    Attributes:
        scene: what of the task is drawn.
        data: the world's state, as it is when `show` is called.
    """

    scene: video.Scene
    data: mujoco.MjData

    def episodes(
        self, show: Callable[[], None] | None = None
    ) -> Iterator[video.Episode]:
        """Plays episodes without an end.

        Args:
            show: called before each control step.
        """
        ...


class InGymnasium:
    """Gymnasium's own environment of a task; implements `Stage`.

    A world is stepped while it is shown: whoever shows it may push its bodies.
    """

    def __init__(
        self,
        name: str,
        saved: SavedPolicy,
        task: type[Env],
        *,
        deterministic: bool,
        seed: int,
    ):
        """Makes the environment.

        Args:
            name: of the policy, for captions.
            saved: the policy.
            task: one that Gymnasium has as well.
            deterministic: act by the policy's mode rather than sample.
            seed: of the first reset and of the sampled actions.
        """
        limit = saved.config.episode_length
        self._env = gymnasium_play.make(task, max_episode_steps=limit)
        self._world: Any = self._env.unwrapped
        self._name, self._saved, self._task, self._seed = name, saved, task, seed
        self._act = gymnasium_play.chooser(
            trained_policy.of(saved), deterministic=deterministic, seed=seed
        )
        self.scene = gymnasium_play.Recorder(self._env, task).scene
        self.data = self._world.data

    def episodes(
        self, show: Callable[[], None] | None = None
    ) -> Iterator[video.Episode]:
        for number in itertools.count():
            recorder = gymnasium_play.Recorder(self._env, self._task)

            def choose(episode: int, obs: np.ndarray, keep=recorder.keep) -> np.ndarray:
                keep()
                if show is not None:
                    show()
                return self._act(episode, obs)

            seed = self._seed if number == 0 else None
            played = gymnasium_play.play_episodes(self._env, choose, 1, seed)
            told = recording.caption(self._name, self._saved.env_steps, played)
            yield recorder.episode(told)


class OnEngine:
    """A task on one of our engines; implements `Stage`.

    An episode is shown after it was played.
    """

    def __init__(
        self, name: str, saved: SavedPolicy, env: Env, *, deterministic: bool, seed: int
    ):
        """Lays out the game.

        Args:
            name: of the policy, for captions.
            saved: the policy.
            env: the task, for one world.
            deterministic: act by the policy's mode rather than sample.
            seed: of resets and of sampled actions.
        """
        limit = saved.config.episode_length
        task: Any = env
        self._game = evaluation.Game(task, saved.policy, limit, recorded=True)
        self._name, self._saved = name, saved
        self._greedy, self._seed = np.array([deterministic]), seed
        self.scene = recording.engine_scene(env)
        self.data = mujoco.MjData(self.scene.model)

    def episodes(
        self, show: Callable[[], None] | None = None
    ) -> Iterator[video.Episode]:
        play = jax.jit(evaluation.play, static_argnums=0)
        stream = jax.random.key(self._seed)
        for number in itertools.count():
            keys = jax.random.fold_in(stream, number)[None]
            played = play(self._game, self._saved.actor, self._greedy, keys)
            played = jax.device_get(played)
            told = recording.caption(self._name, self._saved.env_steps, played)
            episode = recording.of_game(played, told)
            if show is not None:
                self.scene.begin(episode)
                for positions in episode.positions:
                    self.scene.pose(self.data, positions)
                    show()
            yield episode
