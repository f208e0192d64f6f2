"""Looking at every batch norm of a model in a forward and a backward pass, and leaving no trace.

:func:`probe` is the door; :func:`untouched` alone restores a model without recording anything.
"""

from gammabeta.probe.probe import is_batch_norm, not_compiled, probe, refuse, targets
from gammabeta.probe.seen import Keep, Record, Seen, copied
from gammabeta.probe.untouched import untouched

__all__ = [
    "Keep",
    "Record",
    "Seen",
    "copied",
    "is_batch_norm",
    "not_compiled",
    "probe",
    "refuse",
    "targets",
    "untouched",
]
