"""What one version of a library says about one model: run by that version's own Python.

Everything here works with any transformer-lens from 2.0 on and any transformers from 4.46 on;
nothing of residcheck is imported except, in ``plain``, its plain backend.
"""
