"""The largest speeds and positions that worlds really reach, which bounds must clear.

    python launch/largest_speeds.py --envs humanoid,pen
    python launch/largest_speeds.py --policy RUN/policy

Steps worlds on MuJoCo C through whole episodes, on after a fall, under controls that
are uniform, at the limits, or at limits held for a while; or under a saved policy, its
mode and its samples. Prints one JSON object for each: the largest |qvel| and |qpos|
after any control step.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from iqmjx import acting, command_line, envs, strict_json
from iqmjx.commands import cli
from iqmjx.run import saved_policy

FLAGS = flags.FlagValues()
_ENVS = flags.DEFINE_list(
    "envs", list(envs.REGISTRY), "Tasks, under random controls.", flag_values=FLAGS
)
_POLICY = command_line.path(FLAGS, "policy", None, "A saved policy to play instead.")
_WORLDS = command_line.integer(FLAGS, "worlds", 64, "Worlds.")
_HELD = 10  # control steps


def main() -> None:
    """Runs the command."""
    if _POLICY.value:
        with cli.user_errors(), cli.of_flag("policy"):
            saved = saved_policy.load(saved_policy.locate(Path(_POLICY.value)))
        policy, actor = saved.policy, saved.actor

        def mode(obs, _step, _key):
            return policy.control(acting.act_greedily(policy, actor, obs))

        def sampled(obs, _step, key):
            return policy.control(acting.act(policy, actor, obs, key))

        _report(saved.config.env, {"mode": mode, "sampled": sampled})
        return
    for name in _ENVS.value:
        task = envs.make(name, "native", _WORLDS.value)
        shape = (_WORLDS.value, task.action_size)

        def uniform(_obs, _step, key, shape=shape):
            return jax.random.uniform(key, shape, minval=-1.0)

        def at_limits(_obs, _step, key, shape=shape):
            return jax.random.rademacher(key, shape, jnp.float32)

        def held(_obs, step, _key, shape=shape):
            key = jax.random.key(step // _HELD)
            return jax.random.rademacher(key, shape, jnp.float32)

        _report(name, {"uniform": uniform, "at limits": at_limits, "held": held})


def _report(name: str, choices: dict) -> None:
    env = envs.make(name, "native", _WORLDS.value)
    starts = jax.random.split(jax.random.key(0), _WORLDS.value)
    for kind, choose in choices.items():

        def step(worlds, step, choose=choose):
            control = choose(worlds.obs, step, jax.random.key(step))
            worlds = jax.vmap(env.step)(worlds, control)
            state = worlds.pipeline_state
            return worlds, (jnp.abs(state.qvel).max(), jnp.abs(state.qpos).max())

        worlds, steps = jax.vmap(env.reset)(starts), jnp.arange(env.episode_length)
        play = jax.jit(jax.lax.scan, static_argnums=0)
        _, (speed, position) = play(step, worlds, steps)
        row = {"env": name, "controls": kind, "worlds": _WORLDS.value}
        row |= {"qvel": float(speed.max()), "qpos": float(position.max())}
        print(strict_json.dumps(row), flush=True)


if __name__ == "__main__":
    cli.run(sys.modules[__name__], sys.argv[1:])
