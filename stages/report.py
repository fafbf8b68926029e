"""Stage report: one page of the run, its figures, curves, classes, images, and how it was made."""

from pathlib import Path

import yaml

from clipdistill import params, stage, store
from clipdistill.evaluation import report_figures, report_page, run_record
from clipdistill.training import report_images

METRICS = Path("metrics")


def main() -> None:
    """Read the metrics, the scores, the students and the evaluation images; write metrics/report.html."""
    stage.arguments()
    settings = params.load()
    top = Path()
    others = [name for name in run_record.stage_names(top) if name != "report"]
    times, unrecorded = run_record.stage_times(stage.Paths(settings.dataset.name).times, others)
    figures = report_figures.read(METRICS)
    run = report_page.Run(
        dataset=settings.dataset.name,
        commit=run_record.commit(top),
        experiment=run_record.experiment(),
        versions=run_record.versions(),
        params=yaml.safe_dump(settings.model_dump(by_alias=True), sort_keys=False, allow_unicode=True),
        summary=report_page.facts(figures, settings),
        times=times,
        unrecorded=unrecorded,
    )
    page = report_page.render(figures, report_images.collect(settings), run)
    store.write_atomically(METRICS / "report.html", page.encode())


if __name__ == "__main__":
    stage.run(main)
