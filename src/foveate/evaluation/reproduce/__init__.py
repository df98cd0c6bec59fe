"""A paper's table, run again and printed beside what was published."""
