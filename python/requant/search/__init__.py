"""Models tried one after another: rankings of layers, and the walk to a target."""
