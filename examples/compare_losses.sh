#!/usr/bin/env bash
# Compare three losses on one split: the same data, class vectors, split and seed, so that only the loss differs.
#   bash examples/compare_losses.sh FOLDER        FOLDER holds data.h5; labels.h5 and split.h5 are made where missing
#   LOSSES="mse cosine" UNSEEN=cow TRAIN="--epochs 1" bash examples/compare_losses.sh FOLDER
set -euo pipefail
export ZSSEG_WORKSPACE="${1:?name a folder with a data.h5, such as that of zsseg fetch-data sample --workspace FOLDER}"
LOSSES="${LOSSES:-mse softmax-embed hinge}"
UNSEEN="${UNSEEN:-cow,sheep}"
TRAIN="${TRAIN:-}"

for loss in $LOSSES; do
    at="$ZSSEG_WORKSPACE/$loss"
    # the variable may hold several words, so it stands without quotes
    zsseg train --loss "$loss" --unseen "$UNSEEN" --out "$at.h5" --force $TRAIN
    zsseg eval --model "$at.h5" --out "$at-scores.h5" --json "$at.json" --force
done

python3 - $(for loss in $LOSSES; do echo "$ZSSEG_WORKSPACE/$loss.json"; done) <<'PYTHON'
import json, pathlib, sys
print(f"{'loss':16}{'seen':>8}{'unseen':>8}{'harmonic':>10}")
for file in map(pathlib.Path, sys.argv[1:]):
    scores = json.loads(file.read_text())["generalized"]
    values = [scores[f"{key}_miou"] for key in ("seen", "unseen", "harmonic")]
    seen, unseen, harmonic = ("-" if value is None else f"{value:.3f}" for value in values)
    print(f"{file.stem:16}{seen:>8}{unseen:>8}{harmonic:>10}")
PYTHON
