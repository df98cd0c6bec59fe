"""How the bundled model was made: ``python -m training``. Not part of the wheel."""
