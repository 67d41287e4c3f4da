"""What rows were made with besides the weights: a change is a conflict that names what changed, never a mixture."""

import json
import logging
import shutil
from datetime import datetime

import pytest
from tokenizers import Tokenizer, normalizers

from frankenlm.degradation.answers.rendering import apply_template
from frankenlm.degradation.errors import ConfigConflict
from frankenlm.degradation.lab import Lab, RunOptions
from frankenlm.degradation.records.manifest import differences, read_manifest, without
from frankenlm.degradation.records.row_keys import READING_FIELDS, config_hash
from frankenlm.degradation.run.identity import adapter_of, code_of, processor_digest, reading_identity
from frankenlm.degradation.run.plan import Experiment
from small_runs import SMALL, rows_of

TINY = SMALL | {"levels": (0.0,), "n_rep": 1, "max_new_tokens": 2, "max_prompts": 2}


def rules(tokenizer, change):
    """Change the rules of a tokenizer: its state as JSON."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    change(state)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


def swap_two_letters(state):
    vocab = state["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def merge(state):
    state["model"]["vocab"]["th"] = 271
    state["model"]["merges"] = [["t", "h"]]


def fold(model, tokenizer):
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def set_on(where, name, value):
    return lambda model, tokenizer: setattr(
        model.generation_config if where == "generation" else tokenizer, name, value
    )


# what changes -> the field that the conflict names, and the experiment in which it counts
CHANGES = {
    "vocabulary": (lambda model, tokenizer: rules(tokenizer, swap_two_letters), "tokenizer", {}),
    "merges": (lambda model, tokenizer: rules(tokenizer, merge), "tokenizer", {}),
    "normaliser": (fold, "tokenizer", {}),
    "template": (set_on("tokenizer", "chat_template", "{{ messages[0]['content'] }}"), "chat_template", {}),
    "end": (set_on("tokenizer", "eos_token", "</turn>"), "special_tokens.eos_token", {}),
    "stop": (set_on("generation", "eos_token_id", 97), "stop_ids", {}),
    "top_k": (set_on("generation", "top_k", 3), "sampling.top_k", {"top_k": None}),
    "top_p": (set_on("generation", "top_p", 0.5), "sampling.top_p", {"top_p": None}),
    "min_p": (set_on("generation", "min_p", 0.1), "sampling.min_p", {}),
    "attention": (lambda model, tokenizer: model.set_attn_implementation("eager"), "attention", {}),
}


def fields_of(model, tokenizer, config=TINY):
    return Lab(model, RunOptions(), tokenizer=tokenizer).plan(config).config_fields


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_how_texts_are_read_and_written_has_a_name(name, tiny_model, tiny_tokenizer):
    change, field, settings = CHANGES[name]
    model, tokenizer, config = tiny_model("llama"), tiny_tokenizer(), TINY | settings
    before = fields_of(model, tokenizer, config)
    assert fields_of(tiny_model("llama"), tiny_tokenizer(), config) == before
    change(model, tokenizer)
    after = fields_of(model, tokenizer, config)
    assert f"{field}: " in differences(before, after)
    assert config_hash(before) != config_hash(after)


def test_what_no_text_depends_on_is_no_change(tiny_model, tiny_tokenizer):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    before = fields_of(model, tokenizer)
    tokenizer.padding_side = "left"
    tokenizer(["a", "bb"], padding=True, truncation=True, max_length=1)  # leaves its settings behind
    model.generation_config.top_k = 3  # the experiment names its own
    assert fields_of(model, tokenizer) == before


def test_pictures_adapters_and_code_count(tiny_model, tiny_processor, tmp_path, tiny_dir):
    processor = tiny_processor()
    before = processor_digest(processor)
    assert processor_digest(tiny_processor()) == before
    processor.image_processor.image_mean = [0.1, 0.5, 0.5]
    assert processor_digest(processor) != before
    folder = tmp_path / "adapted"
    folder.mkdir()
    assert adapter_of(str(folder)) is None
    (folder / "adapter_config.json").write_text('{"r": 8, "base_model_name_or_path": "here"}')
    known = adapter_of(str(folder))
    assert known == {"r": 8}
    config = tiny_model("llama").config
    config.auto_map = {"AutoModelForCausalLM": "modeling.Mine"}
    (folder / "modeling.py").write_text("scale = 1")
    first = code_of(str(folder), config, True)
    (folder / "modeling.py").write_text("scale = 2")
    assert None is not first != code_of(str(folder), config, True)
    assert code_of(str(folder), config, False) is None


def test_every_field_is_known_as_one(tiny_model, tiny_tokenizer, tiny_mask_tokenizer):
    model, found = tiny_model("llama"), []
    for tokenizer, masked in ((tiny_tokenizer(), False), (tiny_mask_tokenizer(), True)):
        generation = model.generation_config
        found.append(reading_identity(TINY, tokenizer, None, generation, attention="sdpa", fills_masks=masked))
    assert all(tuple(each) == READING_FIELDS for each in found)
    assert found[1]["chat_template"] is None and found[1]["stop_ids"] == []


def test_the_day_is_always_the_same(tiny_tokenizer, monkeypatch):
    tokenizer = tiny_tokenizer(chat_template="{{ strftime_now(\"%d %b %Y\") }}: {{ messages[0]['content'] }}")
    assert apply_template(tokenizer, [{"role": "user", "content": "hi"}]) == "26 Jul 2024: hi" != datetime.now()


@pytest.mark.parametrize("template", ["{{ foo(", "{{ raise_exception('no system') }}", "{{ 1 / 0 }}", "{{ a.b.c }}"])
def test_a_template_that_cannot_be_used_is_one_line(template, tiny_tokenizer):
    with pytest.raises(ValueError, match="chat template cannot be used") as caught:
        apply_template(tiny_tokenizer(chat_template=template), [{"role": "user", "content": "hi"}])
    assert "\n" not in str(caught.value)


# --- in files


@pytest.fixture
def begun(tiny_dir, tmp_path):
    """begun(**changes) runs an experiment on a copy of a folder, which `begun.model` is; returns its rows."""
    model = shutil.copytree(tiny_dir("llama"), tmp_path / "tiny")

    def run(rebuild=False, **changes):
        lab = Lab(str(model), RunOptions(output_dir=tmp_path / "results", progress=False, rebuild=rebuild))
        return rows_of(lab.run(lab.plan(TINY | changes)))

    run.model = model
    run.manifest = tmp_path / "results" / "outputs_mult_gauss_tiny_smoke.journal" / "manifest.json"
    return run


def retemplate(folder):
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")


def test_rows_of_another_template_are_a_conflict_and_stay(begun):
    rows = begun()
    retemplate(begun.model)
    with pytest.raises(ConfigConflict, match="chat_template: ") as caught:
        begun(n_rep=2)
    assert "\n" not in str(caught.value) and "weights" not in str(caught.value)
    lines = begun.manifest.with_name("rank-00000.jsonl").read_text().splitlines()
    written = [record["row"] for record in map(json.loads, lines) if "row" in record]
    assert len(written) == len(rows) > 0 and all(row in written for row in rows)


@pytest.fixture
def begun_earlier(begun, monkeypatch):
    """The same, with rows of before tokenizers and templates were recorded."""
    fields = Experiment.__dict__["config_fields"].func
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "config_fields", property(lambda self: without(fields(self), READING_FIELDS)))
        begun.rows = begun()
    assert not set(READING_FIELDS) & read_manifest(begun.manifest)["config_fields"].keys()
    return begun


def warnings_of(caplog):
    found = [record.getMessage() for record in caplog.records if "recorded" in record.getMessage()]
    caplog.clear()
    return found


def test_rows_of_before_it_was_recorded_are_taken_as_they_are_and_said_so_once(begun_earlier, caplog):
    caplog.set_level(logging.WARNING)
    grown = begun_earlier(n_rep=2)
    assert [row["row_key"] for row in grown if not row["repeat_index"]] == [r["row_key"] for r in begun_earlier.rows]
    assert len(grown) == 4 and all(row["attempt"] == 1 for row in grown)
    (warning,) = warnings_of(caplog)
    assert "chat_template" in warning and "Said once" in warning
    assert begun_earlier(n_rep=2) == grown and not warnings_of(caplog)
    retemplate(begun_earlier.model)
    with pytest.raises(ConfigConflict, match="chat_template: "):
        begun_earlier(n_rep=3)


@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize("lost", ["manifest", "journal"])
def test_files_that_have_lost_their_manifest(earlier, lost, request, caplog):
    """Rows of before are known by their keys; rows that recorded a template keep to it."""
    run = request.getfixturevalue("begun_earlier" if earlier else "begun")
    rows = run.rows if earlier else run()
    if lost == "manifest":
        run.manifest.unlink()
    else:
        shutil.rmtree(run.manifest.parent)
    caplog.set_level(logging.WARNING)
    if not earlier:
        template = run.model / "chat_template.jinja"
        kept = template.read_text()
        retemplate(run.model)
        with pytest.raises(ConfigConflict):
            run(rebuild=True)
        template.write_text(kept)
    assert run(rebuild=True) == rows
    assert len(warnings_of(caplog)) == earlier
