"""The sweeps of the fair tables: who is compared, from which start, at which size; GPT-2's layout is GPT-2."""

import functools
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from frankenlm.scripts.fair.tables import TABLES
from frankenlm.trainer_ext.arguments import FrankenTrainingArguments
from frankenlm.trainer_ext.model_building import start_by_name
from frankenlm.trainer_ext.preflight import preset_config
from frankenlm.trainer_ext.presets import RunSettings, parse_run
from frankenlm.trainer_ext.sweeps.choice import CHOICE
from frankenlm.trainer_ext.sweeps.grid import Sweep, read_sweep, reported_runs
from frankenlm.trainer_ext.trainer import FrankenTrainer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # the recipes name files of the repository


@pytest.fixture(scope="module", params=sorted(TABLES))
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=sorted(set(TABLES) - {"distil"}))
def fresh(request) -> str:
    """A table whose entrants all begin with fresh weights of one preset."""
    return request.param


@functools.cache
def sweep_of(name: str) -> Sweep:
    return read_sweep(Path(f"configs/sweeps/{name}.yaml"))


@functools.cache
def settings(name: str) -> dict[str, RunSettings]:
    """The settings of a run of each entrant."""
    runs = {run.group: run for run in sweep_of(name).runs}
    return {group: parse_run([*run.words(), "--output_dir", "unused"]) for group, run in runs.items()}


def model_of(run: RunSettings, seed: int, **fields) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = preset_config(run, {"vocab_size": run.model.vocab_size, **fields})
    return AutoModelForCausalLM.from_config(config)


def test_entrants_are_those_of_the_comparisons_and_of_the_card(name):
    sweep = sweep_of(name)
    compared = {one for comparison in TABLES[name].comparisons for one in (comparison.ours, comparison.theirs)}
    assert {run.group for run in sweep.runs} == compared and sweep.name == name
    assert f"| {name} |" in (ROOT / "model_cards" / "fair_tables.md").read_text(encoding="utf-8")


def test_choice_and_report_share_neither_seed_nor_text(name):
    sweep = sweep_of(name)
    (chooses,) = {run.settings["seed"] for run in sweep.runs if run.stage == CHOICE}
    assert chooses not in sweep.seeds and len(sweep.seeds) >= 3
    assert sweep.choice.values[0] <= 3e-3 and sweep.choice.values[-1] == 3e-2
    reported = reported_runs(sweep, sweep.entrants[0], 1e-3)[0]
    texts = [parse_run([*run.words(), "--output_dir", "unused"]).data for run in (sweep.runs[0], reported)]
    assert texts[0].dataset == texts[1].dataset
    assert [Path(text.validation_dataset).name for text in texts] == ["validation.jsonl", "test.jsonl"]


def test_twins_start_from_the_same_values(fresh):
    """Every module of one name and size, whatever lies before it; and another seed gives others."""
    models = {}
    for group, run in settings(fresh).items():
        assert run.model.paired_start
        own = {"mamba_head_dim": 8} if run.model.preset == "mini" else {}
        model = model_of(run, 0, vocab_size=67, hidden_size=16, intermediate_size=24, **own)
        start_by_name(model, 5)
        models[group] = dict(model.named_parameters())
    first, *others = models.values()
    for other in others:
        shared = [key for key in first if key in other and first[key].shape == other[key].shape]
        assert "model.embeddings.embed_tokens.weight" in shared and len(shared) > 10
        assert [key for key in shared if not torch.equal(first[key], other[key])] == []
    start_by_name(model, 6)
    again = dict(model.named_parameters())
    assert not torch.equal(again["model.embeddings.embed_tokens.weight"], first["model.embeddings.embed_tokens.weight"])


def test_sizes_are_equal_within_two_per_cent(fresh):
    with torch.device("meta"):
        sizes = {group: model_of(run, 0).num_parameters() for group, run in settings(fresh).items()}
    for comparison in TABLES[fresh].comparisons:
        ours, theirs = sizes[comparison.ours], sizes[comparison.theirs]
        if fresh == "fair_embedding":  # what is left out is no longer there
            assert theirs - 3 * 64 * 64 - 64 <= ours <= theirs
        else:
            assert abs(ours - theirs) <= 0.02 * theirs, comparison.name


def test_the_layout_of_gpt2_is_gpt2():
    """Equal logits with equal weights, so that what is trained under its name is GPT-2."""
    run = settings("fair_mixers")["gpt2"]
    ours = model_of(run, 0, vocab_size=67).eval()
    config = ours.config
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=67, n_positions=config.max_position_embeddings, n_embd=config.hidden_size,
            n_layer=config.num_hidden_layers, n_head=config.num_attention_heads, n_inner=config.intermediate_size,
            activation_function="gelu", layer_norm_epsilon=config.layer_norm_eps,
            bos_token_id=0, eos_token_id=0,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.2)
        copy_to_gpt2(ours, gpt2)
        ids = torch.randint(0, 67, (2, 17))
        torch.testing.assert_close(ours(ids).logits, gpt2(ids).logits, rtol=1e-4, atol=1e-4)
    assert ours.num_parameters() == gpt2.num_parameters()


def copy_to_gpt2(ours, gpt2) -> None:
    """Copy weights; GPT-2 keeps its matrices transposed, and queries, keys and values in one."""
    model, body = ours.model, gpt2.transformer
    body.wte.weight.copy_(model.embeddings.embed_tokens.weight)
    body.wpe.weight.copy_(model.embeddings.embed_positions.weight)
    body.ln_f.load_state_dict(model.norm_f.state_dict())
    for layer, block in zip(model.layers, body.h, strict=True):
        mixer, feed = layer.mixer, layer.ffn
        together = [mixer.q_proj, mixer.k_proj, mixer.v_proj]
        block.attn.c_attn.weight.copy_(torch.cat([one.weight for one in together]).T)
        block.attn.c_attn.bias.copy_(torch.cat([one.bias for one in together]))
        for theirs, mine in (
            (block.attn.c_proj, mixer.o_proj), (block.mlp.c_fc, feed.up_proj), (block.mlp.c_proj, feed.down_proj)
        ):  # fmt: skip
            theirs.weight.copy_(mine.weight.T)
            theirs.bias.copy_(mine.bias)
        block.ln_1.load_state_dict(layer.norm1.state_dict())
        block.ln_2.load_state_dict(layer.norm2.state_dict())


def test_twins_read_the_same_rows_in_the_same_order(tmp_path):
    """However many random numbers a model takes to be built, the seed alone decides the order."""
    rows = Dataset.from_dict({"input_ids": [[number] * 3 for number in range(31)]})
    orders = []
    for group, seed in (("hybrid", 3), ("attention", 3), ("attention", 4)):
        model = model_of(settings("fair_mixers")[group], seed, vocab_size=67, hidden_size=16, mamba_head_dim=8)
        arguments = FrankenTrainingArguments(str(tmp_path), seed=seed, per_device_train_batch_size=4, report_to="none")
        trainer = FrankenTrainer(model, arguments, train_dataset=rows, eval_dataset=rows)
        orders.append([batch["input_ids"][:, 0].tolist() for batch in trainer.get_train_dataloader()])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(sum(orders[0], [])) == list(range(31)) != sum(orders[0], [])
