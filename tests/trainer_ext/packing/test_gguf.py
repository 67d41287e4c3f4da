"""GGUF files, written by the package gguf and by hand: the weights of the model that they were made of, or one line."""

import struct

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from frankenlm.modeling.quantizer_ternary import packed_layers
from frankenlm.trainer_ext.packing import gguf_model
from frankenlm.trainer_ext.packing.gguf_header import read_header
from ternary_checkpoints import dense_twin, greedy, logits, make_ternary, small_model, write_gguf

TINY = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
# family, type, the scales of the weights, and what is particular
FORMS = [
    ("llama", "TQ2_0", 256, {}),
    pytest.param("llama", "TQ1_0", "tensor", {}, marks=pytest.mark.slow),
    pytest.param("mistral", "Q2_0", 64, {}, marks=pytest.mark.slow),
    ("qwen3", "Q2_0 of 128", 128, {}),
    pytest.param("qwen3", "PQ2_0", 128, {}, marks=pytest.mark.slow),
    ("qwen3", "PTQ1_0", 128, {}),
    pytest.param("gemma2", "TQ2_0", "row", {}, marks=pytest.mark.slow),
    ("bitnet", "I2_S", "tensor", {"architecture": "bitnet-b1.58"}),
    pytest.param("bitnet", "TQ2_0", "tensor", {"keys": {"bitnet.hidden_activation": "relu2"}}, marks=pytest.mark.slow),
    ("llama", "F16", 32, {}),
    pytest.param("llama", "BF16", "row", {}, marks=pytest.mark.slow),
]


def ternary(family, axis, tie=True, **sizes):
    """A model whose dense matrices float16 holds exactly."""
    model = make_ternary(small_model(family, tie=tie, **sizes), axis)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight.data = layer.weight.data.half().float()
    model.tie_weights()
    return model


def opened(output):
    return AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)


def check_same(output, reference):
    twin = dense_twin(opened(output))
    for name, tensor in reference.state_dict().items():
        assert torch.allclose(twin.state_dict()[name], tensor, rtol=1e-6, atol=1e-6), name  # norms are stored as w + 1
    expected = logits(reference)
    assert (logits(twin) - expected).norm() <= 1e-4 * expected.norm()
    return twin


@pytest.mark.parametrize(("family", "kind", "axis", "options"), FORMS)
def test_packs_to_the_same_weights(family, kind, axis, options, pack, tmp_path):
    model = ternary(family, axis, **TINY)
    output = pack(write_gguf(model, tmp_path / "model.gguf", kind, **options))
    check_same(output, model)
    packed = AutoModelForCausalLM.from_pretrained(output)
    expected = "llama" if family == "mistral" else family  # which llama.cpp calls so too
    assert packed.config.model_type == expected and packed.dtype == torch.bfloat16
    assert len(packed_layers(packed)) == 7


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind", "axis", "options"), FORMS)
@pytest.mark.parametrize("tie", [False, True])
def test_writes_the_same_greedy_text(family, kind, axis, options, tie, pack, tmp_path):
    model = ternary(family, axis, tie, **WIDE)
    options = {"split_max_tensors": 5, **options}
    write_gguf(model, tmp_path / "model.gguf", kind, **options)
    shard = next(tmp_path.glob("model-00001-of-*.gguf"))
    twin = check_same(pack(shard), model)
    assert torch.equal(greedy(twin), greedy(model))


