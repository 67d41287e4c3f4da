"""What trained memories do on a text, read from a sweep: with the memory, without, with another row's."""

import json
from pathlib import Path

import pytest
import torch

from frankenlm.modeling import InfinitoConfig, InfinitoForCausalLM, byte_tokenizer
from frankenlm.scripts.fair import memory_use
from frankenlm.scripts.fair.blocks import with_block
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.common.files import write_json

ROOT = Path(__file__).resolve().parents[3]
CARD = ROOT / "model_cards" / "fair_tables.md"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep with a model with slots and one without; of the first a run of the choice too."""
    folder, tokenizer = tmp_path_factory.mktemp("sweep"), byte_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    slots = {"memory_layers": [0, 1], "memory_type": "attention_slots", "memory_slots": 5, "memory_segment": 2}
    runs = []
    for group, stage, fields in (
        ("slots", "report", slots), ("slots", "choice", slots), ("window", "report", {"memory_layers": []})
    ):  # fmt: skip
        torch.manual_seed(1)
        config = InfinitoConfig(
            vocab_size=len(tokenizer), max_position_embeddings=24, attention_window=3, initializer_range=0.5,
            **sizes, **fields,
        )  # fmt: skip
        name = f"{group},{stage}"
        InfinitoForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        write_json(folder / name / "metrics.json", {"max_length": 24})
        runs.append({"name": name, "run": group, "stage": stage, "status": "finished", "seed": 3})
    write_json(folder / "sweep.json", {"runs": runs})
    return folder


def test_losses_and_statistics_of_the_reported_run_with_slots(sweep, tmp_path, capsys):
    text = tmp_path / "test.jsonl"
    words = " ".join(f"word {number} of the text" for number in range(60))
    text.write_text(json.dumps({"text": words}) + "\n")
    memory_use.main(["--sweep", str(sweep), "--test_dataset", str(text), "--output_dir", str(tmp_path / "out")])
    (row,) = memory_use.read_use(tmp_path / "out" / "use.csv")
    assert (row["run"], row["seed"], row["length"]) == ("slots", "3", "24") and int(row["rows"]) % memory_use.BATCH == 0
    model = InfinitoForCausalLM.from_pretrained(sweep / "slots,report").eval()
    ids = memory_use.rows_of(sweep / "slots,report", memory_use.load_documents(str(text)))[: int(row["rows"])]
    assert byte_tokenizer().decode(ids[1]) in words
    for name, options in memory_use.READS.items():
        losses = [model(batch, labels=batch, **options).loss.item() for batch in ids.split(memory_use.BATCH)]
        assert float(row[name]) == pytest.approx(sum(losses) / len(losses))
    assert len({row[name] for name in memory_use.READS}) == 3
    assert float(row["slots_used"]) == 5 and float(row["rotation"]) == pytest.approx((24 - 3 - 5 + 1) / 5)
    assert "loss with its memory" in capsys.readouterr().out


def test_a_folder_without_such_a_run_is_refused(sweep, tmp_path):
    given = ["--test_dataset", "builtin", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match="no folder of a sweep"):
        memory_use.main(["--sweep", str(tmp_path), *given])
    runs = json.loads((sweep / "sweep.json").read_text())["runs"]
    write_json(tmp_path / "sweep.json", {"runs": [run | {"status": "failed"} for run in runs]})
    with pytest.raises(UserError, match="no reported run of a model with slots is finished"):
        memory_use.main(["--sweep", str(tmp_path), *given])


def test_a_card_without_the_block_is_told_before_anything_is_scored(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(memory_use, "load_documents", lambda *given: pytest.fail("read too early"))
    (tmp_path / "card.md").write_text("no block")
    given = [
        "--sweep",
        sweep,
        "--test_dataset",
        "builtin",
        "--output_dir",
        tmp_path / "o",
        "--card",
        tmp_path / "card.md",
    ]
    with pytest.raises(UserError, match="has no block from <!-- memory_use"):
        memory_use.main([str(word) for word in given])
    assert not (tmp_path / "o").exists()


def test_the_card_holds_the_committed_use():
    rows = memory_use.read_use(ROOT / "results" / "samples" / "memory_gap" / "use.csv")
    card = CARD.read_text(encoding="utf-8")
    assert with_block(CARD, card, memory_use.MARK, memory_use.use_text(rows)) == card
