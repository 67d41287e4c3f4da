"""Opening models: what is wrong is said on one line before weights are read, and what is right comes as it is."""

import json
import shutil
from types import SimpleNamespace

import httpx2
import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from PIL import Image
from torch import nn
from transformers import BitsAndBytesConfig

from frankenlm.degradation.configs import ExperimentConfig
from frankenlm.degradation.weights.loading import (
    check_model,
    keep_4bit_weights_readable,
    load_model,
    open_model,
    short_name,
    wrap_model,
)
from frankenlm.degradation.weights.model_checks import resolve_device
from frankenlm.modeling import byte_tokenizer
from frankenlm.modeling.quantizer_ternary import pack_model
from frankenlm.trainer_ext.common.cli import UserError

GENERATING = (
    "gemma3",
    "gemma3_mm",
    "llama",
    "llama_tied",
    "mistral",
    "qwen2",
    "qwen3",
    "gpt2",
    "gpt_neox",
    "phi3",
    "mixtral",
    "frankenstein",
    "infinito",
    "legacy_1bit",
)


def options(**fields):
    usual = {"device": "cpu", "trust_remote_code": False, "force_fp16": False}
    return SimpleNamespace(**usual | dict.fromkeys(("device_map", "max_memory", "offload_folder")) | fields)


def experiment(**fields):
    return ExperimentConfig(**{"dtype": "float32"} | fields)


@pytest.fixture
def weightless(tiny_dir, tmp_path):
    """weightless(name) -> a copy of the tiny model's folder without its weights."""

    def make(name):
        folder = shutil.copytree(tiny_dir(name), tmp_path / name)
        for file in folder.glob("*.safetensors*"):
            file.unlink()
        return folder

    return make


def refusal(name, config=None, opts=None):
    """Return the message of check_model's ValueError, which is one line."""
    with pytest.raises(ValueError) as error:
        check_model(str(name), config or experiment(), opts or options())
    message = str(error.value)
    assert "\n" not in message and len(message) < 700
    return message


# --- what loads


@pytest.mark.parametrize("name", GENERATING)
def test_every_tiny_model_is_checked_and_loaded_as_saved(name, tiny_dir, tiny_model):
    folder = str(tiny_dir(name))
    config, _ = check_model(folder, experiment(), options())
    loaded = load_model(folder, experiment(), options())
    assert loaded.model.config.model_type == config.model_type
    assert not loaded.model.training and loaded.processor is None
    assert (loaded.name, short_name(loaded.name), loaded.devices) == (folder, f"tiny-{name}", "cpu")
    for (key, ours), (other, theirs) in zip(
        loaded.model.named_parameters(), tiny_model(name).named_parameters(), strict=True
    ):
        assert key == other and torch.equal(ours, theirs)
    ids = loaded.tokenizer("<bos><turn>user\nHi", return_tensors="pt", add_special_tokens=False).input_ids
    assert ids[0, :2].tolist() == [257, 259]
    output = loaded.model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=256)
    assert 1 <= output.shape[1] - ids.shape[1] <= 3


@pytest.mark.parametrize("name", ["gemma3_mm", "llama", "frankenstein"])
def test_checks_read_no_weights(name, weightless):
    assert check_model(str(weightless(name)), experiment(group="attn_only+mlp_only@first50%"), options())


def test_types(tiny_dir):
    loaded = open_model(str(tiny_dir("llama")), dtype="bfloat16", device="cpu")
    assert loaded.dtype == torch.bfloat16 == loaded.model.lm_head.weight.dtype


def test_a_model_with_pictures_sees_them_without_torchvision(tiny_dir):
    config = experiment(image="kitchen")
    folder = str(tiny_dir("gemma3_mm"))
    check_model(folder, config, options())
    loaded = load_model(folder, config, options())
    picture = Image.linear_gradient("L").resize((80, 60)).convert("RGB")
    message = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Look"}]}]
    inputs = loaded.processor.apply_chat_template(
        message, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    assert inputs["pixel_values"].shape == (1, 3, 56, 56) and (inputs["input_ids"] == 262).sum() == 4
    with torch.no_grad():
        seen = loaded.model(**inputs).logits
        inputs["pixel_values"] = -inputs["pixel_values"]
        assert (loaded.model(**inputs).logits - seen).abs().max() > 0.1


def test_our_byte_models_load_with_their_own_tokenizer(tiny_model, tmp_path):
    tiny_model("infinito").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    check_model(str(tmp_path), experiment(), options())
    loaded = load_model(str(tmp_path), experiment(), options())
    assert loaded.tokenizer("é").input_ids == [0xC3, 0xA9] and not loaded.tokenizer.chat_template


def test_home_folders_are_written_out(tiny_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny_dir("llama").parent))
    assert check_model("~/tiny-llama", experiment(), options())
    assert short_name(open_model("~/tiny-llama", device="cpu").name) == "tiny-llama"


