"""Typed parameters: the one reader of params.yaml.

A section of the file belongs to a stage, or to the few stages that share it. Unknown keys, wrong types and values out
of range are refused before any work, each with its full path, the value that was found, and what is allowed.
"""

from __future__ import annotations

import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from clipdistill import yaml_text
from clipdistill.errors import ParamsError

PARAMS_FILE = Path("params.yaml")

_MOST_KEYS = 1000
_REPR = reprlib.Repr()
_REPR.maxlevel = 2
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 200

NO_ADAPTER = "cache/adapters/none"
"""Folder in git without an adapter: what `clip.adapter` names where the teacher is to stay as it is."""

TAGGED_SCENES = "data/raw/scenes-tagged"
"""Folder of the generated captioned images, from which no teacher but that of the scenes has anything to learn."""

MAX_ROUNDS = 4
"""Updates of CCD's labels that the pipeline has stages for."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, Field(pattern=r"\S")]
StudentSide = Annotated[int, Field(ge=32, le=2048)]
LoraRank = Annotated[int, Field(ge=1, le=512)]
Sha256 = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


class Section(BaseModel):
    """What all sections share: no unknown keys, no silent conversion, no change after reading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _no_zero_byte(cls, value: object) -> object:
        if isinstance(value, str) and "\0" in value:
            raise ValueError("holds a zero byte, which no name of a file can have")
        return value


class DatasetParams(Section):
    """Raw images and annotations, and how they are read (stage `format`)."""

    name: Name = Field("scenes", description="names the folders below data/ and cache/")
    reader: Literal["voc", "coco", "nuswide", "formatted", "folder"] = Field(
        "voc", description="the layout in which the files lie"
    )
    root: str = Field("data/raw/scenes", min_length=1, description="folder that holds the raw files")
    images: str = Field(
        "", description="image root, where it is not the reader's own below `root` (coco, nuswide, formatted)"
    )
    train: str = Field("train", min_length=1, description="the layout's own name of the training split")
    val: str = Field("val", description="the layout's own name of the evaluation split")
    year: int = Field(2012, description="voc: year of the release, 2007 or 2012")
    annotations: Literal["xml", "main"] = Field("xml", description="voc: Annotations/*.xml, or ImageSets/Main")
    difficult: Literal["negative", "positive", "ignore"] = Field(
        "negative",
        description="voc: what a class counts as in an image that has only difficult objects of it",
    )
    empty_images: Literal["drop", "keep"] = Field("drop", description="coco: images without any object")
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2, description="folder: share of the images held out where the folder has no split of its own"
    )
    prompt_names: dict[str, Text] = Field(
        default_factory=dict, description="name in prompts by class name, over the reader's own"
    )
    open_vocabulary: Literal["auto", "classes", "attributes", "coco-48-17", "voc-15-5", "nuswide-925-81"] = Field(
        "auto",
        description="labels some of which training does not see: the classes, those in `unseen` not; voc: each colour "
        "of each class (attributes.txt, unseen.txt); splits of the literature; auto: attributes where there is "
        "attributes.txt, else classes",
    )
    unseen: list[str] = Field(
        default_factory=list,
        description="names of the classes that training does not see (open_vocabulary classes, auto)",
    )
    download: bool = Field(False, description="voc: fetch the archives through torchvision where they are missing")
    on_problem: Literal["stop", "leave_out"] = Field(
        "stop",
        description="a missing, broken or unlawful image or annotation stops the stage, or leaves the image out",
    )
    max_pixels: Annotated[int, Field(ge=1)] = Field(
        89_478_485, description="pixels above which an image is refused before it is decoded"
    )

    @model_validator(mode="after")
    def _name_is_not_taken(self) -> Self:
        if self.name in ("raw", "teachers", "adapters"):
            raise ValueError(f"name {self.name!r} is a folder of the pipeline's own; choose another")
        return self

    @model_validator(mode="after")
    def _open_vocabulary_fits_the_reader(self) -> Self:
        cure = "or set open_vocabulary: classes"
        if self.unseen and self.open_vocabulary not in ("auto", "classes"):
            raise ValueError(
                f"open_vocabulary {self.open_vocabulary} has its own unseen labels; empty `unseen`, {cure}"
            )
        if self.open_vocabulary == "attributes" and (self.reader, self.annotations) != ("voc", "xml"):
            raise ValueError(f"open_vocabulary attributes needs reader voc and annotations xml: set them, {cure}")
        if self.open_vocabulary == "nuswide-925-81" and self.reader != "nuswide":
            raise ValueError(f"open_vocabulary nuswide-925-81 needs reader nuswide: set it, {cure}")
        return self


