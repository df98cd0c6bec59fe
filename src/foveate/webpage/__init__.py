"""What was kept as HTML that needs nothing else: a picture to explore patch by patch, and a whole page that opens
offline."""

from foveate.webpage.document import Column, check_path, document, save
from foveate.webpage.figure import figure

__all__ = ["Column", "check_path", "document", "figure", "save"]
