"""Everything that a GPU run's speed depends on, measured stage by stage.

    python launch/gpu_check.py --out launch/results/gpu
    python launch/gpu_check.py --scale smoke --out /tmp/check    # tiny, on any machine

Each stage is a process of its own, with the device to itself, and writes OUT/STAGE.json
row by row; one that is there already, whole, is not run again: the same command goes on
where it stopped, and `--stages run,training` runs some alone. OUT/summary.md tabulates
what there is. The stages:

- ceilings   bandwidth of a copy, and rates of matrix products by precision
- warp, mjx, native
             an engine: one control step against MuJoCo C, then env steps/s by worlds,
             for warp beside what MuJoCo Warp does of the same steps without JAX
- updates    updates/s by batch and, at the preset's, by precision, with activations in
             bfloat16, with XLA's command buffers, and with one flat vector of
             parameters in the optimizer
- replay     inserts and samples of a full ring, and what the compiled chunk copies
- training   the whole step by iqmjx.run.throughput, and its costliest operations
- run        a run with learning, its curve, and its score in MuJoCo C
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from iqmjx import envs, loop, presets, replay
from iqmjx.commands import cli
from iqmjx.config import Config
from iqmjx.run import memory, metrics, throughput

_SCALE = flags.DEFINE_enum("scale", "full", ["full", "smoke"], "How large.")
_OUT = flags.DEFINE_string("out", "launch/results/gpu", "Where results go.")
_STAGES = flags.DEFINE_list("stages", None, "Stages to run; all by default.")
_ENV = flags.DEFINE_string("env", "humanoid", "Task.")


@dataclasses.dataclass(frozen=True)
class Scale:
    """The sizes of every stage."""

    copy_bytes: int
    matrix: int
    worlds: dict[str, tuple[int, ...]]  # by engine
    vector_steps: int  # in one timed call
    batches: tuple[int, ...]
    updates: int  # in one timed call
    rounds: int
    settings: dict[str, Any]  # of training and run, over the preset


SCALES = {
    "full": Scale(
        copy_bytes=2**30,
        matrix=8192,
        worlds={"warp": (1024, 4096, 16384), "mjx": (4096,), "native": (4096,)},
        vector_steps=16,
        batches=(256, 1024, 8192, 32768),
        updates=32,
        rounds=3,
        settings={"num_evals": 7, "num_checkpoints": 1},
    ),
    "smoke": Scale(
        copy_bytes=2**22,
        matrix=128,
        worlds={"warp": (4, 8), "mjx": (4,), "native": (4, 8)},
        vector_steps=2,
        batches=(32, 64),
        updates=2,
        rounds=1,
        settings={
            "num_envs": 8,
            "chunk_steps": 8,
            "batch_size": 32,
            "grad_updates_per_step": 2,
            "min_replay_size": 64,
            "exploration_steps": 64,
            "max_replay_size": 1024,
            "hidden_sizes": (32, 32),
            "num_timesteps": 512,
            "num_evals": 2,
            "num_eval_envs": 2,
            "num_checkpoints": 1,
            "episode_length": 50,
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """How updates are compiled."""

    precision: str  # of matrix products, a name in _PRECISIONS
    half: bool = False  # networks and their activations in bfloat16
    flat: bool = False  # the optimizer sees one vector of all parameters
    graph: bool = False  # the loop of updates as one CUDA graph


_PRECISIONS = {"fp32": "highest", "tf32": "tensorfloat32", "bf16": "bfloat16"}
_COMMAND_BUFFERS = {
    "xla_gpu_enable_command_buffer": "+WHILE",
    "xla_gpu_graph_min_graph_size": 1,
}
_CHECKED_WORLDS = 32
_TOLERANCE = 1e-3
"""Largest difference in qpos, of any world, that a step from MuJoCo C's may have."""
_TOP = 15
Results = Iterator[dict[str, Any]]
"""A stage's result again and again as it grows, whole at last."""


