"""The arguments of a training run that choose its model, each field with its help."""

from dataclasses import dataclass, field
from typing import Any

from frankenlm.modeling.checks import check_choice

# What a teacher teaches in one run, if not everything: TinyBERT's two stages.
TEACHER_STAGES = ("hidden", "logits")
TEACHER_FIELDS = ("teacher_temperature", "teacher_weight", "teacher_hidden_weight", "teacher_layers", "teacher_stage")
STAGE_DECIDES = ("teacher_weight", "teacher_hidden_weight")
LORA_FIELDS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets")


@dataclass
class ModelArguments:
    """Which model, with which vocabulary."""

    _argument_group_name = "model"

    preset: str | None = field(
        default=None,
        metadata={
            "aliases": ["--config-name", "--config_name"],
            "help": "named recipe: model, data and training settings (see --list_presets)",
        },
    )
    list_presets: bool = field(
        default=False,
        metadata={
            "aliases": ["--list-configs", "--list_configs"],
            "help": "print the presets and stop",
        },
    )
    config: str | None = field(
        default=None,
        metadata={
            "help": "YAML file with settings, in sections model / data / training or flat; it wins over the preset, "
            "and the command line wins over it"
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "start from a saved checkpoint (folder or hub name) instead of a preset's fresh weights"},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "'train' makes a byte-level BPE from the training text, 'bytes' takes each byte for a token; or a "
            "folder, or a hub name. Default: the checkpoint's own with --model_name_or_path, else the preset's, else "
            "'train'"
        },
    )
    vocab_size: int | None = field(
        default=None,
        metadata={
            "help": "number of token embeddings; with --tokenizer train also the size of the vocabulary to train. "
            "Default: the tokenizer's length (8192 when trained). A larger tokenizer is an error"
        },
    )
    paired_start: bool = field(
        default=False,
        metadata={
            "help": "fresh weights by name: with the same --seed, twins get the same values in every module of the "
            "same name and sizes, whatever else they have"
        },
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "run model code that comes with the checkpoint of --model_name_or_path"}
    )
    lora: bool = field(
        default=False,
        metadata={
            "help": "leave the weights of --model_name_or_path as they are and train a LoRA adapter beside its linear "
            "layers; --output_dir then holds the adapter alone, for PEFT"
        },
    )
    lora_rank: int = field(default=16, metadata={"help": "rank of the adapter's matrices"})
    lora_alpha: int = field(default=32, metadata={"help": "the adapter counts alpha / rank times"})
    lora_dropout: float = field(default=0.05, metadata={"help": "dropout on what goes into the adapter"})
    lora_targets: list[str] | None = field(
        default=None,
        metadata={
            "help": "layers that get an adapter, by name or the end of it. Default: every linear layer inside the "
            "stack, without routers, gates and poolings; no heads and embeddings"
        },
    )
    teacher: str | None = field(
        default=None,
        metadata={
            "help": "learn from a saved model too (folder or hub name) with the same tokenizer, at the positions that "
            "have labels; it stays as it is and is not saved"
        },
    )
    teacher_weight: float = field(
        default=0.5,
        metadata={
            "help": "share of the loss that is the divergence of the teacher's logits from the model's; the model's "
            "own loss has the rest"
        },
    )
    teacher_temperature: float = field(
        default=1.0, metadata={"help": "what both models' logits are divided by before they are compared"}
    )
    teacher_hidden_weight: float = field(
        default=0.0,
        metadata={
            "help": "how much the squared distance of the hidden states counts beside that; other widths are mapped by "
            "a matrix that is learned"
        },
    )
    teacher_layers: list[int] | None = field(
        default=None,
        metadata={
            "help": "the teacher's hidden states, 0 for its embedding, for the model's embedding and each of its "
            "layers. Default: spread evenly"
        },
    )
    teacher_stage: str | None = field(
        default=None,
        metadata={
            "choices": list(TEACHER_STAGES),
            "help": "one of TinyBERT's two stages: the teacher's hidden states alone, or its logits alone; the second "
            "run goes on from the first's --model_name_or_path",
        },
    )

    def __post_init__(self):
        self._check_belongs("lora", LORA_FIELDS)
        self._check_belongs("teacher", TEACHER_FIELDS)
        if self.paired_start and self.model_name_or_path:
            raise ValueError("--paired_start is for fresh weights, and --model_name_or_path has saved ones: give one.")
        if self.teacher_stage is None:
            return
        check_choice("teacher_stage", self.teacher_stage, TEACHER_STAGES)
        for name in STAGE_DECIDES:
            if getattr(self, name) != self._default(name):
                raise ValueError(f"--teacher_stage {self.teacher_stage} decides what counts: leave out --{name}.")

    def _check_belongs(self, flag: str, names: tuple[str, ...]) -> None:
        for name in names:
            if not getattr(self, flag) and getattr(self, name) != self._default(name):
                raise ValueError(f"--{name} belongs to --{flag}: give both, or neither.")

    def _default(self, name: str) -> Any:
        return type(self).__dataclass_fields__[name].default
