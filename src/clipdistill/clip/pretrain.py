"""Training of the tiny CLIP on captioned images: the contrastive loss of CLIP, through open_clip's own model.

It exists so that the whole pipeline runs anywhere, with no download, and its numbers mean something. Its captions name
only the largest object of an image: so it has the single-object bias that the papers fight.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save as save_safetensors

from clipdistill import store
from clipdistill.clip import teacher as teachers
from clipdistill.clip.preprocessing import normalise
from clipdistill.clip.teacher import ClipModel
from clipdistill.errors import ArtifactError, ClipdistillError
from clipdistill.params import PretrainClipParams

logger = logging.getLogger(__name__)

_MAX_LOGIT_SCALE = float(np.log(100.0))


def read_captions(folder: Path) -> tuple[torch.Tensor, list[str]]:
    """Read captioned images: uint8 [N, 3, S, S] and N captions.

    Raises:
        ArtifactError: missing, altered, or images and captions differ in number.
    """
    images = store.read_group(folder / "images.zarr").read("image")
    try:
        captions = pq.read_table(folder / "captions.parquet").column("caption").to_pylist()
    except FileNotFoundError:
        raise ArtifactError(f"{folder / 'captions.parquet'} is missing: run `dvc repro` to make it") from None
    if len(images) != len(captions):
        raise ArtifactError(f"{folder} holds {len(images)} images and {len(captions)} captions: run `dvc repro`")
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), captions


def contrastive_loss(
    image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, sentence: torch.Tensor
) -> torch.Tensor:
    """Symmetric cross-entropy over the B x B cosines of a batch (Radford et al. 2021, figure 3).

    Captions that are equal count as each other's positives: a drawn world has few sentences, and the plain loss would
    push equal texts apart.

    Args:
        image: float [B, D], unit norm.
        text: float [B, D], unit norm.
        scale: multiplier of the cosines, scalar.
        sentence: int64 [B]; equal numbers mark equal captions.

    Returns:
        Mean loss, scalar.
    """
    logits = scale * image @ text.T
    same = (sentence[:, None] == sentence[None, :]).float()
    target = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def pretrain(
    params: PretrainClipParams, pixels: torch.Tensor, captions: list[str], device: torch.device, dtype: torch.dtype
) -> tuple[ClipModel, list[dict[str, float]]]:
    """Train a CLIP from scratch.

    Args:
        params: section `pretrain_clip`.
        pixels: uint8 [N, 3, S, S].
        captions: N texts.
        device: where.
        dtype: autocast type; float32 switches autocast off.

    Returns:
        The model on the CPU in eval mode, and a row an epoch: epoch, loss, logit_scale.

    Raises:
        ClipdistillError: the loss is not finite.
    """
    torch.manual_seed(params.seed)
    teachers.register_architectures()
    model = teachers.create(params.architecture).to(device, memory_format=torch.channels_last).train()
    data = _Captioned(model, params.architecture, pixels, captions)
    steps = params.epochs * (len(pixels) // params.batch_size)
    optimiser = _optimiser(model, params)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, params.learning_rate, total_steps=steps, pct_start=0.1)
    history = []
    for epoch in range(params.epochs):
        losses = []
        for rows, mirrored in _epoch(len(pixels), params, epoch):
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                image, text, sentence = data.embed(model, rows, mirrored, device)
            loss = contrastive_loss(image, text, model.logit_scale.exp(), sentence)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
            losses.append(loss.item())
        mean = sum(losses) / len(losses)
        if not math.isfinite(mean):
            raise ClipdistillError(f"pretrain_clip: the loss is {mean} in epoch {epoch + 1}; lower learning_rate")
        history.append({"epoch": epoch, "loss": mean, "logit_scale": model.logit_scale.exp().item()})
        logger.info("pretrain_clip: epoch %d of %d, loss %.3f", epoch + 1, params.epochs, mean)
    return model.cpu().eval(), history


class _Captioned:
    """Captioned images in memory, each different caption tokenised once."""

    def __init__(self, model: ClipModel, architecture: str, pixels: torch.Tensor, captions: list[str]) -> None:
        texts, sentence = np.unique(np.array(captions), return_inverse=True)
        self._pixels = pixels
        self._tokens = open_clip.get_tokenizer(architecture)(texts.tolist())
        self._sentence = torch.from_numpy(sentence)
        self._preprocessing = teachers.preprocessing_of(model)

    def embed(
        self, model: ClipModel, rows: torch.Tensor, mirrored: torch.Tensor, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Unit-norm embeddings of images [B, D] and captions [B, D], and which captions are equal int64 [B]."""
        batch = self._pixels[rows]
        batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch).to(device)
        values = normalise(batch, self._preprocessing).contiguous(memory_format=torch.channels_last)
        different, sentence = torch.unique(self._sentence[rows], return_inverse=True)
        sentence = sentence.to(device)
        text = F.normalize(model.encode_text(self._tokens[different].to(device)).float(), dim=-1)[sentence]
        return F.normalize(model.encode_image(values).float(), dim=-1), text, sentence


def _optimiser(model: ClipModel, params: PretrainClipParams) -> torch.optim.Optimizer:
    """AdamW; no decay of biases, norms and the temperature."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": params.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=params.learning_rate, betas=(0.9, 0.98))


def _epoch(count: int, params: PretrainClipParams, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Full batches of row numbers, and whether each row is mirrored."""
    generator = torch.Generator().manual_seed(params.seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    for start in range(0, count - params.batch_size + 1, params.batch_size):
        rows = order[start : start + params.batch_size]
        yield rows, mirrored[rows]


def write_teacher(
    model: torch.nn.Module,
    params: PretrainClipParams,
    captions: str,
    history: list[dict[str, float]],
    out: Path,
) -> None:
    """Write a self-trained teacher: `<out>.safetensors` and its card `<out>.yaml`.

    Args:
        model: trained, on the CPU.
        params: how it was trained.
        captions: digest of what it was trained on.
        history: a row an epoch.
        out: path without suffix.
    """
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    weights = out.with_suffix(".safetensors")
    store.write_atomically(weights, save_safetensors(tensors))
    card: dict[str, Any] = {
        "architecture": params.architecture,
        "sha256": store.file_sha256(weights),
        "parameters": sum(p.numel() for p in model.parameters()),
        "captions": captions,
        "training": params.model_dump(),
        "loss": [round(row["loss"], 4) for row in history],
        "logit_scale": round(history[-1]["logit_scale"], 4),
    }
    store.write_atomically(out.with_suffix(".yaml"), yaml.safe_dump(card, sort_keys=False).encode())
