#!/usr/bin/env bash
# Take a model that ships, or one that waits for a GPU, further in slices of so many minutes.
#
#   training/slices.sh MODEL MINUTES [option of iafvae-train fit]...
#   training/slices.sh MODEL finish
#
# MODEL: mnist, mnist-iaf, mnist-flow (a flow as the prior), mnist-wide (more maps), mnist-distorted (trained on with distorted digits),
# mnist-iaf-8x1920, mnist-ladder, fashion-mnist-mixture, cifar10-small,
# cifar10-mixture, cifar10-medium or cifar10-paper. The first slice copies what training/checkpoints/MODEL has, if
# anything, to runs/MODEL; every later one resumes there, exactly. Ctrl-C stops with a checkpoint
# as well. `finish` measures the test set once and exports runs/MODEL/bundle.
#
#   IAFVAE_DATA_DIR   where the data sets lie or are downloaded to
#   IAFVAE_TRAIN      the program (.venv/bin/iafvae-train, else the one on the path)
#   SLICES_DRY=1      only print the commands
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
model=$1 minutes=$2
shift 2

train=${IAFVAE_TRAIN:-.venv/bin/iafvae-train}
[ -n "$(command -v "$train")" ] || train=iafvae-train
run=runs/$model
data=()
[ -z "${IAFVAE_DATA_DIR:-}" ] || data=(--data-dir "$IAFVAE_DATA_DIR")

# Epochs of the whole run: what a night on one large GPU takes. While the rate is constant they can
# be changed without changing a step. K is what the test set is measured with.
case $model in
  mnist | mnist-iaf | mnist-flow | mnist-wide | mnist-distorted | mnist-iaf-8x1920) epochs=2000 k=128 ;;
  mnist-ladder | fashion-mnist-mixture) epochs=400 k=128 ;;
  cifar10-small | cifar10-mixture) epochs=200 k=128 ;;
  cifar10-medium) epochs=200 k=128 ;;
  cifar10-paper) epochs=400 k=128 ;;
  *) echo "there is no model $model" >&2; usage ;;
esac

do_() {
  printf '+ %s\n' "$*"
  [ -n "${SLICES_DRY:-}" ] || "$@"
}

if [ "$minutes" = finish ]; then
  [ $# = 0 ] || usage
  do_ "$train" evaluate "$run" --split test --importance-samples "$k" "${data[@]}"
  case $model in mnist*) do_ "$train" bound "$run" "${data[@]}" ;; esac
  do_ "$train" curve "$run"
  do_ "$train" export "$run" --out "$run/bundle" "${data[@]}"
  do_ "$train" evaluate-anomaly --bundle "$run/bundle" --out "$run" --into-card "${data[@]}"
  exit
fi

[[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ ]] || usage
slice=(--out "$run" --epochs "$epochs" --budget-minutes "$minutes" "${data[@]}" "$@")
if [ ! -e "$run" ] && [ -d "training/checkpoints/$model" ]; then
  do_ mkdir -p runs
  do_ rm -rf "$run.part" # of a copy that was interrupted: cp would put the next one into it
  do_ cp -r "training/checkpoints/$model" "$run.part"
  do_ mv "$run.part" "$run"
  do_ "$train" fit --resume "${slice[@]}"
elif [ -e "$run" ]; then
  do_ "$train" fit --resume "${slice[@]}"
else
  do_ "$train" fit --preset "$model" "${slice[@]}"
fi
