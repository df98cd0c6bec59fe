"""transformers' own model tests, run bare and then around a pruner that keeps everything (``make test-peers``).

Nothing of transformers is kept here: ``around`` is a pytest plugin that wraps the supported classes, ``families`` gives
transformers' common tests the tiny models of ``tests.tiny``, ``refused`` lists what foveate refuses and why, and
``python -m tests.peers FOLDER`` runs and compares.
"""
