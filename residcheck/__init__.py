"""residcheck: documented claims about residual streams, tested on any causal model."""

__version__ = "0.1.0"