class ScenesParams(Section):
    """The generated data set `scenes` and the captioned images that go with it (stage `generate`)."""

    seed: Seed = Field(0, description="seed of everything drawn")
    train_images: Annotated[int, Field(ge=1)] = Field(4000, description="scenes in the training split")
    val_images: Annotated[int, Field(ge=1)] = Field(1000, description="scenes in the evaluation split")
    image_size: Annotated[int, Field(ge=32, le=1024)] = Field(192, description="side of a scene, pixels")
    max_objects: Annotated[int, Field(ge=1, le=9)] = Field(4, description="objects in a scene, at most")
    captions: Annotated[int, Field(ge=1)] = Field(16384, description="captioned images for the tiny CLIP")
    caption_size: Annotated[int, Field(ge=32, le=256)] = Field(64, description="side of a captioned image, pixels")


class PretrainClipParams(Section):
    """Training of the tiny CLIP on captioned scenes (stage `pretrain_clip`)."""

    seed: Seed = Field(0, description="seed of weights, order and augmentation")
    architecture: Name = Field("scenes-tiny", description="file in src/clipdistill/clip/architectures")
    epochs: Annotated[int, Field(ge=1)] = Field(8, description="passes over the captioned images")
    batch_size: Annotated[int, Field(ge=2)] = Field(256, description="pairs in a contrastive batch")
    learning_rate: Annotated[float, Field(gt=0)] = Field(2e-3, description="peak learning rate of AdamW")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.05, description="decay of matrices")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the processor has it")


class ClipParams(Section):
    """The teacher (stages `embed_text` and `embed`)."""

    source: Literal["scenes", "open_clip", "file"] = Field(
        "scenes",
        description="scenes: the tiny CLIP trained here; open_clip: a published tag; file: local weights",
    )
    model: str = Field("scenes-tiny", min_length=1, description="open_clip's name of the architecture")
    pretrained: str = Field("", description="open_clip's tag of published weights (source open_clip)")
    weights: str = Field("", description="file of weights, .safetensors or .pt (source file)")
    sha256: Sha256 = Field(
        "", description="SHA-256 of the weights, 64 hexadecimal digits (source file; for open_clip where it is given)"
    )
    quick_gelu: bool = Field(False, description="weights were trained with QuickGELU (source file; OpenAI's were)")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="number format of the image encoder; auto: bf16 where the hardware has it, else fp32"
    )
    adapter: str = Field(
        NO_ADAPTER,
        min_length=1,
        description=f"folder of a LoRA adapter, as train@ttd leaves it; {NO_ADAPTER}: none",
    )

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> Self:
        if self.source == "open_clip" and not self.pretrained:
            raise ValueError("source open_clip needs `pretrained`: a tag of `open_clip.list_pretrained()`")
        if self.source == "file" and not (self.weights and self.sha256):
            raise ValueError("source file needs `weights` and its `sha256` (`sha256sum FILE` prints it)")
        return self


class PromptParams(Section):
    """Prompts of the classes (stage `embed_text`)."""

    templates: Annotated[list[str], Field(min_length=1)] = Field(
        ["a photo of a {}."],
        description="each with one {} for the class; embeddings are averaged and renormalised",
    )

    @model_validator(mode="after")
    def _templates_have_one_slot(self) -> Self:
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(f"template {template!r} must hold {{}} exactly once")
        return self


