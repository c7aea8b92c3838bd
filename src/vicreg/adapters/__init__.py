"""One thin adapter a framework: how its differentiation reaches the core. No mathematics here.

Every adapter module has the same two functions:

``evaluate(views, objective)``
    the outputs of the objective, differentiable by the framework where it differentiates
``value_and_grad(views, objective)``
    (loss, gradients) in closed form

An adapter is imported when the first array of its library arrives, never before.
"""
