"""The classes that vLLM loads in place of its own, family by family; ``plugin`` names each to it.

Only the file of the model that is loaded is imported.
"""