class GlobalViewParams(Section):
    """The whole image as one view (stage `embed@global`)."""

    resize: Literal["open_clip", "squash"] = Field(
        "open_clip",
        description="open_clip: the model's own (mostly short side and centre crop); squash: all of it",
    )


class SnippetViewParams(Section):
    """Snippets of the image (stage `embed@snippets`)."""

    grid: Annotated[int, Field(ge=1, le=64)] = Field(3, description="g: cells a side, g x g snippets")
    tile: Annotated[int, Field(ge=0)] = Field(0, description="side of square tiles in pixels; 0: use `grid`")
    overlap: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of its side by which a snippet overlaps the next"
    )
    resize: Literal["open_clip", "squash"] = Field(
        "squash",
        description="squash: the whole view to the model's square; open_clip: the model's own, loses the sides",
    )


class CamViewParams(Section):
    """Boxes that the student's class activation maps point at (stage `embed@cam`)."""

    resize: Literal["open_clip", "squash"] = Field(
        "squash",
        description="squash: the whole view to the model's square; open_clip: the model's own, loses the sides",
    )


class DenseViewParams(Section):
    """The cells of the encoder's own map, all embedded by one pass (stage `embed@dense`)."""

    image_size: Annotated[int, Field(ge=32, le=2048)] | Literal["clip"] = Field(
        128, description="side of the images, pixels; clip: the teacher's, which all towers with places need"
    )
    resize: Literal["squash"] = Field("squash", description="the whole image to a square, so that no side is lost")


class ViewParams(Section):
    """What CLIP looks at."""

    whole: GlobalViewParams = Field(GlobalViewParams(), alias="global", description="the whole image")
    snippets: SnippetViewParams = Field(SnippetViewParams(), description="a grid or tiles")
    cam: CamViewParams = Field(CamViewParams(), description="where the student points")
    dense: DenseViewParams = Field(DenseViewParams(), description="cells of the encoder's map")


class CdulLabelParams(Section):
    """CDUL's aggregation (Eq. 5 to 7)."""

    threshold: Annotated[float, Field(ge=0)] = Field(0.0, description="zeta: the maximum counts from here on")
    weight: Annotated[float, Field(ge=-1, le=1)] = Field(
        0.0, description="lambda: 0 mean of global and aggregate, 1 maximum, -1 minimum"
    )


class PseudoLabelParams(Section):
    """First labels from similarities (stages `pseudo_label`, `predict@teacher...`)."""

    temperature: Annotated[float, Field(gt=0)] | Literal["model"] = Field(
        "model", description="divisor of the cosines before the softmax, 0.01 say; model: the one the teacher learnt"
    )
    standardise: Literal["none", "class", "image", "both"] = Field(
        "none",
        description="z-scores of the scores over images, classes, or one after the other, mapped to (0, 1)",
    )
    cdul: CdulLabelParams = Field(CdulLabelParams(), description="CDUL's own")


class StudentParams(Section):
    """The network that is trained."""

    backbone: str = Field("resnet18", min_length=1, description="any torchvision classification model")
    weights: str = Field(
        "none",
        min_length=1,
        description="none, imagenet (torchvision's, pinned), or a .safetensors or .pth file",
    )
    sha256: Sha256 = Field("", description="SHA-256 of `weights` where it is a file")
    image_size: StudentSide = Field(80, description="side of its input, pixels")
    output_stride: Literal[8, 16, 32] = Field(16, description="pixels a cell of the activation map (resnets: 16, 8)")

    @model_validator(mode="after")
    def _a_file_has_its_sum(self) -> Self:
        if self.weights not in ("none", "imagenet") and not self.sha256:
            raise ValueError("a file of weights needs its `sha256` (`sha256sum FILE` prints it)")
        return self


