"""What the parts of the conversion tell each other."""

GPUS, DATASET_INFO = "--gpus", "--dataset-info"
"""Said on the command line and not in their file."""


class Refused(ValueError):
    """What cannot be converted, and what to do instead."""


LEFT_OUT = object()
"""The key is not written: the default here is right."""