def test_loaded_models_are_taken_as_they_are(tiny_model, tiny_tokenizer, tiny_processor, tiny_dir):
    model = tiny_model("llama").train()
    loaded = wrap_model(model, tiny_tokenizer())
    assert loaded.model is model and not model.training and loaded.name == "LlamaForCausalLM"
    saved = open_model(str(tiny_dir("llama")), device="cpu")
    assert short_name(wrap_model(saved.model, saved.tokenizer).name) == "tiny-llama"
    both = wrap_model(tiny_model("gemma3_mm"), None, tiny_processor())
    assert both.tokenizer is both.processor.tokenizer
    with pytest.raises(ValueError, match="needs its tokenizer"):
        wrap_model(model, None)


@pytest.mark.parametrize(
    ("name", "short"), [("google/gemma-3-4b-it", "gemma-3-4b-it"), ("/a/b/", "b"), ("gpt2", "gpt2"), ("../x", "x")]
)
def test_short_names(name, short):
    assert short_name(name) == short


def test_a_checkpoint_that_lacks_weights_is_refused(tiny_dir, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_dir("llama"), tmp_path / "hole")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights, such as model.layers.1.mlp.up_proj.weight"):
        open_model(str(folder), device="cpu")


# --- 4 bits


@pytest.fixture(scope="module")
def wide_dir(tiny_model, tiny_tokenizer, tmp_path_factory):
    """Layers wide enough for blocks of 64."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # bitsandbytes' own
@pytest.mark.parametrize("mode", ["dense_target", "dense_original"])
def test_linear_layers_in_4_bits_except_the_head_and_what_stays_dense(mode, wide_dir):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    storage = {"load_4bit": True, "quant_type": "fp4", "double_quant": True}
    config = experiment(group="attn_only@L0-1", quant_target_mode=mode, **storage)
    check_model(wide_dir, config, options())
    model = load_model(wide_dir, config, options()).model
    packed = {name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    dense = {f"model.layers.{layer}.self_attn.v_proj" for layer in (0, 1)} if mode == "dense_original" else set()
    assert linear - packed == {"lm_head"} | dense
    first = model.model.layers[2].mlp.up_proj
    assert (first.weight.quant_state.quant_type, first.weight.quant_state.nested) == ("fp4", True)
    assert all(not module.support_avx512bf16_for_cpu for module in model.modules() if hasattr(module, "quant_type"))
    assert model(torch.arange(9)[None]).logits.isfinite().all()


def test_the_fast_path_that_repacks_weights_is_switched_off():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    layers[1].support_avx512bf16_for_cpu = True
    keep_4bit_weights_readable(layers)
    assert layers[1].support_avx512bf16_for_cpu is False and not hasattr(layers[0], "support_avx512bf16_for_cpu")


def test_weights_that_a_first_pass_would_change_stay_as_they_are_saved(tiny_tokenizer):
    """RWKV halves its later layers' weights and the stream between them, unless it is told not to."""
    torch.manual_seed(0)
    small = {"vocab_size": 259, "hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 32}
    config = transformers.RwkvConfig(**small, num_hidden_layers=5, rescale_every=2)
    model, ids = transformers.RwkvForCausalLM(config).eval(), torch.arange(7)[None]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        kept = wrap_model(model, tiny_tokenizer()).model(ids).logits
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        config.rescale_every, model.rwkv.layers_are_rescaled = 2, False
        torch.testing.assert_close(model(ids).logits, kept, rtol=0, atol=2e-3)  # a norm's epsilon
    assert not torch.equal(
        model.rwkv.blocks[4].attention.output.weight, before["rwkv.blocks.4.attention.output.weight"]
    )
    wrap_model(model, tiny_tokenizer())
    assert config.rescale_every == 2  # divided already: it goes on as it began


def _edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def test_quantised_checkpoints(weightless):
    folder = weightless("llama")
    bits = BitsAndBytesConfig(load_in_4bit=True).to_dict()
    _edit_config(folder, quantization_config=bits)
    assert "is stored in 4 bits; set load_4bit=True" in refusal(folder)
    _edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "is quantised by gptq; use its dense checkpoint" in refusal(folder)


def test_packed_ternary_checkpoints_are_refused_before_their_weights_are_read(tiny_model, tiny_tokenizer, tmp_path):
    pack_model(tiny_model("legacy_1bit")).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert "packed ternary weights, which cannot be damaged; use the unpacked checkpoint" in refusal(tmp_path)


def test_missing_bitsandbytes(weightless, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs bitsandbytes: pip install" in refusal(weightless("llama"), experiment(load_4bit=True))


# --- what is refused


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("llama", {"group": "attn_onyl"}, "Did you mean 'attn_only'?"),
        ("llama", {"group": "vision_attn"}, "matches no parameter of this model (llama). Nearest parameters:"),
        ("llama", {"group": "attn_only@L7"}, "no layer 7; there are layers 0 to 3"),
        ("llama", {"image": "kitchen"}, "(llama) reads text only; choose a model that takes pictures"),
        ("gemma3", {"image": "kitchen"}, "(gemma3_text) reads text only"),
        ("gemma3", {"dtype": "float16"}, "overflows in it even undamaged; use bfloat16 or float32"),
        ("gemma3_mm", {"dtype": "float16"}, "overflows in it even undamaged"),
        ("llama", {"group": "embed_only", "tied_policy": "output_only"}, "not tied; use group lm_head"),
        ("bert", {"system_prompt": "Be brief."}, "is a masked language model, which reads a text without turns"),
    ],
)
def test_what_does_not_fit_the_model(name, config, message, weightless):
    assert message in refusal(weightless(name), experiment(**config))


