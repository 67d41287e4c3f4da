"""The arguments of data and training in a run, each field with its help; model_arguments.py has those of the model.

Every field is a command-line flag and a key of the run's YAML file. Where the values come from is in presets.py.
"""

from dataclasses import dataclass, field

import torch
from accelerate.utils import is_deepspeed_available, parse_flag_from_env
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

from frankenlm.modeling.checks import check_choice

from .argument_ranges import TRAINING_RANGES, check_ranges, check_window_range
from .common.objectives import OBJECTIVES
from .data.articles import JOIN_ARTICLES
from .data.blocks import PACKED_DOCUMENTS
from .data.collators import CAUSAL_SHARE
from .data.records import RECORD_FORMS
from .optim.galore import MATRIX_OPTIMIZERS, PROJECTIONS
from .optim.guard_policy import read_policy
from .optim.ternary_ways import WAYS, check_ternary_training

GALORE_FIELDS = ("galore_rank", "galore_update_gap", "galore_scale", "galore_projection", "galore_bits")


@dataclass
class DataArguments:
    """Which text, how it is cut, and what is learned from it."""

    _argument_group_name = "data"

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "'builtin' (English text that Python carries), 'builtin-code', a hub name 'owner/name:config', or "
            "a file (.txt, .jsonl, .json, .csv, .tsv, .parquet; also packed as .gz, .bz2, .xz, .zst), folder or glob"
        },
    )
    validation_dataset: str | None = field(
        default=None, metadata={"help": "held-out text, given like --dataset. Default: split off the training text"}
    )
    validation_fraction: float = field(
        default=0.05, metadata={"help": "share of the documents held out, in (0, 1), without --validation_dataset"}
    )
    split_seed: int = field(
        default=0,
        metadata={"help": "which documents are held out; not tied to --seed, so that runs with other seeds compare"},
    )
    objective: str = field(
        default="mlm",
        metadata={
            "choices": list(OBJECTIVES),
            "help": "mlm (bidirectional, fills masks), causal (left to right), joint (both, in one parameter set) or "
            "classification (text and label). Default: the preset's",
        },
    )
    max_length: int = field(default=512, metadata={"help": "tokens per sequence"})
    packing: bool = field(
        default=True,
        metadata={
            "help": "pack documents into full blocks of max_length; --no_packing keeps one document a row, batched by "
            "length (always so in classification)"
        },
    )
    random_offsets: bool = field(
        default=False,
        metadata={
            "help": "cut the packed blocks at other places in every epoch, so that a token stands at another place of "
            "its block each time (causal and joint)"
        },
    )
    packed_documents: str = field(
        default="auto",
        metadata={
            "choices": list(PACKED_DOCUMENTS),
            "help": "documents packed into one row see nothing of each other (apart), or run on as one text (joined); "
            "auto: apart with models of frankenlm, joined with others, which may not keep them apart",
        },
    )
    mlm_probability: float = field(
        default=0.15,
        metadata={
            "help": "share of tokens predicted under mlm, and in the masked rows of joint (80%% masked, 10%% random, "
            "10%% kept)"
        },
    )
    causal_share: float = field(
        default=CAUSAL_SHARE,
        metadata={
            "help": "share of the rows that --objective joint reads left to right, in (0, 1); the others are masked, "
            "and predict fewer tokens each"
        },
    )
    record_form: str = field(
        default="auto",
        metadata={
            "choices": list(RECORD_FORMS),
            "help": "what a row is, in causal training: text; messages (a list of role and content); prompt_completion "
            "(both texts, or both lists of messages); or auto, by the names of the columns. Of conversations the "
            "answers alone are learned; each is a row of its own",
        },
    )
    chat_template: str | None = field(
        default=None,
        metadata={
            "help": "how conversations are written: a file with a Jinja template, or 'plain'. Default: the "
            "tokenizer's own, else the plain one; saved with the tokenizer"
        },
    )
    text_column: str = field(default="text", metadata={"help": "column that holds the text"})
    label_column: str = field(default="label", metadata={"help": "column that holds the label, in classification"})
    max_documents: int | None = field(default=None, metadata={"help": "read only this many documents of the dataset"})
    join_articles: str = field(
        default="auto",
        metadata={
            "choices": list(JOIN_ARTICLES),
            "help": "join the lines or rows of WikiText-like data into articles at ' = Title = ' headings: where there "
            "are any (auto), or else stop (yes), or never (no)",
        },
    )
    skip_bad_rows: bool = field(
        default=False,
        metadata={
            "help": "pass rows over that are no text or conversation (null, not JSON, not UTF-8, no answer) and say "
            "how many, instead of stopping"
        },
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "read the dataset while training, at constant memory (needs --max_steps)"},
    )
    num_proc: int | None = field(default=None, metadata={"help": "processes that tokenise"})
    cache_dir: str | None = field(default=None, metadata={"help": "folder for tokenised data. Default: datasets' own"})


