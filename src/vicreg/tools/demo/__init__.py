"""The demonstration: a small encoder trained on real images with and without each term.

The rooms: `digits` (images and augmentations), `encoder` (the architecture, and its gradient by
hand), `trainers` (one a library), `features` (what is measured), `study` (the variants),
`report` and `plot` (what is shown).
"""
