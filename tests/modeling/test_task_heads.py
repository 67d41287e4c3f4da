"""Heads for rows, tokens and spans, in every family: losses, pads, documents, loading, pipelines."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import pipeline

from frankenlm import modeling
from frankenlm.modeling import byte_tokenizer
from packed_rows import PackedRows
from tiny_infinito import tiny_infinito
from tiny_legacy import tiny_legacy

TASKS = ("SequenceClassification", "TokenClassification", "QuestionAnswering")
HYBRID = ("retnet", "standard_attn")
FAMILIES = ("encoder", "decoder", "infinito", "legacy")
every_family = pytest.mark.parametrize("family", FAMILIES)
every_task = pytest.mark.parametrize("task", TASKS)


@pytest.fixture
def build(tiny_config, enliven):
    def build(family, task, dtype=torch.float64, lively=True, **fields):
        fields = {"num_labels": 3, "vocab_size": 400} | fields
        if family == "infinito":
            config = tiny_infinito(**fields)
        elif family == "legacy":
            config = tiny_legacy("modern twin", **fields)
        else:
            config = tiny_config(HYBRID, is_decoder=family == "decoder", **fields)
        torch.manual_seed(0)
        kind = type(config).__name__.removesuffix("Config")
        model = getattr(modeling, f"{kind}For{task}")(config).to(dtype).eval()
        return enliven(model, gain=1.0) if lively else model

    return build


def logits_of(output) -> torch.Tensor:
    return output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], -1)


def labels_for(task, batch, length) -> dict:
    generator = torch.Generator().manual_seed(3)
    if task == "TokenClassification":
        labels = torch.randint(3, (batch, length), generator=generator)
        labels[:, 0] = -100
        return {"labels": labels}
    if task == "SequenceClassification":
        return {"labels": torch.randint(3, (batch,), generator=generator)}
    return {"start_positions": torch.tensor([2, 4, 5][:batch]), "end_positions": torch.tensor([5, 5, 6][:batch])}


@pytest.mark.parametrize("family", ["decoder", "infinito", "legacy"])
def test_without_a_mask_the_last_token_is_no_pad(family, build, tokens):
    """As in transformers' causal classifiers: pads behind a text are known by their id."""
    model, ids = build(family, "SequenceClassification"), tokens(2, 7)
    pad = model.config.pad_token_id = 390
    ids = ids.masked_fill(ids == pad, 1)
    padded = torch.cat([ids, torch.full((2, 4), pad)], 1)
    with torch.no_grad():
        torch.testing.assert_close(model(padded).logits, model(ids).logits, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
@pytest.mark.parametrize("asked", [None, "regression"])
def test_whole_numbers_are_a_regression_too(build, tokens, dtype, asked):
    model, ids = build("legacy", "SequenceClassification", num_labels=1, problem_type=asked), tokens(4, 7)
    labels = torch.tensor([0, 3, 1, 2]).to(dtype)
    whole = model(ids, labels=labels).loss
    torch.testing.assert_close(whole, F.mse_loss(model(ids).logits.squeeze(), labels.double()))
    parts = [model(ids[half], labels=labels[half], num_items_in_batch=4).loss for half in (slice(2), slice(2, 4))]
    torch.testing.assert_close(sum(parts), whole)


@every_family
@every_task
@pytest.mark.parametrize("side", ["left", "right"])
def test_pads_change_neither_logits_nor_loss(family, task, side, build, tokens):
    model, ids = build(family, task), tokens(2, 7)
    with torch.no_grad():
        labels = labels_for(task, 2, 7)
        alone = model(ids, **labels)
        place = slice(4, None) if side == "left" else slice(0, 7)
        padded, mask = tokens(2, 11, seed=9), torch.zeros(2, 11, dtype=torch.long)
        padded[:, place], mask[:, place] = ids, 1
        moved = {}
        for name, value in labels.items():
            if name.endswith("positions"):
                moved[name] = value + (4 if side == "left" else 0)
            elif value.ndim == 2:
                moved[name] = torch.full((2, 11), -100)
                moved[name][:, place] = value
            else:
                moved[name] = value
        output = model(padded, attention_mask=mask, **moved)
    expected, actual = logits_of(alone), logits_of(output)
    torch.testing.assert_close(actual if actual.ndim == 2 else actual[:, place], expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(output.loss, alone.loss, rtol=1e-6, atol=1e-6)  # transformers takes it in float32
    assert expected.std() > 0.1


@every_family
def test_losses_are_those_of_the_task(family, build, tokens):
    ids, items = tokens(3, 7), 11
    labels = labels_for("TokenClassification", 3, 7)["labels"]
    model = build(family, "TokenClassification")
    output = model(ids, labels=labels)
    summed = F.cross_entropy(output.logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    torch.testing.assert_close(output.loss, summed / 18)
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=items).loss, summed / items)

    model, spans = build(family, "QuestionAnswering"), labels_for("QuestionAnswering", 3, 7)
    spans["start_positions"][0] = -100  # no answer; it counts in no loss
    output = model(ids, **spans)
    starts = F.cross_entropy(output.start_logits[1:], spans["start_positions"][1:])
    ends = F.cross_entropy(output.end_logits, spans["end_positions"])
    torch.testing.assert_close(output.loss, (starts + ends) / 2)


PROBLEMS = {
    "single_label_classification": (torch.tensor([2, 0, 1]), F.cross_entropy, 3),
    "multi_label_classification": (torch.eye(3), F.binary_cross_entropy_with_logits, 9),
    "regression": (torch.arange(9.0).view(3, 3), F.mse_loss, 9),
}


@every_family
@pytest.mark.parametrize("problem", PROBLEMS)
def test_problem_types(family, problem, build, tokens):
    """The mean of the batch; of all micro-batches where the Trainer counts their items."""
    labels, loss_function, items = PROBLEMS[problem]
    model, ids = build(family, "SequenceClassification", problem_type=problem), tokens(3, 7)
    labels = labels if labels.dtype == torch.int64 else labels.double()
    output = model(ids, labels=labels)
    torch.testing.assert_close(output.loss, loss_function(output.logits, labels))
    share = model(ids, labels=labels, num_items_in_batch=torch.tensor(4 * items)).loss
    torch.testing.assert_close(share, output.loss / 4)


@every_family
@every_task
def test_gradient_checkpointing_and_dropout(family, task, build, tokens):
    model, ids = build(family, task, lively=False, dropout=0.5).train(), tokens(2, 7)
    assert model.dropout.p == 0.5
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        torch.manual_seed(5)
        model(ids, **labels_for(task, 2, 7)).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 10
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@every_family
@every_task
def test_auto_classes_open_what_was_saved(family, task, build, tokens, tmp_path):
    names = {0: "O", 1: "B-PER", 2: "I-PER"}
    model, ids = build(family, task, torch.float32, id2label=names), tokens(2, 7)
    model.save_pretrained(tmp_path)
    loaded = getattr(transformers, f"AutoModelFor{task}").from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model) and loaded.config.id2label == names
    stack = transformers.AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(logits_of(loaded(ids)), logits_of(model(ids)))
        assert torch.equal(stack(ids, use_cache=False)[0], model.model(ids, use_cache=False)[0])


