"""One thin adapter a framework: how its differentiation reaches the core. No mathematics here.

Every adapter module has the same eight functions:

``evaluate(views, objective, weights)``
    the loss, and after it each term where the objective wants them, differentiable where the
    framework differentiates
``value_and_grad(views, objective, weights)``
    (what ``evaluate`` returns, the gradients of the loss in closed form)
``apply(function, arrays, weights, settings)``
    ``function(run, arrays, weights, settings)``, what is made of several losses, as one program
    where the library compiles; the function and the settings are hashable
``floats(arrays)``
    arrays of shape () as Python's numbers, which waits for all of them at once
``without_gradient(array)``
    the array as a constant of differentiation
``rows(array, axes)``
    the array as ``(n, d)``, likewise
``measure(array, axes, weight=None)``
    how far a batch, whose samples may have weights, has collapsed: ``_core.collapse.Measures``
``wrong_count(weight, like)``
    a value of the weights of the samples of `like` that is negative, or not finite in the dtype of
    the computation; None where none is, or where values are not there yet
``register(record, constants)``
    let the framework return `record`, a dataclass of arrays except for the fields `constants`,
    which may be numbers or names

An adapter is imported when the first array of its library arrives, never before.
"""
