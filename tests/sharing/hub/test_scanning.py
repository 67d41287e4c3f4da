"""The search before a push: forms of secrets and of local paths, what only looks alike, what stands in their place."""

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from frankenlm.sharing.hub.scanning import scan, without_local_paths

KEY = "0123456789abcdef0123456789abcdef01234567"
FORMS = {
    f'{{"token": "{KEY}"}}': "a password or key",
    f'{{"client_secret": "{KEY[:12]}"}}': "a password or key",
    f"WANDB_API_KEY={KEY}": "a password or key",
    f"HF_TOKEN: {KEY}": "a password or key",
    "password: hunter2hunter2": "a password or key",
    f"aws_secret_access_key = {KEY}": "a password or key",
    f"Authorization: Bearer {KEY}": "a bearer's token",
    "glpat-0123456789abcdefABCD": "a token of GitLab",
    "sk_live_0123456789abcdefABCD": "a key of Stripe",
    "pypi-AgEIcHlwaS5vcmcCJDAwMDAwMDAwMDAwMDAwMDAw": "a token of a package index",
    '{"a": "\\u0068f_abcdefghijABCDEFGHIJ0123"}': "a token of the Hub",
}
INNOCENT = (
    '"bos_token": "<|endoftext|>"',
    '"auth_token": "<token>"',
    "sk-learn-something-very-long-name",
    "token = tokenizer.convert_ids_to_tokens",
    '"mask_token": "<mask>", "model_max_length": 512',
    "https://huggingface.co/data/x and https://example.org/home/page",
    "hf_quantizer hf_device_map",
    '"tokens": 123456789012345678901234',
)


@pytest.mark.parametrize("text", FORMS)
def test_forms_of_secrets(text, tmp_path):
    found = scan("a", text.encode(), tmp_path)
    assert FORMS[text] in {each.shown for each in found}
    assert scan("a", text.encode("utf-16"), tmp_path)


@pytest.mark.parametrize("text", INNOCENT)
def test_what_only_looks_alike(text, tmp_path):
    assert scan("a", text.encode(), tmp_path) == []


def test_texts_inside_a_png(tmp_path):
    info = PngInfo()
    info.add_text("note", "hf_abcdefghijABCDEFGHIJ0123", zip=True)
    Image.new("L", (2, 2)).save(tmp_path / "training.png", pnginfo=info)
    (found,) = scan("training.png", (tmp_path / "training.png").read_bytes(), tmp_path)
    assert found.shown == "a token of the Hub"


PATHS = {
    "/home/me/texts/a.txt": "a.txt",
    "file:///home/me/x": "file://x",
    "PYTHONPATH=/usr/lib:/home/me/x": "PYTHONPATH=/usr/lib:x",
    "{data:/home/me/x}": "{data:x}",
    "~/corpora/x": "x",
    "../../home/me/x": "../..x",
    "/nfs/home/me/x": "x",
    "/var/tmp/x": "x",
    "/Volumes/disk/x": "x",
    "/data/me/x": "x",
    "/work/me/x": "x",
    "C:/Users/me/x": "x",
    "c:\\users\\me\\x": "x",
    '"/home/me/My Documents/Client/plan.txt"': '"plan.txt"',
    '"/home/me"': '"HOME"',
    "/Users/me": "HOME",
}


@pytest.mark.parametrize("text", PATHS)
def test_forms_of_local_paths(text, tmp_path):
    (found,) = scan("a.md", text.encode(), tmp_path)
    assert found.kind == "local path"
    shown = without_local_paths(text.encode(), tmp_path)
    assert shown.decode() == PATHS[text] and scan("a.md", shown, tmp_path) == []


def test_escaped_paths_in_json_are_found(tmp_path):
    assert scan("a.json", b'{"x": "\\/home\\/me\\/x"}', tmp_path)
