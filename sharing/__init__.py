"""What other people meet: the page, the server, the Hub, and the formats of other programs."""

__all__: list[str] = []
