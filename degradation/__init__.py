"""The degradation lab. Its modules are not written yet; see README.md."""

__all__: list[str] = []