def test_float16_can_be_forced_and_others_may_use_it(weightless):
    assert check_model(str(weightless("gemma3")), experiment(dtype="float16"), options(force_fp16=True))
    assert check_model(str(weightless("llama")), experiment(dtype="float16"), options())


def test_folders_that_hold_no_model(tmp_path, weightless):
    assert "no such folder" in refusal(tmp_path / "nowhere")
    assert "holds no config.json" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json cannot be" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "lama"}')
    assert "its config.json cannot be used" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert "t5 is no causal and no masked language model" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert "vit is no causal and no masked language model" in refusal(tmp_path)
    folder = weightless("gemma3_mm")
    (folder / "processor_config.json").unlink()
    assert "its processor cannot be used" in refusal(folder, experiment(image="kitchen"))
    for file in folder.glob("token*"):
        file.unlink()
    assert "its tokenizer cannot be used" in refusal(folder)


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "cpu:x", "meta"])
def test_devices(device, monkeypatch):
    with pytest.raises(UserError, match=f"device {device}: "):
        resolve_device(device)
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    with pytest.raises(UserError, match="device mps: the lab"):
        resolve_device("mps")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert resolve_device("cuda") == torch.device("cuda", 2)  # with a number, which set_device needs
    assert resolve_device("cuda:3") == torch.device("cuda", 3)
    monkeypatch.undo()
    assert resolve_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


# --- the hub


TOKEN = "hf_secretsecretsecret"


def _answer(monkeypatch, error):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr(transformers.utils.hub, "hf_hub_download", download)
    monkeypatch.setattr(transformers.utils.hub, "snapshot_download", download)


@pytest.mark.parametrize(
    ("error", "token", "message"),
    [
        (
            GatedRepoError,
            None,
            "is gated: accept its licence at https://huggingface.co/some/model and set",
        ),
        (GatedRepoError, TOKEN, "the token in HF_TOKEN gives no access to it: accept its licence"),
        (RepositoryNotFoundError, None, "no such model on the hub. If it is private, set HF_TOKEN."),
        (RepositoryNotFoundError, TOKEN, "no folder of that name, and no such model on the hub."),
        (None, TOKEN, "not in the cache, and the hub cannot be reached"),
    ],
)
def test_the_hub_says_no_and_the_token_stays_secret(error, token, message, monkeypatch, capfd):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    if error is None:
        _answer(monkeypatch, LocalEntryNotFoundError("nothing in the cache, no way to the hub"))
    else:
        response = httpx2.Response(401, request=httpx2.Request("GET", f"https://huggingface.co/?{TOKEN}"))
        _answer(monkeypatch, error(f"401 with {TOKEN}", response=response))
    text = refusal("some/model")
    assert message in text and TOKEN not in text
    assert TOKEN not in "".join(capfd.readouterr())


def test_the_token_is_cut_out_of_what_others_say(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def fail(*args, **kwargs):
        raise ValueError(f"bad\nrequest with {TOKEN}")

    monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", fail)
    assert refusal("some/model").endswith("cannot be used: bad request with ***")
