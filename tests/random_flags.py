"""Runs iqmjx.train on random flags, and follows its advice until it is content.

    python -m tests.random_flags COUNT SEED refuse|trace|run

Prints a line of JSON for each set of flags: `given`, the refusals `told` on the way to
a run, and whether that is `short`. It ends with a traceback where a command line is
answered with anything but one line that names a flag, or a run; where a refusal leaves
a folder; or where advice that was followed is refused. `refuse` ends runs before their
first program, `trace` traces their programs, and `run` trains in those that are short.
"""

import json
import random
import re
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from iqmjx import command_line as flag_parser
from iqmjx import evaluation, loop
from iqmjx.commands import train
from iqmjx.run import trainer
from iqmjx.settings import kind
from tests import commands, toys

EDGES = (
    *("0", "-1", "1", "2", "2147483647", "2147483648", "4294967296"),
    *("9223372036854775808", "1" + "0" * 400, "1e-320", "1e308", "1e400", "nan"),
    *("inf", "-inf", "", "abc", "1e6", "32.0", "True"),
)
ORDINARY = {
    "int": ("1", "2", "3", "8", "24", "100", "4096", "1000000", "1000000000"),
    "float": ("1e-9", "1e-6", "1e-3", "0.5", "1", "10", "1e6", "1e30"),
    "bool": ("true", "false"),
    "tuple[int, ...]": ("8", "1", "16,16", "256,256", "0", "1,2147483647", "8,,8"),
    "tuple[str, ...]": ("tensorboard", "wandb", "tensorboard,wandb", "json:loads"),
}
NAMES = {
    "env": ("hopper", "Walker2d-v5", "pen", "humanoid", "hoper", "nowhere:Task"),
    "algo": ("iq", "m_iq", "pcl", "trust_pcl", "sac", "dqn", "nowhere:Agent"),
    "physics": ("native", "auto", "mujoco"),
    "policy": ("autoregressive", "gaussian", "flow", "tanh_gaussian", "normal"),
    "softmax": ("raw", "scaled", "shared", "hard"),
    "compute_dtype": ("float32", "bfloat16", "half"),
    "preset": ("cpu", "gpu", "paper", "fast"),
}
UNKNOWN = ("num_env", "lr", "gamma", "temprature")
SMALL = {
    name: str(value).strip("()").replace(" ", "") for name, value in toys.SMALL.items()
}
MOST_ADVICE = 20
"""Refusals after which advice must have led to a run."""


def random_arguments(rng: random.Random) -> dict[str, str]:
    """Flags of a small run (or of a preset), some of them at random."""
    small = rng.random() < 0.7
    given = dict(SMALL) if small else {"env": "hopper", "preset": "cpu"}
    fields = flag_parser.fields(train.FLAGS)
    names = [*fields, "preset"]
    for name in rng.sample(names, rng.randint(1, 4)):
        if rng.random() < 0.5:
            values = EDGES
        else:
            values = NAMES.get(name) or ORDINARY[kind(fields[name])]
        given[name] = rng.choice(values)
    if rng.random() < 0.05:
        given[rng.choice(UNKNOWN)] = rng.choice(EDGES)
    return given