@dataclass
class FrankenTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with this project's defaults and a few flags more.

    Raises (on construction):
        ValueError: settings that exclude each other, in words of the flags.
    """

    _argument_group_name = "training"

    per_device_train_batch_size: int = field(
        default=8,
        metadata={"aliases": ["--batch-size", "--batch_size"], "help": "sequences per process and micro-batch"},
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "nargs": "?",
            "const": "last",
            "help": "continue an interrupted run: 'last' (the newest whole, healthy checkpoint of --output_dir) or a "
            "folder",
        },
    )
    allow_inexact_resume: bool = field(
        default=False,
        metadata={
            "help": "with --resume_from_checkpoint: go on although settings or data differ from the checkpoint's, or "
            "its optimizer, schedule or random numbers are missing; what differs is told"
        },
    )
    log_level: str = field(
        default="info",
        metadata={
            "choices": ["debug", "info", "warning", "error", "critical"],
            "help": "how much is told on the console; training.log in --output_dir keeps everything from info up",
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "stop after this many evaluations without a lower eval_loss (or eval_ema_loss, with --ema_decay), "
            "and keep the best weights, and the best average (evaluates and saves every --eval_steps)"
        },
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "replace an earlier run in --output_dir instead of refusing to touch it"}
    )
    gradient_guard: bool = field(
        default=True,
        metadata={
            "help": "look at every step's gradient before it is taken: one with NaN is computed again, from the "
            "weights of before the last step if need be, or skipped; one that explodes is clipped, and lowers the rate "
            "for a while",
        },
    )
    guard_policy: str | None = field(
        default=None,
        metadata={
            "help": 'numbers of --gradient_guard to change, as YAML: "{tries: 1, exploding_norm: 100, rolling_copy: '
            'false}" (without the rolling copy the weights and optimizer states are kept once, not twice)'
        },
    )
    matrix_optimizer: str = field(
        default="same",
        metadata={
            "choices": list(MATRIX_OPTIMIZERS),
            "help": "optimizer of the matrices inside the layers: same (that of --optim, as for everything else), "
            "galore (AdamW on gradients of low rank: a fraction of its memory) or muon (orthogonalised momentum); "
            "embeddings, head, norms and routers then have AdamW",
        },
    )
    use_galore: bool = field(default=False, metadata={"help": "the same as --matrix_optimizer galore"})
    galore_rank: int = field(default=128, metadata={"help": "rank of the projected gradients"})
    galore_update_gap: int = field(default=200, metadata={"help": "steps between two projections"})
    galore_scale: float = field(default=0.25, metadata={"help": "factor on the projected step"})
    galore_projection: str = field(
        default="std",
        metadata={
            "choices": list(PROJECTIONS),
            "help": "side that is projected: std is the shorter one of each matrix",
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "keep an exponential moving average of the weights with this decay, such as 0.999: evaluated "
            "beside them (eval_ema_loss) and saved in OUTPUT_DIR/ema"
        },
    )
    galore_bits: int = field(
        default=32, metadata={"choices": [8, 32], "help": "bits of an element of the moments: 32, or 8 (bitsandbytes)"}
    )
    learning_rate_drop: float = field(
        default=1.0,
        metadata={
            "help": "factor on the learning rate in the second half of the run; low-bit weights settle better with a "
            "drop (BitNet's two stages: 0.667)"
        },
    )
    weight_decay_share: float = field(
        default=1.0,
        metadata={"help": "share of the run with weight decay, counted from its start; none after it (BitNet: 0.5)"},
    )
    ternary_training: str = field(
        default="ste",
        metadata={
            "choices": list(WAYS),
            "help": "how ternary weights learn: ste (real weights behind them, gradients straight through the "
            "rounding), sign_accum (no real weights: codes move by accumulated gradients, at most 1%% a step, annealed "
            "by the learning rate's schedule) or sign_legacy (the rule of the C project, for reproduction only)",
        },
    )
    ternary_sign: int = field(
        default=1,
        metadata={"help": "direction of --ternary_training sign_legacy: 1 as published (climbs the loss), -1 descends"},
    )
    ternary_start: float = field(
        default=0.0,
        metadata={
            "help": "train low-bit layers in full precision first: for so many steps, or this share of all if < 1; "
            "evaluations and checkpoints are of the rounded weights all the while"
        },
    )
    attention_window_range: list[int] | None = field(
        default=None,
        metadata={
            "help": "train every step with an attention window of its own, drawn from these two numbers and between, "
            "as 64 256, by --seed and step; evaluations have the model's own window"
        },
    )
    logging_steps: float = field(
        default=10, metadata={"help": "steps between two log lines and rows of training.csv; a share of the run if < 1"}
    )
    logging_first_step: bool = field(default=True, metadata={"help": "log the first step too"})
    # With the filter on, a NaN loss is logged as 0: the one number that must not be prettified.
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "hide NaN and Inf losses in the log (do not)"}
    )
    include_num_input_tokens_seen: str = field(
        default="non_padding", metadata={"help": "count tokens for training.csv: all, non_padding or no"}
    )
    # Every parameter of our models takes part in every step, experts without tokens included.
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "look for parameters without a gradient in every step of several processes"}
    )
    cpu_threads: int = field(
        default=0,
        metadata={
            "help": "threads of each process on a CPU; 0 shares the cores out among the processes (accelerate launch "
            "by itself often leaves one thread)"
        },
    )
    eval_strategy: str = field(default="steps", metadata={"help": "when to evaluate: steps, epoch or no"})
    eval_steps: float | None = field(
        default=100, metadata={"help": "steps between two evaluations; a share of the run if < 1"}
    )
    save_steps: float = field(
        default=500, metadata={"help": "steps between two checkpoints; a share of the run if < 1"}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints kept; older ones are deleted"})

    def __post_init__(self):
        check_ranges(self, TRAINING_RANGES)
        if self.early_stopping_patience is not None:
            self._prepare_early_stopping()
        check_ternary_training(self)
        read_policy(self.guard_policy)
        if self.guard_policy is not None and not self.gradient_guard:
            raise ValueError("--guard_policy says what --gradient_guard does: leave out --no_gradient_guard.")
        self._check_matrix_optimizer()
        if self.ema_decay is not None and self.sharding:
            raise ValueError(f"--ema_decay needs whole weights, and {self.sharding} shards them.")
        self._check_what_is_here()
        if isinstance(self.report_to, str) and "," in self.report_to:
            self.report_to = [name.strip() for name in self.report_to.split(",") if name.strip()]
        # without a GPU, or told off it by the launcher, there is nothing to ask: the base class wants it spelt out
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
        try:
            super().__post_init__()
        except (ImportError, TypeError, KeyError, AttributeError, NotImplementedError, RecursionError) as error:
            # what the flags that name files, packages or JSON end in
            raise ValueError(f"{type(error).__name__}: {error}") from error
        check_window_range(self.attention_window_range, self.torch_compile)
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # there is nothing to pin for, and torch warns
        if self.mixed_precision == "fp16" and self.device.type == "cpu":
            # accelerate accepts this pair and silently trains in fp32
            raise ValueError("fp16 needs a GPU; on a CPU it does nothing. Use --bf16, or neither.")

    @property
    def sharding(self) -> str | None:
        """What shards the weights, by flags or by the launcher's configuration: FSDP, DeepSpeed or nothing (None)."""
        if self.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
            return "FSDP"
        return "DeepSpeed" if self.deepspeed or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") else None

    def _check_what_is_here(self):
        """Packages that the base class would miss with a traceback, and switches that this Trainer has no use for."""
        if self.deepspeed and not is_deepspeed_available():
            raise ValueError(f"--deepspeed {self.deepspeed}: the package is missing: pip install deepspeed.")
        if self.restore_callback_states_from_checkpoint:
            raise ValueError(
                "--restore_callback_states_from_checkpoint: leave it out; callbacks take up their state here."
            )
        if self.dataloader_prefetch_factor is not None and not self.dataloader_num_workers:
            raise ValueError("--dataloader_prefetch_factor needs workers: give --dataloader_num_workers too.")

    def _check_matrix_optimizer(self):
        if self.use_galore:
            if self.matrix_optimizer == "muon":
                raise ValueError("--use_galore and --matrix_optimizer muon exclude each other: give one.")
            self.matrix_optimizer = "galore"
        check_choice("matrix_optimizer", self.matrix_optimizer, MATRIX_OPTIMIZERS)
        check_choice("galore_projection", self.galore_projection, PROJECTIONS)
        for name in GALORE_FIELDS:
            if (
                self.matrix_optimizer != "galore"
                and getattr(self, name) != type(self).__dataclass_fields__[name].default
            ):
                raise ValueError(f"--{name} belongs to --matrix_optimizer galore: give both, or neither.")
        if self.matrix_optimizer == "same":
            return
        if self.ternary_training != "ste":
            raise ValueError(
                f"--matrix_optimizer {self.matrix_optimizer} and --ternary_training {self.ternary_training} are two "
                "optimizers for the same matrices: leave one of them out."
            )
        if str(self.optim).rpartition(".")[2].lower() not in ("adamw_torch", "adamw_torch_fused"):
            raise ValueError(f"--matrix_optimizer {self.matrix_optimizer} stands beside AdamW: leave out --optim.")
        if self.sharding:
            raise ValueError(
                f"--matrix_optimizer {self.matrix_optimizer} needs whole matrices, and {self.sharding} shards them."
            )

    def _prepare_early_stopping(self):
        """Early stopping needs an evaluation and a checkpoint at the same steps, and a metric to watch."""
        if str(self.eval_strategy) in ("no", "IntervalStrategy.NO"):
            raise ValueError("--early_stopping_patience needs evaluations: leave out --eval_strategy no.")
        self.load_best_model_at_end = True
        self.metric_for_best_model = self.metric_for_best_model or "eval_loss"
        self.save_strategy = self.eval_strategy
        self.save_steps = self.eval_steps

    def get_process_log_level(self):
        """Level of transformers' own messages: they join in at --log_level debug; ours follow --log_level itself."""
        return transformers_logging.INFO if self.log_level == "debug" else transformers_logging.WARNING
