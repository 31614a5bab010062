"""Do a picture and a text belong together? A chance from their cosine, and what a student learns of a teacher's similarities.

Legend: N picture, M caption.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

SHARPNESS = 20.0
"""Cosines are multiplied by it before they are chances that a student is to share."""


def fitted(similarity: NDArray[np.float32], owner: NDArray[np.int64]) -> dict[str, float]:
    """`slope` and `middle` of the logistic curve from cosine to chance, own pairs and others weighed alike.

    Args:
        similarity: [N, M] of pictures that nothing was trained on.
        owner: [M]
    """
    from sklearn.linear_model import LogisticRegression

    own = np.arange(len(similarity))[:, None] == owner
    curve = LogisticRegression(C=1e4, class_weight="balanced").fit(similarity.reshape(-1, 1), own.ravel())
    slope = float(curve.coef_[0, 0])
    return {"slope": slope, "middle": float(-curve.intercept_[0] / slope) if slope else 0.0}


class SimilarityDistillation(nn.Module):
    """A student's pictures and texts are as like each other, each way, as the teacher's."""

    def forward(self, student: Any, teacher: Any) -> Tensor:
        """Both are pictures [N, heads, D] and texts [M, heads, D] -> scalar."""
        ours, theirs = (
            SHARPNESS * torch.einsum("nhd,mhd->nm", *pair) / pair[0].shape[1] for pair in (student, teacher)
        )
        return _divergence(ours, theirs) + _divergence(ours.T, theirs.T)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
