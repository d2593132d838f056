"""Which units of a network matter: scores per axis, higher = more important, made for :meth:`nas_llm.Supernet.sort`."""
