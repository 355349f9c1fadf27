"""Seeds, shards and devices: how a run is divided.

A run is S independent agents (`num_seeds`). The worlds, the replay ring and the batches
of each are divided into G equal shards (`num_shards`): a shard steps its N/G worlds
into its own ring of C/G rows, and gives B/G rows to each batch. So arrays begin with

    learner, normalizer, keys   [S, ...]
    worlds, replay              [S, G, ...]

The training step is written for one shard of one seed. `Layout.over_all` runs it for
all that a device owns, and `Layout.on_devices` on all devices: a mesh whose first axis
takes seeds and whose second takes shards. A seed's learner is copied to every device of
its row, and stays the same there, because gradients, observation moments and statistics
are means over all shards.

Random draws belong to a seed and a shard. So what is learned depends on the number of
shards and not on the number of devices that they lie on, but for the rounding of sums.
"""

from __future__ import annotations

import dataclasses
import math
import os
import socket
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PRNGKeyArray

from iqmjx.errors import UsageError

_SEEDS, _SHARDS = "seeds", "shards"  # the axes of the mesh
_OWN_SHARDS = "own_shards"  # those of one device

BY_SEED, BY_SHARD = PartitionSpec(_SEEDS), PartitionSpec(_SEEDS, _SHARDS)
SAME = PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Shards:
    """The shards of one seed, seen from inside one of them.

    Attributes:
        count: G.
        axes: the program's axes that they lie along; none for a single shard.
    """

    count: int
    axes: tuple[str, ...]

    def mean(self, tree: Any) -> Any:
        """The mean over the shards, of every leaf."""
        return jax.lax.pmean(tree, self.axes) if self.axes else tree

    def sum(self, tree: Any) -> Any:
        """The sum over the shards, of every leaf."""
        return jax.lax.psum(tree, self.axes) if self.axes else tree

    def max(self, tree: Any) -> Any:
        """The largest over the shards, of every leaf."""
        return jax.lax.pmax(tree, self.axes) if self.axes else tree

    def index(self) -> int | jax.Array:
        """Which of the shards this one is."""
        index: Any = 0
        for axis in self.axes:
            index = index * jax.lax.axis_size(axis) + jax.lax.axis_index(axis)
        return index

    def own_key(self, key: PRNGKeyArray) -> PRNGKeyArray:
        """This shard's key, from one that all of them have; `key` is consumed."""
        return key if self.count == 1 else jax.random.fold_in(key, self.index())


ALONE = Shards(1, ())


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """How the seeds and shards of a run lie on devices.

    Attributes:
        mesh: the devices, [rows of seeds, shards along a row].
        num_seeds: S.
        num_shards: G.
    """

    mesh: Mesh
    num_seeds: int
    num_shards: int

    @property
    def own_seeds(self) -> int:
        """Seeds that one device runs."""
        return self.num_seeds // self.mesh.shape[_SEEDS]

    @property
    def devices_per_seed(self) -> int:
        """Devices that the shards of one seed are divided among."""
        return self.mesh.shape[_SHARDS]

    @property
    def own_shards(self) -> int:
        """Shards of each of its seeds that a device runs."""
        return self.num_shards // self.devices_per_seed

    @property
    def shards(self) -> Shards:
        """A seed's shards, for functions that `over_all` runs on the devices."""
        axes = {_SHARDS: self.devices_per_seed, _OWN_SHARDS: self.own_shards}
        return Shards(self.num_shards, tuple(n for n, size in axes.items() if size > 1))

    def on_devices(self, function: Callable, in_specs: Any, out_specs: Any) -> Any:
        """Runs a function on every device, over what each owns of the arguments."""
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            check_vma=False,
        )

    def placed(self, specs: Any, shapes: Any) -> Any:
        """Shapes with the shardings that their specs (a prefix tree) mean here."""
        return self._by_spec(
            lambda leaf, sharding: leaf.update(sharding=sharding), specs, shapes
        )

    def place(self, specs: Any, arrays: Any) -> Any:
        """Puts whole NumPy arrays, equal on every process, on the devices."""

        def put(leaf, sharding):
            return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)

        return self._by_spec(put, specs, arrays)

    def _by_spec(self, put: Callable[[Any, Any], Any], specs: Any, tree: Any) -> Any:
        """`put(leaf, sharding)` of every leaf, by the specs (a prefix tree)."""

        def put_all(spec, subtree):
            sharding = NamedSharding(self.mesh, spec)
            return jax.tree.map(lambda leaf: put(leaf, sharding), subtree)

        return jax.tree.map(put_all, specs, tree, is_leaf=_is_spec)

    def over_all(
        self,
        function: Callable,
        in_specs: tuple[PartitionSpec, ...],
        out_specs: Any,
        *,
        in_turn: bool = False,
    ) -> Callable:
        """Runs a function of one shard of one seed for all that a device owns.

        Args:
            function: takes and returns trees without the leading axes.
            in_specs: BY_SHARD or BY_SEED for each argument: whether it begins with
                [S, G] or with [S].
            out_specs: the same for what it returns. What is BY_SEED must be equal on
                all shards: computed from means over them.
            in_turn: run the seeds one after another on a CPU, where batched matrix
                products are slow.
        """
        by_shard = [0 if spec == BY_SHARD else None for spec in in_specs]
        out_by_shard = jax.tree.map(
            lambda spec: 0 if spec == BY_SHARD else None, out_specs, is_leaf=_is_spec
        )
        of_seed = _mapped(
            function, by_shard, out_by_shard, self.own_shards, axis_name=_OWN_SHARDS
        )
        if in_turn and self.own_seeds > 1 and self._on_cpu:
            return lambda *args: jax.lax.map(lambda each: of_seed(*each), args)
        return _mapped(of_seed, [0] * len(in_specs), 0, self.own_seeds)

    @property
    def _on_cpu(self) -> bool:
        return self.mesh.devices.flat[0].platform == "cpu"


