"""sentence-transformers: a mean over the last hidden states, untouched by pads; trained, saved and opened again."""

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoModel, AutoTokenizer

from peer_cells import WORKS, cells_of
from peer_models import POSITIONS

pytestmark = pytest.mark.filterwarnings("default", "error:::frankenlm")  # its own warnings are its own

SENTENCES = ["the cat sat", "dogs run over the green hills", "a"]
PAIRS = {"anchor": ["a cat", "a dog", "a hill", "the end"], "positive": ["cats", "dogs", "hills", "ends"]}


def sentence_model(folder) -> SentenceTransformer:
    words = Transformer(str(folder))
    pooling = Pooling(words.get_embedding_dimension(), "mean")
    return SentenceTransformer(modules=[words, pooling], device="cpu")


@cells_of("sentences")
def test_sentences_are_encoded_trained_and_saved(family, cell, saved, tmp_path):
    if cell.verdict != WORKS:
        with pytest.raises(TypeError, match=cell.message):
            sentence_model(saved(family))
        return
    model = sentence_model(saved(family))
    assert model.max_seq_length == POSITIONS
    found = torch.tensor(model.encode(SENTENCES))
    tokenizer, stack = AutoTokenizer.from_pretrained(saved(family)), AutoModel.from_pretrained(saved(family)).eval()
    with torch.no_grad():
        alone = [stack(**tokenizer(each, return_tensors="pt")).last_hidden_state[0].mean(0) for each in SENTENCES]
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-4, atol=1e-4)
    assert torch.isfinite(torch.tensor(model.encode(["x " * 200]))).all(), "a long text is cut"

    args = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=3e-4,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    data, loss = Dataset.from_dict(PAIRS), MultipleNegativesRankingLoss(model)
    trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=data, loss=loss)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    learned = torch.tensor(model.encode(SENTENCES))
    assert (learned - found).norm() > 1e-3
    model.save_pretrained(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    torch.testing.assert_close(torch.tensor(again.encode(SENTENCES)), learned, rtol=1e-4, atol=1e-4)