class RecipeParams(Section):
    """How a student is trained; the same for every method, so that their numbers compare."""

    seed: Seed = Field(0, description="seed of weights, order and augmentation")
    epochs: Annotated[int, Field(ge=1)] = Field(9, description="passes over the training images")
    batch_size: Annotated[int, Field(ge=1)] = Field(32, description="images an update, over all processes")
    optimiser: Literal["adamw", "adam", "sgd"] = Field("adamw", description="update rule")
    learning_rate: Annotated[float, Field(gt=0)] = Field(2e-3, description="peak rate of the backbone")
    head_factor: Annotated[float, Field(gt=0)] = Field(1.0, description="rate of the head over the backbone's")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.05, description="decay of matrices (not of biases, norms)")
    schedule: Literal["constant", "cosine", "one_cycle"] = Field("one_cycle", description="course of the rate")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the processor has it")
    flip: Fraction = Field(0.5, description="probability of a horizontal flip")
    min_scale: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="smallest share of the image's area that a random crop keeps; 1: no crop"
    )
    jitter: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="strength of colour jitter; 0: none")
    image_cache: Literal["auto", "memory", "none"] = Field(
        "auto",
        description="decoded and resized training images kept in memory (auto: up to 4 GB), or decoded anew",
    )


class CdulTrainParams(Section):
    """CDUL's gradient-alignment training (Eq. 8)."""

    variant: Literal["default", "reproduction"] = Field(
        "default",
        description="default: sigmoid head, Bernoulli KL(label||prediction); reproduction: softmax head, as the "
        "reproduction study runs it",
    )
    update_every: Annotated[int, Field(ge=1)] = Field(1, description="epochs between refinements of the labels")
    warmup: Annotated[int, Field(ge=0)] = Field(6, description="epochs before the first refinement")
    sigma: Annotated[float, Field(gt=0)] = Field(1.0, description="width of the Gaussian psi; small: only unsure move")
    step: Annotated[float, Field(ge=0)] = Field(1.0, description="step of the latent; 0: labels stay")

    @model_validator(mode="after")
    def _step_does_not_overshoot(self) -> Self:
        # The reproduction takes an eighth of the step.
        bound = self.sigma * (2 * 3.141592653589793) ** 0.5 * (8 if self.variant == "reproduction" else 1)
        if self.step > bound:
            raise ValueError(
                f"step {self.step:g} overshoots the prediction: with sigma {self.sigma:g} at most {bound:.4g}"
            )
        return self


class TrainParams(Section):
    """Students and their training (stage `train`)."""

    student: StudentParams = Field(StudentParams(), description="the network")
    recipe: RecipeParams = Field(RecipeParams(), description="its training")
    cdul: CdulTrainParams = Field(CdulTrainParams(), description="CDUL's refinement")


class CcdBiasParams(Section):
    """CLIP's bias: its mean top-1 score of each class."""

    entropy_max: Annotated[float, Field(gt=0)] = Field(
        2.0, description="nats: images whose scores are less sure do not count"
    )
    min_count: Annotated[int, Field(ge=1)] = Field(
        10, description="images that a class needs; one with fewer takes the mean of all classes' images"
    )
    relative: bool = Field(
        True, description="divided by its smallest, so that no label exceeds 1; else labels are cut there, and tied"
    )


class CcdLocalizeParams(Section):
    """Where the student points (stage `localize@ccd`)."""

    image_size: Annotated[int, Field(ge=32, le=2048)] | Literal["student"] = Field(
        "student", description="side of the student's input, pixels; student: the one it was trained at"
    )
    output_stride: Literal[8, 16, 32, "auto"] = Field(
        "auto",
        description="pixels a cell of the map; finer than in training by dilation, not by other weights; auto: half, "
        "where the backbone is a residual network",
    )
    classes_per_image: Annotated[float, Field(gt=0)] = Field(
        6.0,
        description="classes an image that are looked for, on average; half of all where there are no more",
    )
    mask: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="share of a map's range from which a place belongs to the object"
    )
    margin: Annotated[float, Field(ge=0, le=1)] = Field(
        0.2, description="border around the object, as a share of the image's side"
    )
    component: Literal["all", "largest", "peak"] = Field(
        "all", description="part of the mask that is boxed: all, its largest component, or that of the maximum"
    )


