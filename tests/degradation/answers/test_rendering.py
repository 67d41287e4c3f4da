"""Prompts as the model reads them: the template's special tokens and no others, nothing cut, the picture first."""

import logging

import pytest
import torch
from PIL import Image

from frankenlm.degradation.answers.rendering import apply_template, load_picture, render_prompts, warn_once

TEXTS = ["Hello there", "A second, longer prompt", "x"]


def test_ids_are_the_templates(tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    rendering = render_prompts(TEXTS, tokenizer, max_length=512)
    for text, row in zip(TEXTS, rendering.prompts, strict=True):
        expected = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        assert list(row.ids) == list(expected)
        assert row.text_tokens == len(text)
        assert row.ids.count(tokenizer.bos_token_id) == 1


def test_the_shared_beginning_is_shared_and_leaves_something(tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    rendering = render_prompts(TEXTS, tokenizer, max_length=512, system_prompt="Be brief.")
    assert tokenizer.decode(rendering.prefix).endswith("<turn>user\n")
    assert "Be brief." in tokenizer.decode(rendering.prefix)
    for index, row in enumerate(rendering.prompts):
        assert rendering.prefix + rendering.suffix(index) == row.ids and rendering.suffix(index)


def test_the_beginning_does_not_depend_on_how_many_prompts_there_are(tiny_tokenizer):
    """Prompts that happen to begin alike must not shift it when rows are resumed or added."""
    alike = ["Tell me a dream.", "Tell me a story."]
    some, others = (render_prompts(texts, tiny_tokenizer(), max_length=99) for texts in (alike, TEXTS))
    assert some.prefix == others.prefix


def test_without_a_template_plain_turns_and_a_warning(tiny_tokenizer, caplog):
    tokenizer = tiny_tokenizer(chat_template=None)
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        rendering = render_prompts(["Hello"], tokenizer, max_length=512)
    assert tokenizer.decode(rendering.prompts[0].ids) == "User: Hello\nAssistant:"
    assert "no chat template" in caplog.text


def test_a_second_bos_is_refused(tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    bos = tokenizer.bos_token_id

    class AddsItsOwn(type(tokenizer)):
        def __call__(self, text, **options):
            encoded = super().__call__(text, **options)
            encoded["input_ids"] = [bos, *encoded["input_ids"]]
            return encoded

    tokenizer.__class__ = AddsItsOwn
    with pytest.raises(ValueError, match="BOS tokens of its own"):
        render_prompts(TEXTS, tokenizer, max_length=512)


def test_long_prompts_are_refused_not_cut(tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    length = len(render_prompts(["y" * 50], tokenizer, max_length=512).prompts[0].ids)
    render_prompts(["y" * 50], tokenizer, max_length=length)
    with pytest.raises(ValueError, match=f"max_seq_length={length - 1}"):
        render_prompts(["y" * 50], tokenizer, max_length=length - 1)


def test_a_picture_comes_before_the_text(tiny_processor):
    processor = tiny_processor()
    picture = Image.new("RGB", (30, 50), "teal")
    rendering = render_prompts(TEXTS, processor.tokenizer, max_length=512, processor=processor, picture=picture)
    patch = processor.tokenizer.convert_tokens_to_ids("<patch>")
    assert rendering.prefix.count(patch) == 4
    assert all(patch not in rendering.suffix(i) for i in range(len(TEXTS)))
    assert rendering.inputs["pixel_values"].shape == (1, 3, 56, 56)
    assert rendering.inputs["token_type_ids"].shape == (1, len(rendering.prefix))
    assert int(rendering.inputs["token_type_ids"].sum()) == 4


def test_a_picture_is_turned_into_numbers_once_for_all_prompts(tiny_processor, monkeypatch):
    processor, picture = tiny_processor(), Image.new("RGB", (30, 50), "teal")
    own, read = processor.image_processor, []
    real = type(own).__call__
    monkeypatch.setattr(type(own), "__call__", lambda self, *a, **o: read.append(1) or real(self, *a, **o))
    rendering = render_prompts(TEXTS, processor.tokenizer, max_length=512, processor=processor, picture=picture)
    assert len(read) == 1 and processor.image_processor is own
    for text, row in zip(TEXTS, rendering.prompts, strict=True):  # as without the shortcut
        shown = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
        said = apply_template(processor, [{"role": "user", "content": shown}])
        alone = processor(images=[picture], text=said, add_special_tokens=False, return_tensors="pt")
        assert alone["input_ids"][0].tolist() == list(row.ids)
        assert torch.equal(alone["pixel_values"], rendering.inputs["pixel_values"])


def test_pictures_are_turned_as_their_exif_says(tmp_path):
    picture, path = Image.new("L", (8, 3)), tmp_path / "turned.jpg"
    exif = picture.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    picture.save(path, exif=exif)
    loaded = load_picture(path)
    assert loaded.mode == "RGB" and loaded.size == (3, 8)


def test_what_is_no_picture_is_named(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("not a picture")
    with pytest.raises(ValueError, match="notes.png.*cannot be read as a picture"):
        load_picture(path)
