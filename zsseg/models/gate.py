"""The gate: a second, plainer pixel embedding that decides between seen and unseen classes.

A head that is trained to tell the seen classes apart learns to tell background from *them*: with cow and sheep unseen,
half of the cow pixels and two thirds of the sheep pixels of voc-animals came out as background (docs/zero-shot.md), for
the global context of a photo without a known animal says that there is none. An embedding of the same class vectors
that sees a cell's own features only, half of them dropped, and is trained for a third of the steps, ranks seen classes
worse and generalises better. The gate is the mean of three such embeddings, which err differently: a wide and a deep
one that learn by mse, and a deep one that learns by `losses.softmax_embed`. So each does what it is good at (two
scorers, one to accept and one to name, as in open-set recognition: Zhang and Ding, "Prototypical Matching and Open Set
Rejection for Zero-Shot Semantic Segmentation", ICCV 2021): with a the NNE scores of the head's embedding and b those
of the gate's,

    score_c = a_c − max over seen a + max over seen b     for a seen class c,
    score_c = b_c                                         for an unseen one.

Seen classes keep the head's order; a seen and an unseen class compare by the gate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsseg.models.net import BatchDropout

WIDE, DEEP = 1024, 256  # hidden channels of a branch with one layer, and of one with two
LANES = 8  # random bits of a byte, each of which keeps a feature or drops it
SHARE = 1 / 3  # of the run's steps that train the gate; longer, it turns unseen classes into background, too
LEAST_STEPS = 500  # of those; a short run trains it to the end
CONTRASTIVE = 0.5  # what the branch of softmax_embed counts, whose embeddings are longer than the class vectors
LOG_SCALE = math.log(10)  # of its softmax


class HalfDropout(nn.Dropout, BatchDropout):
    """Dropout of one half of all numbers, by single random bits.

    torch draws 64 random bits a number, one number after the other, which took longer than the rest of the gate's step;
    and it draws others on processors of another make.
    """

    def __init__(self) -> None:
        super().__init__(0.5)

    def forward(self, cells: Tensor) -> Tensor:
        """Drop half while training, and double the rest; the bits come from torch's global generator."""
        if not self.training:
            return cells
        kind = cells.device.type
        if torch.is_autocast_enabled(kind):  # what the next layer would do; times 0 or 2 is exact in any type
            cells = cells.to(torch.get_autocast_dtype(kind))
        before, whole = 0, cells.numel()
        if self.part is not None:  # of several processes, each draws for the whole batch
            before, whole = (photos * cells[0].numel() for photos in (self.part.rows.start, self.part.whole))
        drawn = torch.empty(-(-whole // 64), dtype=torch.int64, device=cells.device).random_(-(2**63), None)
        drawn = drawn[before // 64 : -(-(before + cells.numel()) // 64)]
        lanes = torch.arange(LANES, dtype=torch.uint8, device=cells.device)
        kept = ((drawn.view(torch.uint8)[:, None] >> lanes) & 1).view(-1)[before % 64 :][: cells.numel()]
        kept = kept.view(cells.shape)
        return cells * kept.to(cells.dtype).mul_(2)


class Branch(nn.Module):
    """A cell's features -> an embedding, through one or two hidden layers.

    Args:
        channels: Of the features.
        width: Of the hidden layers.
        dim: Embedding dims D.
        layers: 1 or 2.
    """

    def __init__(self, channels: int, width: int, dim: int, *, layers: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.drop = HalfDropout()
        self.hidden = nn.Linear(channels, width)
        self.mix = nn.Linear(width, width) if layers > 1 else None
        self.out = nn.Linear(width, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, cells: Tensor) -> Tensor:
        """Map features, (N, h, w, K), to embeddings, (N, D, h, w)."""
        hidden = F.relu(self.hidden(self.drop(self.norm(cells))))
        if self.mix is not None:
            hidden = F.relu(hidden + self.mix(hidden))
        embeddings: Tensor = self.out(hidden)
        return embeddings.permute(0, 3, 1, 2)


class Gate(nn.Module):
    """Three embeddings of a cell, and their mean.

    Args:
        channels: Of the features.
        dim: Embedding dims D.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.wide = Branch(channels, WIDE, dim, layers=1)
        self.deep = Branch(channels, DEEP, dim, layers=2)
        self.contrastive = Branch(channels, DEEP, dim, layers=2)

    def branches(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map features, (N, K, h, w), to the embeddings of the three branches, (N, D, h, w) each."""
        cells = maps.permute(0, 2, 3, 1)
        return self.wide(cells), self.deep(cells), self.contrastive(cells)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the weighted mean of the branches, (N, D, h, w)."""
        wide, deep, contrastive = self.branches(maps)
        return (wide + deep + CONTRASTIVE * contrastive) / 3


def gated_scores(scores: Tensor, gate_scores: Tensor, seen: Sequence[int]) -> Tensor:
    """Return the scores by which head and gate decide together; the module docstring has the formula.

    Args:
        scores: Of the head's embedding, float32 (C, h, w).
        gate_scores: Of the gate's, (C, h, w).
        seen: Ids of the seen classes, at least one.

    Returns:
        float32 (C, h, w).
    """
    chosen = torch.as_tensor(list(seen), device=scores.device)
    joint = gate_scores.clone()
    shift = gate_scores[chosen].amax(dim=0) - scores[chosen].amax(dim=0)
    joint[chosen] = scores[chosen] + shift
    return joint