class CcdTrainParams(Section):
    """Training of CCD's students (stages `warmup@ccd`, `train@ccd`), beyond the shared recipe."""

    warmup_epochs: Annotated[int, Field(ge=1)] = Field(4, description="passes on the initial labels")
    round_epochs: Annotated[int, Field(ge=1)] = Field(3, description="passes between two updates of the labels")
    epochs: Annotated[int, Field(ge=1)] = Field(4, description="passes after the last update")
    boost: Annotated[float, Field(gt=0)] = Field(1.0, description="factor of the positive parts of the maps (BoostLU)")
    unsure_weight: Fraction = Field(
        1.0, description="weight in the loss of images above `bias.entropy_max`, before the consistency loss"
    )
    consistency: Annotated[float, Field(ge=0)] = Field(
        1.0, description="weight of the agreement with the jittered image, after the last update"
    )
    jitter: Annotated[float, Field(ge=0, le=1)] = Field(0.5, description="strength of that jitter")
    positive_at: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="label from which a class counts as present for the stopping rule"
    )


class CcdParams(Section):
    """CCD: the student shows CLIP where to look, and CLIP's answers update the labels."""

    initial: Literal["global", "cdul"] = Field("global", description="labels to start from: the whole image's, CDUL's")
    update_rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = Field(
        3, description="updates of the labels; the paper has 1"
    )
    ratio: Fraction = Field(0.2, description="share of the old label in the new one")
    floor: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="least score before debiasing, 1 / classes say; 0: none"
    )
    bias: CcdBiasParams = Field(CcdBiasParams(), description="CLIP's bias")
    localize: CcdLocalizeParams = Field(CcdLocalizeParams(), description="boxes")
    train: CcdTrainParams = Field(CcdTrainParams(), description="students")


class MktStudentParams(Section):
    """The image tower of MKT's student (stage `train@mkt`)."""

    backbone: str = Field(
        "clip", min_length=1, description="clip: the teacher's own tower, from its weights on; or a network of timm"
    )
    weights: str = Field(
        "none", min_length=1, description="of a network of timm: none, pretrained (timm's), or a .safetensors file"
    )
    sha256: Sha256 = Field("", description="SHA-256 of `weights` where it is a file")
    image_size: StudentSide | Literal["clip"] = Field(
        128, description="side of its input, pixels; clip: the teacher's, which all towers with places need"
    )

    @model_validator(mode="after")
    def _weights_fit_the_backbone(self) -> Self:
        if self.backbone == "clip" and (self.weights != "none" or self.sha256):
            raise ValueError("backbone clip starts from the teacher's weights: set weights to none, sha256 to nothing")
        if self.weights not in ("none", "pretrained") and not self.sha256:
            raise ValueError("a file of weights needs its `sha256` (`sha256sum FILE` prints it)")
        return self


class MktDistilParams(Section):
    """Distillation of the teacher's embedding of the whole image."""

    weight: Annotated[float, Field(ge=0)] = Field(1.0, description="of its loss beside the ranking loss; 0: none")
    teacher: Literal["online", "cached"] = Field(
        "online",
        description="online: the teacher sees the same augmented image; cached: its embedding of the whole image as "
        "embed@global left it, half the work",
    )


class MktRecipeParams(RecipeParams):
    """How the image tower is trained."""

    epochs: Annotated[int, Field(ge=1)] = Field(5, description="passes over the training images")
    batch_size: Annotated[int, Field(ge=1)] = Field(64, description="images an update, over all processes")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="peak rate of the uppermost layer")
    head_factor: Annotated[float, Field(gt=0)] = Field(1.0, description="rate of the projection over that")


class MktTuneParams(Section):
    """Prompt tuning (stage `tune_prompt@mkt`): the recipe's, but for these."""

    epochs: Annotated[int, Field(ge=1)] = Field(1, description="passes over the training images")
    batch_size: Annotated[int, Field(ge=1)] = Field(64, description="images an update, over all processes")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="peak rate of the context; it never decays")


