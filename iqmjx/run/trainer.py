"""A whole run on the host: chunks, evaluations, checkpoints, logs, signals.

A run of several seeds has one state, saved as one, and for each seed a folder of its
own with metrics and policies. Where a run has several processes, each calls `train`:
all compute and save, and the first alone prints, logs and writes policies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from iqmjx import envs, evaluation, loop, parallel
from iqmjx.acting import Actor
from iqmjx.config import Config
from iqmjx.errors import RunError, UsageError
from iqmjx.run import checkpoint, metrics, offenders, recording, run_folder, video
from iqmjx.run.progress import Progress
from iqmjx.run.saved_policy import PolicyStore
from iqmjx.run.signals import Stop
from iqmjx.run.steps import StorageError

OnEvaluation = Callable[[int, list[dict[str, float]], list[Actor]], None]
"""Called with env steps, and for each seed a row of metrics and what was played."""
_VIDEOS = "videos"


class DivergedError(RunError):
    """The loss diverged: nothing after that is worth computing."""


def train(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    env: envs.Task | None = None,
    stop: Stop | None = None,
    on_evaluation: OnEvaluation | None = None,
    quiet: bool = False,
) -> bool:
    """Trains, or resumes training, in a run folder that exists.

    Args:
        config: the run's settings.
        folder: where checkpoints and metrics are written.
        resume: start from the newest whole checkpoint in the folder, or from the
            beginning where there is none yet. Where the devices cannot divide the
            shards of the run, they are made anew, one per device.
        env: an environment object, in place of the one that `config.env` names.
        stop: what may ask the run to stop; looked at after each chunk.
        on_evaluation: called after each evaluation, by the first process.
        quiet: print nothing, and give warnings to Python's `warnings`.

    Returns:
        Whether the run came to its end; False where it was asked to stop, its state
        saved.

    Raises:
        DivergedError: once the loss is not finite; what was saved before is kept.
        RunError: on a resume where no checkpoint can be read; or where the end could
            not be saved.
        FileNotFoundError: where there is no such folder.
    """
    start = time.perf_counter()
    setup = loop.make_setup(fit_devices(config, resume), env)
    with contextlib.ExitStack() as stack:
        first = parallel.is_first()
        progress = stack.enter_context(
            Progress(config.total_env_steps, first and not quiet)
        )
        warn = _warn if first and quiet else progress.say
        env_steps, state, resume_at = _begin(setup, folder, resume, progress, warn)
        seeds = _open_seeds(setup, folder, resume_at, warn) if first else []
        for seed in seeds:
            stack.enter_context(contextlib.closing(seed))
        store = stack.enter_context(checkpoint.open_store(folder, state))
        store.drop_after(env_steps)
        spent = max((seed.walltime for seed in seeds), default=0.0)
        queue = video.Queue(progress.say, warn)
        run = _Run(
            setup,
            seeds,
            store,
            stack.enter_context(contextlib.closing(queue)),
            progress,
            warn,
            start - spent,
            on_evaluation,
        )
        fresh = resume_at is None or resume_at < 0
        finished = run.go_on(env_steps, state, stop or Stop(), fresh)
        if not finished:
            progress.say(
                f"stopped at {run.env_steps:,} env steps, state saved; to resume: "
                f"{run_folder.resume_command(folder)}"
            )
        return finished


def fit_devices(config: Config, resume: bool) -> Config:
    """The config, on a resume with shards that the devices can divide."""
    if not resume:
        return config
    shards = parallel.fit_shards(config.num_seeds, config.num_shards)
    return dataclasses.replace(config, num_shards=shards)


class _Seed:
    """Where the results of one seed go."""

    def __init__(
        self,
        setup: loop.Setup,
        config: Config,
        folder: Path,
        resume_at: int | None,
        warn: Callable[[str], None],
    ):
        sizes = setup.env.observation_size, setup.env.action_size
        self.folder = folder
        self.log = metrics.MetricsLog(folder, config, resume_at, warn)
        self.policies = PolicyStore(folder, config, sizes)
        for line in self.policies.unreadable:
            warn(f"warning: best/: {line}; the next evaluation's takes its place")
        if resume_at is not None:
            self.policies.drop_after(resume_at)
            for path in (folder / _VIDEOS).glob("[0-9]*.mp4"):
                if path.stem.isdecimal() and int(path.stem) > resume_at:
                    path.unlink()
        times = (row.get("training/walltime", 0.0) for row in self.log.before)
        self.walltime = max(times, default=0.0)  # seconds before this process

    def close(self) -> None:
        self.log.close()
        self.policies.close()


class _Run:
    """The compiled programs of a run and where their results go."""

    def __init__(
        self,
        setup,
        seeds: list[_Seed],
        store,
        videos: video.Queue,
        progress,
        warn,
        start,
        on_evaluation,
    ):
        self._setup, self._config = setup, setup.config
        self._seeds, self._store, self._progress = seeds, store, progress
        self._warn, self._on_evaluation = warn, on_evaluation
        self._videos = videos
        self._start = start  # when the run would have begun without interruptions
        self._greedy = evaluation.both_modes(self._config.num_eval_envs)
        self._numbers = self._config.seed + np.arange(self._config.num_seeds)
        self._unsaved = ""  # why, where the newest state could not be saved
        self.env_steps = 0

    def go_on(
        self, env_steps: int, state: loop.TrainState, stop: Stop, fresh: bool
    ) -> bool:
        """Trains until the end, or a stop is asked for; whether it was the end.

        Raises:
            RunError: where the state could not be saved then.
        """
        config = self._config
        self.env_steps = env_steps
        if env_steps >= config.total_env_steps:
            self._progress.say(f"the run has taken its {env_steps:,} env steps already")
            return True
        self._compile(state, env_steps)
        evaluations = _spread(config.num_evals, config, include_start=True)
        saves = _spread(config.num_checkpoints, config, include_start=False)
        every = config.video_every
        self._recorded = set(sorted(evaluations)[::every]) if every else set()
        if fresh and 0 in evaluations:
            self._evaluate(state)
        self._progress.begin(env_steps)
        with stop.deferred(self._progress.say):
            while self.env_steps < config.total_env_steps:
                if _agree(stop.requested):
                    self._save(state)
                    break
                state = self._advance(state)
                if self.env_steps in evaluations:
                    self._evaluate(state)
                if self.env_steps in saves:
                    self._save(state)
        if self._unsaved:
            raise RunError(f"{self._unsaved}; make room, and add --resume")
        return self.env_steps >= config.total_env_steps

    def _compile(self, state: loop.TrainState, env_steps: int) -> None:
        """Compiles the programs, once for the whole run."""
        config, progress = self._config, self._progress
        with progress.compiling("the training step"):
            if env_steps == 0 and config.warm_up_steps:
                self._warm_up = loop.warm_up.lower(self._setup, state).compile()
            self._train = loop.train_chunk.lower(self._setup, state).compile()
        if config.num_evals:
            with progress.compiling("the evaluation"):
                game = _make_game(self._setup, len(self._greedy))
                actors = jax.eval_shape(lambda: loop.average_actors(self._setup, state))
                self._play = evaluation.play_all.lower(
                    game,
                    self._setup.layout,
                    actors,
                    self._greedy,
                    self._numbers,
                    np.uint32(0),
                ).compile()

    def _advance(self, state: loop.TrainState) -> loop.TrainState:
        """The warm-up, or a chunk; `state` is donated.

        Raises:
            DivergedError: where the loss is not finite.
        """
        config, start = self._config, time.perf_counter()
        before = self.env_steps
        if before == 0 and config.warm_up_steps:
            state, steps = self._warm_up(state)
            learning, updates = None, 0
            self.env_steps = config.env_steps_after(0)
        else:
            state, (steps, learning) = self._train(state)
            updates = config.chunk_steps * config.grad_updates_per_step
            self.env_steps += config.env_steps_per_chunk
        steps, learning = parallel.to_host((steps, learning))
        now = time.perf_counter()
        rows = [
            _row(*_of_seed((steps, learning), index))
            for index in range(config.num_seeds)
        ]
        for row in rows:
            row["training/updates"] = updates
            row["training/buffer_current_size"] = min(
                self.env_steps, config.max_replay_size
            )
            row["training/sps"] = (self.env_steps - before) / (now - start)
            row["training/walltime"] = now - self._start
        self._write(rows)
        if learning is None:
            self._progress.begin(self.env_steps)  # the warm-up is faster
        else:
            self._progress.trained(self.env_steps, rows)
        self._keep_offenders(steps)
        self._refuse_divergence(before, rows)
        return state

    def _keep_offenders(self, steps: loop.StepMetrics) -> None:
        """Keeps a world of each seed that diverged, if any did."""
        for index, seed in enumerate(self._seeds):
            offender = _of_seed(steps.offender, index)
            try:
                path = offenders.write(seed.folder, self.env_steps, offender)
            except OSError as error:
                path = f"it cannot be kept ({error})"
            if path is not None:
                self._warn(f"a world diverged: {path}")

    def _evaluate(self, state: loop.TrainState) -> None:
        """Plays evaluation episodes, logs them, and keeps each policy if best."""
        start = time.perf_counter()
        actors = loop.average_actors(self._setup, state)
        phase = np.uint32(self.env_steps % 2**32)
        with self._progress.doing("evaluating"):
            episodes = self._play(actors, self._greedy, self._numbers, phase)
            actors, episodes = parallel.to_host((actors, episodes))
        now = time.perf_counter()
        rows = []
        for index in range(self._config.num_seeds):
            row = evaluation.summarize(_of_seed(episodes, index), self._greedy)
            row["eval/seconds"] = now - start
            row["eval/walltime"] = now - self._start
            rows.append(row)
        self._write(rows)
        self._progress.evaluated(self.env_steps, rows)
        if self.env_steps in self._recorded:
            self._record(episodes)
        for index, (seed, row) in enumerate(zip(self._seeds, rows, strict=False)):
            score = row["eval/episode_reward"]
            actor = _of_seed(actors, index)
            try:
                seed.policies.save_if_best(self.env_steps, actor, score)
            except StorageError as error:
                self._warn(f"warning: the best policy cannot be saved: {error}")
        if self._seeds and self._on_evaluation:
            each = [_of_seed(actors, index) for index in range(len(rows))]
            self._on_evaluation(self.env_steps, rows, each)

    def _record(self, episodes: evaluation.Episodes) -> None:
        """Begins to write a video of each seed's first episode."""
        config = self._config
        scene = recording.engine_scene(self._setup.env)
        for index, (seed, number) in enumerate(
            zip(self._seeds, self._numbers, strict=False)  # no seeds elsewhere
        ):
            own = _of_seed(episodes, index)
            name = f"{config.env} {config.algo} seed {number}"
            caption = recording.caption(name, self.env_steps, own)
            recorded = video.Recording(scene, [recording.of_game(own, caption)])
            self._videos.add(recorded, seed.folder / _VIDEOS / f"{self.env_steps}.mp4")

    def _save(self, state: loop.TrainState) -> None:
        """Saves each seed's policy, and the whole state; training survives a failure.

        The policies come first: a run resumes after the newest state, and would not
        save a policy that lacks before it.
        """
        actors = parallel.to_host(loop.average_actors(self._setup, state))
        try:
            for index, seed in enumerate(self._seeds):
                seed.policies.save(self.env_steps, _of_seed(actors, index))
            self._store.save(self.env_steps, state)
            self._unsaved = ""
        except StorageError as error:
            self._unsaved = f"the state cannot be saved: {error}"
            self._warn(f"warning: {self._unsaved}")

    def _write(self, rows: list[dict[str, float]]) -> None:
        for seed, row in zip(self._seeds, rows, strict=False):  # none elsewhere
            seed.log.write(self.env_steps, row)

    def _refuse_divergence(self, before: int, rows: list[dict[str, float]]) -> None:
        for seed, row in zip(self._numbers, rows, strict=True):
            if not math.isfinite(row.get("training/loss", 0.0)):
                raise DivergedError(
                    f"training of seed {seed} diverged between {before:,} and "
                    f"{self.env_steps:,} env steps: the loss is not finite; "
                    f"checkpoints from before are kept; a lower --learning_rate is "
                    f"the first thing to try"
                )


