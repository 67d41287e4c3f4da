"""Why an experiment ends early, each with the exit code of the command. Imports nothing: readers of results need it.

    LabStop                 1
      MemoryStop            3   memory is nearly used up
      ConfigConflict        4   rows of another configuration lie under the same name
      ExperimentLocked      5   another process works on the experiment
      DamagedRecords        7   journal, manifest or JSON file are damaged or newer

A mistake found before the work is a `UserError` (2), storage that fails an OSError (6), a signal an `Interrupted`
(128 + its number): see trainer_ext/common/cli.py.
"""


class LabStop(Exception):
    """The work ends early, for a reason with an exit code of its own; the message is one line and says what to do."""

    exit_code = 1


class MemoryStop(LabStop):
    """Memory is nearly used up; the rows written so far are safe."""

    exit_code = 3


class ConfigConflict(LabStop):
    """Rows of another configuration lie under the same name."""

    exit_code = 4


class ExperimentLocked(LabStop):
    """Another process works on this experiment."""

    exit_code = 5


class DamagedRecords(LabStop):
    """A journal, manifest or JSON file is damaged beyond its last line, or newer than this package."""

    exit_code = 7