def _mapped(
    function: Callable,
    in_axes: list[int | None],
    out_axes: Any,
    size: int,
    axis_name: str | None = None,
) -> Callable:
    """`jax.vmap`; where the axis has the size 1, the function itself without it.

    XLA compiles a batch of one into slower matrix products than none.
    """
    if size > 1:
        return jax.vmap(
            function, in_axes, out_axes, axis_name=axis_name, axis_size=size
        )

    def alone(*args):
        given = [
            arg if axis is None else jax.tree.map(lambda leaf: leaf[0], arg)
            for axis, arg in zip(in_axes, args, strict=True)
        ]
        found = function(*given)
        axes = jax.tree.broadcast(out_axes, found, is_leaf=lambda axis: axis is None)
        return jax.tree.map(
            lambda axis, leaf: leaf if axis is None else leaf[None],
            axes,
            found,
            is_leaf=lambda axis: axis is None,
        )

    return alone


def make_layout(
    num_seeds: int, num_shards: int, devices: Sequence[Any] | None = None
) -> Layout:
    """Lays seeds and shards on devices, all of them where none are given.

    The mesh has as many rows as seeds and devices allow, and the shards of a seed lie
    along a row; 0 shards are as many as the row has devices.

    Raises:
        UsageError: where shards cannot be divided among the devices of a row.
    """
    devices = jax.devices() if devices is None else devices
    rows = math.gcd(num_seeds, len(devices))
    mesh = Mesh(np.array(devices).reshape(rows, -1), (_SEEDS, _SHARDS))
    per_seed = mesh.shape[_SHARDS]
    if num_shards % per_seed:
        raise UsageError(
            f"--num_shards {num_shards}: it must be a multiple of {per_seed}, the "
            f"number of devices of one seed, such as {per_seed}"
        )
    return Layout(mesh, num_seeds, num_shards or per_seed)


def devices_per_seed(num_seeds: int) -> int:
    """Devices that the shards of one seed are divided among, of all there are."""
    return jax.device_count() // math.gcd(num_seeds, jax.device_count())


def fit_shards(num_seeds: int, num_shards: int) -> int:
    """Shards for the devices that there are: those given, or one for each device."""
    per_seed = devices_per_seed(num_seeds)
    return per_seed if num_shards % per_seed else num_shards


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other processes of the run, if it has any.

    Without arguments JAX finds them by the variables of Slurm or Open MPI. On CPUs,
    processes that share a machine's cores divide them. Must be called before anything
    is computed.

    Args:
        coordinator: host:port of process 0, the same for all.
        num_processes: how many there are.
        process_id: which of them this is.
    """
    alone = "1"
    started = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    if coordinator is None and all(os.environ.get(n, alone) == alone for n in started):
        return
    # Its handler of SIGTERM would replace ours.
    jax.config.update("jax_enable_preemption_service", False)
    if coordinator is None:
        jax.distributed.initialize()
    else:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method="deactivate",
        )
    if jax.default_backend() == "cpu" and hasattr(os, "sched_setaffinity"):
        _divide_cpus()


def _divide_cpus() -> None:
    """Keeps this process on its share of the CPUs that others here may use as well."""
    cpus = sorted(os.sched_getaffinity(0))
    place = zlib.crc32(f"{socket.gethostname()} {cpus}".encode())
    same = np.flatnonzero(gather(np.array(place, np.uint32)) == place)
    mine = int(np.flatnonzero(same == jax.process_index())[0])
    os.sched_setaffinity(0, cpus[mine :: len(same)] or cpus)


def is_first() -> bool:
    """Whether this process is the one that prints and logs."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def have_peers() -> bool:
    """Whether the run has other processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def tell_all(text: str) -> str:
    """The text of process 0, on every process; all processes must call it."""
    if jax.process_count() == 1:
        return text
    room = np.zeros(4096, np.uint8)
    data = np.frombuffer(text.encode(), np.uint8)[: len(room)]
    room[: len(data)] = data
    told = multihost_utils.broadcast_one_to_all(room)
    return bytes(np.asarray(told, np.uint8)).rstrip(b"\0").decode()


def by_first(find: Callable[[], str]) -> str:
    """What process 0 finds, on every process; all processes must call it.

    Raises:
        UsageError: on every process, where `find` raises one on process 0.
    """
    failed, text = False, ""
    if is_first():
        try:
            text = find()
        except UsageError as error:
            failed, text = True, str(error)
    told = tell_all(f"{int(failed)}{text}")
    if told[0] == "1":
        raise UsageError(told[1:])
    return told[1:]


def gather(value: np.ndarray) -> np.ndarray:
    """Every process's value, stacked; all processes must call it."""
    if jax.process_count() == 1:
        return value[None]
    return multihost_utils.process_allgather(value)


def to_host(tree: Any) -> Any:
    """Whole arrays as NumPy's, on every process; all processes must call it."""

    def fetch(leaf):
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(fetch, tree)


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, PartitionSpec)
