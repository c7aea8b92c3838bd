"""One thin adapter a framework: how its differentiation reaches the core. No mathematics here.

Every adapter module has the same five functions:

``evaluate(views, objective)``
    the outputs of the objective, differentiable by the framework where it differentiates
``value_and_grad(views, objective)``
    (loss, gradients) in closed form
``without_gradient(array)``
    the array as a constant of differentiation
``measure(array, feature_axis)``
    how far a batch has collapsed: ``core.collapse.Measures``
``register(record, constants)``
    make a dataclass of arrays, but for the fields `constants`, one that the framework returns

An adapter is imported when the first array of its library arrives, never before.
"""
