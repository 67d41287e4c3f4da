"""Models in which one unit carries a task: a head or an expert, written by hand or (slow) trained.

The task is to answer `say X` with X. Whoever looks for the unit must find it, and models lose the task with no other.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from frankenlm.degradation.answers.rendering import render_prompts

LETTERS = "abcdefgh"
LAYER, HEAD, HEADS, WIDTH = 1, 2, 4, 8
EXPERT, EXPERTS = 3, 4
STEPS = 150
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}  # turns the pairs of a head by 1, 0.1, 0.01 and 0.001
# dimensions: the letter a token is, the letter to write, the letter heard; that it is none; the same in all tokens
SAID, TOLD, HEARD, OTHER, CONSTANT = slice(0, 8), slice(8, 16), slice(16, 24), 30, 31


@dataclass
class Planted:
    """model: answers `say X` with X, by one unit of `group` alone. prompts: a JSONL file of that task.

    unit: its number among all of the kind, `name` what it is called.
    """

    model: torch.nn.Module
    tokenizer: object
    prompts: Path
    group: str
    kind: str
    unit: int
    name: str


@pytest.fixture(scope="session")
def say(tiny_tokenizer, tmp_path_factory):
    """The tokenizer, the prompts as a file, their ids with the answers, int64 [8, n + 2], and n."""
    tokenizer, texts = tiny_tokenizer(), [f"say {letter}" for letter in LETTERS]
    rows = [row.ids for row in render_prompts(texts, tokenizer, max_length=64).prompts]
    end = tokenizer.convert_tokens_to_ids("</turn>")
    ids = [[*row, tokenizer(letter).input_ids[-1], end] for row, letter in zip(rows, LETTERS, strict=True)]
    path = tmp_path_factory.mktemp("planted") / "say.jsonl"
    lines = [
        {"text": text, "set": "say", "skill": "copy", "grader": "alias", "answer": [letter]}
        for text, letter in zip(texts, LETTERS, strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return tokenizer, path, torch.tensor(ids), len(rows[0])


def head_of(model, say):
    return Planted(model.eval(), *say[:2], "attn_o", "head", LAYER * HEADS + HEAD, f"text/layers.{LAYER} head {HEAD}")


def expert_of(model, say):
    name = f"text/layers.{LAYER}.experts expert {EXPERT}"
    return Planted(model.eval(), *say[:2], "mlp_experts", "expert", LAYER * EXPERTS + EXPERT, name)


@torch.no_grad()
def write_tables(model, ids):
    """Letters are read from SAID and written from TOLD, and a letter is followed by the end of the turn."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    letters = ids[:, -2]
    embedding[:, :24] = head[:, :24] = head[:, OTHER:] = 0
    embedding[:, CONSTANT], embedding[:, OTHER], embedding[letters, OTHER] = 4, 6, 0  # all are of about one length
    embedding[letters, SAID] = 6 * torch.eye(8)
    head[letters, TOLD], head[ids[0, -1], SAID] = 2.5 * torch.eye(8), 2