@pytest.mark.parametrize(
    ("ends", "int8"),
    [("F16", False), ("Q8_0", False), ("Q8_0", True), ("TQ2_0", False), ("TQ2_0", True)]
    + [pytest.param(ends, True, marks=pytest.mark.slow) for ends in ("F32", "F16")],
)
def test_tables_and_heads(ends, int8, pack, tmp_path):
    """Ternary ones are packed; others stay what they are to the last bit, or become int8."""
    model = make_ternary(small_model("llama", **TINY), "row", ends=ends == "TQ2_0")
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        stored = gguf.quants.quantize(layer.weight.detach().numpy(), gguf.GGMLQuantizationType[ends])
        values = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[ends])
        layer.weight.data = torch.from_numpy(values.astype(np.float32))
    path = write_gguf(model, tmp_path / "model.gguf", "TQ2_0", ends=ends)
    words = ["--int8_embeddings", "--int8_head"] if int8 else []
    if int8 and ends == "TQ2_0":
        assert pack.code("--model", path, "--output", tmp_path / "out", *words) == 2
        return
    packed = opened(pack(path, *words))
    twin = dense_twin(packed)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        expected, actual = model.state_dict()[name], twin.state_dict()[name]
        assert (actual - expected).norm() <= (1e-2 if int8 else 0) * expected.norm(), name
    assert (logits(twin) - logits(model)).norm() <= (2e-2 if int8 else 1e-4) * logits(model).norm()
    assert len(packed_layers(packed)) == (9 if int8 or ends == "TQ2_0" else 7)


def test_scales_in_tensors_of_their_own(pack, tmp_path):
    """llama.cpp multiplies the output of a layer by them."""
    model = ternary("llama", "tensor", **TINY)
    path = write_gguf(
        model, tmp_path / "model.gguf", "TQ2_0", extra={"blk.0.ffn_up.scale": np.full(1, 0.25, np.float32)}
    )
    packed = opened(pack(path))
    up = model.model.layers[0].mlp.up_proj.weight * 0.25
    assert torch.equal(packed.model.layers[0].mlp.up_proj.dequantized_weight(), up)


def test_rope_scaling_is_read(pack, tmp_path):
    model = ternary("llama", "row", **TINY)
    path = write_gguf(
        model, tmp_path / "model.gguf", "TQ2_0", keys={"llama.rope.scaling.type": "linear"}, rope_factor=4.0
    )
    assert opened(pack(path)).config.rope_parameters["factor"] == 4.0


