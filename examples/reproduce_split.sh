#!/usr/bin/env bash
# Reproduce the zero-shot setting of a paper: its unseen classes, photos that show them left out of training, several
# seeds, its way of scoring. By default ZS3Net's four unseen classes (Bucher et al., NeurIPS 2019) on VOC 2012 with SBD.
#   bash examples/reproduce_split.sh [FOLDER]     the artifacts go to FOLDER, by default ./zs3-4
# On other data or in less time:
#   FETCH="folder --root ~/photos" VECTORS=glove-6b-50d SPLIT="--unseen cow,sheep" SEEDS=1 TRAIN="--epochs 1" bash ...
set -euo pipefail
export ZSSEG_WORKSPACE="${1:-zs3-4}"
FETCH="${FETCH:-voc2012+sbd}"
VECTORS="${VECTORS:-word2vec-google-news-300}"
SPLIT="${SPLIT:---preset zs3-4 --policy drop}"
SEEDS="${SEEDS:-3}"
TRAIN="${TRAIN:-}"

# the variables may hold several words, so they stand without quotes
zsseg fetch-data $FETCH
case "$VECTORS" in word2vec-google-news-300) zsseg fetch-data "$VECTORS" ;; esac
zsseg embed-labels --vectors "$VECTORS" --dim "${DIM:-50}"
zsseg make-split $SPLIT --audit # how near each unseen class is to the seen ones
zsseg train --seeds "$SEEDS" $TRAIN
zsseg eval --seeds "$SEEDS" --protocol "${PROTOCOL:-zs3}" --json "$ZSSEG_WORKSPACE/scores.json"
echo "The figures are in $ZSSEG_WORKSPACE/scores.json."
