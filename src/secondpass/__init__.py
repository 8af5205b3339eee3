"""Second-stage analysis of event streams in plain Python."""

__all__: list[str] = []
