#!/usr/bin/env bash
# Give a trained model classes that it never saw, without training: their words are enough.
#   bash examples/add_a_class.sh MODEL.h5 PHOTO [WORDS] [RESULTS]
#   bash examples/add_a_class.sh model.h5 safari.jpg "zebra, grass, sky"
set -euo pipefail
MODEL="${1:?name a model.h5, as zsseg train writes it}"
PHOTO="${2:?name a photo}"
WORDS="${3:-zebra, grass, sky}"
RESULTS="${4:-any-words}"

echo "Beside the classes that the model was trained with:"
zsseg predict "$PHOTO" --model "$MODEL" --classes "$WORDS" --add \
    --out "$RESULTS/added.h5" --pictures "$RESULTS/added" --force
echo "The words alone:"
zsseg predict "$PHOTO" --model "$MODEL" --classes "$WORDS" \
    --out "$RESULTS/alone.h5" --pictures "$RESULTS/alone" --force
echo "Read out: the nearest words of each region, among the ${VOCABULARY:-20000} most frequent:"
zsseg predict "$PHOTO" --model "$MODEL" --vocabulary "${VOCABULARY:-20000}" \
    --out "$RESULTS/read.h5" --pictures "$RESULTS/read" --force