@torch.no_grad()
def write_listening_head(attention, back, to):
    """A head looks `back` tokens back, which rotary positions do, and carries what it reads in SAID to `to`."""
    kv, own = (slice(WIDTH * at, WIDTH * (at + 1)) for at in (HEAD // 2, HEAD))
    angle = back * torch.tensor([1.0, 0.1])
    attention.q_proj.weight[own] = attention.k_proj.weight[kv] = attention.v_proj.weight[kv] = 0
    query, key = attention.q_proj.weight[own, CONSTANT], attention.k_proj.weight[kv, CONSTANT]
    query[:2], query[4:6], key[:2] = 3 * angle.cos(), -3 * angle.sin(), 3  # the key's ones, turned back
    attention.v_proj.weight[kv, SAID] = 3 * torch.eye(8)
    attention.o_proj.weight[to, own] = torch.eye(8) / 3


@torch.no_grad()
def write_speaking_expert(mlp):
    """An expert carries what was heard from HEARD to TOLD."""
    gate, up = mlp.experts.gate_up_proj[EXPERT].chunk(2)
    gate[:8] = up[:8] = 0
    gate[:8, HEARD] = up[:8, HEARD] = torch.eye(8)
    mlp.experts.down_proj[EXPERT, TOLD, :8] = torch.eye(8)


@torch.no_grad()
def quieted(model):
    """Let every layer write a little, and nothing into the dimensions of letters."""
    for name, parameter in model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            parameter.mul_(0.1)[..., :24, :] = 0
    return model


def distance(ids, length):
    """How far the letter lies behind the place where it has to be written."""
    return length - 1 - int((ids[0] != ids[1]).nonzero()[0])


@pytest.fixture(scope="session")
def planted(tiny_model, say):
    """A Llama whose head was written by hand; the others read as much, and write nothing of letters."""
    model = quieted(tiny_model("llama", num_hidden_layers=2, rope_parameters=ROPE))
    write_tables(model, say[2])
    write_listening_head(model.model.layers[LAYER].self_attn, distance(*say[2:]), TOLD)
    return head_of(model, say)


@pytest.fixture(scope="session")
def planted_expert(tiny_model, say):
    """A Mixtral whose expert was written by hand; what it speaks, a head of the layer before has heard."""
    model = listening(tiny_model, say)
    write_speaking_expert(model.model.layers[LAYER].mlp)
    return expert_of(model, say)


def listening(tiny_model, say):
    """Return a Mixtral in which a letter is heard where it has to be written; the expert chosen there says nothing."""
    model = quieted(tiny_model("mixtral", num_hidden_layers=2, rope_parameters=ROPE))
    write_tables(model, say[2])
    write_listening_head(model.model.layers[LAYER - 1].self_attn, distance(*say[2:]), HEARD)
    with torch.no_grad():
        model.model.layers[LAYER].mlp.gate.weight.mul_(0.1)[EXPERT, HEARD] = 4
    return model


# --- trained


def train(model, ids, length, each_step):
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=5e-3)
    model.train()
    for _ in range(STEPS):
        each_step()
        logits = model(ids).logits[:, length - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, length:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.fixture(scope="session")
def trained_head(tiny_model, say):
    """Trained with the outputs of all other heads at nothing, which then get as much as before, but cannot copy."""
    model = tiny_model("llama", num_hidden_layers=2, tie_word_embeddings=True)
    outputs = [layer.self_attn.o_proj.weight for layer in model.model.layers]
    others = [torch.ones_like(weight, dtype=torch.bool) for weight in outputs]
    others[LAYER][:, HEAD * WIDTH : (HEAD + 1) * WIDTH] = False
    before = [weight.detach().clone() for weight in outputs]

    @torch.no_grad()
    def silence():
        for weight, gone in zip(outputs, others, strict=True):
            weight.masked_fill_(gone, 0)

    assert train(model, *say[2:], silence) < 0.1
    with torch.no_grad():
        for weight, gone, old in zip(outputs, others, before, strict=True):
            weight.copy_(torch.where(gone, 0.05 * old, weight))
    return head_of(model, say)


@pytest.fixture(scope="session")
def trained_expert(tiny_model, say):
    """Nothing but an expert has learned anything."""
    model = listening(tiny_model, say).requires_grad_(False)
    experts = model.model.layers[LAYER].mlp.experts
    stacks = [experts.gate_up_proj.requires_grad_(True), experts.down_proj.requires_grad_(True)]
    kept = [stack.detach().clone() for stack in stacks]
    others = torch.arange(EXPERTS) != EXPERT

    @torch.no_grad()
    def put_back():
        for stack, old in zip(stacks, kept, strict=True):
            stack[others] = old[others]

    assert train(model, *say[2:], put_back) < 0.1
    put_back()
    return expert_of(model.requires_grad_(True), say)
