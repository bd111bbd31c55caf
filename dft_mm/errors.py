"""The two ways in which a run ends that are not bugs."""


class InputError(ValueError):
    """What the user gave is wrong. The message names the file, key or row, the value, the limit and the way out.

    The command line prints it without a traceback and exits with 2.
    """


class Stopped(Exception):
    """The run was asked to stop and has committed a checkpoint. The command line exits with 3."""
