"""Tasks from outside: your own classes, brax's tasks and MuJoCo Playground's.

`module:Class` names a class (or a function that makes a task) in a module that can be
imported, from the working directory too. `brax:ant` and `playground:CheetahRun` name
tasks of these packages. A class that is no `Env` needs brax's interface, as brax's and
Playground's tasks have it, and is worn by `Outside`:

- `reset(key) -> state` and `step(state, control) -> state` of one world, for a raw key
  (`jax.random.PRNGKey`) and a control in [-1, 1], and `action_size`;
- a state with `obs`, `reward`, `done`, `metrics` and `info`. What else is in it is the
  task's own. Of a dict of observations, `state` is what the agent sees.

Of `info`, `truncation` and `faults` have a meaning to a run (`iqmjx.envs.base.State`).
What the package or the class says of a time limit (`episode_length`, control steps) and
of termination (`terminates`) is taken over; else they are 1000 and True.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import subprocess
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from iqmjx import registry
from iqmjx.envs.base import Env, State
from iqmjx.envs.physics import (
    FAULT_CONSTRAINTS,
    FAULT_CONTACTS,
    quiet_compilation,
)
from iqmjx.errors import UsageError

EPISODE_LENGTH = 1000
"""Control steps, where a task does not say."""
_BRAX_NEVER_ENDS = ("halfcheetah", "humanoidstandup", "pusher", "reacher", "swimmer")
_SOME_WORLDS = 7
_OVERFLOW = "._impl.overflow"  # of an mjx.Data made for MJX-Warp, bits by world
_DROPPED = 0x1F  # those that say that contacts or constraints were dropped


@dataclasses.dataclass(frozen=True)
class OwnEngine:
    """The engine that a task brings along."""

    name: str

    def scratch_bytes(self, num_worlds: int) -> int:
        """0: all that a world needs is in its state, as far as is known."""
        del num_worlds
        return 0


class Outside:
    """A task with brax's interface, as a run asks for one (`iqmjx.envs.base.Task`).

    Its own state rides in `pipeline_state`, as a tuple of those leaves that a step
    needs. Empty ones are left out, and so are those of MJX-Warp that belong to all
    worlds together (contacts, which each step finds anew) and its flags of what
    overflowed, which a step only adds to.
    """

    gymnasium_id = None

    def __init__(
        self,
        env: Any,
        name: str,
        *,
        engine: str = "own",
        terminates: bool = True,
        episode_length: int = EPISODE_LENGTH,
        frame_skip: int | None = None,
    ):
        """Wears a task.

        Args:
            env: the task.
            name: what to call it.
            engine: what to call the physics under it.
            terminates: False where every episode lasts until the time limit.
            episode_length: its time limit, control steps.
            frame_skip: physics steps per control step, where known.

        Raises:
            UsageError: where the task has not brax's interface, or a step changes the
                structure of its state or the shapes in it.
        """
        for attribute in ("reset", "step", "action_size"):
            if not hasattr(env, attribute):
                raise UsageError(f"it is no task: it has no {attribute}")
        self._env = env
        self.name, self.physics = name, OwnEngine(engine)
        self.terminates, self.episode_length = terminates, episode_length
        self.frame_skip = frame_skip
        self.action_size = int(env.action_size)
        self._learn_shapes()
        self.observation_size = self._abstract.obs.shape[-1]

    def reset(self, rng: PRNGKeyArray) -> State:
        return self._worn(self._env.reset(_raw(rng)))

    def step(self, state: State, control: Float[Array, " A"]) -> State:
        given = iter(state.pipeline_state)
        leaves = [
            next(given) if mine else jnp.zeros(shape.shape, shape.dtype)
            for mine, shape in zip(self._carried, self._shapes, strict=True)
        ]
        return self._worn(self._env.step(self._tree.unflatten(leaves), control))

    def for_worlds(self, num_worlds: int) -> Outside:
        """This task: what it has room for does not depend on the worlds."""
        return self

    def _learn_shapes(self) -> None:
        """Finds the leaves of the task's state, and those that are carried."""
        key = _raw(jax.random.key(0))
        first = _shapes(self._env.reset, key)
        action = jax.ShapeDtypeStruct((self.action_size,), jnp.float32)
        after = _shapes(self._env.step, first, action)
        self._tree = jax.tree.structure(after)
        if jax.tree.structure(first) != self._tree:
            raise UsageError(
                "step() returns a state of another structure than reset(), such as an "
                "entry of info or metrics that only one of them has"
            )
        paths = [
            jax.tree_util.keystr(path, simple=True, separator=".")
            for path, _ in jax.tree.leaves_with_path(first)
        ]
        self._shapes = jax.tree.leaves(after)
        for path, was, now in zip(
            paths, jax.tree.leaves(first), self._shapes, strict=True
        ):
            if was.shape != now.shape:
                raise UsageError(
                    f"step() changes the shape of {path} from {was.shape} to "
                    f"{now.shape}"
                )
        keys = jnp.broadcast_to(key, (_SOME_WORLDS, *key.shape))
        batched = jax.tree.leaves(_shapes(jax.vmap(self._env.reset), keys))
        self._carried = [
            many.shape == (_SOME_WORLDS, *one.shape)
            and one.size > 0
            and not path.endswith(_OVERFLOW)
            for path, many, one in zip(paths, batched, self._shapes, strict=True)
        ]
        overflow = [i for i, path in enumerate(paths) if path.endswith(_OVERFLOW)]
        self._overflow = overflow[0] if overflow else None
        self._abstract = jax.eval_shape(self.reset, key)

    def _worn(self, theirs: Any) -> State:
        """A state of ours around one of theirs, in the types that a step returns."""
        leaves = self._tree.flatten_up_to(theirs)
        cast = [
            _as_type(leaf, shape.dtype)
            for leaf, shape in zip(leaves, self._shapes, strict=True)
        ]
        theirs = self._tree.unflatten(cast)
        metrics = {
            name: jnp.asarray(value, jnp.float32)
            for name, value in theirs.metrics.items()
            if jnp.ndim(value) == 0
        }
        return State(
            pipeline_state=tuple(
                leaf for mine, leaf in zip(self._carried, cast, strict=True) if mine
            ),
            obs=self._seen(theirs.obs),
            reward=self._number("reward", theirs.reward),
            done=self._number("done", theirs.done),
            metrics=metrics,
            info=self._told(theirs.info, cast),
        )

    def _seen(self, obs: Any) -> Float[Array, " O"]:
        """What the agent sees of an observation."""
        if isinstance(obs, Mapping):
            if "state" not in obs:
                raise UsageError(
                    f"of its observations {', '.join(map(str, obs))}, none is called "
                    f"state, which the agent would see"
                )
            obs = obs["state"]
        return jnp.asarray(obs, jnp.float32).reshape(-1)

    def _number(self, what: str, value: Any) -> Float[Array, ""]:
        if jnp.size(value) != 1:
            raise UsageError(
                f"its {what} has the shape {jnp.shape(value)}, and is to be one number"
            )
        return jnp.asarray(value, jnp.float32).reshape(())

    def _told(self, info: Mapping[str, Any], leaves: list) -> dict[str, jax.Array]:
        """The entries of `info` that have a meaning to a run."""
        told = {}
        if "truncation" in info:
            told["truncation"] = self._number("truncation", info["truncation"])
        faults = []
        if "faults" in info:
            faults.append(self._number("faults", info["faults"]).astype(jnp.int32))
        if self._overflow is not None:
            dropped = leaves[self._overflow] & _DROPPED != 0
            faults.append(jnp.where(dropped, FAULT_CONTACTS | FAULT_CONSTRAINTS, 0))
        if faults:
            told["faults"] = functools.reduce(jnp.bitwise_or, faults).astype(jnp.int32)
        return told


