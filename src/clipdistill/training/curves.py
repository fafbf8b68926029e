"""Curves of a training run for `dvc plots`, written by DVCLive. Nothing reads them back to choose anything."""

from __future__ import annotations

import math
from pathlib import Path

from dvclive.live import Live


class Curves:
    """One row of numbers an epoch, as DVCLive files without times: equal runs give equal bytes.

    Args:
        folder: emptied of earlier curves; None writes nothing.
        rows: of the epochs already done, when a run is taken up again.
    """

    def __init__(self, folder: Path | None, rows: list[dict[str, float]]) -> None:
        self.rows: list[dict[str, float]] = []
        # Neither a dvc.yaml, nor an experiment, nor a report of its own: the pipeline has them.
        self._live = (
            None
            if folder is None
            else Live(str(folder), dvcyaml=None, save_dvc_exp=False, report=None, monitor_system=False)
        )
        for row in rows:
            self.add(row)

    def add(self, row: dict[str, float]) -> None:
        """Add an epoch; a number that is not finite is left out, since plots cannot show it."""
        self.rows.append(row)
        if self._live is None:
            return
        self._live.step = len(self.rows)
        for name, value in row.items():
            if math.isfinite(value):
                self._live.log_metric(name, value, timestamp=False)
        self._live.make_summary()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Finish the files."""
        if self._live is not None:
            self._live.end()  # type: ignore[no-untyped-call]
