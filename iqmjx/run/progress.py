"""What a person sees of a run: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterator

from rich import console, live, text

from iqmjx.run import memory, terminal

_LINE_EVERY = 10.0
"""Seconds between plain lines."""
_WINDOW = 300.0
"""Seconds that the rate and the time left are told from."""
_BAR_WIDTH = 24
_LEVELS = "▁▂▃▄▅▆▇█"
_LEARNING = {
    "entropy": "training/entropy",
    "temperature": "training/temperature",
    "TD error": "training/td_error",
    "value": "training/value",
}
_PHYSICS = {"diverged": "physics/diverged", "overflows": "physics/overflow"}


class Pace:
    """How fast a run gets on, evaluations and saves included.

    Attributes:
        rate: env steps per second over the window; 0 before the first chunk.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._marks: collections.deque[tuple[float, int]] = collections.deque()
        self.rate = 0.0

    def begin(self, env_steps: int) -> None:
        """Counts from here: what came before is no guide to what follows."""
        self._marks.clear()
        self._marks.append((self._clock(), env_steps))

    def add(self, env_steps: int) -> None:
        """Notes that a chunk has ended."""
        now = self._clock()
        self._marks.append((now, env_steps))
        while len(self._marks) > 2 and now - self._marks[1][0] >= _WINDOW:
            self._marks.popleft()
        start, before = self._marks[0]
        self.rate = (env_steps - before) / max(now - start, 1e-9)


class Progress:
    """Reports a run of `total` env steps for each seed; where `visible`."""

    def __init__(
        self, total: int, visible: bool = True, out: console.Console | None = None
    ):
        self._console = out or console.Console(
            highlight=False, soft_wrap=True, quiet=not visible
        )
        self._total, self._env_steps = total, 0
        self._pace = Pace()
        self._last_line = 0.0
        self._doing = ""
        self._returns: dict[str, float] = {}  # by how they came about
        self._greedy: list[float] = []
        self._rows: list[dict[str, float]] = []
        self._live = live.Live(
            get_renderable=self._view,
            console=self._console,
            refresh_per_second=2,
            auto_refresh=self._console.is_terminal,
            transient=True,
        )

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_exc_info) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """Prints a line, above the live view."""
        self._console.print(terminal.plain(line), markup=False)

    def begin(self, env_steps: int) -> None:
        """Training begins, or resumes, at these env steps."""
        self._env_steps = env_steps
        self._pace.begin(env_steps)

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Says what is being compiled, and how long it took."""
        start = time.perf_counter()
        if not self._console.is_terminal:
            self.say(f"compiling {what} ...")
        with self.doing(f"compiling {what}"):
            yield
        self.say(f"compiled {what} in {time.perf_counter() - start:.1f} s")

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Shows what is done besides training, in the live view."""
        self._doing = f"{what} ..."
        try:
            yield
        finally:
            self._doing = ""

    def evaluated(self, env_steps: int, rows: list[dict[str, float]]) -> None:
        """Reports an evaluation: a row for each seed."""
        row = {key: _mean(rows, key) for key in rows[0]}
        greedy, sampled = row["eval/episode_reward"], row["eval/sampled_episode_reward"]
        self._greedy.append(greedy)
        self._returns |= {"greedy": greedy, "sampled": sampled}
        more = f"   success {row['eval/success']:.0%}" if "eval/success" in row else ""
        if diverged := sum(row["eval/diverged"] for row in rows):
            more += f"   {diverged:.0f} episodes left out: their simulation diverged"
        self.say(
            f"{env_steps:,} / {self._total:,} env steps   "
            f"evaluation: return {greedy:.1f} "
            f"+- {row['eval/episode_reward_std']:.1f} over "
            f"{row['eval/avg_episode_length']:.0f} steps   "
            f"sampled {sampled:.1f} "
            f"+- {row['eval/sampled_episode_reward_std']:.1f}{more}"
        )
        if len(rows) > 1:
            each = ", ".join(f"{row['eval/episode_reward']:.1f}" for row in rows)
            self.say(f"    means over {len(rows)} seeds, whose returns are {each}")

    def trained(self, env_steps: int, rows: list[dict[str, float]]) -> None:
        """Reports a chunk of training: a row for each seed."""
        self._env_steps, self._rows = env_steps, rows
        self._pace.add(env_steps)
        ended = [row for row in rows if "episode/sum_reward" in row]
        if ended:
            self._returns["training"] = _mean(ended, "episode/sum_reward")
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= _LINE_EVERY:
            self._last_line = now
            self.say(f"{self._steps()}   {self._speed()}   {self._told()}".rstrip())

    def _steps(self) -> str:
        return f"{self._env_steps:,} / {self._total:,} env steps"

    def _speed(self) -> str:
        if not self._pace.rate:
            return ""
        left = _clock((self._total - self._env_steps) / self._pace.rate)
        seeds = f" x {len(self._rows)} seeds" if len(self._rows) > 1 else ""
        return f"{self._pace.rate:,.0f} env steps/s{seeds}   {left} left"

    def _told(self) -> str:
        """Returns so far: of training's episodes and of the last evaluation."""
        told = [f"{name} {value:.1f}" for name, value in self._returns.items()]
        return "return: " + ", ".join(told) if told else ""

    def _view(self) -> text.Text:
        """The live view: a few lines, none wider than the terminal."""
        share = min(self._env_steps / self._total, 1.0)
        full = round(share * _BAR_WIDTH)
        bar = "━" * full + " " * (_BAR_WIDTH - full)
        lines = [f"{bar} {share:4.0%}  {self._speed()}".rstrip(), self._steps()]
        if self._returns:
            lines.append(f"{self._told()}  {sparkline(self._greedy)}")
        if self._rows:
            learning = _numbers(self._rows, _LEARNING)
            physics = _numbers(self._rows, _PHYSICS)
            used = f"memory {memory.describe(memory.peak())}"
            lines += [learning] * bool(learning) + [f"{physics}   {used}"]
        if self._doing:
            lines.append(self._doing)
        return text.Text("\n".join(lines), no_wrap=True, overflow="ellipsis")


def sparkline(values: list[float]) -> str:
    """The last values as blocks from the lowest of all to the highest."""
    finite = [value for value in values if abs(value) < float("inf")]
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(_LEVELS) - 1) / (high - low) if high > low else 0.0
    shown = finite[-_BAR_WIDTH:]
    return "".join(_LEVELS[round((value - low) * scale)] for value in shown)


def _numbers(rows: list[dict[str, float]], names: dict[str, str]) -> str:
    told = {name: key for name, key in names.items() if key in rows[0]}
    return "   ".join(f"{name} {_mean(rows, key):.4g}" for name, key in told.items())


def _mean(rows: list[dict[str, float]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
