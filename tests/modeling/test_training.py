"""Models learn: one batch by heart, real text better than its unigram entropy, bf16 without a NaN."""

import pytest
import torch

from frankenlm.modeling import FrankensteinConfig, FrankensteinForMaskedLM, list_presets
from frankenlm.modeling.mixers import MIXERS
from frankenlm.modeling.norms import NORMS

MASK, VOCAB, LENGTH = 0, 128, 48  # byte 0 does not occur in the text
STEPS = 200
SHRUNK = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "chunk_size": 16,
    "mamba_head_dim": 16,
    "mamba_state": 16,
    "max_position_embeddings": 64,
}
HYBRID = {"num_hidden_layers": 12, "num_attention_heads": 4, "retention_heads": 4}
PRESETS = {
    "frankenstein": HYBRID,
    "mini": HYBRID | {"factorized_embedding_dim": 32},
    "standard": {"num_hidden_layers": 3, "num_attention_heads": 4},
    "standard_hope": {"num_hidden_layers": 3, "num_attention_heads": 4},
    "tinybert": {"num_hidden_layers": 2, "num_attention_heads": 4},
    "embbert": {"num_hidden_layers": 2},
}
# 0.02 is meant for widths near 768 and a damping of 0.01 for 512 tokens; these models have 32 and 17.
FOR_TINY = {"lively": False, "initializer_range": 0.1, "hope_damping": 0.1}
HYBRID_PATTERN = ("retnet", "titan_attn", "retnet", "mamba", "titan_attn", "ode")


class Recipe:
    """AdamW with warm-up over a tenth of the steps, linear decay, clipping at 1, no decay where the model says so."""

    def __init__(self, model, lr, steps):
        self.model, exempt = model, model.no_weight_decay_names()
        groups = [
            {"params": [p for n, p in model.named_parameters() if n not in exempt], "weight_decay": 0.01},
            {"params": [p for n, p in model.named_parameters() if n in exempt], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, fused=True)
        warmup = max(steps // 10, 1)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min((step + 1) / warmup, (steps - step) / (steps - warmup))
        )

    def step(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.schedule.step()
        return norm


def masked_batch(text, rows, generator):
    """Rows of text with 15 % of the bytes to predict: 80 % of them masked, 10 % replaced, 10 % left."""
    starts = torch.randint(len(text) - LENGTH, (rows,), generator=generator)
    ids = torch.stack([text[start : start + LENGTH] for start in starts.tolist()])
    chosen = torch.rand(ids.shape, generator=generator) < 0.15
    labels = ids.masked_fill(~chosen, -100)
    fate = torch.rand(ids.shape, generator=generator)
    anything = torch.randint(1, VOCAB, ids.shape, generator=generator)
    ids = torch.where(chosen & (fate < 0.8), MASK, torch.where(chosen & (fate >= 0.9), anything, ids))
    return ids, labels


@pytest.fixture(scope="module")
def evaluation(text_bytes):
    """Counts of the training text, masked rows of the held-out text, and the unigram model's loss on those."""
    counts = torch.bincount(text_bytes["train"], minlength=VOCAB)
    ids, labels = masked_batch(text_bytes["validation"], 48, torch.Generator().manual_seed(5))
    log_shares = ((counts + 1) / (counts + 1).sum()).log()
    return counts, ids, labels, -log_shares[labels[labels >= 0]].mean().item()


def evaluate(model, evaluation):
    _, ids, labels, _ = evaluation
    model.eval()
    with torch.no_grad():
        loss = model(ids, labels=labels).loss.item()
    model.train()
    return loss


def gain_over_unigram(config, text_bytes, evaluation, *, lr=3e-3, rows=8, enough=None):
    """Train for 200 steps, or until the held-out loss is `enough` nats below the unigram loss; return that gain."""
    torch.manual_seed(0)
    counts, _, _, unigram = evaluation
    model = FrankensteinForMaskedLM(config)
    if config.head_bias_init == "unigram":
        model.set_unigram_bias(counts)
    recipe, generator = Recipe(model, lr, STEPS), torch.Generator().manual_seed(1)
    for step in range(1, STEPS + 1):
        ids, labels = masked_batch(text_bytes["train"], rows, generator)
        recipe.step(model(ids, labels=labels).loss)
        if enough is not None and step % 40 == 0 and unigram - evaluate(model, evaluation) >= enough:
            break
    return unigram - evaluate(model, evaluation)


def shrunk(preset, **overrides):
    return FrankensteinConfig.from_preset(preset, **SHRUNK | PRESETS[preset] | overrides)


def test_every_preset_is_here():
    assert {name for name in list_presets() if not name.startswith(("infinito", "legacy"))} == set(PRESETS)


LARGEST = {"frankenstein", "mini"}  # the two that take longest; `make demo` trains mini


@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGEST else []) for name in sorted(PRESETS)]
)
def test_preset_beats_the_unigram_entropy(preset, text_bytes, evaluation):
    rows = 8 if preset in ("frankenstein", "mini") else 32
    assert gain_over_unigram(shrunk(preset), text_bytes, evaluation, rows=rows, enough=0.1) >= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_preset_is_still_well_below_after_all_steps(preset, text_bytes, evaluation):
    assert gain_over_unigram(shrunk(preset), text_bytes, evaluation, rows=32) >= 0.1


