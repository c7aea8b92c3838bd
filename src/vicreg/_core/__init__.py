"""The terms and their closed-form derivatives, written once against the array API standard.

Nothing here imports an array library: what an array's library can do is a `library.Library`.
README.md, beside this file, has the rooms, the formulas and what is known of their accuracy.
"""
