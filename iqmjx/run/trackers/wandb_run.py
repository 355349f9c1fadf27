"""Weights & Biases: `--loggers wandb`.

Its own environment variables decide where rows go, such as WANDB_MODE=offline (into the
run's folder, for `wandb sync`) and WANDB_PROJECT.
"""

from __future__ import annotations

import os

from iqmjx import registry
from iqmjx.run.trackers import PROJECT, Tracker

_wandb = registry.package("wandb", "iqmjx[wandb]")


class WeightsAndBiases(Tracker):
    """Rows at their env steps, in a run that a resume continues."""

    service = "wandb"

    def _begin(self, name, folder, settings):
        self._run = _wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=name,
            name=name,
            config=settings,
            dir=folder,
            resume="allow",
            reinit="create_new",  # beside other seeds, and a run of the program's own
        )

    def _send(self, env_steps, row):
        self._run.log(row, step=env_steps)

    def close(self):
        self._run.finish()
