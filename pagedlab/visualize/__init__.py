"""Pictures of the engine: pure functions from data to a matplotlib figure, and the widgets that call them."""

from pagedlab.visualize.style import PALETTE, new_figure
from pagedlab.visualize.widgets import explore, show

__all__ = ["PALETTE", "explore", "new_figure", "show"]
