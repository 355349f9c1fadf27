"""Small environments and configs whose right answers are known."""

import dataclasses

import jax
import jax.numpy as jnp

from iqmjx import loop, presets
from iqmjx.config import setting_fields
from iqmjx.envs.base import State
from iqmjx.envs.physics import PhysicsState


class Toy:
    """What every toy environment has; its worlds are made by `state`."""

    def __init__(self, terminates=True):
        self.terminates = terminates
        self.physics = self

    def for_worlds(self, num_worlds):
        return self

    def scratch_bytes(self, num_worlds):
        return 0

    def state(self, obs, reward, done, carry, position=0.0):
        world = PhysicsState(
            qpos=jnp.asarray(position)[None],
            qvel=jnp.zeros(1),
            fields={},
            model_fields={},
            faults=jnp.zeros((), jnp.int32),
            carry=carry,
        )
        info = {"faults": world.faults}
        return State(world, obs, jnp.asarray(reward), done * 1.0, info=info)


class Commanded(Toy):
    """A counter whose next outcome the action commands.

    obs = (position, resets drawn); the position begins at a random value in (0, 1) and
    grows by 1 a step. action[0] > 0.5 terminates; action[1] > 0.5 makes the observation
    NaN. The reward is the new position.
    """

    gymnasium_id = "Commanded"
    observation_size = 2
    action_size = 2

    def reset(self, key):
        start = jax.random.uniform(key)
        return self._state(start, start, jnp.zeros(()), jnp.zeros(()))

    def step(self, state, action):
        start, position = state.pipeline_state.carry, state.pipeline_state.qpos[0] + 1
        position = jnp.where(action[1] > 0.5, jnp.nan, position)
        return self._state(start, position, position, (action[0] > 0.5) * 1.0)

    def _state(self, start, position, reward, done):
        obs = jnp.stack([position, start])
        return self.state(obs, reward, done, start, position)


SMALL = {
    "env": "hopper",
    "physics": "native",
    "num_envs": 8,
    "chunk_steps": 4,
    "batch_size": 16,
    "grad_updates_per_step": 2,
    "min_replay_size": 32,
    "exploration_steps": 0,
    "noise_hold_steps": 3,
    "max_replay_size": 512,
    "normalize_rewards": True,
    "hidden_sizes": (16, 16),
    "compute_dtype": "float32",
    "learning_rate": 3e-4,
    "learning_rate_decay": 0.0,
    "discounting": 0.99,
    "advantage_scale": 0.1,
    "value_scale": 1.0,
    "num_value_networks": 1,
    "num_eval_envs": 2,
    "num_evals": 2,
    "num_timesteps": 8 * 4 * 6,
}
"""Settings of a run that takes a moment: 6 chunks of 32 env steps. What presets tune is
named, so that tuning changes no test."""


def config(**changes):
    """SMALL with changes; of SMALL, an algorithm gets the settings that it has."""
    given = SMALL | changes
    known = setting_fields(given.get("algo", "iq")).keys() | changes.keys()
    given = {name: given[name] for name in given if name in known}
    return presets.resolve(given, "cpu").config


def toy_setup(env, **changes):
    """A Setup around a toy environment."""
    settings = config(**changes)
    return loop.make_setup(settings, env)


def comparable(state):
    """A TrainState whose keys are numbers, which asserts on trees can compare."""
    keys = jax.tree.map(jax.random.key_data, (state.key, state.noise))
    return dataclasses.replace(state, key=keys[0], noise=keys[1])
