"""Stage plan@ccd: which rounds are run, a file each, so that one more round leaves those before it alone."""

from clipdistill import params, stage, store


def main() -> None:
    """Read ccd.update_rounds; write ccd/plan/<update>.json for every round after the first."""
    stage.arguments("ccd")
    settings = params.load()
    paths = stage.Paths(settings.dataset.name)
    for update in range(2, params.MAX_ROUNDS + 1):
        store.write_json(paths.ccd_plan(update), {"run": update <= settings.ccd.update_rounds})


if __name__ == "__main__":
    stage.run(main)
