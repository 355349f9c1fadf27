"""Saved policies: all that acting needs, apart from the state that training resumes.

    RUN/policy/<env steps>/   the newest few
    RUN/best/<env steps>/     that of the best evaluation so far

Each holds the actor's arrays (weights of the average policy, the temperature, the
observations' statistics), and in JSON the settings that it was trained with and the
sizes of observations and actions; in best/ the score as well.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from iqmjx import agents, normalize
from iqmjx.acting import Actor
from iqmjx.config import Config
from iqmjx.errors import UsageError
from iqmjx.policies.base import Policy
from iqmjx.run import checkpoint, run_folder, steps

NEWEST, BEST = "policy", "best"
_NEWEST_KEPT = 2
_SCORE = "episode_reward"
_FORMAT, _FORMAT_UNCHECKED = 2, 1


@dataclasses.dataclass(frozen=True)
class SavedPolicy:
    """A policy as it was saved.

    Attributes:
        config: the settings of its run.
        policy: its policy class.
        actor: its numbers.
        observation_size: O.
        action_size: A.
        env_steps: how long it had been trained.
        unreadable: lines about newer ones that could not be read.
    """

    config: Config
    policy: Policy
    actor: Actor
    observation_size: int
    action_size: int
    env_steps: int
    unreadable: list[str]


class PolicyStore:
    """The saved policies of one seed, open for writing by one process.

    Attributes:
        unreadable: lines about what in best/ cannot be read, and will be replaced.
    """

    def __init__(self, folder: Path, config: Config, sizes: tuple[int, int]):
        """Opens the store.

        Args:
            folder: the seed's folder.
            config: the settings of the run.
            sizes: of an observation and of an action, O and A.
        """
        self._about = {
            "format": _FORMAT,
            "config": run_folder.saved_form(config),
            "observation_size": sizes[0],
            "action_size": sizes[1],
        }
        self._newest = steps.Steps(folder / NEWEST, _handlers())
        self._best = steps.Steps(folder / BEST, _handlers())
        self._best_score, self.unreadable = _saved_score(folder / BEST)

    def save(self, env_steps: int, actor: Actor) -> None:
        """Writes the newest policy, unless this step is there already.

        Raises:
            StorageError: where it cannot be written.
        """
        self._newest.save(env_steps, self._items(env_steps, actor, {}))
        self._newest.keep_newest(_NEWEST_KEPT)

    def save_if_best(self, env_steps: int, actor: Actor, score: float) -> None:
        """Writes a policy that scored higher than all before; NaN is no score.

        Raises:
            StorageError: where it cannot be written.
        """
        if not math.isfinite(score) or score <= self._best_score:
            return
        self._best.delete(lambda step: step == env_steps)  # of before a resume
        self._best.save(env_steps, self._items(env_steps, actor, {_SCORE: score}))
        self._best.delete(lambda step: step != env_steps)
        self._best_score = score

    def drop_after(self, env_steps: int) -> None:
        """Deletes newer policies: a resume from here saves them again."""
        self._newest.delete(lambda step: step > env_steps)

    def close(self) -> None:
        """Frees what saving held."""
        self._newest.close()
        self._best.close()

    def _items(
        self, env_steps: int, actor: Actor, more: dict[str, float]
    ) -> dict[str, Any]:
        return {
            "actor": ocp.args.PyTreeSave(checkpoint.named_leaves(actor)),
            "about": ocp.args.JsonSave(self._about | {"env_steps": env_steps} | more),
        }


def load(folder: Path) -> SavedPolicy:
    """Reads the newest policy in a folder of them, or the one that `folder` is.

    Raises:
        UsageError: where none can be read.
        NotFoundError: where its algorithm or policy class cannot be found.
    """
    chosen = int(folder.name) if folder.name.isdecimal() else None
    root = folder if chosen is None else folder.parent
    if not root.is_dir():
        raise UsageError(f"{root}: there is no saved policy (no such folder)")
    with jax.enable_x64(False):  # whatever the program around computes in
        _, saved, problems = steps.read_newest(root, _load_step, chosen)
    return dataclasses.replace(saved, unreadable=problems)


def locate(path: Path) -> Path:
    """The folder of policies, or the one policy, that a user's path means.

    Args:
        path: a run folder, its `policy` or `best`, or one step in them.

    Raises:
        UsageError: where the path is none of these.
    """
    path = path.absolute()
    kind = _kind(path)
    if kind.name in (NEWEST, BEST) and kind.is_dir():
        return path
    if (path / NEWEST).is_dir():
        return path / NEWEST
    seeds = sorted(path.glob(f"seed*/{NEWEST}"))
    if seeds:
        raise UsageError(
            f"{path}: it holds a run of several seeds; name one of them, "
            f"such as {seeds[0].parent}"
        )
    raise UsageError(
        f"{path}: there is no saved policy; give a run folder, its policy/ or best/, "
        f"or one step in them"
    )


def run_of(path: Path) -> Path:
    """The run folder of the policies that `locate` found."""
    return _kind(path).parent


def title(path: Path) -> str:
    """A name for the policies in a folder that `locate` found: their run's folder.

    Those in best/ say so.
    """
    run, kind = run_of(path).name, _kind(path).name
    return run if kind == NEWEST else f"{run}/{kind}"


def _kind(path: Path) -> Path:
    """The policy/ or best/ that a path is, or is a step in."""
    return path.parent if path.name.isdigit() else path


def _load_step(path: Path) -> SavedPolicy:
    reader = steps.checkpointer(_handlers())
    about = _read_about(reader, path)
    where = f"the policy of step {path.name}"
    config = run_folder.config_of(about["config"], where)
    sizes = about["observation_size"], about["action_size"]
    with run_folder.read_from(where):
        agent = agents.make(config, *sizes)

    def fresh():
        statistics = normalize.init(sizes[0]) if config.normalize_observations else None
        return agent.average_actor(agent.init(jax.random.key(0)), statistics)

    like = jax.eval_shape(fresh)
    wanted = checkpoint.named_leaves(like)
    metadata: Any = reader.metadata(path).item_metadata
    if told := checkpoint.differences(metadata["actor"].tree, wanted):
        raise UsageError(f"its arrays are not those of its settings: {told[0]}")
    args = ocp.args.PyTreeRestore(
        wanted, ocp.checkpoint_utils.construct_restore_args(wanted)
    )
    arrays = reader.restore(path, ocp.args.Composite(actor=args))["actor"]
    actor = checkpoint.fill(like, dict(arrays))
    return SavedPolicy(config, agent.policy, actor, *sizes, about["env_steps"], [])


def _read_about(reader: ocp.Checkpointer, path: Path) -> dict[str, Any]:
    """What is known of a policy beside its arrays, all its files checked."""
    checked = steps.verify(path)
    about = reader.restore(path, ocp.args.Composite(about=ocp.args.JsonRestore()))
    about = about["about"]
    if not checked and about["format"] != _FORMAT_UNCHECKED:
        raise UsageError("its checksums are missing")
    return about


def _saved_score(folder: Path) -> tuple[float, list[str]]:
    """The score of the policy in best/, and lines about what cannot be read there."""
    nothing = -math.inf
    if not steps.numbers(folder):
        return nothing, []

    def read(path):
        return _read_about(steps.checkpointer(_handlers()), path).get(_SCORE, nothing)

    try:
        _, score, problems = steps.read_newest(folder, read)
    except UsageError as error:
        return nothing, [str(error)]
    return score, problems


def _handlers() -> dict[str, Any]:
    return {
        "actor": ocp.PyTreeCheckpointHandler(use_ocdbt=False),
        "about": ocp.JsonCheckpointHandler(),
    }
