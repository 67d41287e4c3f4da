"""The lab on a GPU: `python -m pytest -m gpu tests/degradation`. The noise's own GPU tests are in test_noise.py."""

import json
import time

import pytest
import torch

from frankenlm.degradation import apply_damage, get_config, run_experiment
from frankenlm.degradation.weights.memory import GpuReader, MemoryPolicy
from frankenlm.degradation.weights.restore import Baseline

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("method", "level"), [("mult_gauss", 0.4), ("ablation", 0.3), ("uni_quant", 16)])
def test_the_damage_is_the_cpus_bit_for_bit(method, level, dtype, tiny_model):
    damaged = {}
    for device in ("cpu", "cuda"):
        model = tiny_model("gemma3", dtype=dtype).to(device)
        with Baseline(model, "attn_qkvo+mlp_only+embed_only") as baseline:
            apply_damage(baseline, method, level, 42, 1)
            damaged[device] = {name: p.detach().cpu().clone() for name, p in model.named_parameters()}
    for name, on_cpu in damaged["cpu"].items():
        assert torch.equal(on_cpu.view(torch.uint8), damaged["cuda"][name].view(torch.uint8)), name


def test_pinned_restore_runs_at_the_links_rate(tiny_model):
    """Against a plain copy of as many pinned bytes to the device, in turn: at least half its rate."""
    model = tiny_model(
        "llama", hidden_size=2048, intermediate_size=8192, num_attention_heads=16, num_key_value_heads=16
    ).to("cuda", torch.bfloat16)
    with Baseline(model, "mlp_only") as baseline:
        size = 2 * baseline.numel
        source = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        target = torch.empty(size, dtype=torch.uint8, device="cuda")
        rates = {"copy": [], "restore": []}
        for _ in range(5):
            for name, call in (("copy", lambda: target.copy_(source)), ("restore", baseline.restore)):
                apply_damage(baseline, "ablation", 0.5, 1, 0)
                torch.cuda.synchronize()
                started = time.perf_counter()
                call()
                torch.cuda.synchronize()
                rates[name].append(size / (time.perf_counter() - started))
    assert max(rates["restore"]) > 0.5 * max(rates["copy"]), rates


@pytest.mark.parametrize("mode", ["dense_target", "requantise", "dense_original"])
def test_4_bit_experiments_run_on_the_gpu(mode, tiny_model, tiny_tokenizer, tmp_path):
    folder = tmp_path / "tiny"
    tiny_model("gemma3", hidden_size=64, intermediate_size=128).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    config = get_config("smoke") | {
        "levels": (0.0, 0.5),
        "n_rep": 1,
        "load_4bit": True,
        "quant_target_mode": mode,
        "group": "mlp_only",
    }
    path = run_experiment(config, model=str(folder), output_dir=tmp_path / "results", device="cuda", progress=False)
    rows = json.loads(path.read_text())
    assert len(rows) == 8 and {row["status"] for row in rows} == {"ok"}
    assert all(row["device"].startswith("cuda") and 0 < row["vram_usage_percent"] <= 100 for row in rows)


def test_the_policy_sees_a_real_allocation():
    """Half of the memory taken: no growth; nearly all of it: stop."""
    free, total = torch.cuda.mem_get_info()
    if free < 0.97 * total:
        pytest.skip("the GPU is used by others")
    reader = GpuReader([torch.cuda.current_device()])
    policy = MemoryPolicy(40, 4, reader, sleep=lambda seconds: None)
    half = torch.empty(int(0.6 * total), dtype=torch.uint8, device="cuda")
    assert policy.after_batch(100) == "go" and policy.batch_size == 4 and 0.55 < policy.usage < 0.75
    rest = torch.empty(int(0.96 * total) - half.numel(), dtype=torch.uint8, device="cuda")
    assert policy.after_batch(100) == "stop" and policy.usage > 0.95
    del half, rest
    torch.cuda.empty_cache()
    assert policy.after_batch(100) in ("go", "stop")
    assert policy.after_batch(100) == "go" and policy.batch_size > 4