def test_the_tokenizer_comes_along(pack, tmp_path):
    model = ternary("qwen3", "row", **TINY)
    words = ["<|end|>", *(chr(number) for number in range(97, 123)), "th", "the"]
    words += [f"<unused{number}>" for number in range(96 - len(words))]

    def add(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(words)
        writer.add_token_types([3] + [1] * 95)
        writer.add_token_merges(["t h", "th e"])
        writer.add_eos_token_id(0)

    output = pack(write_gguf(model, tmp_path / "model.gguf", "TQ2_0", tokenizer=add))
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer("thet").input_ids == [words.index("the"), words.index("t")] and tokenizer.eos_token == "<|end|>"
    assert opened(output).generation_config.eos_token_id == 0


def test_a_folder_with_one_file(pack, tmp_path, capsys):
    model = ternary("llama", "row", **TINY)
    (tmp_path / "folder").mkdir()
    write_gguf(model, tmp_path / "folder" / "model.gguf", "TQ2_0")
    check_same(pack(tmp_path / "folder"), model)
    write_gguf(model, tmp_path / "folder" / "second.gguf", "TQ2_0")
    assert pack.code("--model", tmp_path / "folder", "--output", tmp_path / "out") == 2
    assert "holds 2 GGUF files; name one" in capsys.readouterr().err


# --- what cannot be read


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a good file, whose blk.0.ffn_up.weight is where `with_scale` takes it to be."""
    model = ternary("llama", 256, **TINY)
    path = write_gguf(model, tmp_path_factory.mktemp("gguf") / "model.gguf", "TQ2_0")
    tensors = read_header(path).tensors
    UP["offset"] = tensors["blk.0.ffn_up.weight"].offset
    UP["start"] = min(tensor.offset for tensor in tensors.values())
    return path.read_bytes()


UP = {}


def place_of(content, name):
    """Where the type of a tensor stands in the header."""
    start = content.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)
    return start + 4 + 8 * struct.unpack_from("<I", content, start)[0]


def with_type(number, name="blk.0.attn_v.weight"):
    def changed(content):
        place = place_of(content, name)
        return content[:place] + struct.pack("<I", number) + content[place + 4 :]

    return changed


def with_key(name, number):
    """A number of the metadata, of type uint32."""

    def changed(content):
        place = content.index(name.encode()) + len(name) + 4
        return content[:place] + struct.pack("<I", number) + content[place + 4 :]

    return changed


def with_axis(size):
    def changed(content):
        place = place_of(content, "blk.0.attn_v.weight") - 16  # its axes lie before the type
        return content[:place] + struct.pack("<Q", size) + content[place + 8 :]

    return changed


def renamed(before, after):
    return lambda content: content.replace(before, after)


def with_scale(bits):
    """The scale of the first block of a weight, which comes behind 64 bytes of codes."""

    def changed(content):
        place = UP["offset"] + 64
        return content[:place] + struct.pack("<H", bits) + content[place + 2 :]

    return changed


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:3], "does not begin with GGUF"),
        (lambda content: b"", "does not begin with GGUF"),
        (lambda content: b"PK\x03\x04" + content[4:], "does not begin with GGUF"),
        (lambda content: content[:200], "is cut short: its header goes on beyond its 200 bytes"),
        (lambda content: content[:-100], "is cut short: "),
        (lambda content: content[:4] + struct.pack("<I", 9) + content[8:], "GGUF of version 9"),
        (lambda content: content[:4] + struct.pack(">I", 3) + content[8:], "little-endian"),
        (lambda content: content[:8] + struct.pack("<Q", 2**60) + content[16:], "is"),
        (with_type(38), "blk.0.attn_v.weight is of type TL1, which cannot be read"),
        (with_type(135), "blk.0.attn_v.weight is of type IQ2_BN, which cannot be read"),
        (with_type(999), "blk.0.attn_v.weight is of type number 999, which cannot be read"),
        (with_type(12), "model.layers.0.self_attn.v_proj.weight (Q4_K)"),
        (with_type(42), "model.layers.0.self_attn.v_proj.weight (Q2_0)"),
        (renamed(b"blk.0.ffn_up.", b"blk.0.ffn_xx."), "blk.0.ffn_xx.weight: a LlamaForCausalLM has no place"),
        (renamed(b"general.architecture", b"general.architecturx"), "lacks general.architecture"),
        (with_key("llama.block_count", 10**9), "llama.block_count=1000000000 is more than its 11 tensors can make"),
        (with_key("llama.attention.head_count", 10**9), "number of attention heads (1000000000)"),
        (with_key("llama.embedding_length", 128), "in the checkpoint; its configuration asks for"),
        (with_axis(0), "is damaged: blk.0.attn_v.weight has the shape (128, 0)"),
        (with_scale(0x7E00), "model.layers.0.mlp.up_proj.weight (TQ2_0) holds NaN or infinity"),
        (with_scale(0x7C00), "model.layers.0.mlp.up_proj.weight (TQ2_0) holds NaN or infinity"),
    ],
)
def test_damage_is_told_in_one_line(damage, message, whole, pack, tmp_path, capsys):
    path = tmp_path / "model.gguf"
    path.write_bytes(damage(whole))
    assert pack.code("--model", path, "--output", tmp_path / "out") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: --model") and message in line, line
    assert not (tmp_path / "out").exists() and [file.name for file in tmp_path.iterdir()] == ["model.gguf"]


def test_a_number_of_shards_that_is_none(tmp_path):
    key, text = b"split.count", b"two"
    name, value = struct.pack("<Q", len(key)) + key, struct.pack("<IQ", 8, len(text)) + text
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + name + value + bytes(64))
    with pytest.raises(ValueError, match="model.gguf is damaged: its split.count is 'two'"):
        read_header(path)


@pytest.mark.parametrize("byte", range(4, 400, 13))
def test_any_damaged_byte_is_an_error_or_harmless(byte, whole, tmp_path):
    """The header says how long things are; none of it may hang, eat the memory, or end in anything but a ValueError."""
    path = tmp_path / "model.gguf"
    for value in (0xFF, whole[byte] ^ 0x40):
        path.write_bytes(whole[:byte] + bytes([value]) + whole[byte + 1 :])
        try:
            read_header(path)
        except ValueError as error:
            assert "model.gguf" in str(error) or "weight" in str(error)


@pytest.mark.slow
def test_any_damage_of_the_header_is_told_or_harmless(whole, pack, tmp_path, capsys):
    """The whole way through, over random bytes of the header: an error in one line, or a report."""
    path, end = tmp_path / "model.gguf", UP["start"]
    for number in range(200):
        rng = np.random.default_rng(number)
        content = bytearray(whole)
        for place in rng.integers(4, end, rng.integers(1, 4)):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        capsys.readouterr()
        code = pack.code("--model", path, "--inspect")
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("warning:", "info:"))]
        assert code == (2 if lines else 0) and len(lines) <= 1, (number, lines)


def test_a_code_3_is_not_ternary(pack, tmp_path, capsys):
    model = ternary("llama", 64, **TINY)
    path = write_gguf(model, tmp_path / "model.gguf", "Q2_0")
    tensor = read_header(path).tensors["blk.0.ffn_down.weight"]
    with path.open("r+b") as file:
        file.seek(tensor.offset + 2)
        file.write(b"\xff")
    assert pack.code("--model", path, "--output", tmp_path / "out") == 2
    assert "down_proj.weight (Q2_0) is not ternary: row 0, columns 0 to 31" in capsys.readouterr().err


def test_a_shard_is_missing(pack, tmp_path, capsys):
    write_gguf(ternary("llama", "row", **TINY), tmp_path / "model.gguf", "TQ2_0", split_max_tensors=5)
    shards = sorted(tmp_path.glob("*.gguf"))
    assert pack.code("--model", shards[1], "--output", tmp_path / "out") == 2
    assert "is shard 2 of" in capsys.readouterr().err
    shards[1].unlink()
    assert pack.code("--model", shards[0], "--output", tmp_path / "out") == 2
    assert f"{shards[1].name} is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": {"prism.hadamard.sign_mode": "explicit"}}, "in a basis turned by a Hadamard transform"),
        (
            {"keys": {"llama.rope.scaling.type": "longrope"}, "rope_factor": 2.0},
            "rope.scaling.type='longrope' cannot be",
        ),
        ({"architecture": "kimi-k3"}, "GGUF model with architecture kimi-k3 is not supported"),
        ({"extra": {"rope_freqs.weight": np.full(32, 2.0, np.float32)}}, "rope_freqs.weight"),
    ],
)
def test_models_that_would_be_wrong(options, message, pack, tmp_path, capsys):
    path = write_gguf(ternary("llama", 256, **TINY), tmp_path / "model.gguf", "TQ2_0", **options)
    assert pack.code("--model", path, "--output", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_without_the_package(pack, tmp_path, monkeypatch, capsys):
    path = write_gguf(ternary("llama", 256, **TINY), tmp_path / "model.gguf", "TQ2_0")
    monkeypatch.setattr(gguf_model.importlib.util, "find_spec", lambda name: None)
    assert pack.code("--model", path, "--output", tmp_path / "out") == 2
    assert "pip install gguf" in capsys.readouterr().err


def test_types_that_gguf_knows_are_read_by_it():
    """The numbers of the others are not its own: a version that knows one has to be looked at."""
    from frankenlm.trainer_ext.packing.gguf_types import I2_S_ID, OTHERS, Q2_0_ID

    known = {int(kind) for kind in gguf.GGMLQuantizationType}
    assert not known & {I2_S_ID, Q2_0_ID, 142, 143} and OTHERS.keys() == {41, 142, 143}
