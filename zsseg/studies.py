"""A sweep's study in its database: opened, taken up again after a crash, and what each of its trials draws.

A trial that no process works on any more is marked failed, and its settings are queued again, `RETRIES` times at most.
What a trial tries depends on the seed and on its place alone, as if no trial had ever been tried again.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import sqlalchemy
import sqlalchemy.exc
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from zsseg.errors import DataError

log = logging.getLogger(__name__)

BEFORE_PRUNING = 4  # trials that no other is compared with; a median of fewer says little
RETRIES = 3  # of a trial whose process died
HEARTBEAT, SILENCE = 20, 120  # seconds between signs of life, and without one until a trial counts as dead


def address(database: Path) -> str:
    """Return the URL of an SQLite file."""
    url = sqlalchemy.URL.create("sqlite", database=str(database.absolute())).render_as_string()
    return url.replace("{", "{{").replace("}", "}}")  # Optuna fills in templates


@contextlib.contextmanager
def opened(url: str, name: str) -> Iterator[optuna.Study]:
    """Yield a study of a database, made where it is not there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None,
                heartbeat_interval=HEARTBEAT,
                grace_period=SILENCE,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
            )
            study = optuna.create_study(
                storage=storage,
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=BEFORE_PRUNING, n_min_trials=3),
            )
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError, ValueError, KeyError) as error:
        raise DataError(
            f"--storage {_without_password(url)}: cannot be used as a database ({_reason(error)}); expected an address "
            "such as sqlite:///sweep.db or postgresql://user:password@host/name"
        ) from error
    try:
        yield study
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise DataError(
            f"{_without_password(url)}: the database could not be read or written ({_reason(error)}); what has "
            "finished is kept: repeat the command once it is back"
        ) from error
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _reason(error: BaseException) -> str:
    return " ".join(str(getattr(error, "orig", None) or error.__cause__ or error).split())[:200]


def _without_password(url: str) -> str:
    return re.sub(r"://([^:/@]*):[^@]*@", r"://\1:***@", url)


def taken(study: optuna.Study) -> int:
    """Return how many trials have finished, pruned ones included."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def revive(study: optuna.Study) -> None:
    """Queue trials again whose process is dead: all that seem to run, for the caller holds the lock."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        queue_again(study, trial)
        log.info("trial %d was running when the sweep ended: it is tried again", trial.number)


def bury(study: optuna.Study) -> None:
    """Mark trials failed whose process, here or on another machine, has given no sign of life for `SILENCE` seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


def queue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue the settings of a trial again, unless that was done too often."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)(study, trial)


def draw_seed(study: optuna.Study, trial: optuna.Trial, seed: int) -> int:
    """Return the seed of what a trial tries: as if no trial had ever been tried again."""
    trials = study.get_trials(deepcopy=False)
    first = _first_number(trials[trial.number])
    place = sum(_first_number(each) == each.number for each in trials[:first])
    return int(np.random.default_rng([seed, place]).integers(2**31))


def _first_number(trial: FrozenTrial) -> int:
    """Return the number that a trial had when it was tried first."""
    return int(trial.system_attrs.get("failed_trial", trial.number))
