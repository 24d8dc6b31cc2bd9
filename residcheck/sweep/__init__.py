"""Many models: each measured and judged in a process of its own, and kept as it is finished.

:mod:`~residcheck.sweep.listing` reads the list, :mod:`~residcheck.sweep.store` says what is
kept of a model and who may write it, :mod:`~residcheck.sweep.worker` measures one,
:mod:`~residcheck.sweep.runner` has them all measured: in processes here, or as jobs of a
cluster (:mod:`~residcheck.sweep.cluster`).
"""
