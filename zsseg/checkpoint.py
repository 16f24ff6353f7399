"""Write a model artifact, finished or not, and go on from an unfinished one.

What a run draws depends on (seed, step) alone, so weights, the optimizer's moments and the history are all that a
resume needs. A run has stages: models that only serve another one, and the last model. The last one stands under the
final name from its first checkpoint on. What comes before lies in a hidden model artifact beside it,
`.model.h5.unfinished`: written as soon as the run starts, so that a resume finds the settings, and removed when the
last model is first written.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zsseg import distributed, kinship, wordnet
from zsseg.artifacts import beside, create, open_artifact
from zsseg.calibration import Calibration
from zsseg.config import TrainConfig
from zsseg.errors import ArtifactError, SettingError
from zsseg.inference import restore_net
from zsseg.presence import SHARPNESS
from zsseg.selftrain import PseudoLabels
from zsseg.state import State, imagenet_kinship, initial_state, state_of
from zsseg.task import Task, with_pseudo_labels

log = logging.getLogger(__name__)

# Stages: nothing but the settings, where other models come before the last; the model of a self-training round, whose
# number follows; the last model.
BEGUN, TEACHER, LAST = "begun", "teacher", "model"


@dataclass
class Journal:
    """Keeps what a run has trained so far on the disk; the caller holds the claim of `out`.

    Attributes:
        out: The model artifact to be.
        task: The run's own, also while a model is trained that only serves another.
        resumed: Stage and state that the run goes on with, until that stage takes them.
        choice: What was found out about the calibration so far.
    """

    out: Path
    task: Task
    resumed: tuple[str, State] | None = None
    choice: dict[str, Any] | None = None

    def start(self, stage: str, task: Task) -> State:
        """Return the state that a stage begins with: the resumed one, or a new one, which is written at once.

        Args:
            stage: Its name; LAST for the last model.
            task: What is trained on what in this stage.
        """
        resumed, self.resumed = self.resumed, None
        if resumed is not None and resumed[0] == stage:
            return resumed[1]
        state = replace(initial_state(task), calibration_choice=self.choice)
        save(self.task, state, unfinished_file(self.out), stage=stage)
        return state

    def rounds_done(self) -> int:
        """Return how many rounds of self-training are behind the state that the run goes on with."""
        stage = self.resumed[0] if self.resumed else BEGUN
        if stage == LAST:
            return self.task.config.rounds
        return int(stage.split()[1]) if stage.startswith(TEACHER) else 0

    def give_up(self) -> None:
        """Forget what came before the last model, so that no resume finds it."""
        _forget(self.out)

    def save(self, stage: str, state: State, calibration: Calibration | None = None) -> None:
        """Write a state down: that of the last model under its final name."""
        if stage != LAST:
            save(self.task, state, unfinished_file(self.out), stage=stage)
            return
        save(self.task, state, self.out, calibration)
        self.give_up()


def open_journal(task: Task, out: Path, *, resume: bool) -> Journal:
    """Return the journal of a run, and the state that it starts with as `resumed`.

    Args:
        task: What the command asks for.
        out: The model artifact to be.
        resume: Whether to go on with what is there; otherwise what an earlier run left unfinished is given up.

    Raises:
        ArtifactError: The model is finished, or was trained from other inputs.
        SettingError: A setting on the command line differs from the recorded one.
    """
    source = latest(out) if resume else None
    distributed.check_same("the unfinished model", source)  # and from here on rank 0 may write one
    if source is not None:
        if task.config.self_train != "none":
            task = _with_stored_pseudo_labels(task, source)
        stage, state = _restore(task, source, out)
        return Journal(out, task, (stage, state), state.calibration_choice)
    if resume:
        log.info("%s: no unfinished model is there, training from the start", out)
    _forget(out)
    state = initial_state(task)
    stage = LAST if task.plan is None and task.config.self_train == "none" else BEGUN
    save(task, state, unfinished_file(out), stage=stage)
    return Journal(out, task, (stage, state))


def _forget(out: Path) -> None:
    if distributed.is_main():
        unfinished_file(out).unlink(missing_ok=True)


def unfinished_file(out: Path) -> Path:
    """Return where the models of a run lie that come before the first checkpoint of the last one."""
    return beside(out, "unfinished")


def latest(out: Path) -> Path | None:
    """Return the file that a resume goes on from; None where there is none."""
    return next((path for path in (unfinished_file(out), out) if path.exists()), None)


def save(task: Task, state: State, path: Path, calibration: Calibration | None = None, *, stage: str = LAST) -> None:
    """Write a model; while there is more to train with the optimizer's state, for a resume. Rank 0 does it for all."""
    if not distributed.is_main():
        return
    recipe = {} if task.recipe is None else {"recipe": dict(task.recipe.settings)}
    params = recorded_settings(task, state) | recipe | ({} if stage == LAST else {"stage": stage})
    with create(path, "model", params=params, inputs=task.inputs, force=True, claimed=True) as writer:
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
        if stage != LAST or state.step < task.total_steps:
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


def _restore(task: Task, source: Path, out: Path) -> tuple[str, State]:
    """Return stage and state of an unfinished model; messages name the model artifact to be."""
    with open_artifact(source, "model") as artifact:
        recorded = artifact.params
        distributed.check_same(str(out), artifact.digest)
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
        return recorded.get("stage", LAST), state


def recorded_config(out: Path) -> TrainConfig | None:
    """Return the settings of the run that a resume of a model goes on with; None where there is none."""
    source = latest(out)
    if source is None:
        return None
    with open_artifact(source, "model") as artifact:
        names = {each.name for each in fields(TrainConfig)}
        recorded = {key: value for key, value in artifact.params.items() if key in names}
        return TrainConfig(**{**recorded, "val_classes": tuple(recorded.get("val_classes", ()))})


def _with_stored_pseudo_labels(task: Task, source: Path) -> Task:
    """Return the task with the pseudo-labels that an unfinished model carries, as it is for any other model."""
    with open_artifact(source, "model") as artifact:
        if "pseudo_images" not in artifact:
            return task
        images = artifact.array("pseudo_images").tolist()
        maps = {index: artifact.bytes_at("pseudo_labels", row) for row, index in enumerate(images)}
        return with_pseudo_labels(task, PseudoLabels(maps, artifact.params["self_training"]))


def recorded_settings(task: Task, state: State) -> dict[str, Any]:
    """Return the settings that the model artifact records: no path, nothing that does not change the result."""
    left_out = {"workers", "checkpoint_every", "checkpoint_steps", "device"}
    left_out |= {"negatives"} if task.config.loss != "hinge" else set()
    left_out |= {"rounds"} if task.config.self_train == "none" else set()
    config = {key: value for key, value in asdict(task.config).items() if key not in left_out}
    config["val_classes"] = list(task.config.val_classes)
    if state.calibration_choice is not None:
        config["calibration_choice"] = state.calibration_choice
    if task.config.presence:
        config["presence_sharpness"] = SHARPNESS
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
