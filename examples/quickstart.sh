#!/usr/bin/env bash
# The seven commands, stitched in the shell, on the built-in sample data: small scenes whose classes look the way
# their words mean. Three of the classes are never shown in training.
#   bash examples/quickstart.sh [FOLDER]      the artifacts and pictures go to FOLDER, by default ./demo
set -euo pipefail
export ZSSEG_WORKSPACE="${1:-demo}"
UNSEEN=boat,copper,butter

run() {
    echo
    echo "\$ $*"
    "$@"
}

run zsseg fetch-data sample --force             # -> data.h5
run zsseg embed-labels --dim 50 --force         # -> labels.h5
run zsseg make-split --unseen "$UNSEEN" --force # -> split.h5
run zsseg train --force                         # -> model.h5
run zsseg predict "$ZSSEG_WORKSPACE/data.h5" --force --quiet # -> predictions.h5, predictions/*.png
for artifact in data labels model predictions; do
    run zsseg visualize "$ZSSEG_WORKSPACE/$artifact.h5" --force # -> pictures/*.png
done
run zsseg eval --force                          # -> scores.h5
run zsseg visualize "$ZSSEG_WORKSPACE/scores.h5" --force
echo
echo "Look at $ZSSEG_WORKSPACE/pictures and $ZSSEG_WORKSPACE/predictions."
