"""What all checks of exercises and assignments say in the same way."""


def is_open(answer) -> bool:
    """Whether an exercise has not been tried yet; says so."""
    if answer is ...:
        print("Not answered yet: put your answer in place of the dots and run this cell again.")
    return answer is ...


def right(why: str) -> None:
    print(f"Right. {why}")
