"""Stage model@mkt: the open-vocabulary student and its figures to a folder ready for use."""

from pathlib import Path

from clipdistill import params, stage
from clipdistill.datasets.table import ImageTable, read_labels
from clipdistill.evaluation import summary
from clipdistill.students import finished, untrained
from clipdistill.students.student_yaml import Evaluation


def main() -> None:
    """Read students/mkt_prompted and metrics/mkt.json; write models/mkt."""
    stage.arguments("mkt")
    settings = params.load()
    paths = stage.Paths(settings.dataset.name)
    if reason := untrained.reason(paths.mkt_prompted):
        untrained.mark(paths.model("mkt"), reason)
        return
    truth = read_labels(paths.open_labels("val"), ImageTable.load(paths.table("val")))
    evaluation = Evaluation(
        dataset=settings.dataset.name,
        split="val",
        images=int((truth >= 0).any(axis=1).sum()),
        chose_thresholds=False,
        figures=finished.open_figures(summary.read_metrics(Path("metrics/mkt.json"))),
    )
    about = {
        "method": summary.OPEN_METHOD,
        "dataset": settings.dataset.name,
        "teacher": finished.teacher(settings.clip),
        **settings.model_card.model_dump(),
    }
    finished.finish_open(paths.mkt_prompted, paths.model("mkt"), about, evaluation)


if __name__ == "__main__":
    stage.run(main)
