"""The claims about batch norm, measured: variants of the network, trained under the same order.

:func:`compare` trains, :class:`Comparison` holds what came out and renders the page.
"""

from gammabeta.insight.compare.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