def ceilings(scale: Scale) -> Results:
    """Bytes/s of a copy and FLOP/s of matrix products: what nothing here can exceed."""
    array = jax.random.normal(jax.random.key(0), (scale.copy_bytes // 4,))
    seconds = _seconds(jax.jit(lambda x: x + 1), array, rounds=scale.rounds)
    result: dict[str, Any] = {
        "machine": throughput.machine(),
        "driver": _driver(),
        "copy_bytes_per_second": 2 * scale.copy_bytes / seconds,
    }
    size = scale.matrix
    for name, precision in _PRECISIONS.items():
        dtype = jnp.bfloat16 if name == "bf16" else jnp.float32
        matrix = jax.random.normal(jax.random.key(1), (size, size), dtype)
        product = jax.jit(functools.partial(jnp.matmul, precision=precision))
        seconds = _seconds(product, matrix, matrix, rounds=scale.rounds)
        result[f"{name}_flops_per_second"] = 2 * size**3 / seconds
        yield result


def physics(engine: str, scale: Scale) -> Results:
    """An engine against MuJoCo C, and its rate by the number of worlds."""
    if engine == "mjx":
        cli.give_mjx_threads()
    try:
        envs.make(_ENV.value, engine)
    except ValueError as error:  # mjx does not know every collision
        yield {"refused": str(error)}
        return
    result: dict[str, Any] = {"rates": []}
    if engine != "native":
        result["largest_qpos_error"] = _step_error(engine)
    for count in scale.worlds[engine]:
        config = _config(scale, physics=engine, num_envs=count)
        config = dataclasses.replace(config, chunk_steps=scale.vector_steps)
        setup = loop.make_setup(config)
        start = time.perf_counter()
        state = _begin(setup)
        controls = throughput.random_controls(setup, jax.random.key(1))
        stepping = functools.partial(
            throughput.stepping(setup), state.envs, controls, jax.random.key(2)
        )
        worlds, (overflowed, diverged) = jax.block_until_ready(stepping())
        compiling, captured = time.perf_counter() - start, _captured_graphs()
        seconds = _seconds(stepping, rounds=scale.rounds)
        env_steps = count * scale.vector_steps
        row = {
            "worlds": count,
            "env_steps_per_second": env_steps / seconds,
            "seconds_to_first": compiling,
            "graphs_captured_again": _captured_graphs() - captured,
            "worlds_overflowed": int(overflowed.sum()),
            "worlds_diverged": int(diverged.sum()),
        }
        if engine == "warp":
            alone = _without_jax(setup, state, controls)
            gaps = np.abs(alone() - np.asarray(worlds.physics.qpos)).max(-1)
            unbroken = np.asarray(worlds.length) == scale.vector_steps
            seconds = _seconds(alone, rounds=scale.rounds)
            row["without_jax_env_steps_per_second"] = env_steps / seconds
            row["without_jax_median_qpos_gap"] = float(np.median(gaps[unbroken]))
        result["rates"].append(row)
        yield result


def updates(scale: Scale) -> Results:
    """Updates per second: by batch, and at the preset's the levers one by one."""
    preset = _config(scale).batch_size
    cases = [(batch, Variant("tf32")) for batch in scale.batches]
    levers = [
        Variant("fp32"),
        Variant("bf16"),
        Variant("bf16", half=True),
        Variant("tf32", flat=True),
    ]
    if jax.default_backend() == "gpu":
        levers += [
            Variant("tf32", graph=True),
            Variant("tf32", flat=True, graph=True),
            Variant("bf16", half=True, flat=True, graph=True),
        ]
    rows = []
    for batch, variant in cases + [(preset, lever) for lever in levers]:
        seconds = _update_seconds(scale, batch, variant)
        rows.append(
            {"batch": batch}
            | dataclasses.asdict(variant)
            | {
                "updates_per_second": scale.updates / seconds,
                "samples_per_second": scale.updates * batch / seconds,
            }
        )
        yield {"rates": rows}


def ring(scale: Scale) -> Results:
    """Seconds for an insert and a sample of a vector step; ring-sized copies: none."""
    setup = loop.make_setup(_config(scale))
    config = setup.config
    state = _begin(setup)
    compiled = loop.train_chunk.lower(setup, state).compile()
    rows_per_copy = f"[{config.max_replay_size},"
    copies = [
        line.strip()[:200]
        for line in (compiled.as_text() or "").splitlines()
        if re.search(r" copy(-start)?\(", line) and rows_per_copy in line
    ]
    count = config.grad_updates_per_step * config.batch_size
    full = dataclasses.replace(
        state.replay, size=jnp.asarray(config.max_replay_size, jnp.int32)
    )
    sample = jax.jit(replay.sample, static_argnums=2)
    seconds = _seconds(sample, full, jax.random.key(0), count, rounds=scale.rounds)
    new = jax.tree.map(lambda leaf: leaf[: config.num_envs], full.data)
    insert = jax.jit(replay.add, donate_argnums=0)

    def inserts(repeats: int) -> float:
        nonlocal full
        start = time.perf_counter()
        for _ in range(repeats):
            full = insert(full, new)
        jax.block_until_ready(full)
        return (time.perf_counter() - start) / repeats

    inserts(2)
    analysis = compiled.memory_analysis()
    yield {
        "ring_bytes": memory.tree_bytes(full),
        "rows_inserted": config.num_envs,
        "insert_seconds": min(inserts(8) for _ in range(scale.rounds)),
        "rows_sampled": count,
        "sample_seconds": seconds,
        "ring_copies_in_the_chunk": copies,
        "chunk_temporary_bytes": getattr(analysis, "temp_size_in_bytes", None),
    }


def training(scale: Scale) -> Results:
    """The whole step, its parts, and where a chunk's time goes by a profile."""
    with tempfile.TemporaryDirectory() as folder:
        result = throughput.measure(_config(scale), scale.rounds, folder)
        yield result | {"costliest": _costliest(folder)}


def run(scale: Scale) -> Results:
    """Trains, and scores the end in MuJoCo C; goes on with a run that was stopped."""
    folder = Path(_OUT.value) / "run"
    train = [sys.executable, "-m", "iqmjx.train", "--logdir", str(folder)]
    if (folder / "config.json").exists():
        train.append("--resume")
    else:
        train += ["--env", _ENV.value, "--preset", "gpu"]
        for name, value in scale.settings.items():
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            train += [f"--{name}", str(text)]
    start = time.perf_counter()
    finished = subprocess.run(train).returncode == 0
    rows = metrics.read(folder)
    result = {
        "command": " ".join(["python", *train[1:]]),
        "seconds": time.perf_counter() - start,
        "curve": [row for row in rows if "eval/episode_reward" in row],
        "last": rows[-1],
    }
    yield result
    if not finished:
        raise RuntimeError(f"{folder}: the run failed after {rows[-1]['env_steps']}")
    evaluate = [sys.executable, "-m", "iqmjx.evaluate", "--checkpoint", str(folder)]
    evaluate += ["--sim", "native", "--json"]
    played = subprocess.run(evaluate, check=True, stdout=subprocess.PIPE, text=True)
    yield result | {"score": json.loads(played.stdout)}


STAGES: dict[str, Callable[[Scale], Results]] = {
    "ceilings": ceilings,
    "run": run,
    "training": training,
    "warp": functools.partial(physics, "warp"),
    "updates": updates,
    "replay": ring,
    "native": functools.partial(physics, "native"),
    "mjx": functools.partial(physics, "mjx"),
}


def main() -> None:
    """Runs the command."""
    with cli.user_errors():
        envs.resolve(_ENV.value)
        chosen = _STAGES.value or list(STAGES)
        for name in chosen:
            if name not in STAGES:
                raise ValueError(f"--stages {name}: choose from {', '.join(STAGES)}")
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    missing = [name for name in chosen if not _whole(out / f"{name}.json")]
    for name in sorted(set(chosen) - set(missing)):
        print(f"{out / name}.json: there already")
    if len(missing) == 1:
        _measure(missing[0], out)
        return
    failed = []
    for name in missing:
        alone = [sys.executable, *sys.argv, f"--stages={name}"]
        failed += [name] if subprocess.run(alone).returncode else []
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the same command runs them again")


def _whole(path: Path) -> bool:
    return path.exists() and json.loads(path.read_text())["whole"]


def _measure(name: str, out: Path) -> None:
    """Runs a stage in this process, and writes what there is of it at every row."""
    print(f"{name} ...", flush=True)
    path, start = out / f"{name}.json", time.perf_counter()

    def write(result: dict[str, Any], whole: bool) -> None:
        seconds = time.perf_counter() - start
        about = {"stage_seconds": seconds, "scale": _SCALE.value, "whole": whole}
        path.write_text(json.dumps(result | about, indent=1) + "\n")
        (out / "summary.md").write_text(summary(out))
        print(f"{path}: {seconds:.0f} s", flush=True)

    result = {}
    for result in STAGES[name](SCALES[_SCALE.value]):
        write(result, whole=False)
    write(result, whole=True)


def summary(out: Path) -> str:
    """What the stages so far measured, in Markdown."""
    found = {
        name: json.loads((out / f"{name}.json").read_text())
        for name in STAGES
        if (out / f"{name}.json").exists()
    }
    lines = ["# GPU check", ""]
    for name, result in found.items():
        lines += [f"## {name}", ""]
        tables = {key: value for key, value in result.items() if _is_table(value)}
        for key, value in result.items():
            if key not in tables and not isinstance(value, dict):
                lines.append(f"- {key.replace('_', ' ')}: {_cell(value)}")
            elif isinstance(value, dict):
                said = ", ".join(f"{k} {_cell(v)}" for k, v in value.items())
                lines.append(f"- {key.replace('_', ' ')}: {said}")
        for rows in tables.values():
            columns = list(dict.fromkeys(column for row in rows for column in row))
            lines += [
                "",
                "| " + " | ".join(columns) + " |",
                "|---" * len(columns) + "|",
            ]
            for row in rows:
                cells = [_cell(row.get(column)) for column in columns]
                lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _cell(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _config(scale: Scale, **changes: Any) -> Config:
    given = {"env": _ENV.value} | scale.settings | changes
    if "num_envs" in changes:  # a ring of whole inserts
        rows = presets.resolve(scale.settings, "gpu").config.max_replay_size
        given["max_replay_size"] = rows // changes["num_envs"] * changes["num_envs"]
    return presets.resolve(given, "gpu").config


def _begin(setup: loop.Setup) -> loop.TrainState:
    return loop.init(setup, jax.random.key(0))


def _seconds(call: Callable[..., Any], *arguments: Any, rounds: int) -> float:
    """Least time of a call that has been compiled."""
    jax.block_until_ready(call(*arguments))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


def _step_error(engine: str) -> float:
    """Largest |qpos - MuJoCo C's| after one control step from the same states.

    Raises:
        RuntimeError: where it is above _TOLERANCE; its rate would mean nothing.
    """
    after = []
    for name in ("native", engine):
        env = envs.make(_ENV.value, name, _CHECKED_WORLDS)
        keys = jax.random.split(jax.random.key(0), _CHECKED_WORLDS)
        worlds = jax.jit(jax.vmap(env.reset))(keys)
        control = jax.random.uniform(
            jax.random.key(1), (_CHECKED_WORLDS, env.action_size), minval=-1.0
        )
        after.append(jax.jit(jax.vmap(env.step))(worlds, control).pipeline_state.qpos)
    error = float(jnp.abs(after[0] - after[1]).max())
    if not error <= _TOLERANCE:
        raise RuntimeError(f"{engine}: a step differs from MuJoCo C's by {error:.1e}")
    return error


def _without_jax(
    setup: loop.Setup, state: loop.TrainState, controls: jax.Array
) -> Callable[[], np.ndarray]:
    """A call of MuJoCo Warp that takes a chunk's steps, as a CUDA graph on a GPU.

    From the same worlds under the same controls [T, N, A]; without resets, observations
    and rewards. What the `warp` engine takes longer is what JAX and MJX add. The call
    returns qpos [N, nq], with which the engine's must agree.
    """
    import warp
    from mujoco.mjx.third_party import mujoco_warp

    env, count = setup.env, setup.config.num_envs
    on_gpu = jax.default_backend() == "gpu"
    warp.set_device("cuda:0" if on_gpu else "cpu")
    model = mujoco_warp.put_model(env.physics.model)
    data = mujoco_warp.make_data(
        env.physics.model,
        nworld=count,
        naconmax=env.contacts_per_world * count,
        njmax=env.constraints_per_world,
    )
    ctrls = [warp.array(np.asarray(env.ctrl(row)), dtype=float) for row in controls]
    worlds = state.envs.physics
    begin = [
        (data.qpos, warp.array(np.asarray(worlds.qpos), dtype=float)),
        (data.qvel, warp.array(np.asarray(worlds.qvel), dtype=float)),
        (data.qacc_warmstart, warp.zeros_like(data.qacc_warmstart)),
    ]

    def control_step():
        for substep in range(env.frame_skip):
            last = substep == env.frame_skip - 1
            model.opt.run_rne_postconstraint = last and "cfrc_ext" in env.fields
            mujoco_warp.step(model, data)

    step = control_step
    if on_gpu:
        control_step()  # loads its kernels
        warp.capture_begin()
        control_step()
        step = functools.partial(warp.capture_launch, warp.capture_end())

    def call():
        for array, value in begin:
            warp.copy(array, value)
        for ctrl in ctrls:
            warp.copy(data.ctrl, ctrl)
            step()
        return data.qpos.numpy()  # waits for it

    return call


def _captured_graphs() -> int:
    """CUDA graphs that Warp has captured so far for calls from JAX."""
    from warp._src.jax import ffi

    callables = getattr(ffi, "_FFI_CALLABLE_REGISTRY", {})
    return sum(len(callable.captures) for callable in callables.values())


@dataclasses.dataclass(frozen=True)
class _Half:
    """A network that computes in bfloat16; its parameters and outputs are float32."""

    network: Any

    def init(self, key: jax.Array, x: jax.Array) -> Any:
        return self.network.init(key, x)

    def apply(self, params: Any, x: jax.Array) -> jax.Array:
        params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, x))
        return self.network.apply(params, x).astype(jnp.float32)


def _update_seconds(scale: Scale, batch: int, variant: Variant) -> float:
    config = _config(
        scale, batch_size=batch, grad_updates_per_step=scale.updates, physics="native"
    )
    config = dataclasses.replace(config, chunk_steps=1)
    setup = loop.make_setup(config)
    agent: Any = setup.agent
    if variant.half:
        policy = agent.policy
        agent = dataclasses.replace(
            agent,
            policy=dataclasses.replace(policy, network=_Half(policy.network)),
            value_network=_Half(agent.value_network),
        )
    if variant.flat:
        agent = dataclasses.replace(agent, optimizer=optax.flatten(agent.optimizer))
    setup = dataclasses.replace(setup, agent=agent)
    state = _begin(setup)
    options = _COMMAND_BUFFERS if variant.graph else None
    with jax.default_matmul_precision(_PRECISIONS[variant.precision]):
        call = throughput.updating(setup, state, options)
        return _seconds(call, rounds=scale.rounds)


def _costliest(folder: str) -> list[dict[str, Any]]:
    """Operations of a profile by their total time, the costliest first."""
    paths = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
    profile: Any = jax.profiler.ProfileData.from_file(paths[0])
    total: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    planes = list(profile.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in devices or planes:
        for line in plane.lines:
            if not devices and "XLA" not in line.name and "Eigen" not in line.name:
                continue  # of Python's threads
            for event in line.events:
                name = re.sub(r"[.\d]+$", "", event.name)
                total[name] += event.duration_ns / 1e9
                calls[name] += 1
    return [
        {"operation": name[:80], "seconds": seconds, "calls": calls[name]}
        for name, seconds in total.most_common(_TOP)
    ]


def _driver() -> str | None:
    """NVIDIA's driver version and the card, where there is one."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm"
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    cli.run(main)
