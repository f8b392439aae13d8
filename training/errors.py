"""The faults that training reports to people, one family so that a command can catch them all.

Every message names the file or value at fault and says what to do. Programming errors are not among
them: they stay `TypeError`s, `ValueError`s and `AssertionError`s with a traceback.
"""

__all__ = ["CheckpointError", "DataError", "EvaluationError", "ExportError", "TrainingError"]


class TrainingError(Exception):
    """Something outside the program's code is wrong: a file, a disk, a model's numbers."""


class DataError(TrainingError):
    """Images are missing, damaged or of several kinds."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be written or read."""


class EvaluationError(TrainingError):
    """A model and the images do not go together, or its figures are not finite."""


class ExportError(TrainingError):
    """A model cannot become a bundle, or the graphs disagree with the model they came from."""
