"""The arguments of a training run that choose its model, each field with its help."""

from dataclasses import dataclass, field

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

    def __post_init__(self):
        for name in LORA_FIELDS:
            if not self.lora and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ValueError(f"--{name} belongs to --lora: give both, or neither.")
