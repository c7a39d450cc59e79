"""tidegate keeps a front office in step with a back office: the shared kernel.

This package imports none of the services. What a bubble needs is re-exported by
`tidegate.bubble` and `tidegate.entity`; start reading there.
"""

__version__ = "0.1.0"
