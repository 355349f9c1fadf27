"""Writes a policy that acts without iqmjx: iqmjx export RUN --out humanoid.onnx."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from iqmjx import command_line
from iqmjx.commands import cli, playing
from iqmjx.errors import UsageError
from iqmjx.export import checked, formats
from iqmjx.run import trained_policy
from iqmjx.settings import refuse

FLAGS = flags.FlagValues()
POSITIONAL = "checkpoint"
_CHECKPOINT = playing.checkpoint_flag(FLAGS)
_FORMAT = flags.DEFINE_enum(
    "format",
    "onnx",
    list(formats.FORMATS),
    "onnx; stablehlo, which jax.export reads; or numpy, an .npz file and a program "
    "beside it that needs NumPy 2 alone.",
    flag_values=FLAGS,
)
_OUT = command_line.path(
    FLAGS,
    "out",
    None,
    "The file to write; by default the task's name, in the working directory.",
)


def main() -> None:
    """Runs the command."""
    with cli.user_errors(), cli.run_errors():
        if _CHECKPOINT.value is None:
            raise UsageError("--checkpoint: name a run folder")
        suffix = formats.FORMATS[_FORMAT.value].suffix
        if _OUT.value is not None and Path(_OUT.value).suffix != suffix:
            refuse("out", _OUT.value, f"give a file name ending in {suffix}")
        _, saved = playing.load(_CHECKPOINT.value, "exporting")
        with cli.of_flag("checkpoint"):
            policy = trained_policy.of(saved)
        out = Path(_OUT.value or f"{policy.env.replace(':', '.')}{suffix}")
        found = checked.export(policy, _FORMAT.value, out)
    print(
        f"{out}: {policy.env}, trained for {policy.env_steps:,} env steps; raw "
        f"observations [B, {policy.observation_size}] in, actions "
        f"[B, {policy.action_size}] out\n"
        f"checked on {found.observations:,} observations: {found.share:.2%} of the "
        f"actions' entries differ from the live policy's by more than {checked.NEAR} "
        f"of half their range, the largest by {found.largest:.2g}"
    )
