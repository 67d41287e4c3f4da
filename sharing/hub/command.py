"""scripts/push.py behind its flags."""

import argparse

from frankenlm.trainer_ext.common.cli import UserError, user_mistakes
from frankenlm.trainer_ext.common.logs import RunLog

from .card import CardOptions
from .push import PushOptions, check_clean, check_secrets, make_plan, push, summary


def push_model(args: argparse.Namespace) -> None:
    """Push a model, or show what would be pushed.

    Raises:
        UserError: a mistake in the flags or in what they name; nothing was sent.
        Failed: the Hub refused, or could not be reached.
    """
    if not args.message.strip():
        raise UserError("--message: is empty.")
    card = CardOptions(args.license, tuple(args.language), tuple(args.datasets), args.base_model)
    options = PushOptions(
        args.repo,
        card,
        tuple(args.include),
        args.hide_local_paths,
        tuple(args.not_secret),
        args.private,
        args.revision,
        args.create_pr,
        args.trust_remote_code,
        args.message,
    )
    with RunLog("info"):
        with user_mistakes():
            plan = make_plan(args.model, options)
        print(summary(plan))
        if args.dry_run:
            check_secrets(plan)  # the card may hold one
            print(f"\n{plan.card}")
            check_clean(plan)
            print("dry run: nothing was sent")
            return
        print(f"pushed: {push(plan)}")
