"""The steps of a night: each a function from a dataclass to a dataclass, usable from a task or a shell."""
