"""Exported policies: files that act without iqmjx.

`export` writes one and holds it against the live policy; `formats` has one class for
each format; `numpy_policy` is the program that goes along with a NumPy file.
"""
