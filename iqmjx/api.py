"""`iqmjx.train`: a run from within a program or a notebook."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from iqmjx import envs
from iqmjx.acting import Actor
from iqmjx.config import Config
from iqmjx.envs import Task
from iqmjx.errors import UsageError
from iqmjx.run import (
    launching,
    metrics,
    run_folder,
    saved_policy,
    signals,
    trained_policy,
)
from iqmjx.run.launching import Request
from iqmjx.run.saved_policy import SavedPolicy
from iqmjx.run.trained_policy import TrainedPolicy
from iqmjx.settings import refuse


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation, as it has just been made.

    Attributes:
        env_steps: for how many env steps each seed has been trained.
        rows: for each seed the metrics of the evaluation, by the names in metrics.jsonl
            (`eval/episode_reward`).
        saved: for each seed the policy that was played, as it would be saved.
    """

    env_steps: int
    rows: list[dict[str, float]]
    saved: list[SavedPolicy]

    @property
    def row(self) -> dict[str, float]:
        """The metrics of the first seed: of the only one, unless there are several."""
        return self.rows[0]

    @functools.cached_property
    def policies(self) -> list[TrainedPolicy]:
        """For each seed the policy that was played."""
        return [trained_policy.of(each) for each in self.saved]

    @property
    def policy(self) -> TrainedPolicy:
        """The policy of the first seed."""
        return self.policies[0]


