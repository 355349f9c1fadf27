"""How fast one trainer trains, as `launch/compare_peers.py` asks for it.

    python launch/peer_rates.py sbx '{"env": "hopper", "num_timesteps": 40000, ...}'

Prints one JSON object: env steps per second of wall-clock time from when all is
compiled and learning is under way to the end of training, without evaluations. Each
function takes settings by iqmjx's names, and gives its trainer those of the same
meaning.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

Settings = dict[str, Any]
_SAME = (
    "num_timesteps",
    "num_envs",
    "batch_size",
    "grad_updates_per_step",
    "min_replay_size",
    "max_replay_size",
    "seed",
)
"""Settings that iqmjx and brax's SAC name alike."""


def iqmjx(settings: Settings) -> float:
    """`iqmjx.train` with the cpu preset."""
    import iqmjx

    with tempfile.TemporaryDirectory() as folder:
        given = {name: settings[name] for name in ("env", "algo", *_SAME)}
        run = f"{folder}/run"
        iqmjx.train(**given, preset="cpu", num_evals=1, logdir=run, progress=False)
        with open(f"{run}/metrics.jsonl") as file:
            rows = [json.loads(line) for line in file]
    times = [
        (row["env_steps"], row["training/walltime"])
        for row in rows
        if row.get("training/updates")
    ]
    return _rate(times[0], times[-1])


def sbx(settings: Settings) -> float:
    """SAC of sbx (JAX) on Gymnasium's environments, one after another in a process."""
    import sbx  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common import (  # pyright: ignore[reportMissingImports]
        callbacks,
    )

    seen: list[tuple[int, float]] = []

    class Clock(callbacks.BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps > 2 * settings["min_replay_size"]:
                seen.append((self.num_timesteps, time.perf_counter()))
            return True

    sbx_model(sbx, settings).learn(settings["num_timesteps"], callback=Clock())
    return _rate(seen[0], seen[-1])


def sbx_model(sbx: Any, settings: Settings, learning_rate: float = 3e-4) -> Any:
    """An sbx.SAC on the environment `gymnasium_id`."""
    from stable_baselines3.common import (  # pyright: ignore[reportMissingImports]
        env_util,
    )

    return sbx.SAC(
        "MlpPolicy",
        env_util.make_vec_env(
            settings["gymnasium_id"],
            n_envs=settings["num_envs"],
            seed=settings["seed"],
        ),
        learning_rate=learning_rate,
        buffer_size=settings["max_replay_size"],
        learning_starts=settings["min_replay_size"],
        batch_size=settings["batch_size"],
        gradient_steps=settings["grad_updates_per_step"],
        policy_kwargs={"net_arch": [256, 256]},
        seed=settings["seed"],
    )


def brax(settings: Settings) -> float:
    """SAC of brax on its own task, or on one of MuJoCo Playground."""
    from brax.training.agents.sac import networks, train

    source, _, name = settings["env"].partition(":")
    more: dict[str, Any] = {}
    if source == "brax":
        from brax import envs as brax_envs

        env = brax_envs.get_environment(name)
    else:
        import mujoco_playground  # pyright: ignore[reportMissingImports]

        env = mujoco_playground.registry.load(name)
        more["wrap_env_fn"] = mujoco_playground.wrapper.wrap_for_brax_training
    rates: list[float] = []
    train.train(
        env,
        episode_length=1000,
        num_evals=3,  # the last part compiles nothing
        num_eval_envs=1,
        network_factory=lambda *sizes, **options: networks.make_sac_networks(
            *sizes, **options, hidden_layer_sizes=(256, 256)
        ),
        progress_fn=lambda _, told: rates.append(float(told.get("training/sps", 0))),
        **{name: settings[name] for name in _SAME},
        **more,
    )
    return rates[-1]


def _rate(first: tuple[int, float], last: tuple[int, float]) -> float:
    """Env steps per second between two readings of (env steps, seconds)."""
    return (last[0] - first[0]) / (last[1] - first[1])


TRAINERS = {"iqmjx": iqmjx, "sbx": sbx, "brax": brax}


if __name__ == "__main__":
    rate = TRAINERS[sys.argv[1]](json.loads(sys.argv[2]))
    print(json.dumps({"env_steps_per_second": rate}))