@every_family
def test_packed_documents(family, build):
    """Tokens of each document are classified as they are by themselves; a row of several has no label and no span."""
    packed = PackedRows(([4, 1, 6],))
    model = build(family, "TokenClassification")
    with torch.no_grad():
        together = model(**packed.inputs("position_ids")).logits
        alone = torch.cat([model(ids).logits for ids in packed.ids.split([4, 1, 6], dim=1)], dim=1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)
    for task in ("SequenceClassification", "QuestionAnswering"):
        with pytest.raises(ValueError, match="a row holds several documents"):
            build(family, task)(**packed.inputs("position_ids"))


def test_spans_are_of_real_tokens(build, tokens):
    model, ids = build("legacy", "QuestionAnswering"), tokens(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    output = model(ids, attention_mask=mask)
    for logits in (output.start_logits, output.end_logits):
        assert mask.gather(1, logits.argmax(1, keepdim=True)).all()
        assert (logits[mask == 0] == torch.finfo(logits.dtype).min).all()
    good = torch.tensor([3, 1])
    with pytest.raises(ValueError, match=r"end_positions\[1\] is 5, which is a pad of row 1"):
        model(ids, attention_mask=mask, start_positions=good, end_positions=torch.tensor([3, 5]))
    with pytest.raises(ValueError, match=r"start_positions\[0\] is -1: give the place"):
        model(ids, start_positions=torch.tensor([-1, 1]), end_positions=good)
    with pytest.raises(ValueError, match="both start_positions and end_positions"):
        model(ids, start_positions=good)
    columns = {"start_positions": good[:, None], "end_positions": good[:, None]}  # as some collators give them
    with torch.no_grad():
        loss = model(ids, attention_mask=mask, start_positions=good, end_positions=good).loss
        assert model(ids, attention_mask=mask, **columns).loss == loss


def test_token_types(build, tokens):
    ids = tokens(2, 6)
    types = torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)
    typed = build("encoder", "QuestionAnswering", type_vocab_size=2)
    with torch.no_grad():
        assert not torch.equal(typed(ids, token_type_ids=types)[0], typed(ids)[0])
    for family in ("encoder", "infinito", "legacy"):
        model = build(family, "TokenClassification")
        with pytest.raises(ValueError, match="token_type_ids are given"):
            model(ids, token_type_ids=types)
        model(ids, token_type_ids=torch.zeros_like(types))


