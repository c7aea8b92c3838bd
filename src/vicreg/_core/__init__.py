"""The statistics and their closed-form derivatives, written once against the array API standard.

Nothing here imports an array library: every function takes the namespace ``xp`` of the arrays it
is given. From the inputs to the result:

``objective``   what is to be computed: a convention's choices, weights, route
``layout``      the views as one array ``(k, ..., n, d)`` in the dtype of the computation, and back
``statistics``  centring, sums of squares, the hinge on the variance
``covariance``  the squared off-diagonal covariances, by the Gram and by the covariance route
``smooth_l1``   their smooth L1 in place of their squares, in blocks of columns
``terms``       the three terms, the loss, and both directions of their derivative
"""
