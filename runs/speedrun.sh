#!/usr/bin/env bash
# From raw text to a chat model of depth 24 on one machine with 8 GPUs. Every stage can be stopped and resumes from its last
# checkpoint when this is run again. TRIAL=1 only says what the base run takes.
set -euo pipefail

export NANOCHAT_BASE_DIR="${NANOCHAT_BASE_DIR:-$HOME/.cache/nanochat}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
GPUS="${GPUS:-8}"
DEPTH="${DEPTH:-24}"
SHARDS="${SHARDS:-170}"          # about 250 million characters each
TOKENIZER_CHARS="${TOKENIZER_CHARS:-2000000000}"
BASE_FLAGS=(${BASE_FLAGS:-})     # for example --run speedrun --fp8, or a toy's sizes
SFT_FLAGS=(${SFT_FLAGS:-})
UV_RUN="${UV_RUN-uv run}"        # empty where the programs are on the path already

train() { # program, then its flags; resumes by itself where there is a checkpoint
  local program="$1"
  shift
  $UV_RUN torchrun --standalone --nproc-per-node "$GPUS" -m nanochat_apps "$program" "$@"
}

DATA="${DATA:-$NANOCHAT_BASE_DIR/base_data}"
if [ "$DATA" = "$NANOCHAT_BASE_DIR/base_data" ]; then $UV_RUN download-data --num-files "$SHARDS"; fi
if [ ! -f "$NANOCHAT_BASE_DIR/tokenizer/tokenizer.json" ]; then
  $UV_RUN tok-train --data "$DATA" --max-chars "$TOKENIZER_CHARS" --vocab-size "${VOCAB_SIZE:-32768}"
  $UV_RUN tok-eval --data "$DATA"
fi

base=(--data "$DATA" --depth "$DEPTH" --save-every "${SAVE_EVERY:-1000}" --keep 2 "${BASE_FLAGS[@]}")
if [ -n "${TRIAL:-}" ]; then
  train base-train "${base[@]}" --trial
  exit
fi
train base-train "${base[@]}"
$UV_RUN base-eval --data "$DATA" --model-tag "d$DEPTH"
train chat-sft --mixture "${MIXTURE:-gsm8k:4,spellingbee:1,simplespelling:1}" --model-tag "d$DEPTH" \
  --save-every 200 --keep 2 "${SFT_FLAGS[@]}"
echo "talk to it: uv run chat-cli -g d$DEPTH, or uv run chat-web -g d$DEPTH"
