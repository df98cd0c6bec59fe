"""Foveate inside vLLM: a plugin, found by its entry point, that prunes images and videos before vLLM's own scheduler
counts them.

Off unless a model is started with the options that ``options`` makes. What runs where:

- API server: ``processing`` decides per request what an image keeps, gives it an identity of its own and shortens the
  prompt's placeholders; ``info`` says what a model takes, ``policy`` what a request may ask for, ``requests`` what it
  may hold and which of its text guides; ``picture_cache`` has the pictures that come by UUID. ``image_request`` travels
  from here to the worker.
- Worker: ``embedder`` has vLLM's vision tower encode an image once (``features`` keeps it for the next question) and
  runs the same ``Pruner.select`` as with transformers; ``models`` are the subclasses that vLLM loads. ``films`` cuts
  videos into pieces, ``encoded_cache`` puts what was encoded into ``features``.
- ``hooks``, with ``film_hooks`` for videos, holds every part of vLLM that is not its documented interface, and
  ``versions`` the versions they fit.
"""

from foveate.serving.policy import Policy, options

__all__ = ["Policy", "options"]
