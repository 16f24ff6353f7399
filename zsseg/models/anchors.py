"""Anchors: the classes of the backbone's own ImageNet classifier, known by their names, as neighbours of unseen ones.

A backbone comes with a classifier of 1,000 classes that training throws away. Run at every cell, it says "water
buffalo" of a cow although it was never told of cows, and names are what zero-shot recognition lives on (ConSE: Norouzi
et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014; and Wang, Ye, Gupta, "Zero-Shot
Recognition via Semantic Embeddings and Knowledge Graphs", CVPR 2018, which predicts classifiers of unseen classes from
those of ImageNet). With p_k the probability of ImageNet class k and share_kc the part of it that `zsseg.kinship` gives
to class c,

    prior_c = log(EPS + mean over 5 × 5 cells of Σ_k p_k share_kc),

background and other classes without a kin get the mean of the others', and WEIGHT · prior_c is added to the gate's
scores. ImageNet classes that *are* an unseen class by WordNet or by name are taken out before the softmax, so none of
their labels is asked for an opinion; that the backbone's features have seen them all the same is disclosed elsewhere.

WEIGHT, EPS and the window were chosen with horse and with cat as the unseen class (cow and sheep hidden, too, and not
scored) on training photos of voc-animals.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHT = 0.1
EPS = 0.01
WINDOW = 5  # cells
NEVER = -1e4  # the logit of a class that is taken out; fits float16


class Anchors(nn.Module):
    """A frozen classifier over cells, and what its classes say of ours.

    Args:
        channels: Of the backbone's deepest map, K.
        hidden: Width of the classifier's own layer, H.
        known: Its classes, M.
        classes: Ours, C.
    """

    def __init__(self, channels: int, hidden: int, known: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("project", torch.zeros(hidden, channels))
        self.register_buffer("shift", torch.zeros(hidden))
        self.register_buffer("classify", torch.zeros(known, hidden))
        self.register_buffer("offset", torch.zeros(known))
        self.register_buffer("share", torch.zeros(known, classes))

    def forward(self, deep: Tensor) -> Tensor:
        """Map the deepest features, (N, K, h, w), to the weighted log prior of our classes, float32 (N, C, h, w)."""
        buffers = dict(self.named_buffers())
        cells = F.relu6(F.linear(deep.permute(0, 2, 3, 1), buffers["project"], buffers["shift"]))
        known = F.linear(cells, buffers["classify"]).float() + buffers["offset"]
        shares = (known.softmax(dim=-1) @ buffers["share"].float()).permute(0, 3, 1, 2)
        near = F.avg_pool2d(shares, WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False)
        prior = (near + EPS).log()
        kin = buffers["share"].amax(dim=0) > 0
        rest = prior[:, kin].mean(dim=1, keepdim=True) if bool(kin.any()) else torch.zeros_like(prior[:, :1])
        return WEIGHT * torch.where(kin[None, :, None, None], prior, rest)

    @torch.no_grad()
    def fill(self, tensors: dict[str, Tensor], share: Tensor) -> None:
        """Take the classifier over from a timm EfficientNet, its batch normalisation folded in.

        Args:
            tensors: Weights with timm's names: conv_head, bn2, classifier.
            share: What each ImageNet class gives to our classes, (M, C), 0 to 1; a row of NaN takes the class out.

        Raises:
            KeyError: There is no such classifier.
        """
        scale = tensors["bn2.weight"] / (tensors["bn2.running_var"] + BATCH_NORM_EPS).sqrt()
        out = share.isnan().all(dim=1)
        values = {
            "project": tensors["conv_head.weight"].flatten(1) * scale[:, None],
            "shift": tensors["bn2.bias"] - tensors["bn2.running_mean"] * scale,
            "classify": tensors["classifier.weight"],
            "offset": torch.where(out, torch.full_like(tensors["classifier.bias"], NEVER), tensors["classifier.bias"]),
            "share": share.nan_to_num(0.0),
        }
        for name, value in values.items():
            self.get_buffer(name).copy_(value)


BATCH_NORM_EPS = 1e-3  # of TensorFlow's EfficientNets, which tf_efficientnet_lite0 is converted from
