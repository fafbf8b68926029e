"""MKT: scores of any list of labels from two streams, losses that rank labels, and distillation.

He et al., *Open-Vocabulary Multi-Label Classification via Multi-modal Knowledge Transfer*, AAAI 2023, arXiv 2207.01887.
What the released code runs is named where it differs from the paper (docs/mkt.md says why we differ from both).

B images, M patches of each, L labels, D the width of the embedding that images and texts share.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdistill.methods.checks import at_least_float32, require_floating, require_number, require_same_shape

Norm = Literal["cosine", "label"]


def two_stream(cls: Tensor, patches: Tensor, text: Tensor, k: int, norm: Norm = "cosine", local: float = 0.5) -> Tensor:
    """Score labels by the whole image and by its best patches (section 3.2; figure 2).

    s = (1 - local) <z_l, g> + local mean of the k largest <z_l, p_i>, where every label has its own k patches.

    Args:
        cls: g, [B, D], embedding of the whole image, in the space of `text`.
        patches: p, [B, M, D], of its patches.
        text: z, [L, D], of the labels.
        k: patches a label, at least 1; all where there are fewer.
        norm: cosine: all embeddings to unit norm first, so a label's score does not depend on which others are in the
            list. label: none of that, and each stream is divided by its norm over the L labels, as the released code
            does; there a score depends on the whole list.
        local: share of the local stream, in [0, 1]; the paper's and the code's is 0.5.

    Returns:
        [B, L]; with `cosine` in [-1, 1].

    Raises:
        ValueError: shapes that do not fit, an unknown `norm`, or a number out of range.
    """
    whole, best = streams(cls, patches, text, k, norm)
    require_number("local", local, 0 <= local <= 1, "in [0, 1]")
    return torch.lerp(whole, best, local)


def streams(cls: Tensor, patches: Tensor, text: Tensor, k: int, norm: Norm = "cosine") -> tuple[Tensor, Tensor]:
    """The global and the local stream of `two_stream`, each [B, L], before they are mixed."""
    cls, patches, text = _checked(cls, patches, text, k, norm)
    if norm == "cosine":
        cls, patches, text = (F.normalize(part, dim=-1) for part in (cls, patches, text))
    whole = cls @ text.T
    best = (patches @ text.T).topk(min(k, patches.shape[1]), dim=1).values.mean(dim=1)
    if norm == "label":
        whole, best = (part / part.norm(dim=1, keepdim=True) for part in (whole, best))
    return whole, best


def _checked(cls: Tensor, patches: Tensor, text: Tensor, k: int, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    require_floating("cls", cls, "[B, D]")
    require_floating("patches", patches, "[B, M, D]")
    require_floating("text", text, "[L, D]")
    if not len(cls) == len(patches) or not cls.shape[1] == patches.shape[2] == text.shape[1] or not len(text):
        raise ValueError(
            "cls [B, D], patches [B, M, D] and text [L, D] do not fit: "
            f"{tuple(cls.shape)}, {tuple(patches.shape)}, {tuple(text.shape)}"
        )
    if k < 1:
        raise ValueError(f"k must be at least 1, but is {k}")
    if norm not in ("cosine", "label"):
        raise ValueError(f"norm must be cosine or label, but is {norm!r}")
    return at_least_float32(cls), at_least_float32(patches), at_least_float32(text)


def rank_loss(scores: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    """Mean hinge over the pairs of a present and an absent label that are not `margin` apart (the released code's).

    L_b = sum over active pairs (p, n) of (margin + s_n - s_p) / number of active pairs; the mean over the images that
    have one. Each score is multiplied by the number of pairs it is active in, which a search among the sorted scores
    of the others gives: O(S log S) an image, and no [B, S, S] tensor, with the same value and gradient.

    With scores that are less than margin / 2 from 0 every pair is active for ever: the loss is then linear in the
    scores and ranks nothing (docs/mkt.md). Hence `log_sum_exp_loss`.

    Args:
        scores: s, [B, S].
        labels: [B, S]; present from 0.5 on, absent below, left out where negative.
        margin: at least 0.

    Returns:
        Scalar; 0, with gradient 0, where no image has a pair that is active.

    Raises:
        ValueError: shapes differ, or `margin` is out of range.
    """
    require_floating("scores", scores, "[B, S]")
    require_same_shape(scores=scores, labels=labels)
    require_number("margin", margin, margin >= 0, "0 or greater")
    scores = at_least_float32(scores)
    present, absent = labels >= 0.5, (labels >= 0) & (labels < 0.5)
    with torch.no_grad():
        # One rounding for both counts: else a pair that is just apart may be active for one of the two alone.
        moved = torch.where(present, scores - margin, scores)
        of_present = _active(moved, absent) * present
        of_absent = _active(-moved, present) * absent
        pairs = of_present.sum(dim=1)
    # Divided first: sums over pairs reach 1e7, where float32 has no decimals left.
    share = pairs.clamp(min=1)[:, None]
    loss = (of_present / share * (margin - scores)).sum(dim=1) + (of_absent / share * scores).sum(dim=1)
    return loss.sum() / (pairs > 0).sum().clamp(min=1)


def _active(scores: Tensor, among: Tensor) -> Tensor:
    """How many scores of the columns `among` lie above each score, [B, S]."""
    ordered = scores.masked_fill(~among, torch.inf).sort(dim=1).values
    below = torch.searchsorted(ordered, scores.contiguous(), right=True)
    return (among.sum(dim=1, keepdim=True) - below.clamp(max=among.shape[1])).clamp(min=0).to(scores.dtype)


def log_sum_exp_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Smooth ranking loss: log(1 + sum over pairs of exp(s_n - s_p)) of an image, mean over images.

    The sum over pairs is the product of two sums (Li et al., CVPR 2017, arXiv 1704.03135, eq. 4), so it takes O(S).
    Unlike the hinge it goes to 0 for pairs that are apart, and looks most at the worst pair. A label between 0 and 1
    counts as present by its value and as absent by the rest.

    Args:
        logits: s, [B, S]: cosines over the temperature.
        labels: [B, S], in [0, 1]; left out where negative.

    Returns:
        Scalar; images in which nothing is present, or nothing absent, add 0.

    Raises:
        ValueError: shapes differ.
    """
    require_floating("logits", logits, "[B, S]")
    require_same_shape(logits=logits, labels=labels)
    logits = at_least_float32(logits)
    labels = labels.to(logits.dtype)
    known = labels >= 0
    present = torch.where(known, labels, 0).log()
    absent = torch.where(known, 1 - labels, 0).log()
    ranked = (present.amax(dim=1) > -torch.inf) & (absent.amax(dim=1) > -torch.inf)
    if not bool(ranked.any()):
        return logits.sum() * 0
    # Chosen before the sums: the gradient of a sum of nothing is NaN, and a mask afterwards would keep it.
    logits, present, absent = logits[ranked], present[ranked], absent[ranked]
    worst = torch.logsumexp(logits + absent, dim=1) + torch.logsumexp(present - logits, dim=1)
    return F.softplus(worst).sum() / len(labels)


def distillation(cls: Tensor, teacher: Tensor) -> Tensor:
    """Mean |g - g_t| between the student's and the teacher's embedding of an image (the released code; one term, L1).

    Args:
        cls: g, [B, D].
        teacher: g_t, [B, D]; no gradient flows into it.

    Returns:
        Scalar.
    """
    require_floating("cls", cls, "[B, D]")
    require_same_shape(cls=cls, teacher=teacher)
    return F.l1_loss(at_least_float32(cls), at_least_float32(teacher.detach()))
