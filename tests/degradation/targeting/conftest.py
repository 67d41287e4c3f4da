"""A tiny Llama in which one head carries a task: whoever looks for it must find it."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from frankenlm.degradation.answers.rendering import render_prompts

LETTERS = "abcdefgh"
LAYER, HEAD, HEADS, WIDTH = 1, 2, 4, 8
STEPS = 150


@dataclass
class Planted:
    """model: answers `say X` with X, by one head alone. prompts: a JSONL file of that task."""

    model: torch.nn.Module
    tokenizer: object
    prompts: Path
    unit: int = LAYER * HEADS + HEAD
    name: str = f"text/layers.{LAYER} head {HEAD}"


@pytest.fixture(scope="session")
def planted(tiny_model, tiny_tokenizer, tmp_path_factory):
    """Trained with the outputs of all other heads at nothing, which then get as much as before, but cannot copy."""
    model, tokenizer = tiny_model("llama", num_hidden_layers=2, tie_word_embeddings=True), tiny_tokenizer()
    texts = [f"say {letter}" for letter in LETTERS]
    rows = [row.ids for row in render_prompts(texts, tokenizer, max_length=64).prompts]
    end = tokenizer.convert_tokens_to_ids("</turn>")
    ids = torch.tensor(
        [[*row, tokenizer(letter).input_ids[-1], end] for row, letter in zip(rows, LETTERS, strict=True)]
    )
    outputs = [layer.self_attn.o_proj.weight for layer in model.model.layers]
    others = [torch.ones_like(weight, dtype=torch.bool) for weight in outputs]
    others[LAYER][:, HEAD * WIDTH : (HEAD + 1) * WIDTH] = False
    before = [weight.detach().clone() for weight in outputs]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(STEPS):
        with torch.no_grad():
            for weight, gone in zip(outputs, others, strict=True):
                weight.masked_fill_(gone, 0)
        logits = model(ids).logits[:, -3:-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -2:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for weight, gone, old in zip(outputs, others, before, strict=True):
            weight.copy_(torch.where(gone, 0.05 * old, weight))
    path = tmp_path_factory.mktemp("planted") / "say.jsonl"
    lines = [
        {"text": text, "set": "say", "skill": "copy", "grader": "alias", "answer": [letter]}
        for text, letter in zip(texts, LETTERS, strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return Planted(model.eval(), tokenizer, path)
