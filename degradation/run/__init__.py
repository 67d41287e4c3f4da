"""The flow of an experiment: its plan and cost before a model is loaded, then the loop that fills rows."""
