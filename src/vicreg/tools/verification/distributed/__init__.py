"""A loss over several ranks against one process: ``vicreg verify --distributed N``.

Each rank holds rows of its own (`batches`). `worker` runs on each rank and computes the value and
the gradient; `launching` starts the ranks and collects what they return, or how they ended.
`comparison` holds that to the whole batch in one process, and `explanation` says what is wrong.
"""