def test_routers_learn_with_every_head(build, tokens):
    ids = tokens(3, 7)
    for task in TASKS:
        model = build("encoder", task, num_experts=3)
        evaluated = model(ids, **labels_for(task, 3, 7)).loss
        output = model.train()(ids, **labels_for(task, 3, 7))
        config = model.config
        extra = config.router_aux_loss_coef * output.aux_loss + config.router_z_loss_coef * output.router_z_loss
        torch.testing.assert_close(output.loss, evaluated + extra, rtol=1e-5, atol=1e-6)
        assert extra > 0


def test_a_memory_is_carried_into_a_head(build, tokens):
    """A long text is classified window by window, as the stack reads it."""
    model, ids = build("infinito", "TokenClassification"), tokens(2, 24)
    with torch.no_grad():
        state = model.model(ids[:, :12]).memory_state
        after = model(ids[:, 12:], memory_state=state).logits
        assert not torch.allclose(after, model(ids[:, 12:]).logits)
        assert not torch.allclose(model(ids, use_memory=False).logits, model(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_pipelines(family, build, recwarn):
    tokenizer, text = byte_tokenizer(), "Anna lives in Rome."
    names = {0: "O", 1: "PER", 2: "LOC"}
    common = {"id2label": names, "vocab_size": len(tokenizer)}
    common |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    models = {task: build(family, task, torch.float32, **common) for task in TASKS[:2]}
    found = pipeline("token-classification", model=models[TASKS[1]], tokenizer=tokenizer)(
        [text, text[:6]], batch_size=2
    )
    assert all(entity["entity"] in ("PER", "LOC") for entity in found[0]) and found[0]
    alone = pipeline("token-classification", model=models[TASKS[1]], tokenizer=tokenizer)(text[:6])
    assert [entity["entity"] for entity in found[1]] == [entity["entity"] for entity in alone]
    labels = pipeline("text-classification", model=models[TASKS[0]], tokenizer=tokenizer)(
        [text, text[:6]], batch_size=2
    )
    assert all(label["label"] in names.values() for label in labels)
    features = pipeline("feature-extraction", model=models[TASKS[0]].model, tokenizer=tokenizer)(text)
    assert len(features[0][0]) == 32
    assert not recwarn.list
