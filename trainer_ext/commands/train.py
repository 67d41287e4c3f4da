"""scripts/train.py behind its flags: the whole of a run in order, from the checks to the files it leaves."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from ..callbacks import SignalStop
from ..common.cli import Failed, Interrupted, UserError, user_mistakes
from ..common.logs import RunLog
from ..common.text_files import BadRowError
from ..data.skipping import skipped_rows
from ..data.tokenizers import tell_lengths
from ..model_building import build_model, load_teacher
from ..preflight import check_run, settle_killed_run
from ..presets import RunSettings
from ..recipe import (
    build_trainer,
    check_first_batch,
    compare_data,
    compare_teacher,
    hold_output_dir,
    prepare_data,
    set_head_bias,
    unigram_statistics,
    use_hardware,
)
from ..results import final_loss, run_facts, write_results
from ..saving.output_folder import AVERAGE, clear, discard
from ..saving.publishing import partials
from ..saving.safe_checkpoints import loss_fault, losses_of
from ..saving.saved_checkpoints import SavedCheckpoint, checkpoint_folders
from ..trainer import FrankenTrainer

logger = logging.getLogger("frankenlm.train")


def train(run: RunSettings) -> None:
    """Train as the settings say, and write what the output folder holds at the end.

    Raises:
        UserError: a mistake in the settings or the data. Interrupted: a signal came.
    """
    args, output_dir = run.training, Path(run.training.output_dir)

    with RunLog(args.log_level) as log, SignalStop(args.world_size) as stop, ExitStack() as held:
        settle_killed_run(run)
        found = checkpoint_folders(output_dir)
        checkpoint = check_run(run)
        if args.should_save and args.world_size > 1:
            # before the data: rank 0 leaves the tokenizer there for the others
            held.enter_context(hold_output_dir(run, found))
        data = prepare_data(run, checkpoint)
        check_first_batch(run, data)
        with user_mistakes():
            prints = compare_data(run, checkpoint, data)
        model = build_model(run, data)
        tell_lengths(data.tokenizer, model)
        logger.info(
            "%s, %s parameters, vocabulary %d", type(model).__name__, f"{model.num_parameters():,}", len(data.tokenizer)
        )
        logger.info("command: %s", run.command)
        use_hardware(args)
        unigram = None
        if run.data.objective != "classification":
            with user_mistakes():  # a stream is read here, and may hold a bad row
                unigram = unigram_statistics(run, data, model.config.vocab_size)
            if run.model.preset:
                set_head_bias(model, unigram)
            logger.info("unigram cross-entropy of the held-out text: %.4f nats per token", unigram.cross_entropy)
        teaching = None
        if run.model.teacher is not None:
            teaching = load_teacher(run, data, model)
            prints |= compare_teacher(run, checkpoint, teaching)
        trainer, csv_log = build_trainer(run, data, model, stop, checkpoint, prints)
        if teaching is not None:
            trainer.take_teacher(teaching)

        # every check is through: only now may an earlier run go
        if args.should_save:
            if args.world_size == 1:
                held.enter_context(hold_output_dir(run, found))
            if args.overwrite_output_dir:
                clear(output_dir)
            for partial in partials(output_dir):
                discard(partial)
        log.write_to(output_dir / "training.log", append=checkpoint is not None)
        train_to_the_end(trainer, stop, checkpoint)

        final = final_loss(trainer)
        check_health(trainer, final)
        trainer.checkpoints.save_result(output_dir)
        if trainer.average is not None:
            with trainer.average.in_place():
                trainer.checkpoints.save_folder(output_dir / AVERAGE, trainer.average.step(trainer.state))
        if args.push_to_hub:
            trainer.push_to_hub(commit_message="Model save")
        if trainer.is_world_process_zero():
            facts = run_facts(run, trainer, csv_log.rows, unigram, final)
            write_results(output_dir, facts, csv_log.rows)
            if run.data.skip_bad_rows:
                logger.info("%d bad row(s) were passed over", skipped_rows())
            logger.info(
                "held-out loss %.4f nats; checkpoint, metrics.json and training.png are in %s",
                facts["eval_loss"],
                output_dir,
            )


def check_health(trainer: FrankenTrainer, final: Mapping[str, float]) -> None:
    """Raises Failed where the weights are none that anybody should load: they are not saved as the run's result."""
    fault = trainer.checkpoints.weights_fault()
    if fault is None:
        first = losses_of(trainer.state.log_history, "eval_loss")[:1]
        fault = loss_fault("evaluation", [*first, final["eval_loss"]])
    if fault is not None:
        raise Failed(
            f"the model is not healthy at the end: {fault}. It is not saved; --resume_from_checkpoint last takes the "
            "newest healthy checkpoint. Lower the learning rate, or look at the data."
        )


def train_to_the_end(trainer: FrankenTrainer, stop: SignalStop, checkpoint: SavedCheckpoint | None) -> None:
    """Train to the end.

    Raises:
        Interrupted: a signal came; there is a checkpoint to continue from.
        Failed: the gradient guard ended the run.
        UserError: a stream reached a bad row; the same.
    """
    try:
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint.folder))
    except BadRowError as error:
        saved = trainer.save_for_later()
        left = "continue with --resume_from_checkpoint last" if saved else "no step was done"
        # from a worker it comes with the worker's traceback
        row = str(error).rsplit("BadRowError: ", 1)[-1]
        raise UserError(f"{row} Stopped at step {trainer.state.global_step}; {left}.") from error
    if stop.signum is not None:
        raise Interrupted(
            stop.signum, f"stopped at step {trainer.state.global_step}; continue with --resume_from_checkpoint last"
        )
    if trainer.guard is not None and trainer.guard.stop_reason is not None:
        raise Failed(
            f"stopped at step {trainer.state.global_step}: {trainer.guard.stop_reason}; its last "
            "checkpoint is where it ended. Lower the learning rate, or look at the data of these steps."
        )
