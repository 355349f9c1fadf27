"""trackio: `--loggers trackio`.

Rows are kept on this machine (`trackio show`), or where its own environment variables
say, such as TRACKIO_SPACE_ID.
"""

from __future__ import annotations

import contextvars

from iqmjx import registry
from iqmjx.run.trackers import PROJECT, Tracker

_trackio = registry.package("trackio", "iqmjx[trackio]")


class Trackio(Tracker):
    """Rows at their env steps, in a run that a resume continues."""

    service = "trackio"

    def _begin(self, name, folder, settings):
        # It has one run in a context, and ends that for the next: each gets its own.
        self._run = contextvars.Context().run(
            _trackio.init,
            project=PROJECT,
            name=name,
            config=settings,
            resume="allow",
            embed=False,
        )

    def _send(self, env_steps, row):
        self._run.log(row, step=env_steps)

    def close(self):
        self._run.finish()
