#!/usr/bin/env bash
# Label every photo below a folder with a trained model: a palette PNG and an overlay of each, and a table of what was
# found as JSON. Files that cannot be read are named and left out.
#   bash examples/label_my_folder.sh PHOTOS MODEL.h5 [RESULTS]
set -euo pipefail
PHOTOS="${1:?name a folder of photos}"
MODEL="${2:?name a model.h5, as zsseg train writes it}"
RESULTS="${3:-labelled}"

mkdir -p "$RESULTS"
find "$PHOTOS" -type f \( -iname '*.jpg' -o -iname '*.jpeg' -o -iname '*.png' \) | sort |
    zsseg predict - --model "$MODEL" --skip-bad --out "$RESULTS/predictions.h5" --pictures "$RESULTS/pictures" \
        --json "$RESULTS/found.json" --force
echo "Look at $RESULTS/pictures; $RESULTS/found.json has the shares of every photo."
