"""The cases, by group; each module gives a tuple `CASES`."""
