"""What `--help` prints: a command's flags by subject, with their values."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from types import ModuleType

from absl import flags

from iqmjx import command_line, presets
from iqmjx.config import setting_fields
from iqmjx.errors import UsageError
from iqmjx.settings import shown

_ASKING = ("-h", "-help", "--help", "--helpfull", "--helpshort")
_ALGORITHM, _COMMAND = "The algorithm", "This command"
_GROUPS = {
    "The run": (
        *("env", "algo", "preset", "policy", "seed", "num_seeds", "num_timesteps"),
        "logdir",
        "resume",
    ),
    _ALGORITHM: (),
    "Worlds and physics": (
        *("num_envs", "physics", "episode_length", "chunk_steps", "num_shards"),
    ),
    "Replay and exploration": (
        *("max_replay_size", "min_replay_size", "exploration_steps"),
        *("noise_hold_steps", "normalize_observations", "normalize_rewards"),
    ),
    "Updates": (
        *("grad_updates_per_step", "batch_size", "learning_rate"),
        *("learning_rate_decay", "discounting", "target_rate", "average_rate"),
    ),
    "Networks": (
        *("hidden_sizes", "layer_norm", "zero_last_layer", "num_value_networks"),
        *("value_scale", "compute_dtype"),
    ),
    "Evaluations, checkpoints, metrics": (
        *("num_evals", "num_eval_envs", "num_checkpoints", "video_every", "loggers"),
    ),
    _COMMAND: (),
    "Several processes": ("coordinator", "num_processes", "process_id"),
}
"""Flags by subject; those not named here are the algorithm's, or the command's own."""
_NARROWEST, _WIDEST = 60, 100
_METAVARS = {"string": "NAME", "int": "N", "float": "X", "path": "PATH"}


def is_wanted(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for help."""
    return any(word in _ASKING for word in arguments)


def text(module: ModuleType, arguments: Sequence[str]) -> str:
    """A command's help.

    Args:
        module: the command's.
        arguments: the command line, whose --env, --algo and --preset say whose values
            are shown.
    """
    own: flags.FlagValues = module.FLAGS
    name = module.__name__.rpartition(".")[2]
    called = f"iqmjx {name}" if name != "__main__" else f"python {sys.argv[0]}"
    positional = getattr(module, "POSITIONAL", None)
    alone = f" [{positional.upper()}]" if positional else ""
    parts = [
        (module.__doc__ or "").strip(),
        f"usage: {called}{alone} [--flag value ...]",
    ]
    values: dict[str, str] = {}
    groups = {"Flags": tuple(own)}
    if settings := command_line.fields(own):
        resolved = _resolved(own, [word for word in arguments if word not in _ASKING])
        values = _values(resolved)
        others = [flag for flag in own if flag not in settings]
        groups = _by_subject([flag for flag in settings if flag in values], others)
        config = resolved.config
        parts.append(
            f"In brackets: the values of --env {config.env} --algo {config.algo} "
            f"--preset {resolved.preset}, each with where it comes from; give these "
            f"flags before --help to see those of other runs."
        )
    width = min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)
    parts = [textwrap.fill(part, width) for part in parts]
    for title, names in groups.items():
        lines = [_flag(own[flag], values.get(flag), width) for flag in names]
        parts.append("\n".join([title, *lines]))
    return "\n\n".join(parts)


def _resolved(own: flags.FlagValues, arguments: Sequence[str]) -> presets.Resolved:
    """The settings of the run that a command line describes, if it is right."""
    try:
        command_line.parse(own, arguments)
        given = command_line.given_settings(own)
        return presets.resolve(given, str(own["preset"].value))
    except UsageError:
        return presets.resolve({})


def _values(resolved: presets.Resolved) -> dict[str, str]:
    """Each setting's value and where it comes from, and the default it replaces."""
    fields = setting_fields(resolved.config.algo)
    told = {}
    for name, value in resolved.config.flat().items():
        source, default = resolved.sources[name], fields[name].default
        if source == "default":
            told[name] = shown(value)
        elif value == default:
            told[name] = f"{shown(value)}: {source}"
        else:
            told[name] = f"{shown(value)}: {source}; default {shown(default)}"
    return told


def _by_subject(
    settings: Sequence[str], others: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Flags by subject: settings, and others that the command has."""
    named = {flag for names in _GROUPS.values() for flag in names}
    groups = {
        title: tuple(flag for flag in names if flag in settings or flag in others)
        for title, names in _GROUPS.items()
    }
    groups[_ALGORITHM] = tuple(flag for flag in settings if flag not in named)
    groups[_COMMAND] = tuple(flag for flag in others if flag not in named)
    return {title: names for title, names in groups.items() if names}


def _flag(flag: flags.Flag, value: str | None, width: int) -> str:
    """A flag's lines: its name and kind, then what it means and its value."""
    if flag.boolean:
        head = f"--[no]{flag.name}"
    elif isinstance(flag.parser, flags.EnumParser):
        head = f"--{flag.name} {'|'.join(flag.parser.enum_values)}"
    else:
        head = f"--{flag.name} {_METAVARS.get(flag.parser.flag_type(), 'A,B,...')}"
    if value is None and flag.default not in (None, [], "") and not flag.boolean:
        value = str(flag.default)
    meaning = (flag.help or "").rpartition(">: ")[2]  # absl lists an enum's values
    end = "" if value is None else f" [{value}]"
    told = textwrap.wrap(f"{meaning}{end}", width - 6)
    return "\n".join([f"  {head}", *(f"      {line}" for line in told)])
