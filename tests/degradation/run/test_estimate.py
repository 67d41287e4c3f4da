"""The dry run against what is really allocated."""

import dataclasses
import json
import os
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from frankenlm.degradation.answers.packed_linears import can_be_packed, packed_linears
from frankenlm.degradation.configs import ExperimentConfig
from frankenlm.degradation.run import estimate as estimate_module
from frankenlm.degradation.run.estimate import dry_run, loaded_bytes
from frankenlm.degradation.run.footprint import (
    ModelShape,
    PromptLength,
    baseline_bytes,
    cache_bytes,
    damage_scratch,
    generation_bytes,
    read_shape,
    weight_bytes,
)
from frankenlm.degradation.run.limits import make_policy
from frankenlm.degradation.weights.groups import select_group
from frankenlm.degradation.weights.loading import open_model
from frankenlm.degradation.weights.model_checks import empty_model, read_config
from peak_memory import PeakMemory

REAL_MODEL = os.environ.get("DEGRADATION_TEST_MODEL")
PROMPTS = [SimpleNamespace(text=f"{number} tell a dream") for number in range(6)]


def estimate_of(folder, asked=PROMPTS, **fields):
    config = ExperimentConfig(**{"n_rep": 2, "levels": (0.0, 0.1), "max_new_tokens": 16} | fields)
    return dry_run(str(folder), config, read_config(str(folder)), asked, device="cpu")