@pytest.mark.slow
def test_derf_and_its_layer_norm_twin_both_learn(text_bytes, evaluation):
    """The same hybrid, side by side; only the norms differ."""
    pattern, gains = ["retnet", "titan_attn", "mamba", "ode"], {}
    for norm in ("derf", "layer_norm"):
        config = shrunk("mini", norm_type=norm, layer_pattern=pattern, num_loops=1, num_hidden_layers=4, num_experts=0)
        gains[norm] = gain_over_unigram(config, text_bytes, evaluation, enough=0.25)
    assert min(gains.values()) >= 0.25, gains


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_preset_starts_where_it_should(preset, evaluation):
    """The loss of ln V with a zero output bias, of the unigram model with the unigram bias; every branch alive."""
    counts, ids, labels, unigram = evaluation
    torch.manual_seed(0)
    model = FrankensteinForMaskedLM(shrunk(preset))
    uniform = torch.tensor(float(VOCAB)).log().item()
    assert abs(evaluate(model, evaluation) - uniform) <= 0.3
    model.set_unigram_bias(counts)
    assert abs(evaluate(model, evaluation) - unigram) <= 0.3

    streams, branches = {}, []
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(
            lambda module, args, kwargs, index=index: streams.update({index: args[0]}), with_kwargs=True
        )
        for part in (layer.mixer, layer.ffn):
            part.register_forward_hook(
                lambda module, args, output, index=index: branches.append(
                    (output[0] if isinstance(output, tuple) else output).norm() / streams[index].norm()
                )
            )
    model(ids, labels=labels).loss.backward()
    assert len(branches) == 2 * model.config.num_hidden_layers and min(branches) >= 1e-4
    for name, parameter in model.named_parameters():
        assert parameter.ndim < 2 or parameter.grad.norm() >= 1e-7, name


def learn_by_heart(model, ids, labels, target, lr=1e-2):
    """Return the loss after at most 300 steps on one batch, stopping at the target."""
    recipe = Recipe(model.train(), lr, 300)
    for _ in range(300):
        loss = model(ids, labels=labels).loss
        if loss.item() < target:
            break
        recipe.step(loss)
    return loss.item()


def one_batch(tokens, is_decoder):
    """Four random rows: a decoder predicts what follows, an encoder every fourth token from the rest."""
    ids = tokens(4, 17)
    if is_decoder:
        labels = ids.clone()
        labels[:, 1] = -100  # what follows the first token, of which two rows may have the same
        return ids, labels
    hidden = torch.arange(17) % 4 == 1
    return ids.masked_fill(hidden, MASK), ids.masked_fill(~hidden, -100)


def crossed(norms, quick):
    """Every mixer, in both directions, under every norm; the quick tests take one of two norms in turn."""
    cases = []
    for number, mixer in enumerate([*sorted(MIXERS), "titan_memory"]):
        for is_decoder, direction in enumerate(("encoder", "decoder")):
            for norm in norms:
                slow = norm != quick[(number + is_decoder) % 2]
                marks = [pytest.mark.slow] if slow else []
                cases.append(pytest.param(mixer, bool(is_decoder), norm, id=f"{norm}-{direction}-{mixer}", marks=marks))
    return pytest.mark.parametrize(("mixer", "is_decoder", "norm"), cases)


@crossed(NORMS, ("derf", "rms_norm"))  # one that bounds its input, one that divides it
def test_overfits_one_batch(mixer, is_decoder, norm, tiny_model, tokens):
    model = tiny_model(mixer, norm, is_decoder, **FOR_TINY)
    assert learn_by_heart(model, *one_batch(tokens, is_decoder), target=0.1) < 0.1


@crossed(("dynamic_tanh", "rms_norm"), ("dynamic_tanh", "rms_norm"))
def test_ternary_overfits_one_batch(mixer, is_decoder, norm, tiny_model, tokens):
    model = tiny_model(mixer, norm, is_decoder, use_bitnet=True, ode_bitnet=True, **FOR_TINY)
    assert learn_by_heart(model, *one_batch(tokens, is_decoder), target=0.5) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["derf", "dynamic_tanh", "rms_norm", "layer_norm"])
@pytest.mark.parametrize("scheme", ["binary", "ternary_absmedian", "ternary_twn", "int2", "int2_pow"])
def test_every_scheme_overfits_one_batch(norm, scheme, tiny_model, tokens):
    build = FOR_TINY | {"use_bitnet": True, "w_scheme": scheme, "num_experts": 4}
    model = tiny_model(HYBRID_PATTERN, norm, is_decoder=True, **build)
    assert learn_by_heart(model, *one_batch(tokens, True), target=0.5) < 0.5


@pytest.mark.parametrize(
    "is_decoder", [pytest.param(False, id="encoder"), pytest.param(True, id="decoder", marks=pytest.mark.slow)]
)
def test_bf16_steps_without_nan(is_decoder, tiny_model, text_bytes):
    options = {"num_experts": 4, "factorized_embedding_dim": 16, "embedding_conv_kernel": 3, "vocab_size": VOCAB}
    model = tiny_model(HYBRID_PATTERN, "derf", is_decoder, lively=False, **options).train()
    recipe, generator, losses = Recipe(model, 3e-3, 80), torch.Generator().manual_seed(1), []
    for _ in range(80):
        ids, labels = masked_batch(text_bytes["train"], 4, generator)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, labels=ids if is_decoder else labels).loss
        norm = recipe.step(loss)
        assert loss.isfinite() and norm.isfinite()
        losses.append(loss.item())
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert sum(losses[-20:]) < sum(losses[:20]) - 20
