"""Saved policies: all that acting needs, apart from the state that training resumes.

    RUN/policy/<env steps>/   the newest few
    RUN/best/<env steps>/     that of the best evaluation so far

Each holds the actor's arrays (weights of the average policy, the temperature, the
observations' statistics), and in JSON the settings that it was trained with and the
sizes of observations and actions. Orbax writes both.
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
from iqmjx.policies.base import Policy
from iqmjx.run import checkpoint, run_folder

NEWEST, BEST = "policy", "best"
_NEWEST_KEPT = 2
_SCORE = "episode_reward"
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class SavedPolicy:
    """A policy as it was saved.

    Attributes:
        config: the settings of its run.
        policy: its policy class.
        actor: its numbers.
        env_steps: how long it had been trained.
        unreadable: a line about each newer one that could not be read.
    """

    config: Config
    policy: Policy
    actor: Actor
    env_steps: int
    unreadable: list[str]


class PolicyStore:
    """The saved policies of one seed, open for writing by one process."""

    def __init__(self, folder: Path, config: Config, sizes: tuple[int, int]):
        """Opens the store.

        Args:
            folder: the seed's folder.
            config: the settings of the run.
            sizes: of an observation and of an action, O and A.
        """
        folder = folder.absolute()
        this_process: Any = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix=f"policy{jax.process_index()}",
        )
        self._about = {
            "format": _FORMAT,
            "config": dataclasses.asdict(config),
            "observation_size": sizes[0],
            "action_size": sizes[1],
        }

        def manager(name: str, **options: Any) -> ocp.CheckpointManager:
            (folder / name).mkdir(exist_ok=True)
            return ocp.CheckpointManager(
                folder / name,
                options=ocp.CheckpointManagerOptions(
                    create=False,
                    enable_async_checkpointing=False,
                    multiprocessing_options=this_process,
                    **options,
                ),
                item_handlers=_handlers(),
            )

        self._newest = manager(NEWEST, max_to_keep=_NEWEST_KEPT)
        self._best = manager(
            BEST, max_to_keep=1, best_fn=lambda metrics: metrics[_SCORE]
        )

    def save(self, env_steps: int, actor: Actor) -> None:
        """Writes the newest policy, unless this step is there already."""
        if env_steps not in self._newest.all_steps():
            self._newest.save(env_steps, args=self._args(env_steps, actor))

    def save_if_best(self, env_steps: int, actor: Actor, score: float) -> None:
        """Writes a policy; of all written so, the one that scored best is kept.

        A score that is not finite is none: that policy is not written.
        """
        if math.isfinite(score) and env_steps not in self._best.all_steps():
            args = self._args(env_steps, actor)
            self._best.save(env_steps, args=args, metrics={_SCORE: score})

    def drop_after(self, env_steps: int) -> None:
        """Deletes newer policies: a resume from here saves them again."""
        checkpoint.delete_after(self._newest, env_steps)

    def close(self) -> None:
        """Waits for what is being written."""
        self._newest.close()
        self._best.close()

    def _args(self, env_steps: int, actor: Actor) -> ocp.args.Composite:
        return ocp.args.Composite(
            actor=ocp.args.PyTreeSave(checkpoint.named_leaves(actor)),
            about=ocp.args.JsonSave(self._about | {"env_steps": env_steps}),
        )


def load(folder: Path) -> SavedPolicy:
    """Reads the newest policy in a folder of them, or the one that `folder` is.

    Raises:
        ValueError: where none can be read.
    """
    folder = folder.absolute()
    chosen = int(folder.name) if folder.name.isdigit() else None
    root = folder if chosen is None else folder.parent
    if not root.is_dir():
        raise ValueError(f"{root}: there is no saved policy (no such folder)")
    with ocp.CheckpointManager(root, item_handlers=_handlers()) as manager:
        steps = sorted(manager.all_steps(), reverse=True)
        _, saved, problems = checkpoint.read_first(
            steps if chosen is None else [chosen],
            lambda step: _load_step(manager, step),
            f"{folder}: there is no policy that can be read",
        )
    return dataclasses.replace(saved, unreadable=problems)


def locate(path: Path) -> Path:
    """The folder of policies, or the one policy, that a user's path means.

    Args:
        path: a run folder, its `policy` or `best`, or one step in them.

    Raises:
        ValueError: where the path is none of these.
    """
    path = path.absolute()
    step = path.parent if path.name.isdigit() else path
    if step.name in (NEWEST, BEST) and step.is_dir():
        return path
    if (path / NEWEST).is_dir():
        return path / NEWEST
    seeds = sorted(path.glob(f"seed*/{NEWEST}"))
    if seeds:
        raise ValueError(
            f"--checkpoint {path}: it holds a run of several seeds; name one of them, "
            f"such as {seeds[0].parent}"
        )
    raise ValueError(
        f"--checkpoint {path}: there is no saved policy; give a run folder, its "
        f"policy/ or best/, or one step in them"
    )


def _load_step(manager: ocp.CheckpointManager, step: int) -> SavedPolicy:
    about = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
    about = about["about"]
    config = run_folder.config_of(about["config"], f"the policy of step {step}")
    sizes = about["observation_size"], about["action_size"]
    agent = agents.make(config, *sizes)

    def fresh():
        statistics = normalize.init(sizes[0]) if config.normalize_observations else None
        return agent.average_actor(agent.init(jax.random.key(0)), statistics)

    like = jax.eval_shape(fresh)
    wanted = checkpoint.named_leaves(like)
    metadata = manager.item_metadata(step)
    if told := checkpoint.differences(metadata["actor"].tree, wanted):
        raise ValueError(f"its arrays are not those of its settings: {told[0]}")
    args = ocp.args.PyTreeRestore(
        wanted, ocp.checkpoint_utils.construct_restore_args(wanted)
    )
    arrays = manager.restore(step, args=ocp.args.Composite(actor=args))["actor"]
    actor = checkpoint.fill(like, arrays)
    return SavedPolicy(config, agent.policy, actor, about["env_steps"], [])


def _handlers() -> dict[str, Any]:
    return {
        "actor": ocp.PyTreeCheckpointHandler(use_ocdbt=False),
        "about": ocp.JsonCheckpointHandler(),
    }
