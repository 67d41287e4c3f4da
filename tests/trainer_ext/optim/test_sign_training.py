"""Training without master weights: the rules by hand, codes that the quantiser reads back, runs that resume."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import nn

from frankenlm.modeling import Legacy1BitConfig, Legacy1BitForCausalLM
from frankenlm.modeling.bitlinear import BitLinear
from frankenlm.modeling.column_groups import spread
from frankenlm.modeling.ternary import quantize_weight
from frankenlm.trainer_ext import FrankenTrainer, FrankenTrainingArguments
from frankenlm.trainer_ext.optim.sign_training import (
    SCHEMES,
    SideBySide,
    SignAccum,
    SignLegacy,
    build_code_optimizer,
    code_groups,
    held_weight,
    sign_accum,
    sign_legacy,
)
from frankenlm.trainer_ext.ternary_stats import low_bit_layers, weight_codes

MODES = {"sign_legacy": {"sign": -1}, "sign_accum": {}}


# --- the rules, worked out by hand


@pytest.mark.parametrize(("sign", "expected"), [(1, [1, -1, 0, 1, -1]), (-1, [-1, 1, 0, 1, -1])])
def test_the_published_rule(sign, expected):
    codes = torch.tensor([-1.0, 1.0, 0.0, 1.0, -1.0])
    gradient = torch.tensor([0.5, -2.0, 0.0, 0.0, 0.0])
    assert sign_legacy(codes, gradient, sign).tolist() == expected


def test_accumulated_evidence_moves_one_level():
    codes = torch.tensor([[-1.0, 0.0, 1.0, 1.0, -1.0, 0.0]])
    average = torch.tensor([[0.0, 0.0, 0.0, 4.0, 0.0, 0.0]])
    gradient = torch.tensor([[-8.0, 8.0, 8.0, -2.0, 8.0, 1.0]])
    # averages -4, 4, 4, 1, 4, 0.5: mean magnitude 17.5 / 6 = 2.92
    codes, average = sign_accum(codes, average, gradient, beta=0.5, tau=1.0, share=1.0)
    assert codes.tolist() == [[0.0, -1.0, 0.0, 1.0, -1.0, 0.0]], (
        "up, down, down, too little, already lowest, too little"
    )
    assert average.tolist() == [[0.0, 0.0, 0.0, 1.0, 0.0, 0.5]]


@pytest.mark.parametrize("share", [0.0, 0.004, 0.01, 0.1, 1.0])
def test_only_the_strongest_move(share):
    gradient = torch.randn(30, 50)
    codes, average = sign_accum(torch.zeros(30, 50), torch.zeros(30, 50), gradient, beta=0.0, tau=1.0, share=share)
    qualified = int((gradient.abs() > gradient.abs().mean()).sum())
    assert int(codes.ne(0).sum()) == min(qualified, int(share * 1500))
    if codes.any():
        assert gradient[codes != 0].abs().min() >= average.abs().max(), "those left keep their evidence"


# --- a weight that holds codes


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("scale_axis", "scales"), [("tensor", (1, 1)), ("row", (17, 1)), ("group", (17, 2))])
@pytest.mark.parametrize("density", [0.01, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_quantiser_reads_the_codes_back(scheme, scale_axis, scales, density, dtype):
    codes = torch.randint(0, 2, (17, 41)) * 2.0 - 1
    codes[torch.rand(17, 41) > density] = 0
    codes[3], codes[0, 0] = 0, 1
    size = size_of(scale_axis)
    scale = 0.1 + torch.rand(scales)
    held = held_weight(codes, scale, scheme, size).to(dtype)
    read, read_scale = quantize_weight(held, scheme, scale_axis, size)
    tolerance = 1e-6 if dtype == torch.float32 and not size else 4e-3  # groups' scales are rounded to bfloat16
    assert torch.equal(read, codes)
    expected = codes * spread(scale, 41, size)
    torch.testing.assert_close(read * spread(read_scale, 41, size), expected, atol=tolerance, rtol=tolerance)


def size_of(scale_axis: str) -> int | None:
    return 32 if scale_axis == "group" else None


def student(scheme="ternary_absmean", scale_axis="tensor", dtype=None) -> nn.Sequential:
    torch.manual_seed(0)
    options = {"scheme": scheme, "scale_axis": scale_axis, "dtype": dtype, "group_size": size_of(scale_axis)}
    return nn.Sequential(BitLinear(24, 40, **options), nn.ReLU(), BitLinear(40, 8, **options))


def teach(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> list[float]:
    """Learn what another model of random codes does; step n has the same batch in every run."""
    torch.manual_seed(1)
    dtype = model[0].weight.dtype
    teacher = nn.Sequential(BitLinear(24, 40), nn.ReLU(), BitLinear(40, 8)).to(dtype)
    losses = []
    for step in range(first, first + steps):
        x = torch.randn(64, 24, generator=torch.Generator().manual_seed(step)).to(dtype)
        with torch.no_grad():
            target = teacher(x)
        loss = F.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("scale_axis", ["tensor", "row", "group"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_sees_codes_times_a_fixed_scale(mode, scheme, scale_axis, dtype):
    model = student(scheme, scale_axis, dtype)
    size = size_of(scale_axis)
    scales = [quantize_weight(model[i].weight.detach(), scheme, scale_axis, size)[1] for i in (0, 2)]
    optimizer = build_code_optimizer(mode, model, **MODES[mode])
    for step in range(5):
        before = [weight_codes(model[i]) for i in (0, 2)]
        teach(model, optimizer, 1, first=step)
        for i, codes, scale in zip((0, 2), before, scales, strict=True):
            weight = model[i].weight.detach()
            seen = model[i].quantized_weight().float()
            expected = (weight.sign() * spread(scale, weight.shape[1], size)).float()
            torch.testing.assert_close(seen, expected, atol=0, rtol=0.01)
            moved = (weight_codes(model[i]) != codes).float().mean()
            assert moved <= (0.01 if mode == "sign_accum" else 1.0)


def test_accumulated_signs_learn():
    model = student()
    losses = teach(model, SignAccum(code_groups(model), tau=1.0), 300)
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


def test_the_published_rule_gets_lost():
    """What the re-derivation of the C project found: snapping every weight at every step does not learn."""
    for sign in (1, -1):
        model = student()
        losses = teach(model, SignLegacy(code_groups(model), sign=sign), 40)
        assert min(losses[5:]) > 3 * losses[0], f"sign {sign}"


def test_the_published_sign_climbs():
    """A step from the same state along the gradient raises the loss more than one against it."""
    after = {}
    for sign in (1, -1):
        model = student()
        teach(model, SignLegacy(code_groups(model)[:1], sign=sign), 1)
        after[sign] = teach(model, torch.optim.SGD(model.parameters(), lr=0.0), 1)[0]
    assert after[1] > after[-1]


@pytest.mark.parametrize("mode", MODES)
def test_runs_repeat(mode):
    runs = []
    for _ in range(2):
        model = student()
        runs.append(teach(model, build_code_optimizer(mode, model, **MODES[mode]), 20))
    assert runs[0] == runs[1]


# --- beside another optimizer, in checkpoints, in the trainer


def side_by_side(model: nn.Module, mode: str) -> SideBySide:
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    return SideBySide(torch.optim.AdamW(biases, lr=1e-2), build_code_optimizer(mode, model, **MODES[mode]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_continues_the_run(mode, dtype):
    model = student(dtype=dtype)
    optimizer = side_by_side(model, mode)
    teach(model, optimizer, 7)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    teach(model, optimizer, 6, first=7)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = student(dtype=dtype)
    resumed.load_state_dict(saved["model"])
    optimizer = side_by_side(resumed, mode)
    optimizer.load_state_dict(saved["optimizer"])
    teach(resumed, optimizer, 6, first=7)
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_schedule_anneals_both():
    model = student()
    optimizer = side_by_side(model, "sign_accum")
    saved = copy.deepcopy(optimizer.state_dict())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    optimizer.load_state_dict(saved)
    teach(model, optimizer, 1)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [5e-3, 5e-3]
    assert [inner.param_groups[0]["lr"] for inner in optimizer.optimizers] == [5e-3, 5e-3]


def tiny_model(**fields) -> Legacy1BitForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 16}
    return Legacy1BitForCausalLM(Legacy1BitConfig(**sizes | fields))


def trainer_for(model, tmp_path, **fields) -> FrankenTrainer:
    ids = torch.randint(256, (40, 16), generator=torch.Generator().manual_seed(0)).tolist()
    settings = {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "eval_strategy": "no", "use_cpu": True}
    settings |= {"disable_tqdm": True, "learning_rate": 1e-3, "report_to": "none", "log_level": "error"}
    args = FrankenTrainingArguments(output_dir=str(tmp_path), **settings | fields)
    return FrankenTrainer(model, args, train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}))


@pytest.mark.parametrize("mode", MODES)
def test_every_parameter_has_one_optimizer(mode, tmp_path):
    model = tiny_model()
    optimizer = trainer_for(model, tmp_path, ternary_training=mode).create_optimizer()
    ours = [p for group in optimizer.optimizers[1].param_groups for p in group["params"]]
    assert {id(p) for p in ours} == {id(layer.weight) for layer in low_bit_layers(model).values()}
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, everything)) == sorted(id(p) for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_run_continues(mode, tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    fields = {"ternary_training": mode, "ternary_sign": MODES[mode].get("sign", 1)}
    unbroken = tiny_model()
    start = copy.deepcopy(unbroken.state_dict())
    trainer_for(unbroken, whole, **fields).train()
    resumed = tiny_model()
    trainer_for(resumed, half, **fields).train(resume_from_checkpoint=str(whole / "checkpoint-2"))
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    changed = {name for name, value in unbroken.state_dict().items() if not torch.equal(value, start[name])}
    assert any("q_proj.weight" in name for name in changed) and any("norm" in name for name in changed)


# --- mistakes


@pytest.mark.parametrize("scheme", ["binary", "ternary_absmedian", "int2", "int2_pow"])
def test_schemes_that_do_not_read_codes_back_are_refused(scheme):
    with pytest.raises(ValueError, match=f"w_scheme='{scheme}'; training on codes needs one of"):
        code_groups(student(scheme))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: code_groups(nn.Linear(3, 3)), "no ternary weights"),
        (lambda: build_code_optimizer("sign_acum", student()), "Did you mean 'sign_accum'"),
        (lambda: SignLegacy(code_groups(student()), sign=0), "sign=0 must be"),
        (lambda: SignAccum(code_groups(student()), lr=2.0), "lr=2.0 must lie in"),
        (lambda: SignAccum(code_groups(student()), beta=1.0), "beta=1.0 must lie in"),
        (lambda: SignAccum(code_groups(student()), tau=-1.0), "tau=-1.0 must not"),
        (lambda: FrankenTrainingArguments(use_cpu=True, ternary_training="sign"), "ternary_training='sign'"),
        (lambda: FrankenTrainingArguments(use_cpu=True, ternary_sign=-1), "belongs to --ternary_training sign_legacy"),
        (
            lambda: FrankenTrainingArguments(use_cpu=True, ternary_training="sign_legacy", ternary_sign=2),
            "must be 1, as published, or -1",
        ),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_weight_without_a_scale_is_refused():
    model = student()
    nn.init.zeros_(model[2].weight)
    with pytest.raises(ValueError, match="all zero"):
        teach(model, SignAccum(code_groups(model)), 1)