# --- weights


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name",
    [
        "gemma3",
        "gemma3_mm",
        "llama",
        "llama_tied",
        "qwen2",
        "gpt2",
        "gpt_neox",
        "phi3",
        "mixtral",
        "frankenstein",
        "infinito",
        "legacy_1bit",
    ],
)
def test_weights_before_and_after_loading(name, dtype, tiny_dir):
    found = loaded_bytes(open_model(str(tiny_dir(name)), dtype=dtype, device="cpu").model)
    group = "attn_only" if name != "gemma3_mm" else "attn_only+vision"
    assert estimate_of(tiny_dir(name), dtype=dtype, group=group).parts["weights"] == pytest.approx(found, rel=0.1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # bitsandbytes' own
@pytest.mark.parametrize("double", [False, True])
def test_weights_in_4_bits(double, tiny_model, tiny_tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    # wide, or the code tables of each layer weigh more than its weights
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2}
    tiny_model("llama", **sizes).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    storage = {"load_4bit": True, "double_quant": double, "dtype": "bfloat16"}
    model = open_model(str(tmp_path), **storage, device="cpu").model
    estimate = estimate_of(tmp_path, **storage, group="mlp_only")
    assert estimate.parts["weights"] == pytest.approx(loaded_bytes(model), rel=0.1)
    assert estimate.parts["dense copies"] == 2 * 3 * 256 * 1024 * 2
    assert loaded_bytes(model) < 0.45 * estimate_of(tmp_path, dtype="bfloat16", group="mlp_only").parts["weights"]


def test_the_figures_of_gemma_3_4b():
    """Sizes from the published configuration; expected values from the section on memory of the design."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "sliding_window": 1024,
    }
    vision = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    }
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=256)
    empty = empty_model(config)
    groups = {name: select_group(empty, name) for name in ("attn_only", "attn_qkvo", "mlp_only", "embed_only")}
    millions = {name: round(group.numel / 1e6, 1) for name, group in groups.items()}
    assert millions == {"attn_only": 89.1, "attn_qkvo": 534.8, "mlp_only": 2673.9, "embed_only": 671.3}
    shape = read_shape(empty)
    assert (shape.intermediate, shape.patches, shape.image_tokens) == (10240, 4096, 256)
    assert cache_bytes(shape, 2, 1, 1) == 139_264
    plain = ExperimentConfig(dtype="bfloat16")
    assert baseline_bytes(groups["mlp_only"], plain) == pytest.approx(5.35e9, rel=0.01)
    weights = weight_bytes(empty, groups["attn_only"], plain)["weights"]
    assert weights == pytest.approx(2 * 4.3e9, rel=0.01)
    four = weight_bytes(empty, groups["mlp_only"], plain | {"load_4bit": True})
    linear = 534.8e6 + 2673.9e6 + 27 * (4 * 1152**2 + 2 * 1152 * 4304)
    assert four["weights"] == pytest.approx(0.5625 * linear + 2 * 671.3e6, rel=0.02)
    assert four["dense copies"] == pytest.approx(5.35e9, rel=0.01)
    untied = select_group(empty, "embed_only", tied_policy="output_only")
    assert weight_bytes(empty, untied, plain)["dense copies"] == pytest.approx(1.34e9, rel=0.01)
    assert damage_scratch(groups["mlp_only"], "bfloat16", on_gpu=True) < 1 << 30


def test_the_head_stays_dense_in_4_bits(tiny_config):
    empty = empty_model(tiny_config("llama"))
    bits = ExperimentConfig(load_4bit=True, dtype="bfloat16", quant_target_mode="requantise")
    linear, dense = 4 * (2 * (32 + 16) * 32 + 3 * 48 * 32), 2 * 272 * 32 + 9 * 32
    buffers = sum(buffer.nbytes for buffer in empty.buffers())
    found = weight_bytes(empty, select_group(empty, "attn_only"), bits)
    assert found == {"weights": linear * 9 // 16 + 2 * dense + buffers, "dense copies": 0}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_laid_out_count_as_often_as_they_are(dtype, tiny_dir, monkeypatch):
    """The storage of such a layout cannot be looked at; its shape can."""
    folder = tiny_dir("llama")
    model = open_model(str(folder), dtype=dtype, device="cpu").model
    packed = {}
    with torch.inference_mode(), packed_linears(model):
        for _ in range(2):
            model(input_ids=torch.arange(5)[None])
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and "forward" in vars(module):
                layout = module.forward.packed if module.forward.together is None else module.forward.together.packed
                packed[id(layout)] = layout.numel() * model.dtype.itemsize
    assert estimate_of(folder, dtype=dtype).parts["laid out"] == sum(packed.values())
    monkeypatch.setattr("frankenlm.degradation.answers.packed_linears.MOST_BYTES", sum(packed.values()) - 1)
    assert estimate_of(folder, dtype=dtype).parts["laid out"] == 0


def test_layers_in_4_bits_are_not_laid_out(tiny_dir):
    bits = {"load_4bit": True, "dtype": "float32"}
    head = 272 * 32 * 4 if can_be_packed(torch.nn.Linear(8, 8)) else 0
    assert estimate_of(tiny_dir("llama"), **bits, group="attn_only").parts["laid out"] == head
    dense = {**bits, "quant_target_mode": "dense_original", "group": "mlp_down@L0"}
    assert estimate_of(tiny_dir("llama"), **dense).parts["laid out"] == (head and head + 48 * 32 * 4)


# --- the peak


def test_the_largest_phase_of_generating():
    """Three rows, 10 tokens a prompt of which 4 are shared, heads of width 8: two for queries, one for the rest."""
    shape = ModelShape(hidden=16, intermediate=20, vocabulary=50, layers=5, query_width=16, key_value_width=8)

    def of(answer, **fields):
        how = {"more_wait": False, "pictures": False} | fields
        return generation_bytes(shape, "float32", 3, PromptLength(10, 4), answer, **how)

    read = 3 * 10 * 5 * 2 * 8 * 4
    inside, masks, repeated = 3 * 6 * (2 * 20 + 4 * 16) * 4, 3 * 6 * 10 * 5, 3 * 2 * 16 * 4 * 10
    prefill = read + inside + masks + repeated
    slots = 3 * 64 * 5 * 2 * 8 * 4  # columns in steps of 16
    step = 64 * (3 * 5 + 3 * 2 * 16 * 4) + 3 * 50 * 4 * 5
    assert step > read + 3 * 50 * 4
    assert of(39) == of(54) == {"cache": slots, "activations": step}
    assert of(55)["cache"] == slots * 5 // 4
    assert of(54, more_wait=True) == {"cache": slots, "activations": max(prefill, step)}
    tall = dataclasses.replace(shape, layers=500)  # copying the read rows into slots takes most
    copied = {"cache": 100 * slots, "activations": 100 * read + 3 * 50 * 4}
    assert generation_bytes(tall, "float32", 3, PromptLength(10, 4), 54, more_wait=False, pictures=False) == copied
    seen = dataclasses.replace(shape, patches=100_000, vision_hidden=8, vision_intermediate=12)
    found = generation_bytes(seen, "float32", 3, PromptLength(10, 4), 6, more_wait=False, pictures=True)
    assert found == {"cache": 0, "activations": 100_000 * (12 + 32) * 4}


@pytest.mark.parametrize(
    ("name", "dtype", "group", "new", "perplexity"),
    [
        pytest.param("llama", "float32", "mlp_only", 16, False, marks=pytest.mark.slow),
        ("llama", "bfloat16", "attn_only", 48, False),
        ("gemma3", "float32", "embed_only", 16, True),
        pytest.param("gemma3", "bfloat16", "mlp_only", 24, False, marks=pytest.mark.slow),
        ("gpt2", "float32", "attn_only", 16, False),
        ("phi3", "float32", "mlp_only", 16, True),
    ],
)
def test_the_peak_is_within_a_quarter(name, dtype, group, new, perplexity, tiny_dir, tmp_path):
    from frankenlm.degradation.lab import run_experiment

    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"{number} " + "tell a dream " * 4}) for number in range(6)))
    fields = {
        "dtype": dtype,
        "group": group,
        "max_new_tokens": new,
        "perplexity": perplexity,
        "prompts": str(file),
        "levels": (0.0, 0.1),
        "n_rep": 1,
        "do_sample": True,
    }
    config = ExperimentConfig(**fields)
    prompts = [SimpleNamespace(text=json.loads(line)["text"]) for line in file.read_text().splitlines()]
    estimate = estimate_of(tiny_dir(name), prompts, **fields)
    loaded = open_model(str(tiny_dir(name)), dtype=dtype, device="cpu")
    with PeakMemory() as memory:
        for tensor in (*loaded.model.parameters(), *loaded.model.buffers()):
            memory.count(tensor)
        run_experiment(config, model=loaded.model, tokenizer=loaded.tokenizer, output_dir=tmp_path, progress=False)
    assert estimate.device == pytest.approx(memory.peak, rel=0.25)


@pytest.mark.slow
@pytest.mark.skipif(REAL_MODEL is None, reason="DEGRADATION_TEST_MODEL names no folder of a real model")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_of_a_real_model(dtype):
    found = loaded_bytes(open_model(REAL_MODEL, dtype=dtype, device="cpu").model)
    assert estimate_of(REAL_MODEL, dtype=dtype).parts["weights"] == pytest.approx(found, rel=0.1)


# --- what a run begins with


def test_the_policy_of_a_run(tiny_dir, monkeypatch):
    from frankenlm.degradation.lab import Lab, RunOptions

    lab = Lab(str(tiny_dir("llama")), RunOptions(device="cpu"))
    config = ExperimentConfig(prompts="dreams_it", dtype="float32", max_new_tokens=300, perplexity=False)
    loaded = open_model(str(tiny_dir("llama")), dtype="float32", device="cpu")

    def first(**fields):
        policy = make_policy(lab.plan(config | fields), loaded)
        return policy.batch_size, policy.ceiling, policy.grows

    assert first() == (38, 40, True)
    assert first(max_prompts=7) == (7, 40, True)
    assert first(invariance="single") == (1, 1, False)
    assert first(invariance="shape", max_batch_size=8) == (8, 8, False)
    monkeypatch.setattr(estimate_module, "total_memory", lambda device: 8_000_000)
    size, ceiling, _ = first()
    assert 1 < size == ceiling < 38
    monkeypatch.setattr(estimate_module, "total_memory", lambda device: 1000)
    assert first() == (1, 1, True)


# --- what is reported


def test_no_weights_are_needed(tiny_dir, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_dir("gemma3_mm"), tmp_path / "tiny")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with_picture = estimate_of(folder, image="kitchen", max_seq_length=1024)
    without = estimate_of(folder)
    assert with_picture.prompt_tokens > without.prompt_tokens > max(len(prompt.text) for prompt in PROMPTS)


def test_rows_cells_and_the_table(tiny_dir):
    estimate = estimate_of(tiny_dir("llama"), levels=(0.0, 0.1, 0.2), n_rep=4, group="mlp_down@L0-1")
    assert (estimate.cells, estimate.rows, estimate.batch_size, estimate.elements) == (12, 72, 6, 2 * 48 * 32)
    parts = estimate.parts
    stays = sum(parts[name] for name in ("weights", "dense copies", "baseline", "predictions"))
    phase = max(parts["damage"], parts["perplexity"], parts["cache"] + parts["activations"] + parts["laid out"])
    assert (estimate.host, estimate.device) == (0, stays + phase)
    table = estimate.table()
    assert "group mlp_down@L0-1: 3,072 elements, bfloat16" in table and "72 rows in 12 cells" in table
    assert "6 answers at once" in table and "at most 40 at once stay below 90%" in table
    assert json.loads(json.dumps(estimate.as_json()))["share"] == estimate.share
    assert estimate_of(tiny_dir("llama"), invariance="single").batch_size == 1
    # 6 answers of 8 tokens took 10 s: as long as that, or all of 16 tokens
    expected = estimate.rows * 10 / 6
    assert estimate.time_range(10.0, 6, 48, 16) == (pytest.approx(expected), pytest.approx(2 * expected))
    with pytest.raises(ValueError, match="a probe needs time"):
        estimate.time_range(0.0, 6, 48, 16)


def test_the_largest_batch_is_the_last_that_fits(tiny_dir):
    folder = str(tiny_dir("llama"))
    prompts = [SimpleNamespace(text=f"{number} tell a dream") for number in range(100)]
    config = ExperimentConfig(max_new_tokens=300, perplexity=False, dtype="float32")
    model_config = read_config(folder)

    def run(size, total):
        changed = config | {"max_batch_size": size}
        return dry_run(folder, changed, model_config, prompts, device="cpu", device_total=total)

    total = 20_000_000
    largest = run(90, total).largest_batch
    assert 1 < largest < 90
    assert run(largest, total).device < 0.9 * total <= run(largest + 1, total).device
    tight = run(40, 100_000)
    assert tight.largest_batch == 0 and "not even one fits" in tight.table()
    sizes = [run(size, total).device for size in (1, 2, 8, 40)]
    assert sizes == sorted(sizes)


def test_where_the_undamaged_weights_are_kept_on_a_gpu(tiny_dir, monkeypatch):
    monkeypatch.setattr(estimate_module, "resolve_device", torch.device)
    folder = str(tiny_dir("llama"))

    def run(**fields):
        config = ExperimentConfig(group="mlp_only", perplexity=False, **fields)
        return dry_run(folder, config, read_config(folder), PROMPTS, device="cuda", device_total=10**10)

    host, device = run(), run(restore_strategy="subset_on_device")
    mapped = run(restore_strategy="mmap_checkpoint")
    baseline = 4 * 3 * 48 * 32 * 2
    assert (host.host, device.host, mapped.host) == (baseline, 0, 0)
    assert device.device - host.device == pytest.approx(1.1 * baseline, abs=2)
    assert host.device == mapped.device > 500_000_000
    assert "GPU, at its peak" in host.table() and "main memory" in host.table()


def test_prompts_that_are_too_long_are_found(tiny_dir):
    with pytest.raises(ValueError, match="more than max_seq_length=20"):
        estimate_of(tiny_dir("llama"), max_seq_length=20)


@pytest.mark.parametrize(("name", "intermediate"), [("mixtral", 2 * 48), ("phi3", 48), ("gpt2", 48), ("qwen3_moe", 48)])
def test_features_that_a_token_has_at_once(name, intermediate, tiny_config):
    assert read_shape(empty_model(tiny_config(name))).intermediate == intermediate


@pytest.mark.slow
@pytest.mark.skipif(REAL_MODEL is None, reason="DEGRADATION_TEST_MODEL names no folder of a real model")
@pytest.mark.parametrize("perplexity", [False, True])
def test_the_peak_of_a_real_model(perplexity, tmp_path):
    from frankenlm.degradation.lab import run_experiment
    from frankenlm.degradation.prompts import load_prompts

    fields = {
        "dtype": "float32",
        "group": "mlp_only",
        "max_new_tokens": 8,
        "perplexity": perplexity,
        "prompts": "iq_it",
        "levels": (0.0, 0.1),
        "n_rep": 1,
        "max_prompts": 12,
    }
    estimate = estimate_of(REAL_MODEL, load_prompts("iq_it")[:12], **fields)
    loaded = open_model(REAL_MODEL, dtype="float32", device="cpu")
    with PeakMemory() as memory:
        for tensor in (*loaded.model.parameters(), *loaded.model.buffers()):
            memory.count(tensor)
        run_experiment(
            ExperimentConfig(**fields),
            model=loaded.model,
            tokenizer=loaded.tokenizer,
            output_dir=tmp_path,
            progress=False,
        )
    print(f"estimate {estimate.device / 1e6:.0f} MB, measured {memory.peak / 1e6:.0f} MB")
    assert estimate.device == pytest.approx(memory.peak, rel=0.25)
