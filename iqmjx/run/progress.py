"""What a person sees of a run: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich import console, progress

from iqmjx.run import terminal

_LINE_EVERY = 10.0
"""Seconds between plain lines."""


class Progress:
    """Reports a run of `total` env steps for each seed; where `visible`."""

    def __init__(self, total: int, visible: bool = True):
        self._console = console.Console(
            highlight=False, soft_wrap=True, quiet=not visible
        )
        self._total = total
        self._last_line = 0.0
        self._returns = ""
        self._rate = "compiling"
        self._bar = progress.Progress(
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.fields[text]}"),
            console=self._console,
            auto_refresh=self._console.is_terminal,
            disable=not (visible and self._console.is_terminal),
        )
        self._task = self._bar.add_task("", total=total, text="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_exc_info) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(terminal.plain(text), markup=False)

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Says what is being compiled, and how long it took."""
        start = time.perf_counter()
        if self._console.is_terminal:
            with self._console.status(f"compiling {what} ..."):
                yield
        else:
            self.say(f"compiling {what} ...")
            yield
        self.say(f"compiled {what} in {time.perf_counter() - start:.1f} s")

    def evaluated(self, env_steps: int, rows: list[dict[str, float]]) -> None:
        """Reports an evaluation: a row for each seed."""
        row = {key: _mean(rows, key) for key in rows[0]}
        self._returns = f"return {row['eval/episode_reward']:.1f}"
        more = f"   success {row['eval/success']:.0%}" if "eval/success" in row else ""
        if diverged := sum(row["eval/diverged"] for row in rows):
            more += f"   {diverged:.0f} episodes left the numbers"
        self.say(
            f"{env_steps:,} / {self._total:,} env steps   "
            f"evaluation: return {row['eval/episode_reward']:.1f} "
            f"+- {row['eval/episode_reward_std']:.1f} over "
            f"{row['eval/avg_episode_length']:.0f} steps   "
            f"sampled {row['eval/sampled_episode_reward']:.1f} "
            f"+- {row['eval/sampled_episode_reward_std']:.1f}{more}"
        )
        if len(rows) > 1:
            each = ", ".join(f"{row['eval/episode_reward']:.1f}" for row in rows)
            self.say(f"    means over {len(rows)} seeds, whose returns are {each}")

    def trained(self, env_steps: int, rows: list[dict[str, float]]) -> None:
        """Reports a chunk of training: a row for each seed."""
        rate = rows[0]["training/sps"]
        remaining = (self._total - env_steps) / rate
        ended = [row for row in rows if "episode/sum_reward" in row]
        if ended:
            self._returns = f"return {_mean(ended, 'episode/sum_reward'):.1f}"
        seeds = f" x {len(rows)} seeds" if len(rows) > 1 else ""
        text = (
            f"{env_steps:,} / {self._total:,} env steps   "
            f"{rate:,.0f} env steps/s{seeds}   "
            f"ETA {_clock(remaining)}   {self._returns}"
        )
        self._bar.update(self._task, completed=env_steps, text=text)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= _LINE_EVERY:
            self._last_line = now
            self.say(text)


def _mean(rows: list[dict[str, float]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
