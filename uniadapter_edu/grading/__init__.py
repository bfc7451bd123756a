"""Grading the course's assignments, for instructors: `pip install "uniadapter_edu[grading]"`, see `course`.

`hidden` is what hidden tests are written with, and needs nothing beyond the package.
"""