class MktParams(Section):
    """MKT: a student for any label, by two streams, distillation and prompt tuning."""

    supervision: Literal["ground_truth", "global", "cdul", "ccd"] = Field(
        "ground_truth",
        description="labels that it learns: those of the seen labels of the open vocabulary; or pseudo labels of the "
        "classes, and then no label of a person is used at all",
    )
    prompt: Text = Field("a photo of a {}.", description="the words around a label, with one {}")
    student: MktStudentParams = Field(MktStudentParams(), description="image tower")
    k: Annotated[int, Field(ge=1)] = Field(1, description="patches a label in the local stream; the paper has 18")
    norm: Literal["cosine", "label"] = Field(
        "cosine", description="cosine; label: over the labels of a call, as the released code, for comparison alone"
    )
    local: Fraction = Field(0.9, description="share of the local stream in a score; the paper has 0.5")
    loss: Literal["log_sum_exp", "rank"] = Field(
        "log_sum_exp", description="log_sum_exp: a smooth ranking loss; rank: the released code's hinge"
    )
    margin: Annotated[float, Field(ge=0)] = Field(1.0, description="of `rank`")
    unlock: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        3, description="layers that are trained, counted from the projection down"
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="rate of a layer over that of the one above it; the released code has 0.65"
    )
    distil: MktDistilParams = Field(MktDistilParams(), description="distillation")
    recipe: MktRecipeParams = Field(MktRecipeParams(), description="training of the image tower")
    tune: MktTuneParams = Field(MktTuneParams(), description="prompt tuning")
    top_k: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = Field(
        [3, 5], description="labels an image in the figures at k"
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.prompt.count("{}") != 1:
            raise ValueError(f"prompt {self.prompt!r} must hold {{}} exactly once")
        if self.student.backbone != "clip" and self.student.weights == "none" and self.unlock != "all":
            raise ValueError("a network of timm with random weights has to be trained as a whole: set unlock to all")
        return self


class CaptionParams(Section):
    """Captioned images, and which words of a caption are candidates (stage `tags`)."""

    reader: Literal["table", "coco", "webdataset"] = Field(
        "table",
        description="table: a .csv or .parquet with columns path and caption, and optionally tags and mask; coco: "
        "annotations/captions_{split}.json; webdataset: .tar shards",
    )
    root: str = Field(TAGGED_SCENES, min_length=1, description="folder that holds the captions")
    images: str = Field("", description="image root, where it is not `root`")
    train: str = Field("train.parquet", min_length=1, description="table, split of coco, or pattern of shards")
    val: str = Field("val.parquet", min_length=1, description="the same, of the captions that are evaluated")
    drop_function_words: bool = Field(
        True, description="words of the list in datasets/captions/function_words.txt are no candidates"
    )
    on_problem: Literal["stop", "leave_out"] = Field(
        "stop", description="a missing, broken or unlawful image or caption stops the stage, or leaves the pair out"
    )
    max_pixels: Annotated[int, Field(ge=1)] = Field(
        89_478_485, description="pixels above which an image is refused before it is decoded"
    )


class TaggedScenesParams(Section):
    """The scenes with captions that name several objects (stage `generate_tagged`); seed and size are of `scenes`."""

    train_images: Annotated[int, Field(ge=1)] = Field(3000, description="scenes in the training split")
    val_images: Annotated[int, Field(ge=1)] = Field(300, description="scenes in the evaluation split")


class LoraParams(Section):
    """Low-rank changes of the attention of both towers, and of a convolutional image tower's last stage."""

    rank: LoraRank = Field(16, description="r")
    alpha: Annotated[float, Field(gt=0)] = Field(16.0, description="the change is alpha / r times the product")


class TtdRecipeParams(Section):
    """How the adapter is trained."""

    seed: Seed = Field(0, description="seed of the adapter's weights and of the order")
    epochs: Annotated[int, Field(ge=1)] = Field(4, description="passes over the pairs that are kept")
    batch_size: Annotated[int, Field(ge=1)] = Field(32, description="pairs an update, over all processes")
    learning_rate: Annotated[float, Field(gt=0)] = Field(2e-4, description="peak rate of AdamW")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="decay of the adapter's matrices")
    schedule: Literal["constant", "cosine", "one_cycle"] = Field("cosine", description="course of the rate")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the processor has it")
    flip: Fraction = Field(0.5, description="probability of a horizontal flip")


