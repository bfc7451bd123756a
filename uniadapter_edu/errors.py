"""One error class for everything a user can get wrong: a line of cause, a line of cure."""


class UniAdapterError(ValueError):
    """Raised for bad input. ``cause`` says what was wrong and what was expected, ``cure`` what to do."""

    def __init__(self, cause: str, cure: str):
        super().__init__(f"{cause}\n{cure}")
        self.cause, self.cure = cause, cure
