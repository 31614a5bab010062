"""Peers of `retrieval_flickr8k.py`, on the features that ours gets: linear maps by hinge or softmax loss, and canonical correlation.

Legend: N picture, V view, M caption, F feature, C channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

Floats = NDArray[np.float32]
Similarity = Callable[[Floats, Floats], Floats]
"""Pictures [N, V, F] and captions [M, C] -> [N, M]."""


@dataclass(frozen=True, eq=False)
class Known:
    """What is learned from."""

    pictures: Floats
    """[N, V, F]"""
    captions: Floats
    """[M, C]"""
    owner: NDArray[np.int64]
    """[M]"""


WIDTH, EPOCHS, BATCH = 512, 30, 128
"""Of the peers that are trained."""
COMPONENTS, DIRECTIONS = 200, 128
"""Principal components of either side, and canonical directions of them, of which the first are kept."""


def hinge(known: Known, *, rate: float, margin: float, seed: int = 0) -> Similarity:
    """A linear visual-semantic embedding: the sum of hinges over a batch, both ways.

    Source:
        Kiros, Salakhutdinov and Zemel, Unifying Visual-Semantic Embeddings with Multimodal Neural Language Models, 2014
        (arXiv:1411.2539), with a frozen sentence encoder in place of its LSTM; Adam in place of its gradient descent.
    """

    def loss(similarity: Tensor, own: Tensor) -> Tensor:
        right = similarity.diagonal()
        others = ~own
        rows = F.relu(margin + similarity - right[:, None])[others].sum()
        columns = F.relu(margin + similarity - right[None])[others].sum()
        return (rows + columns) / len(right)

    return _linear(known, loss, rate=rate, decay=0.0, scaled=False, seed=seed)


def softmax(known: Known, *, rate: float, decay: float, seed: int = 0) -> Similarity:
    """The plain dual encoder with open_clip's recipe: linear projections, one learned temperature, AdamW, warm-up and cosine.

    Source:
        Ilharco et al., OpenCLIP, 2021; Radford et al., 2021 (arXiv:2103.00020). A batch's pictures have one caption each there.
    """

    def loss(similarity: Tensor, own: Tensor) -> Tensor:
        right = torch.arange(len(similarity))
        return (F.cross_entropy(similarity, right) + F.cross_entropy(similarity.T, right)) / 2

    return _linear(known, loss, rate=rate, decay=decay, scaled=True, seed=seed)


def _linear(
    known: Known, loss: Callable[[Tensor, Tensor], Tensor], *, rate: float, decay: float, scaled: bool, seed: int
) -> Similarity:
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    pictures, captions = torch.from_numpy(known.pictures), torch.from_numpy(known.captions)
    num, views, size = pictures.shape
    seen = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, WIDTH))
    read = nn.Linear(captions.shape[1], WIDTH)
    scale = nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))
    parameters = [*seen.parameters(), *read.parameters(), *([scale] if scaled else [])]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, betas=(0.9, 0.98), eps=1e-6)
    steps = num // BATCH * EPOCHS
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=0.1)
    own_captions = [np.flatnonzero(known.owner == place) for place in range(num)]
    for _ in range(EPOCHS):
        order = random.permutation(num)
        for batch in order[: num // BATCH * BATCH].reshape(-1, BATCH):
            view = torch.from_numpy(random.integers(views, size=len(batch)))
            texts = torch.from_numpy(np.array([random.choice(own_captions[place]) for place in batch]))
            a = F.normalize(seen(pictures[torch.from_numpy(batch), view]), dim=-1)
            b = F.normalize(read(captions[texts]), dim=-1)
            similarity = a @ b.T * (scale.exp().clamp(max=100) if scaled else 1)
            optimizer.zero_grad()
            loss(similarity, torch.eye(len(batch), dtype=torch.bool)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def similar(asked: Floats, said: Floats) -> Floats:
        a = F.normalize(F.normalize(seen.eval()(torch.from_numpy(asked)), dim=-1).sum(1), dim=-1)
        made: Floats = (a @ F.normalize(read.eval()(torch.from_numpy(said)), dim=-1).T).numpy()
        return made

    return similar


def correlation(known: Known, *, kept: int, power: float) -> Similarity:
    """Canonical correlation, each direction weighed by a power of its correlation; scikit-learn's, after principal components.

    Args:
        kept: directions, the first `kept` of `DIRECTIONS`: they are found one after the other.

    Source:
        Gong et al., A Multi-View Embedding Space for Modeling Internet Images, Tags, and their Semantics, 2014 (arXiv:1212.4522).
    """
    of_pictures, of_captions, model, strength = _canonical(known)
    weights = strength[:kept] ** power

    def similar(asked: Floats, said: Floats) -> Floats:
        left = model.transform(of_pictures.transform(asked.mean(1)))[:, :kept] * weights
        blank = np.zeros((len(said), model.n_features_in_))
        right = model.transform(blank, of_captions.transform(said))[1][:, :kept] * weights
        left, right = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (left, right))
        return np.asarray(left @ right.T, np.float32)

    return similar


@lru_cache(maxsize=1)
def _canonical(known: Known) -> tuple[Any, Any, Any, Floats]:
    """Components of pictures and of captions, their canonical directions, and how strong each is."""
    from sklearn.cross_decomposition import CCA
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pictures = known.pictures.mean(1)
    of_pictures, of_captions = (
        make_pipeline(StandardScaler(), PCA(min(COMPONENTS, *side.shape), random_state=0)).fit(side)
        for side in (pictures, known.captions)
    )
    a, b = of_pictures.transform(pictures[known.owner]), of_captions.transform(known.captions)
    model = CCA(min(DIRECTIONS, *a.shape, *b.shape), max_iter=2000).fit(a, b)
    u, v = model.transform(a, b)
    strength = [max(0.0, np.corrcoef(u[:, k], v[:, k])[0, 1]) for k in range(u.shape[1])]
    return of_pictures, of_captions, model, np.array(strength, np.float32)
