"""Stage embed_text: class names to text embeddings [C, D]."""

from clipdistill import params, stage, store
from clipdistill.clip import prompts, teacher
from clipdistill.datasets.table import read_classes


def main() -> None:
    """Read params and classes.yaml; write text.zarr."""
    settings = params.load()
    paths = stage.Paths(settings.dataset.name)
    classes = read_classes(paths.classes)
    model = teacher.load(settings.clip)
    names = [item.prompt for item in classes]
    embedding = prompts.embed_prompts(model, names, settings.prompts.templates)
    provenance = {
        **model.identity,
        "logit_scale": model.logit_scale,
        "classes": [item.name for item in classes],
        "prompt_names": names,
        "templates": settings.prompts.templates,
    }
    store.write_group(paths.text, {"embedding": embedding.numpy()}, provenance)


if __name__ == "__main__":
    stage.run(main)
