"""Exact population statistics: what running statistics only approximate."""

from gammabeta.population.recalibrate import recalibrate
from gammabeta.population.report import Change, Recalibration

__all__ = ["Change", "Recalibration", "recalibrate"]
