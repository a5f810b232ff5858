"""Scores and what may be said of them: rows' answers and references come in, scores with intervals and words go out.

Nothing here knows of files, models or tasks; of this package it imports the errors alone.
"""