def _raw(key: PRNGKeyArray) -> jax.Array:
    """A key as brax's tasks expect it."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(key) if typed else key


def _shapes(function: Callable, *arguments: Any) -> Any:
    """The shapes that a function returns, of a tree whose leaves may be numbers."""
    return jax.eval_shape(
        lambda *args: jax.tree.map(jnp.asarray, function(*args)), *arguments
    )


def _as_type(leaf: Any, dtype: Any) -> jax.Array:
    """An array of this type that is not weakly typed."""
    if jnp.issubdtype(dtype, jax.dtypes.extended):  # keys
        return leaf
    return jnp.asarray(leaf, dtype)


def resolve(name: str) -> str:
    """Returns the name of a task from outside as `make` takes it.

    Raises:
        UsageError: where there is none such; the message lists close names.
    """
    name = name.strip()
    origin, _, what = name.partition(":")
    if origin not in PACKAGES:
        registry.load(name)
        return name
    known = {each.lower(): each for each in PACKAGES[origin]()}
    if what.lower() not in known:
        raise UsageError(
            f"{origin} has no {what!r}; {registry.close(what, known.values())}"
        )
    return f"{origin}:{known[what.lower()]}"


def episode_length(name: str) -> int:
    """The time limit of a task from outside, control steps.

    Args:
        name: as `resolve` returns it.
    """
    origin, _, what = name.partition(":")
    if origin == "brax":
        return EPISODE_LENGTH  # which brax's own training takes
    if origin == "playground":
        config = _playground().registry.get_default_config(what)
        return int(config.get("episode_length", EPISODE_LENGTH))
    return int(getattr(registry.load(name), "episode_length", EPISODE_LENGTH))


def own_class(name: str) -> type[Env] | None:
    """The class, where `module:Class` is an `Env` that runs on our engines.

    Args:
        name: as `resolve` returns it.
    """
    if name.startswith(("brax:", "playground:")):
        return None
    found = registry.load(name)
    return found if isinstance(found, type) and issubclass(found, Env) else None


def make(name: str) -> Outside:
    """Builds a task that brings its own engine.

    Args:
        name: as `resolve` returns it.

    Raises:
        UsageError: where it has not brax's interface, or what it needs of the network
            could not be had.
    """
    origin, _, what = name.partition(":")
    build = {"brax": _make_brax, "playground": _make_playground}.get(origin)
    if build is not None:
        return build(name, what)
    task = registry.load(name)
    try:
        with contextlib.suppress(ValueError):  # which some of Python's own have none of
            inspect.signature(task).bind()
    except TypeError as error:
        raise UsageError(f"it is no task: called without arguments, {error}") from error
    env = task()
    return Outside(
        env,
        name,
        engine=" ".join(_backend(env)) or "own",
        terminates=bool(getattr(env, "terminates", True)),
        episode_length=episode_length(name),
    )


def _backend(env: Any) -> list[str]:
    """What a task calls its physics, if it does."""
    backend = getattr(env, "backend", None)
    return [backend] if isinstance(backend, str) else []


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Leaves out what other packages warn of while they are imported and built."""
    with quiet_compilation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@functools.cache
