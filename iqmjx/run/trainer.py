"""A whole run on the host: chunks, evaluations, checkpoints, logs, signals."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from iqmjx import evaluation, loop
from iqmjx.config import Config
from iqmjx.run import checkpoint, metrics
from iqmjx.run.progress import Progress

_TRAINING_STREAM = 0


class DivergedError(RuntimeError):
    """The loss left the finite numbers: nothing after that is worth computing."""


def train(config: Config, run_folder: Path, *, resume: bool = False) -> bool:
    """Trains, or goes on training, in a run folder that exists.

    Args:
        config: the run's settings.
        run_folder: where checkpoints and metrics are written.
        resume: start from the newest whole checkpoint in the folder.

    Returns:
        Whether the run came to its end; False where a signal stopped it, its state
        saved.

    Raises:
        ValueError: on a resume without a checkpoint that can be read.
        DivergedError: once the loss is not finite; what was saved before is kept.
    """
    start = time.perf_counter()
    setup = loop.make_setup(config)
    total = config.num_chunks * config.env_steps_per_chunk
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(total))
        env_steps, state = _begin(setup, run_folder, resume, progress)
        log = metrics.MetricsLog(run_folder, resume_at=env_steps if resume else None)
        stack.enter_context(contextlib.closing(log))
        rows = metrics.read(run_folder)  # of the steps before a resume
        spent = max((row.get("training/walltime", 0.0) for row in rows), default=0.0)
        store = stack.enter_context(checkpoint.open_store(run_folder, state))
        stop = stack.enter_context(_stop_requests())
        store.drop_after(env_steps)
        run = _Run(setup, log, store, progress, start - spent)
        run.compile(state)
        evaluations = _spread(config.num_evals, config, include_start=True)
        saves = _spread(config.num_checkpoints, config, include_start=False)
        if env_steps in evaluations and not resume:
            run.evaluate(env_steps, state)
        while env_steps < total and not stop:
            state = run.chunk(env_steps, state)
            env_steps += config.env_steps_per_chunk
            if env_steps in evaluations:
                run.evaluate(env_steps, state)
            if env_steps in saves:
                store.save(env_steps, state)
        if stop:
            store.save(env_steps, state)
            progress.say(
                f"stopped at {env_steps:,} env steps, state saved; to go on: "
                f"python -m iqmjx.train --resume --logdir {run_folder}"
            )
        return not stop


class _Run:
    """The compiled programs of a run and where their results go."""

    def __init__(self, setup, log, store, progress, start):
        config = setup.config
        self._setup = setup
        self._log, self._store, self._progress = log, store, progress
        self._greedy = evaluation.both_modes(config.num_eval_envs)
        self._eval_setup = evaluation.make_setup(
            setup, len(self._greedy), config.physics
        )
        self._start = start  # what the run has taken so far ago

    def compile(self, state: loop.TrainState) -> None:
        """Compiles the two programs, once for the whole run."""
        with self._progress.compiling("the training step"):
            self._train = loop.train_chunk.lower(self._setup, state).compile()
        if self._setup.config.num_evals:
            with self._progress.compiling("the evaluation"):
                self._play = evaluation.play.lower(
                    self._eval_setup,
                    state.learner,
                    state.normalizer,
                    self._greedy,
                    evaluation.key(0, 0),
                ).compile()

    def chunk(self, env_steps: int, state: loop.TrainState) -> loop.TrainState:
        """Trains for one chunk; `state` is donated.

        Raises:
            DivergedError: where the loss is not finite.
        """
        start = time.perf_counter()
        state, chunk_metrics = self._train(state)
        row = metrics.chunk_row(chunk_metrics, int(state.replay.size))
        now = time.perf_counter()
        taken = self._setup.config.env_steps_per_chunk
        row["training/sps"] = taken / (now - start)
        row["training/walltime"] = now - self._start
        self._log.write(env_steps + taken, row)
        self._progress.trained(env_steps + taken, row)
        if row["training/updates"] and not math.isfinite(row["training/loss"]):
            raise DivergedError(
                f"training diverged between {env_steps:,} and {env_steps + taken:,} "
                "env steps: the loss is not finite; checkpoints from before are kept; "
                "a lower --learning_rate is the first thing to try"
            )
        return state

    def evaluate(self, env_steps: int, state: loop.TrainState) -> None:
        """Plays evaluation episodes, logs them, and keeps the policy if best."""
        start = time.perf_counter()
        key = evaluation.key(self._setup.config.seed, env_steps)
        episodes = self._play(state.learner, state.normalizer, self._greedy, key)
        row = evaluation.summarize(jax.device_get(episodes), self._greedy)
        row["eval/seconds"] = time.perf_counter() - start
        row["eval/walltime"] = time.perf_counter() - self._start
        self._log.write(env_steps, row)
        self._progress.evaluated(env_steps, row)
        self._store.save_policy(env_steps, state, row["eval/episode_reward"])


def _begin(
    setup: loop.Setup, run_folder: Path, resume: bool, progress: Progress
) -> tuple[int, loop.TrainState]:
    """The env steps taken and the state to go on from."""
    if not resume:
        seed = jax.random.key(setup.config.seed)
        key = jax.random.fold_in(seed, _TRAINING_STREAM)
        with progress.compiling("the start states"):  # and Warp's kernels: minutes
            return 0, jax.block_until_ready(loop.init(setup, key))
    abstract = checkpoint.abstract_state(setup)
    env_steps, state, problems = checkpoint.restore_state(run_folder, abstract)
    for problem in problems:
        progress.say(f"warning: {problem}; falling back to an older one")
    progress.say(f"resuming at {env_steps:,} env steps")
    return env_steps, state


def _spread(count: int, config: Config, *, include_start: bool) -> set[int]:
    """`count` chunk ends, in env steps, spread evenly, the run's end among them."""
    if count == 0:
        return set()
    first = 0 if include_start and count > 1 else config.num_chunks / count
    chunks = np.linspace(first, config.num_chunks, count).round().astype(int)
    return {int(chunk) * config.env_steps_per_chunk for chunk in chunks}


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that Ctrl-C and SIGTERM are noted in, to be looked at between chunks.

    A second signal acts as usual.
    """
    received: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def note(number, _frame):
        received.append(number)
        print("\nstopping after this chunk ...", flush=True)
        for each in signals:
            signal.signal(each, before[each])

    for number in signals:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number in signals:
            signal.signal(number, before[number])
