"""When training stops because the held-out text gets no easier, neither for the weights nor for their average."""

import math

from transformers import EarlyStoppingCallback

from .weight_average import METRIC


class EarlyStopping(EarlyStoppingCallback):
    """Early stopping that sees an average of the weights; its count of fruitless evaluations survives a resume."""

    def check_metric_value(self, args, state, control, metric_value):
        """As the base class; where an average is evaluated beside the weights, the lower of both losses counts."""
        pairs = [logs for logs in state.log_history if METRIC in logs and logs["step"]]
        if not pairs or args.metric_for_best_model not in ("loss", "eval_loss"):
            return super().check_metric_value(args, state, control, metric_value)
        *earlier, last = (min(logs["eval_loss"], logs[METRIC]) for logs in pairs)
        is_lower = all(last < loss for loss in earlier if math.isfinite(loss)) and math.isfinite(last)
        self.early_stopping_patience_counter = 0 if is_lower else self.early_stopping_patience_counter + 1

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        if saved:
            self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]

    def is_over(self, state) -> bool:
        """Whether the run that a checkpoint's state is of was stopped, so that there is nothing to continue."""
        saved = state.stateful_callbacks.get(type(self).__name__)
        return bool(saved) and saved["attributes"]["early_stopping_patience_counter"] >= self.early_stopping_patience