@dataclasses.dataclass(frozen=True)
class Curve:
    """The E evaluations of one seed, those from before a resume among them.

    Returns and lengths are means over an evaluation's episodes, without those whose
    world diverged; NaN where none is left.

    Attributes:
        env_steps: when they were made.
        returns: of episodes that act by the policy's mode.
        returns_std: their standard deviation over the episodes.
        lengths: of these episodes, control steps.
        sampled_returns: of episodes that sample from the policy.
        sampled_returns_std: their standard deviation over the episodes.
        rows: all metrics of each evaluation, by the names in metrics.jsonl.
    """

    env_steps: Int[np.ndarray, " E"]
    returns: Float[np.ndarray, " E"]
    returns_std: Float[np.ndarray, " E"]
    lengths: Float[np.ndarray, " E"]
    sampled_returns: Float[np.ndarray, " E"]
    sampled_returns_std: Float[np.ndarray, " E"]
    rows: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Seed:
    """What came of one seed of a run.

    Attributes:
        config: its settings.
        folder: where its metrics and policies are.
    """

    config: Config
    folder: Path

    @functools.cached_property
    def evaluations(self) -> Curve:
        """Its learning curve, read from its folder."""
        return _curve(self.folder)

    @functools.cached_property
    def policy(self) -> TrainedPolicy:
        """Its policy at the end, or where it was stopped; read from its folder.

        Raises:
            UsageError: where none was saved, as with `num_checkpoints=0`.
        """
        return trained_policy.load(self.folder / saved_policy.NEWEST)


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes:
        finished: whether it came to its end; False where it was stopped before, its
            state saved.
        config: its settings.
        folder: where all of it lies.
        seeds: each of its seeds.
    """

    finished: bool
    config: Config
    folder: Path
    seeds: list[Seed]

    @property
    def evaluations(self) -> Curve:
        """The learning curve of the first seed: of the only one, unless several."""
        return self.seeds[0].evaluations

    @property
    def policy(self) -> TrainedPolicy:
        """The policy of the first seed at the end; see `Seed.policy`."""
        return self.seeds[0].policy


def train(
    env: str | Task | None = None,
    *,
    preset: str = "auto",
    logdir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    on_evaluation: Callable[[Evaluation], bool | None] | None = None,
    progress: bool = True,
    **settings: Any,
) -> Result:
    """Trains an agent.

        result = iqmjx.train("hopper", num_timesteps=100_000)
        plt.plot(result.evaluations.env_steps, result.evaluations.returns)

    Ctrl-C stops a run in the main thread as soon as its state is saved, and then raises
    KeyboardInterrupt; a second one does so at once. `resume=True` and its `logdir`
    resume the run.

    Args:
        env: the task's name (by default that of the command), or a task object. The
            object's class must be at the top level of a module or notebook, for a
            resume and an evaluation to find it.
        preset: `auto` by platform, `cpu`, `gpu` or `paper`.
        logdir: the run's folder; None: a new one under checkpoints/.
        resume: resume the run in `logdir`, with the settings it began with; begin
            it where there is none yet.
        on_evaluation: called after each evaluation. Where it returns True, the run is
            stopped and its state saved.
        progress: print how the run goes. Without, warnings go to Python's `warnings`.
        settings: those of the command `iqmjx.train`, by the names of their flags.

    Raises:
        UsageError: where something given cannot be used; nothing is written then.
        RunError: where something ended the run, such as a loss that is not finite; what
            was saved before is kept.
        TypeError: where `on_evaluation` returns something else than True, False or
            None. This and what else it raises ends the run, whose last checkpoint is
            kept.
    """
    given = {name: _plain(value) for name, value in settings.items()}
    task = None if isinstance(env, str) else env
    if task is not None:
        given |= _of_task(task, given)
    elif env is not None:
        given["env"] = env
    folder = None if logdir is None else Path(logdir).expanduser()
    request = Request(given, preset, folder, resume, task)
    with (
        jax.enable_x64(False),  # whatever the rest of the program computes in
        _without_orbax_logs(),
        signals.held_back() as stop,
        launching.prepared(request) as run,
    ):
        seeds = run_folder.seeds(run.config, run.folder)

        def heard(
            env_steps: int, rows: list[dict[str, float]], actors: list[Actor]
        ) -> None:
            if on_evaluation is None:
                return
            env = run.setup.env
            saved = [
                SavedPolicy(
                    config=config,
                    policy=run.setup.agent.policy,
                    actor=actor,
                    observation_size=env.observation_size,
                    action_size=env.action_size,
                    env_steps=env_steps,
                    unreadable=[],
                )
                for (config, _), actor in zip(seeds, actors, strict=True)
            ]
            answer = on_evaluation(Evaluation(env_steps, rows, saved))
            if not isinstance(answer, bool | np.bool_ | None):
                told = f"on_evaluation returned {answer!r}; return True to stop the run"
                raise TypeError(f"{told}, and False or None to go on")
            stop.requested |= bool(answer)

        if progress:
            print(f"run folder: {run.folder}")
        finished = run.train(stop, on_evaluation=heard, quiet=not progress)
    return Result(finished, run.config, run.folder, [Seed(*seed) for seed in seeds])


@contextlib.contextmanager
def _without_orbax_logs() -> Iterator[None]:
    """Drops Orbax's log, which has a warning for every save."""
    logger = logging.getLogger("absl")

    def is_others(record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts

    logger.addFilter(is_others)
    try:
        yield
    finally:
        logger.removeFilter(is_others)


def _plain(value: Any) -> Any:
    """A setting without NumPy's types, which JSON does not know."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _of_task(task: Any, given: Mapping[str, Any]) -> dict[str, str]:
    """The settings that a task object stands for.

    Raises:
        UsageError: where it is no task, has a name that does not lead to its class, or
            is on another engine than `given`.
    """
    known = "name", "physics", "for_worlds"
    if isinstance(task, type) or not all(hasattr(task, name) for name in known):
        raise UsageError(f"--env {task!r}: give a task's name, or an iqmjx.envs.Env")
    try:
        envs.resolve(task.name)
    except UsageError as error:
        fix = "its class must be at the top level of a module or notebook"
        raise UsageError(f"--env {task.name}: {fix}") from error
    if not isinstance(task, envs.Env):
        return {"env": task.name}
    engine = task.physics.name
    if given.get("physics", engine) != engine:
        fix = f"the task object was built on {engine}; leave this out"
        refuse("physics", given["physics"], fix)
    return {"env": task.name, "physics": engine}


def _curve(folder: Path) -> Curve:
    rows = [row for row in metrics.read(folder) if "eval/episode_reward" in row]

    def column(name: str) -> Float[np.ndarray, " E"]:
        values = [row[name] for row in rows]
        return np.array([np.nan if v is None else v for v in values], np.float64)

    return Curve(
        env_steps=np.array([row["env_steps"] for row in rows], np.int64),
        returns=column("eval/episode_reward"),
        returns_std=column("eval/episode_reward_std"),
        lengths=column("eval/avg_episode_length"),
        sampled_returns=column("eval/sampled_episode_reward"),
        sampled_returns_std=column("eval/sampled_episode_reward_std"),
        rows=rows,
    )
