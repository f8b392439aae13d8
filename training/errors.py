"""The faults that training reports to people, one family so that a command can catch them all.

Every message names the file or value at fault and says what to do. Programming errors are not among
them: they stay `TypeError`s, `ValueError`s and `AssertionError`s with a traceback.
"""

__all__ = [
    "CheckpointError",
    "DataError",
    "EvaluationError",
    "ExportError",
    "TrainingError",
    "in_words",
]


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


def in_words(error: Exception) -> str:
    """An error for people: of the system's the file and the reason, without its number."""
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f"{error.filename}: "
        return f"{name}{error.strerror}"
    return str(error)
