"""The demonstration: a small encoder trained on real images with and without each term.

The modules: `digits` (images and augmentations), `encoder` (the architecture and its gradient),
`trainers` (one per library), `features` (measurements), `study` (the variants), `report` and
`plot` (the output).
"""
