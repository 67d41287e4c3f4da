"""CONTRIBUTING's "To add a mixer" and "To add a family", followed to the letter in a copy of the folder."""

import os
import shutil
from pathlib import Path

import pytest

from forking import ForkServer

ROOT = Path(__file__).resolve().parents[2]

MIXER = '''
"""The mean of the tokens so far."""

import torch
from torch import nn

from .bitlinear import LinearFactory, linear_factory
from .mixer_base import Mixer, ends_branch


class RunningMean(Mixer):
    """W_o mean(W_v x_0 .. W_v x_t)."""

    def __init__(self, hidden_size: int, *, linear: LinearFactory = nn.Linear):
        super().__init__()
        self.v_proj = linear(hidden_size, hidden_size, bias=False)
        self.o_proj = ends_branch(linear(hidden_size, hidden_size, bias=False))

    @classmethod
    def options(cls, config) -> dict:
        return {"hidden_size": config.hidden_size, "linear": linear_factory(config, config.use_bitnet)}

    def forward(self, x, context, logical_layer_idx):
        counts = torch.arange(1, x.shape[1] + 1, device=x.device)
        return self.o_proj(self.v_proj(x).cumsum(1) / counts[:, None]), None
'''
USE_MIXER = """
import sys, tempfile
from pathlib import Path
import torch
from frankenlm.modeling import FrankensteinConfig, FrankensteinForMaskedLM

config = FrankensteinConfig(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_attention_heads=2, num_hidden_layers=2,
    layer_pattern=["running_mean", "standard_attn"], position_type="rope", is_decoder=False, use_bitnet=True,
)
model, ids = FrankensteinForMaskedLM(config).eval(), torch.arange(20)[None]
assert type(model.model.layers[0].mixer.v_proj).__name__ == "BitLinear"
model(ids, labels=ids).loss.backward()
assert all(parameter.grad.abs().sum() > 0 for parameter in model.model.layers[0].mixer.parameters())
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    assert (Path(folder) / "mixer_running_mean.py").is_file()
    again = FrankensteinForMaskedLM.from_pretrained(folder).eval()
    assert torch.equal(again(ids).logits, model(ids).logits)
try:
    FrankensteinConfig(layer_pattern=["running_mea"])
except ValueError as error:
    assert "Did you mean 'running_mean'?" in str(error)
print("used")
"""

CONFIGURATION = '''
"""The configuration of the Bag family."""

from huggingface_hub.dataclasses import strict

from .family_config import FamilyConfig
from .ranges import with_plain_errors


@with_plain_errors
@strict
class BagConfig(FamilyConfig):
    """A stack of feed-forwards over the embedding."""

    model_type = "bag"
    position_type = "learned"

    vocab_size: int = 61
    hidden_size: int = 32
    num_hidden_layers: int = 2
    num_attention_heads: int = 1
    max_position_embeddings: int = 64
    intermediate_size: int = 48
    hidden_act: str = "silu"
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    layer_norm_eps: float | int = 1e-5
    initializer_range: float | int = 0.02
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    mask_token_id: int | None = None
    is_decoder: bool = True
    attention_window: int | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = True
    head_bias: bool = True
    head_bias_init: str = "zeros"
'''
FAMILY = '''
"""Bag: every token by itself, as a family of its own."""

from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .configuration_bag import BagConfig
from .documents import borders_in
from .embeddings import FactorizedEmbedding, FactorizedHead
from .family import CausalHead, FamilyPreTrainedModel, FamilyStack, head_output
from .feedforward import FeedForward
from .generation import CachedGenerationMixin, resolve_cache


class BagPreTrainedModel(FamilyPreTrainedModel):
    config: BagConfig
    config_class = BagConfig
    auto_classes = {
        "AutoConfig": "configuration_bag.BagConfig",
        "AutoModel": "modeling_bag.BagModel",
        "AutoModelForCausalLM": "modeling_bag.BagForCausalLM",
    }


class BagModel(FamilyStack, BagPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embeddings = FactorizedEmbedding(
            config.vocab_size, config.hidden_size, num_positions=config.num_positions, is_causal=True
        )
        self.layers = nn.ModuleList(
            FeedForward(config.hidden_size, config.intermediate_size, config.hidden_act)
            for _ in range(config.num_hidden_layers)
        )
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, cache=None,
                use_cache=None, **kwargs):
        rows = self.look_up(input_ids, inputs_embeds)
        cache = resolve_cache(self, cache, use_cache)
        context = self.make_context(rows, attention_mask, position_ids, cache, False, borders_in(kwargs))
        x = self.embeddings(rows, None, context)
        for layer in self.layers:
            x = x + layer(x)
        return BaseModelOutputWithPast(last_hidden_state=context.zero_pads(x), cache=cache)


class BagForCausalLM(CausalHead, CachedGenerationMixin, BagPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = BagModel(config)
        self.lm_head = FactorizedHead(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.post_init()

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, labels=None,
                cache=None, use_cache=None, **kwargs):
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds, cache, use_cache, return_dict=True,
                             **borders_in(kwargs))
        logits = self.lm_head(outputs.last_hidden_state)
        loss = self.next_token_loss(logits, labels, attention_mask, position_ids, **kwargs)
        return head_output(CausalLMOutputWithPast, outputs, loss=loss, logits=logits)

    def can_forget(self) -> bool:
        return True
'''
USE_FAMILY = """
import tempfile
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
from frankenlm.modeling import BagConfig, BagForCausalLM

model, ids = BagForCausalLM(BagConfig.from_preset("bag-tiny", hidden_size=16)).eval(), torch.arange(1, 20)[None]
assert model.config.hidden_size == 16 and model.config.vocab_size == 71
model(ids, labels=ids).loss.backward()
assert all(parameter.grad is not None for parameter in model.parameters())
text = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
assert torch.equal(text, model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0, use_cache=False))
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    assert {path.name for path in Path(folder).glob("modeling_*.py")} == {"modeling_bag.py"}
    again = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(again) is BagForCausalLM and torch.equal(again(ids).logits, model(ids).logits)
model.resize_token_embeddings(90)
assert model(ids).logits.shape[-1] == 90
try:
    BagConfig(num_attention_heads=3)
except ValueError as error:
    assert "num_attention_heads=3 must divide hidden_size=32" in str(error)
print("used")
"""


