"""Weights that accelerate keeps in main memory or on a disk: damaged, restored, and answered from, bit for bit."""

import hashlib

import pytest
import torch
from accelerate import cpu_offload, disk_offload

from frankenlm.degradation import run_experiment
from frankenlm.degradation.offloaded import computing_devices, input_device, is_offloaded, value_of
from frankenlm.degradation.weights.fingerprint import fingerprint_model
from frankenlm.degradation.weights.groups import describe_groups
from frankenlm.degradation.weights.loading import open_model
from frankenlm.degradation.weights.restore import Baseline, apply_damage
from small_runs import SMALL, essence, rows_of

CPU = torch.device("cpu")
IDS = torch.tensor([[257, 72, 105, 33]])


@pytest.fixture
def spread(tiny_model, tiny_dir, tmp_path):
    """spread(kind, name) -> the tiny model, its weights in main memory (cpu), in files (disk), or both (map)."""

    def make(kind, name="llama"):
        if kind == "map":
            folder = str(tiny_dir(name))
            places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
            places |= {f"model.layers.{n}": "disk" if n % 2 else "cpu" for n in range(4)}
            loaded = open_model(folder, dtype="float32", device_map=places, offload_folder=str(tmp_path / "off"))
            return loaded.model
        model = tiny_model(name)
        if kind == "cpu":
            return cpu_offload(model, CPU)
        if kind == "disk":
            disk_offload(model, str(tmp_path / "weights"), CPU)
        return model

    return make


def bits(model):
    return {name: value_of(model, name).clone() for name, _ in model.named_parameters()}


@torch.no_grad()
def logits(model):
    return model(IDS).logits


@pytest.mark.parametrize(
    ("kind", "name", "group"),
    [
        ("cpu", "llama", "mlp_only+attn_only"),
        ("disk", "llama", "mlp_only+attn_only"),
        ("map", "llama", "mlp_only+attn_only"),
        ("cpu", "llama_tied", "embed_only"),
        ("disk", "llama_tied", "embed_only"),
        ("disk", "gpt2", "attn_only"),
    ],
)
def test_damage_and_restore_are_those_of_a_model_in_one_place(kind, name, group, spread, tiny_model):
    whole, model = tiny_model(name), spread(kind, name)
    before, undamaged = bits(model), logits(model)
    assert torch.equal(undamaged, logits(whole)) and fingerprint_model(model) == fingerprint_model(whole)
    with Baseline(whole, group) as first, Baseline(model, group) as second:
        for method, level in (("mult_gauss", 0.4), ("ablation", 0.3), ("uni_quant", 8)):
            lesions = [apply_damage(each, method, level, seed=42, repeat_index=1) for each in (first, second)]
            assert lesions[0] == lesions[1]
            damaged = logits(model)
            assert torch.equal(damaged, logits(whole)) and not torch.equal(damaged, undamaged)
        second.restore()
        second.verify()
        assert torch.equal(logits(model), undamaged)
        apply_damage(second, "mult_gauss", 1.0, seed=42, repeat_index=0)
    after = bits(model)
    assert all(torch.equal(after[key].view(torch.uint8), before[key].view(torch.uint8)) for key in before)
    assert torch.equal(logits(model), undamaged)


def test_files_on_the_disk_are_not_written(spread, tmp_path, tiny_dir):
    model = spread("map")
    files = [path for folder in (tmp_path, tiny_dir("llama")) for path in folder.rglob("*") if path.is_file()]
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert files and is_offloaded(model, "model.layers.1.mlp.up_proj.weight")
    with Baseline(model, "mlp_only") as baseline:
        apply_damage(baseline, "ablation", 0.5, seed=1, repeat_index=0)
        logits(model)
    assert before == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_where_it_computes_and_what_it_has(spread, tiny_model):
    model = spread("disk", "llama_tied")
    assert input_device(model) == CPU and computing_devices(model) == ["cpu"]
    rows = {row["group"]: row["elements"] for row in describe_groups(model)}
    assert rows == {row["group"]: row["elements"] for row in describe_groups(tiny_model("llama_tied"))}
    assert "lm_head" not in rows
    with pytest.raises(ValueError, match="offloaded and cannot be untied"):
        Baseline(model, "embed_only", tied_policy="input_only")


def test_a_run_on_a_spread_model_writes_the_same_rows(spread, unbroken, tiny_tokenizer, tmp_path):
    model = spread("disk")
    path = run_experiment(
        SMALL, model=model, tokenizer=tiny_tokenizer(), output_dir=tmp_path / "results", progress=False
    )
    assert essence(rows_of(path)) == essence(unbroken)


def test_a_saved_model_is_spread_as_the_map_says(tiny_dir, tmp_path, unbroken):
    options = {"device_map": "auto", "max_memory": {"cpu": "60KB"}, "offload_folder": str(tmp_path / "off")}
    config = SMALL | {"n_rep": 1, "group": "mlp_only", "max_prompts": 2}
    found = run_experiment(config, model=str(tiny_dir("llama")), output_dir=tmp_path / "a", progress=False, **options)
    expected = run_experiment(config, model=str(tiny_dir("llama")), output_dir=tmp_path / "b", progress=False)
    assert essence(rows_of(found)) == essence(rows_of(expected))