class SegmentParams(Section):
    """Segmentation by the names of classes (stage `segment`)."""

    reader: Literal["voc", "coco", "cityscapes", "ade", "folder"] = Field(
        "voc", description="layout of the images and their masks"
    )
    root: str = Field(TAGGED_SCENES, min_length=1, description="folder that holds them")
    train: str = Field("train", min_length=1, description="the layout's name of the split that chooses the background")
    val: str = Field("val", min_length=1, description="the layout's name of the split that is evaluated")
    train_images: Annotated[int, Field(ge=1)] = Field(60, description="images of `train` that choose it, at most")
    background: Fraction | Literal["auto"] = Field(
        "auto", description="score of the background, a constant channel; auto: the best of a grid on `train`"
    )
    image_size: Annotated[int, Field(ge=32, le=4096)] = Field(128, description="shorter side at scale 1, pixels")
    window: Annotated[int, Field(ge=32, le=2048)] | Literal["clip"] = Field(
        64, description="side of the windows that the encoder sees, pixels; clip: the teacher's"
    )
    stride: Annotated[int, Field(ge=1)] = Field(32, description="pixels from a window to the next")
    scales: Annotated[list[Annotated[float, Field(gt=0, le=8)]], Field(min_length=1)] = Field(
        [1.0, 1.5], description="sizes over `image_size`, averaged"
    )
    flip: bool = Field(True, description="average with the mirrored image")
    pamr: Annotated[int, Field(ge=0)] = Field(10, description="passes of the refinement by pixels; 0: none")


class TtdParams(Section):
    """TTD: CLIP learns to see every word of a caption, by an adapter that every stage can take (`clip.adapter`)."""

    captions: CaptionParams = Field(CaptionParams(), description="captioned images")
    image_size: Annotated[int, Field(ge=32, le=2048)] | Literal["clip"] = Field(
        128, description="side of the images, pixels; clip: the teacher's, which all towers with places need"
    )
    score: Literal["softmax_max", "cosine_minmax", "image", "text"] = Field(
        "softmax_max", description="what chooses the words that an image shows"
    )
    chosen_by: Literal["frozen", "learner"] = Field(
        "frozen",
        description="frozen: CLIP without the adapter chooses the words that training takes for true; learner: the "
        "network as it is then, as the paper draws it, which can unlearn a word for good",
    )
    scale: Annotated[float, Field(gt=0)] | Literal["model"] = Field(
        "model", description="multiplier of the cosines in a softmax over words; model: the teacher's own"
    )
    threshold: Fraction = Field(0.5, description="score from which a word is chosen")
    keep: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="share of the pairs that training keeps, those whose image and caption are most alike"
    )
    loss: Literal["bce", "l1"] = Field("bce", description="loss of a cell")
    slope: Annotated[float, Field(gt=0)] = Field(10.0, description="a map is sigmoid(slope x cosine + shift)")
    shift: float = Field(-2.5, description="see slope")
    lora: LoraParams = Field(LoraParams(), description="the adapter")
    recipe: TtdRecipeParams = Field(TtdRecipeParams(), description="its training")
    segment: SegmentParams = Field(SegmentParams(), description="segmentation")


class EvaluateParams(Section):
    """Metrics (stage `evaluate`)."""

    threshold: Fraction = Field(0.5, description="score from which a class counts as predicted")
    top_k: Annotated[int, Field(ge=1)] = Field(3, description="classes an image in the top-k figures")
    empty_class: Literal["skip", "zero"] = Field(
        "skip", description="a class without positives: left out of the mean, or counted 0"
    )