def copy_of_modeling(tmp_path: Path) -> Path:
    """Lay out a frankenlm of `modeling` alone, without the other parts, and return the folder."""
    package = tmp_path / "frankenlm"
    shutil.copytree(ROOT / "modeling", package / "modeling", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").write_text('__version__ = "0"\n')
    return package / "modeling"


def insert(path: Path, *pairs: tuple[str, str]) -> None:
    """Put each text behind the line that it belongs to, which must be there once."""
    text = path.read_text()
    for line, addition in pairs:
        assert text.count(line) == 1, line
        text = text.replace(line, line + addition)
    path.write_text(text)


@pytest.fixture(scope="module")
def use():
    """use(code, folder) runs code with the package in a folder, in a process of its own."""

    def use(code: str, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
        done = server.run(code, cwd=folder, env=environment)
        assert done.returncode == 0 and done.stdout == "used\n", done.stderr[-2000:]

    with ForkServer("import torch, transformers\nfrom transformers import AutoModel, PreTrainedModel") as server:
        yield use


def test_a_mixer_is_a_file_and_its_line(use, tmp_path):
    modeling = copy_of_modeling(tmp_path)
    (modeling / "mixer_running_mean.py").write_text(MIXER.lstrip())
    insert(
        modeling / "mixers.py",
        ("from .mixer_retention import Retention\n", "from .mixer_running_mean import RunningMean\n"),
        ('    "ode": OdeBlock,\n', '    "running_mean": RunningMean,\n'),
    )
    use(USE_MIXER, tmp_path)


def test_a_family_is_two_files_and_its_line(use, tmp_path):
    modeling = copy_of_modeling(tmp_path)
    (modeling / "configuration_bag.py").write_text(CONFIGURATION.lstrip())
    (modeling / "modeling_bag.py").write_text(FAMILY.lstrip())
    (modeling / "presets" / "bag-tiny.yaml").write_text("model:\n  model_type: bag\n  vocab_size: 71\n")
    insert(
        modeling / "__init__.py",
        (
            "from .configuration_legacy_1bit import Legacy1BitConfig\n",
            "from .configuration_bag import BagConfig\n"
            "from .modeling_bag import BagForCausalLM, BagModel, BagPreTrainedModel\n",
        ),
        ("InfinitoPreTrainedModel, Legacy1BitPreTrainedModel", ", BagPreTrainedModel"),
    )
    use(USE_FAMILY, tmp_path)
