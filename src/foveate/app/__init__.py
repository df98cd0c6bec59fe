"""``foveate app``: a page in the browser on which pictures are asked about and what is kept of them is seen.

``engine`` asks and measures, ``visit`` is what one visitor has before them, ``shown`` turns it into text and HTML,
``snippets`` into code. Only ``page`` knows Gradio.
"""
