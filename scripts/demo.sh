#!/usr/bin/env bash
# What `make demo` runs: train a small Mini on text that Python carries, measure it, reload it, fill masks.
# Needs `accelerate` and `python` of the project's environment on PATH; no network, no GPU; a few minutes on two cores.
# Usage: bash scripts/demo.sh [FOLDER]        (default: runs/demo)
set -euo pipefail
cd "$(dirname "$0")/.."
OUT="${1:-runs/demo}"
STEPS="${DEMO_STEPS:-300}"
export ACCELERATE_USE_CPU=true
# Threads that sleep while they wait: on a machine that is busy with something else too, spinning halves the speed.
export OMP_WAIT_POLICY=passive

# -q: a mistake ends in its one line, without the launcher's traceback; it remarks on threads that it chose itself.
THREADS="$(python -c 'import os; print(os.cpu_count() or 1)')"
accelerate launch -q --config_file configs/accelerate/cpu.yaml --num_cpu_threads_per_process "$THREADS" \
    scripts/train.py --config configs/small/mini.yaml --max_steps "$STEPS" --output_dir "$OUT" --overwrite_output_dir

python scripts/evaluate.py --model "$OUT" --dataset builtin --max_length 128 --report "$OUT/evaluation.json"

python - "$OUT" <<'PYTHON'
import json
import sys
from pathlib import Path

import frankenlm.modeling  # registers the architecture with AutoModel
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

folder = Path(sys.argv[1])
model = AutoModelForMaskedLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
fill = pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
sentence = f"Return a list of the{tokenizer.mask_token} in the file."
print(f"\n{sentence}")
for guess in fill(sentence, top_k=5):
    print(f"  {guess['score']:6.1%}  {guess['token_str']!r}")

metrics = json.loads((folder / "metrics.json").read_text())
below = metrics["unigram_cross_entropy"] - metrics["eval_loss"]
print(f"""
loss before training        {metrics["loss_at_init"]:.3f} nats per token
unigram cross-entropy       {metrics["unigram_cross_entropy"]:.3f}
loss after training         {metrics["eval_loss"]:.3f}   ({below:.3f} below the unigram cross-entropy)
speed, peak memory          {metrics["tokens_per_second"]:,.0f} tokens/s, {metrics["peak_memory_mib"]:,.0f} MiB

plot        {folder / "training.png"}
metrics     {folder / "metrics.json"}, {folder / "evaluation.json"}
checkpoint  {folder}""")
if below < 0.6:
    sys.exit("the demo failed: the loss should end at least 0.6 nats below the unigram cross-entropy")
PYTHON
