"""Stage model@METHOD: a trained student and its figures to a folder ready for use; METHOD as in train@METHOD."""

from pathlib import Path

from clipdistill import params, stage
from clipdistill.datasets.table import ImageTable, read_labels
from clipdistill.evaluation import summary
from clipdistill.students import finished, untrained
from clipdistill.students.student_yaml import Evaluation


def main() -> None:
    """Read students/<method> and metrics/<method>.json; write models/<method>."""
    (method,) = stage.arguments("METHOD")
    settings = params.load()
    paths = stage.Paths(settings.dataset.name)
    if reason := untrained.reason(paths.student(method)):
        untrained.mark(paths.model(method), reason)
        return
    truth = read_labels(paths.ground_truth("val"), ImageTable.load(paths.table("val")))
    measured = summary.read_metrics(Path("metrics") / f"{method}.json").get("val", {})
    evaluation = Evaluation(
        dataset=settings.dataset.name,
        split="val",
        images=int((truth >= 0).any(axis=1).sum()),
        chose_thresholds=False,
        figures=finished.figures(measured, settings.evaluate),
    )
    about = {
        "method": summary.METHODS[method],
        "dataset": settings.dataset.name,
        "teacher": finished.teacher(settings.clip),
        **settings.model_card.model_dump(),
    }
    finished.finish(paths.student(method), paths.model(method), about, evaluation)


if __name__ == "__main__":
    stage.run(main)