def _package(module_name: str, requirement: str) -> Any:
    """A package that not everyone has.

    Raises:
        UsageError: where it is missing; the message says how to install it.
    """
    with _quietly():
        return registry.package(module_name, requirement)


def _brax() -> Any:
    return _package("brax.envs", "brax>=0.14.2")


def _brax_names() -> list[str]:
    return list(_brax()._envs)


def _make_brax(name: str, what: str) -> Outside:
    with _quietly():
        env = _brax().get_environment(what)
        return Outside(
            env,
            name,
            engine=" ".join(["brax", *_backend(env)]),
            terminates=what not in _BRAX_NEVER_ENDS,
            frame_skip=getattr(env, "_n_frames", None),
        )


def _playground() -> Any:
    return _package("mujoco_playground", "playground>=0.2")


def _playground_names() -> list[str]:
    return list(_playground().registry.ALL_ENVS)


def _make_playground(name: str, what: str) -> Outside:
    """On GPUs with the implementation of MJX that the task names, else with `jax`."""
    playground = _playground()
    config = playground.registry.get_default_config(what)
    if "impl" in config and jax.default_backend() != "gpu":
        config.impl = "jax"
    return _wear_playground(name, _load_playground(what, config))


def _wear_playground(name: str, env: Any) -> Outside:
    """A task of Playground that is built."""
    what, impl = name.partition(":")[2], env.mjx_model.impl.value
    if impl == "warp":
        # Overflows are counted; a line printed by each world would flood the terminal.
        quiet = {"opt._impl.warn_overflow": 0}
        env._mjx_model = env.mjx_model.tree_replace(quiet)
    with _quietly():
        return Outside(
            env,
            name,
            engine=f"mjx {impl}",
            # Those of the DeepMind Control Suite end only where a number is not one.
            terminates=what not in _playground().dm_control_suite.ALL_ENVS,
            episode_length=episode_length(name),
            frame_skip=env.n_substeps,
        )


PACKAGES: dict[str, Callable[[], list[str]]] = {
    "brax": _brax_names,
    "playground": _playground_names,
}
"""Packages with tasks, and the names of these; UsageError where one is missing."""


def _load_playground(what: str, config: Any) -> Any:
    """Builds a task of Playground, which may have to fetch the robots' models first."""
    playground = _playground()
    models = importlib.import_module("mujoco_playground._src.mjx_env").MENAGERIE_PATH
    if what not in playground.dm_control_suite.ALL_ENVS and not models.exists():
        print(f"fetching mujoco_menagerie, the robots' models, to {models}")
    said = io.StringIO()
    try:
        with (
            _quietly(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            return playground.registry.load(what, config=config)
    except (subprocess.CalledProcessError, OSError) as error:
        raise UsageError(
            f"the robots' models could not be fetched ({error}): Playground wants a "
            f"copy of mujoco_menagerie in {models}"
        ) from error
