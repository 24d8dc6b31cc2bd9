"""Regressions in model libraries: architectures x versions, judged by what they do not test.

``zoo`` (beside this package) makes the models, ``environments`` the versions, ``runner`` has
every version describe every model (``witness``), ``judge`` compares with plain transformers,
``findings`` says since which version and until which, ``page`` writes it down.
"""