def _of_seed(tree: Any, index: int) -> Any:
    """One seed's part of a tree [S]."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _row(steps: loop.StepMetrics, learning: Any) -> dict[str, float]:
    """The row of one seed's vector steps and, where it has learned, of its updates."""
    row = {} if learning is None else metrics.learning_row(learning)
    return row | metrics.steps_row(steps)


def _make_game(setup: loop.Setup, num_episodes: int) -> evaluation.Game:
    """The evaluation of a run's task, on worlds of its own."""
    config = setup.config
    worlds = evaluation.worlds_on_a_device(setup.layout, num_episodes)
    env = setup.env.for_worlds(worlds)
    return evaluation.Game(
        env, setup.agent.policy, config.episode_length, config.video_every > 0
    )


def _warn(text: str) -> None:
    warnings.warn(text.removeprefix("warning: "), stacklevel=2)


def _open_seeds(
    setup: loop.Setup,
    folder: Path,
    resume_at: int | None,
    warn: Callable[[str], None],
) -> list[_Seed]:
    seeds = run_folder.seeds(setup.config, folder)
    return [_Seed(setup, config, own, resume_at, warn) for config, own in seeds]


def _begin(
    setup: loop.Setup,
    folder: Path,
    resume: bool,
    progress: Progress,
    warn: Callable[[str], None],
) -> tuple[int, loop.TrainState, int | None]:
    """The env steps taken, the state to continue from, and what metrics resume at."""
    if resume and checkpoint.newest(folder) is not None:
        try:
            env_steps, state, told = checkpoint.restore(folder, setup)
        except UsageError as error:
            raise RunError(str(error)) from error
        for line in told:
            warn(line)
        progress.say(f"resuming at {env_steps:,} env steps")
        return env_steps, state, env_steps
    if resume:  # stopped before its first checkpoint
        progress.say("there is no checkpoint yet: beginning at 0 env steps")
    with progress.compiling("the start states"):  # and Warp's kernels: minutes
        state = jax.block_until_ready(loop.init(setup))
    return 0, state, metrics.BEGINNING if resume else None


def _agree(stop: bool) -> bool:
    """Whether any process wants to stop; all of them must ask."""
    return bool(np.any(parallel.gather(np.array(stop))))


def _spread(count: int, config: Config, *, include_start: bool) -> set[int]:
    """`count` chunk ends, in env steps, spread evenly, the run's end among them.

    The start, where it is included, is before the warm-up.
    """
    if count == 0:
        return set()
    first = 0 if include_start and count > 1 else config.num_chunks / count
    chunks = np.linspace(first, config.num_chunks, count).round().astype(int)
    ends = [config.env_steps_after(int(chunk)) for chunk in chunks]
    if include_start and count > 1:
        ends[0] = 0
    return set(ends)
