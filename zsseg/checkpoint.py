"""Write a model artifact, finished or not, and go on from an unfinished one.

What a run draws depends on (seed, step) alone, so weights, the optimizer's moments and the history are all that a
resume needs.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zsseg import kinship, wordnet
from zsseg.artifacts import create, open_artifact
from zsseg.calibration import Calibration
from zsseg.config import TrainConfig
from zsseg.errors import ArtifactError, SettingError
from zsseg.inference import restore_net
from zsseg.selftrain import PseudoLabels
from zsseg.state import State, imagenet_kinship, state_of
from zsseg.task import Task, with_pseudo_labels


def save(task: Task, state: State, out: Path, calibration: Calibration | None = None) -> None:
    """Write the model; while training is unfinished with the optimizer's state, for a resume."""
    recipe = {} if task.recipe is None else {"recipe": dict(task.recipe.settings)}
    params = recorded_settings(task, state) | recipe
    with create(out, "model", params=params, inputs=task.inputs, force=True) as writer:
        writer.put("names", task.names)
        writer.put("seen", task.seen)
        writer.put("unseen", task.unseen)
        if task.vectors is not None:
            writer.put("vectors", task.vectors)
        if task.recipe is not None:
            writer.put("recipe_mean", task.recipe.mean)
            writer.put("recipe_components", task.recipe.components)
        writer.put("loss", state.losses)
        writer.put("lr", state.rates)
        writer.put("val_seen_miou", state.val_seen_miou)
        if calibration is not None:
            writer.put("calibration_scale", calibration.scale)
            writer.put("calibration_bias", calibration.bias)
        writer.put("weights", {name: value.cpu().numpy() for name, value in state.net.state_dict().items()})
        if state.step < task.total_steps:
            writer.put("optimizer", _optimizer_arrays(state))
            if task.pseudo is not None:
                writer.put("pseudo_images", list(task.pseudo.maps))
                writer.put("pseudo_labels", list(task.pseudo.maps.values()))


def _optimizer_arrays(state: State) -> dict[str, NDArray[Any]]:
    arrays = {}
    for name, parameter in state.parameters():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            arrays[f"{key}:{name}"] = value.cpu().numpy()
    return arrays


def resume(task: Task, out: Path) -> State:
    """Rebuild the state from an unfinished model.

    Raises:
        ArtifactError: It is finished, or was trained from other inputs.
        SettingError: A setting on the command line differs from the recorded one.
    """
    with open_artifact(out, "model") as artifact:
        recorded = artifact.params
        if "optimizer" not in artifact:
            raise ArtifactError(
                f"{out}: is finished ({recorded['step']} steps), nothing to resume; train anew with --force"
            )
        _compare_settings(recorded, {"loss": task.config.loss}, out)  # it decides which inputs there are
        if artifact.inputs != task.inputs:
            changed = sorted(kind for kind in task.inputs if artifact.inputs.get(kind) != task.inputs[kind])
            raise ArtifactError(
                f"{out}: was trained from another {' and '.join(changed) or 'set of inputs'}; "
                "restore that, or train anew with --force"
            )
        net = restore_net(artifact)
        net.fresh = tuple(recorded["fresh"])
        state = state_of(task, net, recorded["pretrained"])
        if state.log_scale.requires_grad:
            state.log_scale.data.fill_(recorded["log_scale"])
        state.calibration_choice = recorded.get("calibration_choice")
        _compare_settings(recorded, recorded_settings(task, state), out)
        state.losses = artifact.array("loss").tolist()
        state.rates = artifact.array("lr").tolist()
        state.val_seen_miou = artifact.array("val_seen_miou").tolist()
        _restore_optimizer(state, artifact.arrays("optimizer"))
    return state


def recorded_config(model: Path) -> TrainConfig:
    """Return the settings that an unfinished model was trained with, for a resume."""
    if not model.is_file():
        raise ArtifactError(f"{model}: no such file, nothing to resume; train without --resume")
    with open_artifact(model, "model") as artifact:
        names = {each.name for each in fields(TrainConfig)}
        recorded = {key: value for key, value in artifact.params.items() if key in names}
        return TrainConfig(**{**recorded, "val_classes": tuple(recorded.get("val_classes", ()))})


def with_stored_pseudo_labels(task: Task, out: Path) -> Task:
    """Return the task with the pseudo-labels that an unfinished model carries, as it is for any other model."""
    with open_artifact(out, "model") as artifact:
        if "pseudo_images" not in artifact:
            return task
        images = artifact.array("pseudo_images").tolist()
        maps = {index: artifact.bytes_at("pseudo_labels", row) for row, index in enumerate(images)}
        return with_pseudo_labels(task, PseudoLabels(maps, artifact.params["self_training"]))


def recorded_settings(task: Task, state: State) -> dict[str, Any]:
    """Return the settings that the model artifact records: no path, nothing that does not change the result."""
    left_out = {"workers", "checkpoint_every", "device"} | ({"negatives"} if task.config.loss != "hinge" else set())
    left_out |= {"rounds"} if task.config.self_train == "none" else set()
    config = {key: value for key, value in asdict(task.config).items() if key not in left_out}
    config["val_classes"] = list(task.config.val_classes)
    if state.calibration_choice is not None:
        config["calibration_choice"] = state.calibration_choice
    if task.pseudo is not None:
        config["self_training"] = task.pseudo.record
    if state.log_scale.requires_grad:
        config["log_scale"] = state.log_scale.item()
    if task.config.anchors == "imagenet":
        kin = imagenet_kinship(task.names)
        config["anchors_from"] = list(kin.sources)
        config["anchors_taken_out"] = kinship.taken_out(kin, task.unseen.tolist())
    if len(task.unseen) and "ImageNet-1k" in state.pretrained.get("seen", ""):
        overlap = wordnet.imagenet_overlap([task.names[index] for index in task.unseen])
        config["imagenet_overlap"] = {name: None if found is None else list(found) for name, found in overlap.items()}
    return {
        **config,
        "weights": None if task.config.weights is None else Path(task.config.weights).name,
        "lr": task.lr,
        "crop": task.crop,
        "precision": task.precision,
        "out_dim": task.out_dim,
        "fresh": list(state.net.fresh),
        "pretrained": state.pretrained,
        "step": state.step,
        "total_steps": task.total_steps,
    }


def _compare_settings(recorded: dict[str, Any], wanted: dict[str, Any], out: Path) -> None:
    for key, value in wanted.items():
        if key not in ("step",) and recorded.get(key) != value:
            raise SettingError(
                f"{out}: was trained with {key} {recorded.get(key)!r}, this command says {value!r}; "
                "resume with the same options, or train anew with --force"
            )


def _restore_optimizer(state: State, arrays: dict[str, NDArray[Any]]) -> None:
    for name, parameter in state.parameters():
        found = {key.split(":")[0]: value for key, value in arrays.items() if key.split(":", 1)[1] == name}
        if found:
            state.optimizer.state[parameter] = {key: _laid_out_like(parameter, value) for key, value in found.items()}


def _laid_out_like(parameter: Tensor, value: NDArray[Any]) -> Tensor:
    """Return the array as a tensor; moments in the parameter's own memory layout, which the fused kernel assumes."""
    tensor = torch.from_numpy(np.asarray(value)).to(parameter.device)
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
