"""Experiments: many runs, told in a file, and what came out of them.

`plan` reads the file, `runner` makes the runs, `curves` keeps what is left of each.
"""
