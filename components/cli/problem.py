"""Error of a check of the doctor."""

__all__ = ["CheckError"]


class CheckError(Exception):
    """What is wrong, and what to do about it."""

    def __init__(self, *, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy
