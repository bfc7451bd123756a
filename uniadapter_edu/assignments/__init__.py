"""The checks that the graded assignments call, a module for each assignment: ``checks.a1.adapter(adapter)``.

Like those of the notebooks, each asserts, names the mistake it recognises, and leaves open what is still `...`. They use
numbers of their own: passing them is a good sign, and the hidden tests decide.
"""