class ModelCardParams(Section):
    """What a model card says to a model hub (stage `model`); empty values are left out."""

    license: str = Field("", description="license of the student, as the hub calls it, for example apache-2.0")
    base_model: str = Field("", description="name on the hub of what it was distilled from")


class Params(Section):
    """The whole of params.yaml."""

    dataset: DatasetParams = Field(DatasetParams(), description="raw data")
    scenes: ScenesParams = Field(ScenesParams(), description="the generated data set")
    pretrain_clip: PretrainClipParams = Field(PretrainClipParams(), description="the tiny CLIP")
    clip: ClipParams = Field(ClipParams(), description="the teacher")
    prompts: PromptParams = Field(PromptParams(), description="prompts")
    views: ViewParams = Field(ViewParams(), description="views")
    pseudo_label: PseudoLabelParams = Field(PseudoLabelParams(), description="first labels")
    train: TrainParams = Field(TrainParams(), description="students")
    ccd: CcdParams = Field(CcdParams(), description="CCD")
    mkt: MktParams = Field(MktParams(), description="MKT")
    tagged_scenes: TaggedScenesParams = Field(TaggedScenesParams(), description="generated captioned images")
    ttd: TtdParams = Field(TtdParams(), description="TTD")
    evaluate: EvaluateParams = Field(EvaluateParams(), description="metrics")
    model_card: ModelCardParams = Field(ModelCardParams(), description="model cards")


class _Loader(yaml.SafeLoader):
    """YAML 1.1's loader with two repairs: `1e-5` is a number, and a key may stand only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if str(key_node.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} stands twice", key_node.start_mark
                )
            seen.add(str(key_node.value))
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(node.value).lstrip("+-")
        if ":" in text or re.match("0[0-9_]", text):
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"{node.value} is another number to DVC: write it without colons or leading zeros",
                node.start_mark,
            )
        return int(super().construct_yaml_int(node))

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        # Merges of merges grow like powers.
        if len(node.value) > _MOST_KEYS:
            raise yaml.constructor.ConstructorError(None, None, f"more than {_MOST_KEYS} keys", node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load(path: Path = PARAMS_FILE) -> Params:
    """Read and check a parameter file.

    Args:
        path: YAML file; a missing section or key takes its default.

    Returns:
        The parameters, immutable.

    Raises:
        ParamsError: the file is missing or is no YAML, or a key is unknown, of a wrong type or out of range; the text
            names every such key with its full path.
    """
    try:
        raw = yaml_text.read(path, _Loader)
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing: run from the project's top folder, or restore it from git") from None
    except OSError as error:
        raise ParamsError(f"{path} cannot be read ({error.strerror}): restore it from git") from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from None
    try:
        return Params.model_validate({} if raw is None else raw)
    except ValidationError as error:
        raise ParamsError(_explain(path, error)) from None


def _explain(path: Path, error: ValidationError) -> str:
    lines = [f"{path}: {error.error_count()} parameter(s) refused"]
    for problem in error.errors():
        location = [
            str(part) for part in problem["loc"] if not re.match(r"^(float|literal\[.*|constrained.*)$", str(part))
        ]
        key = ".".join(location) or "(top level)"
        if problem["type"] == "extra_forbidden":
            lines.append(f"  {key}: unknown key; known here: {', '.join(_known_keys(location[:-1]))}")
        else:
            # Shortened: with aliases a few lines of YAML can be a value of any size.
            found = "" if isinstance(problem["input"], dict) else f", found {_REPR.repr(problem['input'])}"
            lines.append(f"  {key}: {problem['msg'].removeprefix('Value error, ')}{found}")
    return "\n".join(lines)


def _known_keys(location: list[str]) -> list[str]:
    model: Any = Params
    for part in location:
        model = next(field.annotation for name, field in model.model_fields.items() if part in (name, field.alias))
    return [field.alias or name for name, field in model.model_fields.items()]
