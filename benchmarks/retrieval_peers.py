"""Peers of `retrieval_flickr8k.py`, on the features that ours gets: linear maps by hinge or softmax loss, and canonical correlation.

Legend: N picture, V view, M caption, F feature, C channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

Floats = NDArray[np.float32]
Similarity = Callable[[Floats, Floats], Floats]
"""Pictures [N, V, F] and captions [M, C] -> [N, M]."""


class Known(NamedTuple):
    """What is learned from."""

    pictures: Floats
    """[N, V, F]"""
    captions: Floats
    """[M, C]"""
    owner: NDArray[np.int64]
    """[M]"""


class Settings(NamedTuple):
    """Of a peer that is trained."""

    width: int = 512
    rate: float = 1e-3
    decay: float = 0.0
    epochs: int = 30
    batch: int = 128


def hinge(known: Known, settings: Settings, *, seed: int = 0, margin: float = 0.2) -> Similarity:
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

    return _linear(known, settings, loss, seed, scaled=False)


def softmax(known: Known, settings: Settings, *, seed: int = 0) -> Similarity:
    """The plain dual encoder with open_clip's recipe: linear projections, one learned temperature, AdamW, warm-up and cosine.

    Source:
        Ilharco et al., OpenCLIP, 2021; Radford et al., 2021 (arXiv:2103.00020). A batch's pictures have one caption each there.
    """

    def loss(similarity: Tensor, own: Tensor) -> Tensor:
        right = torch.arange(len(similarity))
        return (F.cross_entropy(similarity, right) + F.cross_entropy(similarity.T, right)) / 2

    return _linear(known, settings, loss, seed, scaled=True)


def _linear(
    known: Known, settings: Settings, loss: Callable[[Tensor, Tensor], Tensor], seed: int, *, scaled: bool
) -> Similarity:
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    pictures, captions = torch.from_numpy(known.pictures), torch.from_numpy(known.captions)
    num, views, size = pictures.shape
    seen = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, settings.width))
    read = nn.Linear(captions.shape[1], settings.width)
    scale = nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))
    parameters = [*seen.parameters(), *read.parameters(), *([scale] if scaled else [])]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.rate, weight_decay=settings.decay, betas=(0.9, 0.98), eps=1e-6
    )
    steps = num // settings.batch * settings.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, total_steps=steps + 1, pct_start=0.1)
    own_captions = [np.flatnonzero(known.owner == place) for place in range(num)]
    for _ in range(settings.epochs):
        order = random.permutation(num)
        for batch in order[: num // settings.batch * settings.batch].reshape(-1, settings.batch):
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


def correlation(known: Known, *, parts: int, kept: int, power: float) -> Similarity:
    """Canonical correlation, each direction weighed by a power of its correlation; scikit-learn's, after principal components.

    Args:
        parts: principal components of either side.
        kept: directions.

    Source:
        Gong et al., A Multi-View Embedding Space for Modeling Internet Images, Tags, and their Semantics, 2014 (arXiv:1212.4522).
    """
    from sklearn.cross_decomposition import CCA
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    x, y = known.pictures.mean(1)[known.owner], known.captions
    of_pictures, of_captions = (
        StandardScaler().fit(known.pictures.mean(1)),
        StandardScaler().fit(known.captions),
    )
    few_x = PCA(parts, random_state=0).fit(of_pictures.transform(known.pictures.mean(1)))
    few_y = PCA(parts, random_state=0).fit(of_captions.transform(y))
    a, b = few_x.transform(of_pictures.transform(x)), few_y.transform(of_captions.transform(y))
    model = CCA(kept, max_iter=2000).fit(a, b)
    u, v = model.transform(a, b)
    weights = np.array([max(0.0, np.corrcoef(u[:, k], v[:, k])[0, 1]) for k in range(kept)]) ** power

    def similar(asked: Floats, said: Floats) -> Floats:
        left = model.transform(few_x.transform(of_pictures.transform(asked.mean(1)))) * weights
        blank = np.zeros((len(said), parts))
        right = model.transform(blank, few_y.transform(of_captions.transform(said)))[1] * weights
        left, right = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (left, right))
        return np.asarray(left @ right.T, np.float32)

    return similar
