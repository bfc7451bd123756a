"""One error class for everything a user can get wrong: a line of cause, a line of cure."""


class UniAdapterError(ValueError):
    """Raised for bad input. ``cause`` says what was wrong and what was expected, ``cure`` what to do."""

    def __init__(self, cause: str, cure: str):
        super().__init__(f"{cause}\n{cure}")
        self.cause, self.cure = cause, cure

    def __reduce__(self):
        return type(self), (self.cause, self.cure)  # so that it survives the way out of a process that loads data


class UnreadableError(UniAdapterError):
    """A row of a data set whose picture or clip is lost or damaged. Training can be told to do without it."""