def command_line(given: dict[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in given.items()]


def refused_flag(message: str) -> tuple[str, str]:
    """The flag that a refusal names, and its value there.

    Raises:
        ValueError: where it is not one line that begins with it.
    """
    if found := re.fullmatch(r"error: --(\w+)(?: (.*?))?: .+\n", message):
        return found[1], found[2] or ""
    raise ValueError(f"no flag is named in one line: {message!r}")


def advice(message: str) -> dict[str, str]:
    """What a refusal says to give instead; {}: only that a value is of no use."""
    flag, value = refused_flag(message)
    if "there is no such flag" in message:
        return {}
    fix = message.split(": ", 2)[2].strip()
    number = r"(-?[\d.]+(?:e[+-]?\d+)?)"
    if "such as --" in fix:
        pairs = re.findall(r"--(\w+) (\S+)", fix.split("such as ")[1])
        return {name: given for name, given in pairs}
    if found := re.search(r"(?:such as|as in) (\S+)$", fix):
        return {flag: found[1]}
    if found := re.search(rf"from {number} to {number}", fix):
        # From whichever side the value lies on.
        above = value.replace(".", "").isdigit() and float(value) > float(found[2])
        return {flag: found[2] if above else found[1]}
    if found := re.search(rf"at most (?:--\w+ )?{number}", fix):
        return {flag: found[1]}
    if found := re.search(rf"at least {number}|as {number} does", fix):
        return {flag: found[1] or found[2]}
    if found := re.search(r"(?:choose one of|did you mean|there are) (\w+)", fix):
        return {flag: found[1]}
    if found := re.search(rf"give {number}$", fix):
        return {flag: found[1]}
    if fix == "give true or false":
        return {flag: "true"}
    if fix == "give a whole number":  # its range depends on other settings
        return {}
    if re.search(
        r"does not have it|no module|not installed|cannot be imported|the class needs",
        fix,
    ):
        return {}
    raise ValueError(f"no advice is given: {message!r}")


def follow_advice(given: dict[str, str], folder: Path) -> list[str]:
    """The refusals on the way to a run.

    Raises:
        AssertionError: where a refusal is none (see the module), or advice is refused.
    """
    told, advised = [], {}
    while len(told) <= MOST_ADVICE:
        arguments = [*command_line(given), f"--logdir={folder}"]
        code, _, said = commands.outcome("train", arguments)
        if code == 0:
            assert said == "" or said.startswith("warning: "), said
            return told
        assert code == 2, (code, said)
        assert not folder.exists(), said
        told.append(said)
        flag, value = refused_flag(said)
        assert flag in given or flag in train.FLAGS, said
        assert advised.get(flag) != value, f"{told[-2:]}: advice is refused"
        advised |= advice(said)
        given = {name: given[name] for name in given if name != flag} | advice(said)
    raise AssertionError(f"advice leads nowhere: {told}")


def trace(config, folder, *, resume, env, stop):
    """Traces a run's programs, in place of `trainer.train`."""
    setup = loop.make_setup(config, env)
    state = jax.eval_shape(lambda: loop.init(setup))
    if config.warm_up_steps:
        jax.eval_shape(lambda state: loop.warm_up(setup, state), state)
    jax.eval_shape(lambda state: loop.train_chunk(setup, state), state)
    trainer._spread(config.num_evals, config, include_start=True)
    trainer._spread(config.num_checkpoints, config, include_start=False)
    if config.num_evals:
        greedy = jax.ShapeDtypeStruct((2 * config.num_eval_envs,), bool)
        actors = jax.eval_shape(lambda: loop.average_actors(setup, state))
        game = evaluation.Game(env, setup.agent.policy, config.episode_length)
        seeds = config.seed + np.arange(config.num_seeds)
        jax.eval_shape(
            lambda actors, greedy: evaluation.play_all(
                game, setup.layout, actors, greedy, seeds, np.uint32(0)
            ),
            actors,
            greedy,
        )
    return True


def takes_a_moment(config) -> bool:
    played = 2 * config.num_eval_envs * config.num_evals
    widths = getattr(config.algorithm, "hidden_sizes", ())
    return (
        config.total_env_steps <= 3000
        and config.num_updates * config.batch_size <= 10**5
        and config.num_vector_steps <= 1000
        and config.num_checkpoints <= 10
        and config.num_seeds <= 8
        and played <= 100
        and max(widths) <= 256
        and config.max_replay_size <= 10**6
        and config.num_shards <= 8
        and getattr(config.algorithm, "num_value_networks", 1) <= 4
    )


def main(count: int, seed: int, depth: str) -> None:
    really_train, short = trainer.train, False

    def train_a_moment(config, folder, **options):
        nonlocal short
        short = takes_a_moment(config)
        if short and depth == "run":
            return really_train(config, folder, **options)
        return depth == "refuse" or trace(config, folder, **options)

    trainer.train = train_a_moment
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        given = random_arguments(rng)
        with tempfile.TemporaryDirectory() as folder:
            try:
                told = follow_advice(given, Path(folder) / "run")
            except BaseException as error:
                error.add_note(" ".join(command_line(given)))
                raise
        jax.clear_caches()  # what was traced of one run is of no use to the next
        line = {"given": given, "told": told, "short": short}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
