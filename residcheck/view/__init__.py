"""The residual-stream viewer: each token's stream against one direction, as coloured text.

``grammar`` reads what the user asks for, ``directions`` makes a unit vector of it,
``stream`` takes the dot products while a pass runs, and ``page`` and ``terminal`` show
them. Nothing is imported before it is used.
"""
