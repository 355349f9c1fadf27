"""Exports a policy, and holds the file against the live policy before it is kept."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from iqmjx import acting, envs
from iqmjx.envs import Task, vector
from iqmjx.errors import RunError
from iqmjx.export.formats import FORMATS, Acting
from iqmjx.run import run_folder
from iqmjx.run.trained_policy import TrainedPolicy

NEAR = 1e-3
"""Entries of actions differ where they are further apart than this share of half their
range: float32 sums in another order are a thousandth of it."""
TOLERANCE = 2e-3
"""The share of entries that may differ. Where two bins are all but equal, or a sum in
another order rounds to another bfloat16, a right export may choose otherwise."""
_RANDOM, _WORLDS, _STEPS = 1000, 8, 200


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far an exported policy is from the live one.

    Attributes:
        observations: on how many they were compared.
        share: of the actions' entries, those that differ by more than NEAR.
        largest: difference of an entry, as a share of half its range.
    """

    observations: int
    share: float
    largest: float


def export(policy: TrainedPolicy, format: str, path: Path) -> Difference:
    """Writes a policy to a file, and what belongs beside it.

    The folder is made where there is none; files of the same names are replaced.

    Args:
        policy: the policy, whose mode is exported.
        format: a name in FORMATS.
        path: the file; it ends as the format's do.

    Returns:
        What its check found.

    Raises:
        UsageError: where the policy cannot be written so, or a package is missing.
        RunError: where the file does not act as the policy does; none is left then.
    """
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / path.name
        FORMATS[format].write(policy, draft)
        found = compare(policy, FORMATS[format].read(draft))
        if not found.share <= TOLERANCE:
            raise RunError(
                f"the exported policy is not the trained one, and is not kept: "
                f"{found.share:.2%} of its actions' entries differ by more than {NEAR} "
                f"of half their range, one by {found.largest:.3g} "
                f"(at most {TOLERANCE:.2%} may differ)"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in Path(folder).iterdir():
            run_folder.write_whole(path.parent / file.name, file.read_bytes())
    return found


def compare(policy: TrainedPolicy, exported: Acting) -> Difference:
    """Compares an exported policy with the live one, on random and on played rows."""
    # On a CPU, where products of float32 have the precision of float32.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        obs = np.concatenate([_random(policy), _played(policy)])
        live, found = policy(obs), np.asarray(exported(obs))
    apart = np.abs(found - live) / policy.scale
    return Difference(
        observations=len(obs),
        share=float(np.mean(~(apart <= NEAR))),
        largest=float(apart.max()),
    )


def _random(policy: TrainedPolicy) -> Float[np.ndarray, "B O"]:
    """Normal observations, of twice the deviation that training saw."""
    rows = np.random.default_rng(0).normal(size=(_RANDOM, policy.observation_size))
    if statistics := policy.saved.actor.normalizer:
        deviation = 2 * np.sqrt(np.asarray(statistics.variance))
        rows = np.asarray(statistics.mean) + deviation * rows
    return rows.astype(np.float32)


def _played(policy: TrainedPolicy) -> Float[np.ndarray, "B O"]:
    """What the policy sees as it plays its task."""
    engine = "auto" if envs.task_class(policy.env) is None else "native"
    env = envs.make(policy.env, engine, _WORLDS)
    obs = _rollout(env, policy)
    return np.asarray(obs).reshape(-1, policy.observation_size)


def _rollout(env: Task, policy: TrainedPolicy) -> Float[jax.Array, "T N O"]:
    """Observations of some worlds that the policy's mode controls."""
    acts, actor = policy.saved.policy, policy.saved.actor
    limit = policy.config.episode_length

    @jax.jit
    def play(actor, key):
        bank_key, init_key, step_key = jax.random.split(key, 3)
        bank = vector.make_bank(env, bank_key, _WORLDS)

        def step(worlds, key):
            control = acts.control(acting.act_greedily(acts, actor, worlds.obs))
            after, _ = vector.step(env, worlds, control, bank, key, limit)
            return after, worlds.obs

        worlds = vector.init(env, init_key, _WORLDS, limit)
        return jax.lax.scan(step, worlds, jax.random.split(step_key, _STEPS))[1]

    return play(actor, jax.random.key(0))
